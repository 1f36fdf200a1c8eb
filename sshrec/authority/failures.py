"""Who fails too often, as the database has it: a try is charged before it is checked. Checks nothing itself.

The rule is access/attempts.py's. Names that are no user's are charged as well, or they could be told apart.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from sshrec.access import attempts
from sshrec.access.addresses import source_key
from sshrec.access.attempts import Tries, Wait
from sshrec.duration import left
from sshrec.errors import Denied
from sshrec.storage import schema
from sshrec.storage.database import Database

_ATTEMPTS = schema.attempts


class TooMany(Denied):
    """There were too many failures. `seconds`: before which another try is useless."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many failures: try again in {left(seconds)}")
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Charge:
    """A try that counts as a failure until it is refunded."""

    keys: tuple[tuple[str, str], ...]  # kind, name
    at_ms: int


def charge(database: Database, account: str | None, source: str | None, now_ms: int) -> Charge:
    """Count a try, durably, for an account (its tag, see seeds.py; None: for none) and a source.

    `source`: an address, or what else the asker can be told by; None: all who come from nowhere together. TooMany
    where it is one too many for either; then neither is charged.
    """
    keys: tuple[tuple[str, str], ...] = (("source", source_key(source)),)
    if account is not None:
        keys = (("account", account), *keys)
    with database.transaction() as connection:
        _forget(connection, now_ms)
        charged, waits = [], []
        for kind, of in keys:
            tries = attempts.charge(_load(connection, kind, of), now_ms, account=kind == "account")
            if isinstance(tries, Wait):
                waits.append(tries.ms)
            else:
                charged.append((kind, of, tries))
        if waits:
            raise TooMany(math.ceil(max(waits) / 1000))
        for kind, of, tries in charged:
            _save(connection, kind, of, tries)
    return Charge(keys, now_ms)


def refund(connection: Connection, charge: Charge, now_ms: int) -> None:
    """It was no failure, which is a fact with the rest of the caller's transaction."""
    for kind, name in charge.keys:
        tries = _load(connection, kind, name)
        _save(connection, kind, name, attempts.refund(tries, charge.at_ms, now_ms, account=kind == "account"))


def at_session(user: str) -> str:
    """What the codes of a user are charged to who is in already, and is asked for one before a session."""
    return f"{user} at a session"


def forget(connection: Connection, account: str) -> None:
    """What an account (its tag) has failed counts no more."""
    connection.execute(delete(_ATTEMPTS).where(_ATTEMPTS.c.kind == "account", _ATTEMPTS.c.name == account))


def _forget(connection: Connection, now_ms: int) -> None:
    """What a day has passed over says nothing any more. Or a stranger could fill the table with names."""
    columns = _ATTEMPTS.c
    connection.execute(
        delete(_ATTEMPTS).where(columns.seen_ms < now_ms - attempts.DAY_MS, columns.until_ms < now_ms)
    )


def _load(connection: Connection, kind: str, name: str) -> Tries:
    columns = _ATTEMPTS.c
    row = connection.execute(select(_ATTEMPTS).where(columns.kind == kind, columns.name == name)).first()
    if row is None:
        return Tries()
    return Tries(failures=tuple(json.loads(row.failures)), until_ms=row.until_ms, seen_ms=row.seen_ms)


def _save(connection: Connection, kind: str, name: str, tries: Tries) -> None:
    columns = _ATTEMPTS.c
    values = {"failures": json.dumps(tries.failures), "until_ms": tries.until_ms, "seen_ms": tries.seen_ms}
    changed = connection.execute(
        update(_ATTEMPTS).where(columns.kind == kind, columns.name == name).values(values)
    )
    if not changed.rowcount:
        connection.execute(insert(_ATTEMPTS).values(kind=kind, name=name, **values))
