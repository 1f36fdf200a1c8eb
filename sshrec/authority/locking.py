"""Placing a lock and lifting it, with what a lock does to certificates. What is locked, locks.py has."""

from __future__ import annotations

from sshrec.authority import ledger, locks
from sshrec.authority.certificates import Asker
from sshrec.authority.ledger import Entry
from sshrec.authority.locks import Kind, Lock
from sshrec.storage.database import Database


def lock(
    database: Database, kind: Kind, name: str, reason: str, until_ms: int | None, asker: Asker, now_ms: int
) -> list[Entry]:
    """Lock it, until then or until it is lifted (None). A user's certificates are revoked, and given back.

    New ones are refused while the lock holds, so a lock with an end needs nobody to end it.
    """
    made = Lock(kind=kind, name=name, reason=reason, made_ms=now_ms, made_by=asker.by, until_ms=until_ms)
    with database.transaction() as connection:
        locks.add(connection, made, asker.source)
        if kind != "user":
            return []
        why = f"locked: {reason}" if reason else "locked"
        return ledger.revoke_all(connection, "user", name, asker.by, why, now_ms)


def unlock(database: Database, kind: Kind, name: str, asker: Asker, now_ms: int) -> None:
    """Lift a lock; certificates that it revoked stay so. NotFound where none holds."""
    with database.transaction() as connection:
        locks.lift(connection, kind, name, asker.by, asker.source, now_ms)


def held(database: Database, now_ms: int) -> list[Lock]:
    """The locks that hold, the oldest first."""
    with database.reading() as connection:
        return locks.active(connection, now_ms)
