"""What is locked: users, logins, nodes, sessions. Ends no session itself: who conducts one asks.

A lock with an end needs nobody to lift it: whoever asks gives the time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import Connection, Row, Select, insert, select, update

from sshrec.access import decision
from sshrec.authority.outbox import tell
from sshrec.errors import Denied, NotFound, UsageError
from sshrec.recording.asciicast import rfc3339
from sshrec.storage import schema

Kind = Literal["user", "login", "node", "session"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_LOCKS = schema.locks


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """One of them. `until_ms`: Unix milliseconds, None: until it is lifted."""

    kind: Kind
    name: str
    reason: str
    made_ms: int
    made_by: str
    until_ms: int | None

    def __str__(self) -> str:
        """`user 'joe' is locked until 2026-11-23 14:00:00 UTC: laptop stolen`: for the person it stops."""
        until = ""
        if self.until_ms is not None:
            until = time.strftime(" until %Y-%m-%d %H:%M:%S UTC", time.gmtime(self.until_ms / 1000))
        return f"{self.kind} {self.name!r} is locked{until}" + (f": {self.reason}" if self.reason else "")


def add(connection: Connection, lock: Lock, source: str) -> None:
    """Lock it, in place of a lock that is there. `source`: from where that was asked, for the audit log.

    UsageError where nothing can be called so: it would stop nobody.
    """
    try:
        decision.Lock(lock.kind, lock.name, lock.reason)
    except ValueError as error:
        raise UsageError(f"a {lock.kind} cannot be locked by that name: {error}") from error
    if lock.kind == "user" and ("*" in lock.name or "?" in lock.name):
        raise UsageError(
            "a user is locked by their whole name", hint="to shut out everybody: sshrec lock node '*'"
        )
    _lift(connection, lock.kind, lock.name, lock.made_by, lock.made_ms)
    connection.execute(
        insert(_LOCKS).values(
            kind=lock.kind,
            name=lock.name,
            reason=lock.reason,
            made_ms=lock.made_ms,
            made_by=lock.made_by,
            until_ms=lock.until_ms,
        )
    )
    said = {"name": lock.name, "target": lock.kind, "user": lock.made_by, "addr.remote": source}
    if lock.reason:
        said["reason"] = lock.reason
    if lock.until_ms is not None:
        said["expires"] = rfc3339(lock.until_ms)
    tell(connection, "lock.created", said, lock.made_ms)


def lift(connection: Connection, kind: Kind, name: str, by: str, source: str, now_ms: int) -> None:
    """End a lock. NotFound where there is none that still holds."""
    held = active(connection, now_ms, kind, [name])
    _lift(connection, kind, name, by, now_ms)
    if not held:
        raise NotFound(f"{kind} {name!r} is not locked", hint="see: sshrec locks")
    tell(connection, "lock.deleted", {"name": name, "target": kind, "user": by, "addr.remote": source}, now_ms)


def active(
    connection: Connection, now_ms: int, kind: Kind | None = None, names: Iterable[str] | None = None
) -> list[Lock]:
    """The locks that hold, the oldest first."""
    columns = _LOCKS.c
    wanted: Select[tuple[object, ...]] = select(_LOCKS).where(
        columns.lifted_ms.is_(None), columns.until_ms.is_(None) | (columns.until_ms > now_ms)
    )
    if kind is not None:
        wanted = wanted.where(columns.kind == kind)
    if names is not None:
        wanted = wanted.where(columns.name.in_(list(names)))
    return [_lock(row) for row in connection.execute(wanted.order_by(columns.made_ms, columns.id))]


def check(connection: Connection, kind: Kind, names: Iterable[str], now_ms: int) -> None:
    """Denied where one of them is locked."""
    for lock in active(connection, now_ms, kind, names):
        raise Denied(str(lock), hint=f"to lift it: sshrec unlock {lock.kind} {lock.name}")


def _lift(connection: Connection, kind: Kind, name: str, by: str, now_ms: int) -> None:
    columns = _LOCKS.c
    connection.execute(
        update(_LOCKS)
        .where(columns.kind == kind, columns.name == name, columns.lifted_ms.is_(None))
        .values(lifted_ms=now_ms, lifted_by=by)
    )


def _lock(row: Row[tuple[object, ...]]) -> Lock:
    return Lock(
        kind=row.kind,
        name=row.name,
        reason=row.reason,
        made_ms=row.made_ms,
        made_by=row.made_by,
        until_ms=row.until_ms,
    )
