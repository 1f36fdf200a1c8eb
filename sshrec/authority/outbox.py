"""The outbox: what the authority did and the audit log does not have yet. Knows no event, only where they go.

An event is in the database with the fact it tells of, in one transaction, so neither is there without the other;
from there it goes to the log's writer, wherever and whenever one runs, in order and at least once.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from sshrec.audit.client import Sender
from sshrec.audit.event import LIST_BYTES, Fields, canonical, packet
from sshrec.config import Config
from sshrec.errors import DataError, SshrecError, describe
from sshrec.recording.asciicast import rfc3339
from sshrec.storage.database import Database
from sshrec.storage.schema import outbox

DELIVER_SECONDS = 2.0
LOOK_SECONDS = 1.0  # the service's, between looks at what others put here
LATER_SECONDS = 10.0  # at most, while the log cannot be reached
_AT_ONCE = 200
_TRY_SECONDS = 0.02

log = logging.getLogger("sshrec.outbox")


def tell(
    connection: Connection,
    event: str,
    fields: Fields,
    now_ms: int,
    *,
    code: str | None = None,
    uid: str | None = None,
) -> str:
    """Tell the audit log, within the transaction that makes it a fact; gives the event's uid.

    `now_ms`: when it happened, in Unix milliseconds: the event says it as `occurred`, for the log's own `time` is
    when it got there. Lists that are too long for the log lose their end, and `cut` says how much. DataError for
    what is no event: then nothing of the transaction may stay.
    """
    own = {"cluster_name": os.uname().nodename, "occurred": rfc3339(now_ms)}
    said = packet(event, {**own, **_fitting(fields)}, uid=uid, code=code)
    connection.execute(insert(outbox).values(uid=said["uid"], said=canonical(said).decode()))
    return str(said["uid"])


def waiting(database: Database) -> int:
    """How many events the audit log does not have yet."""
    with database.reading() as connection:
        return connection.execute(select(func.count()).select_from(outbox)).scalar_one()


def deliver(database: Database, config: Config, seconds: float = DELIVER_SECONDS) -> int:
    """Send the audit log what waits for it, the oldest first; how many still wait, for whoever comes next.

    Returns at once where no writer listens. An event that was sent and not acknowledged in time goes again
    another time, under the same uid. What the writer does not take stays here, and a warning says so.
    """
    deadline = time.monotonic() + seconds
    if not waiting(database):
        return 0
    sender = Sender(config.audit_socket)
    with contextlib.closing(sender):
        sender.tick()
        if sender.fileno() >= 0:
            with _alone(config.authority_dir, deadline) as ours:
                if ours:
                    _send_all(database, sender, deadline)
    return waiting(database)


def _send_all(database: Database, sender: Sender, deadline: float) -> None:
    after = 0
    while sender.refused is None and (rows := _next(database, after)):
        after = rows[-1][0]
        sent = [_send(sender, said) for _, said in rows]
        complete = sender.wait(max(0.0, deadline - time.monotonic()))
        _forget(database, [uid for uid in sent if uid and uid not in {**sender.pending, **sender.errors}])
        for uid in sender.errors:
            log.warning("the audit log does not take an event: %s", sender.errors[uid])
        sender.errors.clear()
        if not complete:
            break
    if sender.refused is not None:
        log.warning("the audit log takes no events of ours: %s", sender.refused)


def _send(sender: Sender, said: dict[str, Any]) -> str | None:
    """Its uid, or None for what this version knows no more, or not yet: another's events are in one database."""
    event, code, uid = (said.pop(name) for name in ("event", "code", "uid"))
    try:
        return sender.send(event, said, uid=uid, code=code)
    except DataError as error:
        log.warning("an event waits for another version of sshrec: %s", error)
        return None


def _next(database: Database, after: int) -> list[tuple[int, dict[str, Any]]]:
    wanted = select(outbox.c.id, outbox.c.said).where(outbox.c.id > after).order_by(outbox.c.id).limit(_AT_ONCE)
    with database.reading() as connection:
        return [(row.id, json.loads(row.said)) for row in connection.execute(wanted)]


def _forget(database: Database, uids: Collection[str]) -> None:
    if uids:
        with database.transaction() as connection:
            connection.execute(delete(outbox).where(outbox.c.uid.in_(list(uids))))


@contextlib.contextmanager
def _alone(directory: Path, deadline: float) -> Iterator[bool]:
    """One process at a time sends, or events would come twice and not in order; False where time is up.

    The lock is on the authority's directory itself: no file of its own to lose.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SshrecError(f"{directory}: {describe(error)}") from error
    try:
        yield _locked(descriptor, deadline)
    finally:
        os.close(descriptor)


def _locked(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_TRY_SECONDS)
        else:
            return True


def keep_delivering(config: Config, stopping: threading.Event) -> None:
    """The auth service's part, in a thread: what commands could not deliver, until `stopping`.

    Has a connection of its own to the database, and opens it again after whatever went wrong.
    """
    pause, complained = LOOK_SECONDS, False
    while not stopping.is_set():
        try:
            with Database.open(config.database_url) as database:
                while not stopping.wait(pause):
                    left = deliver(database, config)
                    pause = min(2 * pause, LATER_SECONDS) if left else LOOK_SECONDS
                    complained = False
        except SshrecError as error:
            if not complained:
                log.warning("events for the audit log wait: %s", error)
            complained = True
            pause = min(2 * pause, LATER_SECONDS)
            stopping.wait(pause)


def _fitting(fields: Fields) -> dict[str, Any]:
    """The same, with lists that a line of the log has room for."""
    fitting, cut = dict(fields), dict(fields.get("cut", {}))
    for name, value in fields.items():
        if isinstance(value, list | tuple):
            kept = list(value)
            while len(canonical({"": kept})) > LIST_BYTES:
                kept.pop()
            if len(kept) < len(value):
                cut[name] = len(value) - len(kept)
            fitting[name] = kept
    return fitting | ({"cut": cut} if cut else {})
