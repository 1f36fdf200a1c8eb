"""What an invitation is redeemed for: the person's own password, second factor and recovery codes.

In two steps, and only the last one leaves anything: whoever is interrupted before has an invitation as good as
new, and of two who come with the same one, one wins.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import Connection, update

from sshrec.access import invitation, password, recovery, totp
from sshrec.access.password import Passwords
from sshrec.authority import factors, failures, locks
from sshrec.authority.outbox import tell
from sshrec.authority.seeds import Seeds
from sshrec.errors import Denied, UsageError
from sshrec.storage import schema
from sshrec.storage.database import Database

_USERS, _INVITATIONS = schema.users, schema.invitations
_EARLY_MS = 300_000  # that the clock may have gone back since an invitation was made


@dataclass(frozen=True, slots=True, kw_only=True)
class Invited:
    """Whom an invitation is for. `purpose`: registration or reset; `expires_ms`: Unix milliseconds."""

    user: str
    logins: tuple[str, ...]
    purpose: str
    expires_ms: int


class Registrations:
    """The registrations of a database. `source`, everywhere: the client's address, None where it has none."""

    def __init__(self, database: Database, seeds: Seeds, passwords: Passwords) -> None:
        self._database = database
        self._seeds = seeds
        self._passwords = passwords

    def start(self, token: str, source: str | None, now_ms: int) -> Invited:
        """Whom it is for. Denied for an invitation that is none, or no more, in the same words; TooMany."""
        charge = failures.charge(self._database, None, source, now_ms)
        with self._database.transaction() as connection:
            invited = _invited(connection, token, now_ms)
            failures.refund(connection, charge, now_ms)
        return invited

    def redeem(
        self, token: str, secret: str, seed: bytes | None, code: str | None, source: str | None, now_ms: int
    ) -> tuple[str, ...]:
        """Finish it, all at once: the recovery codes, which are shown once and kept as hashes.

        `seed`: what the person's app was given, and `code`, which it made of it; without a seed there is no second
        factor, and no recovery codes. UsageError for a password that is not taken, or a code that does not fit:
        nothing has happened then. Denied as in `start`.
        """
        with self._database.reading() as connection:
            user = _invited(connection, token, now_ms).user
        password.check(secret, user)
        step = None if seed is None else totp.match(seed, code or "", now_ms / 1000)
        if seed is not None and step is None:
            raise UsageError("the code does not fit", hint="wait for the next one; is the phone's clock right?")
        kept = self._passwords.make_hash(secret)
        codes = recovery.new_codes() if seed is not None else ()
        with self._database.transaction() as connection:
            _use(connection, token, now_ms)
            values = {"status": "active", "password": kept, "password_ms": now_ms}
            connection.execute(update(_USERS).where(_USERS.c.name == user).values(values))
            tell(connection, "user.password_change", {"user": user, "addr.remote": source or ""}, now_ms)
            factors.ensure_key(connection, self._seeds)
            for of in (user, failures.at_session(user)):
                failures.forget(connection, self._seeds.tag(of))
            if seed is not None and step is not None:
                factors.add_totp(connection, user, self._seeds.seal(user, seed), step, source or "", now_ms)
                factors.add_codes(connection, user, codes, source or "", now_ms)
        return codes


def _invited(connection: Connection, token: str, now_ms: int) -> Invited:
    columns = _INVITATIONS.c
    wanted = (
        _INVITATIONS.join(_USERS, _USERS.c.name == columns.user_name)
        .select()
        .where(
            columns.hash == invitation.digest(token),
            columns.used_ms.is_(None),
            columns.expires_ms > now_ms,
            columns.made_ms <= now_ms + _EARLY_MS,
        )
    )
    row = connection.execute(wanted).first()
    if row is None:
        raise _denied()
    for lock in locks.active(connection, now_ms, "user", [row.user_name]):
        raise Denied(str(lock))
    return Invited(
        user=row.user_name, logins=tuple(json.loads(row.logins)), purpose=row.purpose, expires_ms=row.expires_ms
    )


def _use(connection: Connection, token: str, now_ms: int) -> None:
    """Mark it used; Denied where it was not to be used any more."""
    _invited(connection, token, now_ms)
    columns = _INVITATIONS.c
    used = connection.execute(
        update(_INVITATIONS)
        .where(columns.hash == invitation.digest(token), columns.used_ms.is_(None))
        .values(used_ms=now_ms)
    )
    if not used.rowcount:
        raise _denied()


def _denied() -> Denied:
    return Denied(
        "that invitation is not valid, was used, or has expired", hint="whoever invited you can make a new one"
    )
