"""What users and logins may be called: one grammar for both, and the names that are not people's. Values only."""

from __future__ import annotations

from collections.abc import Iterable

from sshrec.errors import UsageError
from sshrec.session import LOGIN, printable

LOGINS_MAX = 100  # a certificate has 128 principals at most

# Accounts of a bastion that no certificate of ours may ever open.
_NOT_PEOPLE = frozenset({"root", "nobody", "sshd", "sshrec", "sshrec-auth", "sshrec-web", "sshrec-krl"})
_HINT = "lower-case ASCII letters, digits and _.-, 32 at most, a letter or _ first"


def check_user(name: str, login_account: str = "login") -> str:
    """The name, if a user may bear it; UsageError says why not. `login_account`: which account logs people in."""
    if not is_user(name):
        raise UsageError(f"'{printable(name, 40)}' cannot be a user", hint=_HINT)
    if name in _NOT_PEOPLE or name == login_account:
        raise UsageError(f"{name!r} cannot be a user: the account is the system's")
    return name


def is_user(name: str) -> bool:
    """Whether a user could be called that, as far as the grammar goes."""
    return LOGIN.fullmatch(name) is not None


def check_logins(logins: Iterable[str]) -> tuple[str, ...]:
    """The logins, each once, in their order; UsageError where there is none, or one that no account is called."""
    names = tuple(dict.fromkeys(logins))
    for name in names:
        if LOGIN.fullmatch(name) is None:
            raise UsageError(f"'{printable(name, 40)}' cannot be a login", hint=_HINT)
    if not names:
        raise UsageError("a user needs a login", hint="joe,root,ec2-user")
    if len(names) > LOGINS_MAX:
        raise UsageError(f"{len(names)} logins are more than a certificate has room for, {LOGINS_MAX}")
    return names
