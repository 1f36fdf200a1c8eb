"""Codes that change every thirty seconds (RFC 6238): which one fits, and what an app needs to make them.

Keeps nothing: who asks says which step was used last, and sees to it that no two answers for one step count.
"""

from __future__ import annotations

import base64
import os
from urllib.parse import quote

from cryptography.hazmat.primitives import constant_time
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.hotp import HOTP

STEP_SECONDS, DIGITS, SEED_BYTES = 30, 6, 20
NEVER = -1  # the last step of who has used none

_DRIFT = 1  # steps that a clock may be off, both ways


def new_seed() -> bytes:
    """160 random bits, as RFC 4226 §4 recommends."""
    return os.urandom(SEED_BYTES)


def match(seed: bytes, code: str, now: float, last_step: int = NEVER) -> int | None:
    """The step whose code that is, None where it is none of now: one early, one late, and none that was used.

    `now`: Unix seconds. `last_step`: of the last code that was taken; it and those before it count no more, so a
    clock that went back fails closed. Whoever takes the code must put the step in its place, if nobody else has.
    """
    typed = is_code(code)
    given = "".join(code.split()).encode() if typed else b"0" * DIGITS
    hotp = HOTP(seed, DIGITS, SHA1())  # noqa: S303 - what every app speaks; HMAC does not ask for more
    current, found = int(now) // STEP_SECONDS, None
    for step in range(max(current - _DRIFT, 0), current + _DRIFT + 1):
        equal = constant_time.bytes_eq(hotp.generate(step), given)
        if equal and typed and step > last_step and found is None:
            found = step
    return found


def is_code(text: str) -> bool:
    """Whether it is six digits, with a space in the middle or not."""
    digits = "".join(text.split()) if len(text) < 32 else ""
    return len(digits) == DIGITS and digits.isascii() and digits.isdecimal()


def spelled(seed: bytes) -> str:
    """The seed in base32, in groups of four, for those who type it into the app."""
    text = _base32(seed)
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def uri(seed: bytes, user: str, issuer: str) -> str:
    """What the QR code says: otpauth://totp/ISSUER:USER?secret=…

    Without the parameters whose defaults are ours (SHA1, 6, 30): each character makes the picture larger.
    """
    issuer = quote(issuer, safe="")
    return f"otpauth://totp/{issuer}:{quote(user, safe='')}?secret={_base32(seed)}&issuer={issuer}"


def _base32(seed: bytes) -> str:
    return base64.b32encode(seed).decode().rstrip("=")
