"""Secrets that people copy by hand: how they are spelled, read back and hashed. Knows not what they open.

They are random and long, so a plain SHA-256 of one gives it away to nobody; a password's hash is another matter.
"""

from __future__ import annotations

import hashlib
import secrets

# Crockford's base 32 in lower case: no letter in it looks like another, or like a digit.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LOOKALIKES = str.maketrans("oil", "011", " -\t\r\n")
_LONGEST = 256


def new(groups: int, size: int) -> str:
    """A new secret: so many groups of `size` characters, five bits each, with hyphens between."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(size)) for _ in range(groups))


def canonical(text: str) -> str:
    """As it was meant: lower case, without spaces and hyphens, an o a 0, an i or l a 1; "" for what is none."""
    if not text.isascii() or len(text) > _LONGEST:
        return ""
    plain = text.lower().translate(_LOOKALIKES)
    return plain if set(plain) <= set(_ALPHABET) else ""


def digest(purpose: str, text: str) -> str:
    """What is kept of it: 64 hexadecimal digits. `purpose`: so that no secret passes for another kind."""
    return hashlib.sha256(f"sshrec {purpose}\0{canonical(text)}".encode()).hexdigest()
