"""The audit log's one writer: takes events over a socket, stamps who sent them, acknowledges what is durable.

One process, one thread: while a group is being synced, the next one gathers in the sockets. It imports nothing of
the gateway; who starts it and when it is to end, others decide.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from sshrec.audit.appender import GROUP_BYTES, Appender, LogFull
from sshrec.audit.checkpoint import GROWN_SECONDS, SIGN_SECONDS, Checkpoints, CheckpointSigner
from sshrec.audit.client import PACKET_MAX
from sshrec.audit.event import LAST_WORDS, AuditError, check
from sshrec.errors import ConfigError, DataError, SshrecError, describe
from sshrec.peer import peer
from sshrec.session import SESSION_ID, printable

BACKLOG = 1024
AT_ONCE = 256  # packets that one turn takes, of all senders together
EACH = 16  # of one
LEAVE_SECONDS = 10.0  # that a predecessor has to finish, until somebody is told
_HASH = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger("sshrec.audit")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(slots=True, eq=False)
class _Peer:
    """A sender, by the kernel's word."""

    sock: socket.socket
    pid: int
    uid: int


@dataclass(slots=True)
class _Group:
    """What is written together, and who waits for it."""

    events: list[dict[str, Any]] = field(default_factory=list)
    peers: list[_Peer] = field(default_factory=list)
    size: int = 0

    def only(self, wanted: Callable[[str], bool]) -> _Group:
        """Those of it that have such a name."""
        pairs = [pair for pair in zip(self.events, self.peers, strict=True) if wanted(pair[0]["event"])]
        return _Group([event for event, _ in pairs], [peer for _, peer in pairs])


class Writer:
    """`serve` returns when it is told to leave.

    `senders`: the uids that may send, asked at each connection. `leave`: a descriptor that becomes readable when
    it must end; `parent`: one that does when nobody looks after it any more, and it leaves with its last sender.
    """

    def __init__(
        self,
        directory: Path,
        path: Path,
        *,
        senders: Callable[[], frozenset[int]],
        leave: int,
        parent: int | None = None,
        signer: CheckpointSigner | None = None,
        grown_seconds: float = GROWN_SECONDS,
    ) -> None:
        self._appender = Appender(directory)
        self._path, self._senders = path, senders
        self._leave, self._parent, self._signer = leave, parent, signer
        self._checkpoints = Checkpoints(os.uname().nodename, _boot_id(), grown_seconds)
        self._peers: dict[int, _Peer] = {}
        self._poll = select.epoll()
        self._failing = self._unsigned = False

    # ---- beginning and end ------------------------------------------------------------------------------

    def serve(self) -> None:
        """Get the lock (a predecessor on the same socket is asked to leave), then take events until the end."""
        if not self._succeed():
            return
        try:
            self._appender.ready()
        except AuditError as error:
            self._complain(error)  # and so is everybody who sends something, until it can be written
        self._listener = _listen(self._path)
        self._poll.register(self._listener, select.EPOLLIN)
        self._poll.register(self._leave, select.EPOLLIN)
        if self._parent is not None:
            self._poll.register(self._parent, select.EPOLLIN)
        try:
            while self._turn():
                pass
        finally:
            # The name stays: a successor puts its own in its place, and until then nobody answers at it.
            self._listener.close()
            self._appender.close()

    def _succeed(self) -> bool:
        """Get the lock; False where we are told to leave first."""
        began = time.monotonic()
        asked = complained = False
        poll = select.poll()
        poll.register(self._leave, select.POLLIN)
        while not self._appender.lock():
            if not asked:
                asked = _ask_to_leave(self._path)
            if not complained and time.monotonic() - began > LEAVE_SECONDS:
                complained = True
                log.error(
                    "another process keeps the lock of %s: no session can be logged", self._appender.directory
                )
            if poll.poll(20):
                return False
        return True

    # ---- one turn ---------------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """Wait for something, do all of it; False at the end."""
        group = _Group()
        for fd, _ in self._poll.poll(self._patience(), AT_ONCE):
            if fd == self._listener.fileno():
                self._accept()
            elif fd == self._leave:
                return False
            elif fd == self._parent:
                self._poll.unregister(fd)
                self._parent = -1
            elif group.size < GROUP_BYTES and fd in self._peers:
                self._receive(self._peers[fd], group)
        if group.events:
            self._commit(group)
        if self._signer is not None and time.monotonic() >= self._checkpoints.due():
            self._checkpoint(self._signer)
        return not (self._parent == -1 and not self._peers)

    def _patience(self) -> float:
        if self._signer is None:
            return -1
        wait = self._checkpoints.due() - time.monotonic()
        return -1 if wait > 3600 else max(0.0, wait)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("cannot accept: %s", describe(error))
                time.sleep(0.1)
                return
            sock.setblocking(False)
            pid, uid = peer(sock)
            if uid not in self._senders():
                with contextlib.suppress(OSError):
                    sock.send(_encode({"error": f"uid {uid} may not write the audit log"}))
                sock.close()
                continue
            self._peers[sock.fileno()] = _Peer(sock, pid, uid)
            self._poll.register(sock, select.EPOLLIN)

    def _receive(self, peer: _Peer, group: _Group) -> None:
        for _ in range(EACH):
            try:
                data, _, flags, _ = peer.sock.recvmsg(PACKET_MAX)
            except BlockingIOError:
                return
            except OSError:
                data, flags = b"", 0
            if not data:
                self._hang_up(peer)
                return
            self._take(peer, data, bool(flags & socket.MSG_TRUNC), group)
            if group.size >= GROUP_BYTES:
                return

    def _take(self, peer: _Peer, data: bytes, cut: bool, group: _Group) -> None:
        uid = None
        try:
            if cut:
                raise DataError(f"a message has more than {PACKET_MAX} bytes")
            try:
                said = _decode(data)
            except (msgspec.MsgspecError, RecursionError):
                raise DataError("a message is no JSON object") from None
            if "head" in said and len(said) == 1:
                self._take_head(said["head"])
                return
            uid = said.get("uid")
            event = check(said)
        except DataError as error:
            log.warning("process %d of uid %d: %s", peer.pid, peer.uid, printable(str(error)))
            known = {"uid": uid} if isinstance(uid, str) else {}
            self._answer(peer, {**known, "error": printable(str(error)), "final": True})
            return
        event["sender_uid"] = peer.uid
        group.events.append(event)
        group.peers.append(peer)
        group.size += len(data)

    def _take_head(self, head: Any) -> None:
        match head:
            case [str(session), int(n), str(digest)] if SESSION_ID.fullmatch(session) and _HASH.fullmatch(digest):
                self._checkpoints.head(session, n, digest, time.monotonic())
            case _:
                raise DataError("a head is not one")

    # ---- writing ----------------------------------------------------------------------------------------

    def _commit(self, group: _Group) -> None:
        """Write a group and say so, or say why not."""
        try:
            numbers = self._appender.append(group.events)
        except LogFull as error:
            self._refuse(group.only(lambda name: name not in LAST_WORDS), error)
            if (last := group.only(lambda name: name in LAST_WORDS)).events:
                self._commit(last)
            return
        except AuditError as error:
            self._refuse(group, error)
            return
        self._failing = False
        now = time.monotonic()
        for sender, event, n in zip(group.peers, group.events, numbers, strict=True):
            self._answer(sender, {"uid": event["uid"], "n": n})
            self._checkpoints.logged(event, now)

    def _refuse(self, group: _Group, error: AuditError) -> None:
        self._complain(error)
        for sender, event in zip(group.peers, group.events, strict=True):
            self._answer(sender, {"uid": event["uid"], "error": str(error)})

    def _checkpoint(self, signer: CheckpointSigner) -> None:
        """A checkpoint and its signature, one after the other: nobody else writes meanwhile.

        The checkpoint is durable before it is signed: a signer that goes by what it signed before must never have
        signed a line that a crash took out of the log.
        """
        try:
            self._appender.append([{**self._checkpoints.take(), "sender_uid": os.geteuid()}])
            self._checkpoints.written(time.monotonic())
            try:
                signature = signer.sign(self._appender.last[:-1], SIGN_SECONDS)
            except SshrecError as error:
                if not self._unsigned:
                    log.warning("a checkpoint is not signed: %s", error)
                self._unsigned = True
                self._checkpoints.failed(time.monotonic())
                return
            if self._unsigned:
                log.warning("checkpoints are signed again")
            self._unsigned = False
            self._appender.append([{**self._checkpoints.signed(signature), "sender_uid": os.geteuid()}])
        except AuditError as error:
            self._complain(error)
            self._checkpoints.failed(time.monotonic())

    def _answer(self, peer: _Peer, answer: dict[str, Any]) -> None:
        if peer.sock.fileno() >= 0:
            try:
                peer.sock.send(_encode(answer))
            except OSError:  # gone, or it reads no answers: then it gets none
                self._hang_up(peer)

    def _hang_up(self, peer: _Peer) -> None:
        if self._peers.pop(peer.sock.fileno(), None) is not None:
            self._poll.unregister(peer.sock)
            peer.sock.close()

    def _complain(self, error: AuditError) -> None:
        if not self._failing:
            self._failing = True
            log.error("%s", error)


def _listen(path: Path) -> socket.socket:
    """A socket under that name, in the place of whatever had it."""
    new = path.with_suffix(".new")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        new.unlink(missing_ok=True)
        listener.bind(str(new))
        new.chmod(0o666)  # the kernel says who connects, and most are sent away
        listener.listen(BACKLOG)
        new.rename(path)
    except OSError as error:
        raise ConfigError(f"cannot listen on {path}: {describe(error)}") from error
    listener.setblocking(False)
    return listener


def _ask_to_leave(path: Path) -> bool:
    """Ask whoever listens at the socket to end; False where nobody does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.setblocking(False)
        try:
            sock.connect(str(path))
            os.kill(peer(sock)[0], signal.SIGTERM)
        except OSError:
            return False
    return True


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
