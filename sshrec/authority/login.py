"""Password and second factor: who shows both is the user. Signs nothing, and speaks to nobody.

A try is charged before it is checked and given back when it was right. Whoever fails learns nothing of why, not
even by the time it takes: a user who is not there costs a hash like any other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select, update

from sshrec.access import names, password
from sshrec.access.addresses import source_key
from sshrec.access.password import Passwords
from sshrec.authority import factors, failures, locks
from sshrec.authority.factors import NoMatch, Recovery, Totp
from sshrec.authority.failures import Charge
from sshrec.authority.locks import Lock
from sshrec.authority.outbox import tell
from sshrec.authority.seeds import Seeds
from sshrec.errors import Denied
from sshrec.storage import schema
from sshrec.storage.database import Database

_USERS = schema.users


_AT_HOME_MS = 30 * 24 * 60 * 60 * 1000  # for how long a right code makes a source known


class Wrong(Denied):
    """Name, password or code is wrong; nobody is told which."""


@dataclass(frozen=True, slots=True)
class Proved:
    """It is this user, who may use these logins. `factor`: totp, recovery, or None where none was asked for."""

    user: str
    logins: tuple[str, ...]
    factor: str | None
    recovery: int  # codes that are left


@dataclass(frozen=True, slots=True)
class _Right:
    """Password and code are right, and the code is used."""

    logins: tuple[str, ...]
    factor: Totp | Recovery | None


class Logins:
    """The logins of a database. `source`, everywhere: the client's address, None where it has none."""

    def __init__(self, database: Database, seeds: Seeds, passwords: Passwords) -> None:
        self._database = database
        self._seeds = seeds
        self._passwords = passwords

    def login(
        self,
        name: str,
        secret: str,
        code: str | None,
        source: str | None,
        now_ms: int,
        *,
        second_factor: bool = True,
    ) -> Proved:
        """Check password and code of a user, who may then have a certificate. It is one answer to both.

        `code`: of the app, or a recovery code; not looked at without `second_factor`. Raises Wrong,
        failures.TooMany, and Denied with the reason for a user who has shown both and is locked.
        """
        known = name if names.is_user(name) else ""
        charge = self._charge(known, source, now_ms)
        with self._database.reading() as connection:
            row = _user(connection, known)
        kept = row.password if row is not None else None
        # Outside any transaction: nobody else could write for the time of a hash.
        right = self._passwords.verify(secret, kept)
        better = self._passwords.make_hash(secret) if right and kept and password.is_outdated(kept) else kept
        with self._database.transaction() as connection:
            found = self._weigh(
                connection, known, kept if right else None, (code or "") if second_factor else None, source, now_ms
            )
            if not isinstance(found, NoMatch):
                failures.refund(connection, charge, now_ms)
            if isinstance(found, _Right):
                if found.factor is not None:
                    factors.note_check(connection, name, source_key(source), None, now_ms)
                values = {"login_ms": now_ms, "password": better}
                connection.execute(update(_USERS).where(_USERS.c.name == name).values(values))
            _tell(connection, "user.login", "T1000W", row and name, found, source, now_ms, {"method": "local"})
            left = factors.codes_left(connection, known)
        if isinstance(found, NoMatch):
            raise Wrong("wrong name, password or code" if second_factor else "wrong name or password")
        if isinstance(found, Lock):
            raise Denied(str(found))
        kind = None if found.factor is None else str(factors.device(found.factor)["mfa_device_type"])
        return Proved(name, found.logins, kind, left)

    def check_factor(
        self, name: str, code: str, source: str | None, now_ms: int, session: str | None = None
    ) -> str:
        """Check a code of a user who is known already, for a session: totp or recovery. Raises Wrong, TooMany.

        A grace period for that source begins.
        """
        known = name if names.is_user(name) else ""
        # Apart from the logins': who fails at the door in a user's name must not end the user's sessions.
        charge = self._charge(known and failures.at_session(known), source, now_ms)
        with self._database.transaction() as connection:
            row = _user(connection, known)
            found = self._weigh(connection, known, row and row.password, code, source, now_ms)
            if not isinstance(found, NoMatch):
                failures.refund(connection, charge, now_ms)
            if isinstance(found, _Right):
                factors.note_check(connection, name, source_key(source), session, now_ms)
            said = {} if session is None else {"sid": session}
            _tell(connection, "mfa_auth_challenge.validate", "T1016W", row and name, found, source, now_ms, said)
        if isinstance(found, NoMatch):
            raise Wrong("wrong code")
        if isinstance(found, Lock):
            raise Denied(str(found))
        assert found.factor is not None
        return str(factors.device(found.factor)["mfa_device_type"])

    def since_factor(self, name: str, source: str | None, now_ms: int) -> float | None:
        """Seconds since the user showed a code from that source; None if never, or the clock went back since."""
        with self._database.reading() as connection:
            at_ms = factors.last_check(connection, name, source_key(source))
        return None if at_ms is None or at_ms > now_ms else (now_ms - at_ms) / 1000

    def _charge(self, known: str, source: str | None, now_ms: int) -> Charge:
        """Charge the account, or where it has been at home lately, the account at that place alone.

        So nobody who guesses elsewhere keeps its owner out; there, nobody gets more tries than elsewhere.
        """
        with self._database.reading() as connection:
            if not self._seeds.exists:
                factors.ensure_key(connection, self._seeds)
            shown = factors.last_check(connection, known, source_key(source)) if known else None
        at_home = shown is not None and now_ms - shown < _AT_HOME_MS
        account = f"{known} at {source_key(source)}" if at_home else known
        return failures.charge(self._database, self._seeds.tag(account) if known else None, source, now_ms)

    def _weigh(
        self,
        connection: Connection,
        name: str,
        kept: str | None,
        code: str | None,
        source: str | None,
        now_ms: int,
    ) -> _Right | NoMatch | Lock:
        """Whether all is right, and use the code then. `kept`: the hash that the password was right for."""
        found = None if code is None else factors.find(connection, self._seeds, name, code, now_ms)
        row = _user(connection, name)
        if row is None:
            return NoMatch("no such user")
        if row.status != "active":
            return NoMatch("the registration is not finished")
        # Another hash by now: the account was reset while we were counting.
        if kept is None or row.password != kept:
            return NoMatch("wrong password")
        if isinstance(found, NoMatch):
            return found
        if found is not None and not factors.use(connection, name, found, source or "", now_ms):
            return NoMatch("a code that was used before")
        for lock in locks.active(connection, now_ms, "user", [name]):
            return lock
        return _Right(tuple(json.loads(row.logins)), found)


def _user(connection: Connection, name: str) -> Row[Any] | None:
    return connection.execute(select(_USERS).where(_USERS.c.name == name)).first()


def _tell(
    connection: Connection,
    event: str,
    failed: str,
    user: str | None,
    found: _Right | NoMatch | Lock,
    source: str | None,
    now_ms: int,
    said: dict[str, Any],
) -> None:
    """What came of it. A name that is no user's is left out: it may be a password, typed too early."""
    said = {**said, "addr.remote": source or "", "success": isinstance(found, _Right)}
    if user is not None:
        said["user"] = user
    if isinstance(found, _Right):
        tell(connection, event, said | (factors.device(found.factor) if found.factor else {}), now_ms)
    else:
        why = found.reason if isinstance(found, NoMatch) else str(found)
        tell(connection, event, {**said, "error": why}, now_ms, code=failed)
