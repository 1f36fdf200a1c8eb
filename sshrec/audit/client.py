"""Sends events to the audit log's writer, and learns when they are durable. Waits only where it is asked to.

A message is one SOCK_SEQPACKET packet, a JSON object. To the writer: an event, or `{"head": [session, n,
sha256]}`, the newest durable seal of a live recording. From it: `{"uid": …, "n": …}` once an event is durable, or
`{"uid": …, "error": …, "final": …}`; `final` where sending it again is of no use.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from sshrec.audit.event import AuditError, Fields, packet
from sshrec.errors import DataError

RETRY_SECONDS = 0.02  # between tries to reach the writer
AGAIN_SECONDS = 1.0  # until an event that could not be written is sent again
PACKET_MAX = 128 * 1024

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Journal(Protocol):
    """Where a session's events go: over the writer's socket, or straight into the files."""

    pending: dict[str, bytes]  # not durable yet, by uid
    errors: dict[str, str]  # why not, by uid, where that was said
    refused: str | None  # why nothing may be sent at all

    def send(self, event: str, fields: Fields, *, uid: str | None = None, code: str | None = None) -> str:
        """Have an event logged; returns its uid. Waits for nothing."""

    def head(self, session: str, n: int, digest: str) -> None:
        """Tell the newest durable seal of a live recording."""

    def watch(self, opened: Callable[[int], None], closed: Callable[[int], None]) -> None:
        """Have `opened` called with each descriptor to call `receive` for, and `closed` before it is shut."""

    def receive(self) -> None:
        """Take what the writer said."""

    def tick(self) -> float:
        """Do what time asks for; seconds until the next turn."""

    def wait(self, seconds: float) -> bool:
        """Wait until all is durable; False where that took too long."""

    def close(self) -> None:
        """Let go."""


class Sender:
    """A Journal: a connection to the writer, made anew whenever it ends; then what is pending goes again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sock: socket.socket | None = None
        self._retry_at = 0.0
        self._unsent: list[str] = []  # uids, oldest first
        self._again: dict[str, float] = {}  # uid → when
        self._head: bytes | None = None
        self._head_sent = True
        self._opened: Callable[[int], None] = _ignore
        self._closed: Callable[[int], None] = _ignore
        self.refused: str | None = None
        self.pending: dict[str, bytes] = {}
        self.errors: dict[str, str] = {}

    def send(self, event: str, fields: Fields, *, uid: str | None = None, code: str | None = None) -> str:
        """Queue an event and send what can be sent. DataError where it is none."""
        said = packet(event, fields, uid=uid, code=code)
        uid = str(said["uid"])
        self.pending[uid] = _encode(said)
        self._unsent.append(uid)
        self._flush()
        return uid

    def head(self, session: str, n: int, digest: str) -> None:
        """Tell the newest durable seal of a live recording; a new writer is told again."""
        self._head, self._head_sent = _encode({"head": [session, n, digest]}), False
        self._flush()

    def watch(self, opened: Callable[[int], None], closed: Callable[[int], None]) -> None:
        """Have these called with each connection's descriptor; with that which there is, now."""
        self._opened, self._closed = opened, closed
        if self._sock is not None:
            opened(self._sock.fileno())

    def fileno(self) -> int:
        """The connection; -1 while there is none."""
        return self._sock.fileno() if self._sock is not None else -1

    def receive(self) -> None:
        """Take every answer that is there."""
        while self._sock is not None:
            try:
                message = self._sock.recv(PACKET_MAX)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._hang_up()
                return
            with contextlib.suppress(msgspec.MsgspecError):
                self._answered(_decode(message))

    def _answered(self, answer: dict[str, Any]) -> None:
        uid = answer.get("uid")
        if not isinstance(uid, str):
            self.refused = str(answer.get("error", "refused"))
        elif "n" in answer:
            self.pending.pop(uid, None)
            self.errors.pop(uid, None)
        elif uid in self.pending:
            self.errors[uid] = str(answer.get("error", "refused"))
            if answer.get("final"):
                del self.pending[uid]
            else:
                self._again[uid] = time.monotonic() + AGAIN_SECONDS

    def tick(self) -> float:
        """Connect and send again where that is due."""
        now = time.monotonic()
        for uid in [uid for uid, at in self._again.items() if at <= now]:
            del self._again[uid]
            self._unsent.append(uid)
        self._flush()
        if self._unsent or not self._head_sent or (self._sock is None and self.pending):
            return RETRY_SECONDS
        return max(0.0, min(self._again.values()) - now) if self._again else math.inf

    def wait(self, seconds: float) -> bool:
        """Wait until nothing is pending; False where that took longer, or the writer refuses us."""
        deadline = time.monotonic() + seconds
        while self.pending and self.refused is None:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            due = min(self.tick(), left)
            if self._sock is None:
                time.sleep(due)
                continue
            events = select.POLLIN | (select.POLLOUT if self._unsent else 0)
            poll = select.poll()
            poll.register(self._sock, events)
            poll.poll(due * 1000 + 1)
            self.receive()
        return not self.pending

    def close(self) -> None:
        """Hang up. What is pending stays undecided."""
        if self._sock is not None:
            self._closed(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def _connect(self) -> bool:
        now = time.monotonic()
        if self._sock is None and now >= self._retry_at and self.refused is None:
            self._retry_at = now + RETRY_SECONDS
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.setblocking(False)
            try:
                sock.connect(str(self._path))
            except OSError:
                sock.close()
            else:
                self._sock = sock
                self._opened(sock.fileno())
                self._head_sent = self._head is None
        return self._sock is not None

    def _flush(self) -> None:
        if not self._connect():
            return
        assert self._sock is not None
        try:
            if self._head is not None and not self._head_sent:
                self._sock.send(self._head)
                self._head_sent = True
            while self._unsent:
                message = self.pending.get(self._unsent[0])
                if message is not None:
                    self._sock.send(message)
                self._unsent.pop(0)
        except BlockingIOError:
            pass  # the writer is busy; `tick` goes on
        except OSError:
            self.receive()  # it may have said why
            self._hang_up()

    def _hang_up(self) -> None:
        self.close()
        self._unsent = [uid for uid in self.pending if uid not in self._again]
        self._head_sent = self._head is None


def post(path: Path, event: str, fields: Fields) -> None:
    """Send one event and wait for nothing: who cannot wait tells what may be lost."""
    with contextlib.closing(Sender(path)) as sender:
        sender.send(event, fields)


def tell(
    journal: Journal,
    event: str,
    fields: Fields,
    *,
    uid: str | None = None,
    code: str | None = None,
    seconds: float = 5.0,
) -> None:
    """Have one event logged, and wait until it is durable; AuditError where that cannot be."""
    try:
        uid = journal.send(event, fields, uid=uid, code=code)
    except DataError as error:
        raise AuditError(f"not an audit event: {error}") from error
    if not journal.wait(seconds) and uid in journal.pending:
        reason = journal.errors.get(uid) or journal.refused or "its writer does not answer"
        raise AuditError(f"{event} is not in the audit log: {reason}")
    if uid in journal.errors:
        raise AuditError(f"{event} is not in the audit log: {journal.errors[uid]}")


def _ignore(_fd: int) -> None:
    pass
