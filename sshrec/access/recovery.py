"""Recovery codes: what opens an account once each when the second factor is lost. Knows no storage."""

from __future__ import annotations

from sshrec.access import spelled

COUNT = 10
_GROUPS, _SIZE = 4, 4  # 80 bits: what is hashed fast must not be guessable from the hash


def new_codes() -> tuple[str, ...]:
    """Ten codes, each xxxx-xxxx-xxxx-xxxx."""
    return tuple(spelled.new(_GROUPS, _SIZE) for _ in range(COUNT))


def is_code(text: str) -> bool:
    """Whether it has the form of one, however it was typed."""
    return len(spelled.canonical(text)) == _GROUPS * _SIZE


def digest(user: str, code: str) -> str:
    """What is kept of a user's code."""
    return spelled.digest(f"recovery code of {user}", code)
