"""Invitations: the secret that lets a person finish their own account, once and soon. Knows no storage."""

from __future__ import annotations

from sshrec.access import names, spelled
from sshrec.duration import Duration
from sshrec.errors import UsageError

TTL, TTL_LIMIT = Duration.parse("1h"), Duration.parse("48h")

_GROUPS, _SIZE = 6, 5  # 150 bits


def new_token() -> str:
    """A token of 150 bits: xxxxx-xxxxx-xxxxx-xxxxx-xxxxx-xxxxx."""
    return spelled.new(_GROUPS, _SIZE)


def is_token(text: str) -> bool:
    """Whether it has the form of one, however it was typed, and not that of a user's name."""
    return len(spelled.canonical(text)) == _GROUPS * _SIZE and not names.is_user(text)


def digest(token: str) -> str:
    """What is kept of a token, however it was typed."""
    return spelled.digest("invitation", token)


def check_ttl(ttl: Duration) -> Duration:
    """UsageError where an invitation would be good for too long."""
    if ttl > TTL_LIMIT:
        raise UsageError(f"{ttl} is longer than an invitation may be good for, {TTL_LIMIT}")
    return ttl
