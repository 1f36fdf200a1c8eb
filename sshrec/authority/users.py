"""People's accounts: who there is, with which logins, and the invitation that lets them finish it themselves.

Each function is one transaction, and the audit log is told in it. Passwords and codes are login.py's, what an
invitation is redeemed for registration.py's; the person's Unix account is nobody's here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from sshrec.access import invitation
from sshrec.access.names import check_logins, check_user
from sshrec.authority import ledger
from sshrec.authority.certificates import Asker
from sshrec.authority.ledger import Entry
from sshrec.authority.outbox import tell
from sshrec.duration import Duration
from sshrec.errors import Denied, NotFound
from sshrec.recording.asciicast import rfc3339
from sshrec.session import printable
from sshrec.storage import schema
from sshrec.storage.database import Conflict, Database

Status = Literal["invited", "active"]
Purpose = Literal["registration", "reset"]

_REMOVED = "the user was removed"  # by this, and no other, revocation a new user of the name is not bound

_USERS, _FACTORS, _INVITATIONS = schema.users, schema.factors, schema.invitations
_CODES, _CHECKS = schema.recovery_codes, schema.factor_checks


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A second factor. `kind`: totp or webauthn; `label`: what its owner calls it; times in Unix milliseconds."""

    kind: str
    label: str
    added_ms: int
    used_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An account. `invited_ms`: until when an invitation is open, None where none is (Unix milliseconds).

    `status`: invited until the registration is finished, and again after a reset. `recovery`: codes that are left.
    """

    name: str
    logins: tuple[str, ...]
    status: Status
    made_ms: int
    made_by: str
    password_ms: int | None
    login_ms: int | None
    invited_ms: int | None
    factors: tuple[Factor, ...]
    recovery: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A new one. The token is nowhere else: it is handed to the person, and only its hash is kept."""

    user: str
    token: str
    purpose: Purpose
    expires_ms: int


class Users:
    """The accounts of a database. Every method is one transaction; DatabaseError where that fails.

    `login_account`: the account of the bastion that people register and log in at, which is nobody's name.
    """

    def __init__(self, database: Database, login_account: str = "login") -> None:
        self._database = database
        self._login_account = login_account

    def check_new(self, name: str) -> None:
        """Whether there may be a user of that name; raises as `add`, which looks again."""
        check_user(name, self._login_account)
        with self._database.reading() as connection:
            self._check_new(connection, name)

    def _check_new(self, connection: Connection, name: str) -> None:
        if connection.execute(select(_USERS.c.name).where(_USERS.c.name == name)).first():
            raise Conflict(f"there is a user {name} already", hint=f"sshrec users reset {name} invites again")
        revoked = ledger.is_cut_off(connection, "user", name)
        if revoked is not None and revoked.revoked.reason != _REMOVED:
            why = f": {printable(revoked.revoked.reason)}" if revoked.revoked.reason else ""
            raise Denied(
                f"{name}'s certificates were revoked by {printable(revoked.revoked.by)}{why}",
                hint=f"to allow new ones: sshrec-ca revoke --undo {name}",
            )

    def add(self, name: str, logins: Iterable[str], ttl: Duration, asker: Asker, now_ms: int) -> Invitation:
        """A new user, with an invitation.

        One who was removed may come back: new certificates are allowed again, the old ones stay revoked.
        UsageError for what cannot be a name, Conflict where there is one, Denied where the key id was revoked for
        other reasons than that removal.
        """
        check_user(name, self._login_account)
        allowed = check_logins(logins)
        invitation.check_ttl(ttl)
        with self._database.transaction() as connection:
            self._check_new(connection, name)
            if ledger.is_cut_off(connection, "user", name):
                ledger.let_back(connection, "user", name, asker.by, now_ms)
            connection.execute(
                insert(_USERS).values(
                    name=name, logins=_json(allowed), status="invited", made_ms=now_ms, made_by=asker.by
                )
            )
            said = {"name": name, "logins": list(allowed), "connector": "local"}
            tell(connection, "user.create", said | _by(asker), now_ms)
            return _invite(connection, name, "registration", ttl, asker, now_ms)

    def all(self, now_ms: int) -> list[User]:
        """Everybody, by name."""
        with self._database.reading() as connection:
            return _users(connection, now_ms)

    def user(self, name: str, now_ms: int) -> User:
        """One of them, or NotFound."""
        with self._database.reading() as connection:
            return _user(connection, name, now_ms)

    def update(self, name: str, logins: Iterable[str], asker: Asker, now_ms: int) -> tuple[User, list[Entry]]:
        """Other logins. What is taken away is gone at once: certificates with it are revoked, and given back."""
        allowed = check_logins(logins)
        with self._database.transaction() as connection:
            before = _user(connection, name, now_ms)
            connection.execute(update(_USERS).where(_USERS.c.name == name).values(logins=_json(allowed)))
            said = {"name": name, "logins": list(allowed), "logins_before": list(before.logins)}
            tell(connection, "user.update", said | _by(asker), now_ms)
            gone = set(before.logins) - set(allowed)
            why = f"no longer allowed: {', '.join(sorted(gone))}"
            revoked = ledger.revoke_all(connection, "user", name, asker.by, why, now_ms, gone) if gone else []
            return _user(connection, name, now_ms), revoked

    def reset(self, name: str, ttl: Duration, asker: Asker, now_ms: int) -> Invitation:
        """Make password, second factors, recovery codes and open invitations void, and invite anew.

        Certificates stay good: a lock revokes them. NotFound.
        """
        invitation.check_ttl(ttl)
        with self._database.transaction() as connection:
            before = _user(connection, name, now_ms)
            _void(connection, name)
            connection.execute(
                update(_USERS)
                .where(_USERS.c.name == name)
                .values(status="invited", password=None, password_ms=None)
            )
            _tell_gone(connection, before, asker, now_ms)
            return _invite(connection, name, "reset", ttl, asker, now_ms)

    def remove(self, name: str, asker: Asker, now_ms: int) -> list[Entry]:
        """Remove a user with all they had; what certificates were good are revoked, and given back. NotFound."""
        with self._database.transaction() as connection:
            before = _user(connection, name, now_ms)
            _void(connection, name)
            connection.execute(delete(_USERS).where(_USERS.c.name == name))
            _tell_gone(connection, before, asker, now_ms)
            tell(connection, "user.delete", {"name": name, "logins": list(before.logins)} | _by(asker), now_ms)
            return ledger.cut_off(connection, "user", name, asker.by, _REMOVED, now_ms)


def given(connection: Connection, name: str) -> frozenset[str] | None:
    """The logins that a user was given, None where there is no such user: all that a session's decision needs."""
    if not (name.isascii() and name.isprintable()):
        return None
    found = connection.execute(select(_USERS.c.logins).where(_USERS.c.name == name)).scalar()
    return None if found is None else frozenset(json.loads(found))


def _void(connection: Connection, name: str) -> None:
    for table in (_FACTORS, _CODES, _CHECKS, _INVITATIONS):
        connection.execute(delete(table).where(table.c.user_name == name))


def _tell_gone(connection: Connection, before: User, asker: Asker, now_ms: int) -> None:
    for factor in before.factors:
        said = {"name": before.name, "mfa_device_name": factor.label, "mfa_device_type": factor.kind}
        tell(connection, "mfa.delete", said | _by(asker), now_ms)


def _invite(
    connection: Connection, name: str, purpose: Purpose, ttl: Duration, asker: Asker, now_ms: int
) -> Invitation:
    token = invitation.new_token()
    made = Invitation(user=name, token=token, purpose=purpose, expires_ms=now_ms + ttl * 1000)
    connection.execute(
        insert(_INVITATIONS).values(
            hash=invitation.digest(token),
            user_name=name,
            purpose=purpose,
            made_ms=now_ms,
            made_by=asker.by,
            expires_ms=made.expires_ms,
        )
    )
    said = {"name": name, "ttl": str(ttl), "expires": rfc3339(made.expires_ms), "purpose": purpose}
    tell(connection, "reset_password_token.create", said | _by(asker), now_ms)
    return made


def _by(asker: Asker) -> dict[str, str]:
    return {"user": asker.by, "addr.remote": asker.source}


def _user(connection: Connection, name: str, now_ms: int) -> User:
    for user in _users(connection, now_ms, name):
        return user
    raise NotFound(f"there is no user {printable(name, 40)}", hint="see: sshrec users ls")


def _users(connection: Connection, now_ms: int, name: str | None = None) -> list[User]:
    """Some, with a question a table, not a user."""
    if name is not None and not (name.isascii() and name.isprintable()):
        return []  # which no database needs to be asked for
    factors: dict[str, list[Factor]] = {}
    for row in connection.execute(_of(select(_FACTORS), _FACTORS, name).order_by(_FACTORS.c.id)):
        found = Factor(kind=row.kind, label=row.label, added_ms=row.added_ms, used_ms=row.used_ms)
        factors.setdefault(row.user_name, []).append(found)
    left = select(_CODES.c.user_name, func.count().label("n")).where(_CODES.c.used_ms.is_(None))
    codes = {
        row.user_name: row.n for row in connection.execute(_of(left.group_by(_CODES.c.user_name), _CODES, name))
    }
    columns = _INVITATIONS.c
    unused = select(columns.user_name, func.max(columns.expires_ms).label("until")).where(
        columns.used_ms.is_(None), columns.expires_ms > now_ms
    )
    invited = {
        row.user_name: row.until
        for row in connection.execute(_of(unused.group_by(columns.user_name), _INVITATIONS, name))
    }
    wanted = select(_USERS).order_by(_USERS.c.name)
    if name is not None:
        wanted = wanted.where(_USERS.c.name == name)
    return [
        _account(row, tuple(factors.get(row.name, ())), codes.get(row.name, 0), invited.get(row.name))
        for row in connection.execute(wanted)
    ]


def _of(wanted: Any, table: Any, name: str | None) -> Any:
    return wanted if name is None else wanted.where(table.c.user_name == name)


def _account(row: Row[Any], factors: tuple[Factor, ...], recovery: int, invited_ms: int | None) -> User:
    return User(
        name=row.name,
        logins=tuple(json.loads(row.logins)),
        status=row.status,
        made_ms=row.made_ms,
        made_by=row.made_by,
        password_ms=row.password_ms,
        login_ms=row.login_ms,
        invited_ms=invited_ms,
        factors=factors,
        recovery=recovery,
    )


def _json(logins: Iterable[str]) -> str:
    return json.dumps(list(logins), separators=(",", ":"))
