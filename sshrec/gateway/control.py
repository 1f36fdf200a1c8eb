"""The control socket of a live session: `<run_dir>/<session>/control`, SOCK_SEQPACKET, a word a message.

    status        answered by one JSON object
    watch         answered by status, then by a heartbeat `b` each second, and by status when it changes
    kill WHO      answered by `ok`; the session ends
    lock WHY      the same, for a lock: WHY says which

The worker serves it (Control); `who`, `kill` and sshrecd ask (the functions). Only root and the worker's
own uid are heard.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from sshrec.errors import Denied, NotFound, SshrecError, Unreachable, describe
from sshrec.gateway.relay import Loop
from sshrec.peer import peer
from sshrec.session import SESSION_ID, printable

NAME = "control"
ANSWER_SECONDS = 2.0
OVER = ("left", "refused", "ended")  # states of what is no session any more
WHO_CHARACTERS, WHY_CHARACTERS = 80, 800
_MESSAGE_BYTES = 64 * 1024


class Control:
    """The worker's end. `status` gives what to answer; `kill` is called with who asked, `lock` with why."""

    def __init__(
        self,
        loop: Loop,
        directory: Path,
        status: Callable[[], dict[str, Any]],
        kill: Callable[[str], None],
        lock: Callable[[str], None],
    ) -> None:
        self._loop, self._status, self._kill, self._lock = loop, status, kill, lock
        self._watchers: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.bind(str(directory / NAME))
        self._socket.listen(16)
        self._socket.setblocking(False)
        loop.watch(self._socket.fileno(), self._accept)

    def add_watcher(self, sock: socket.socket) -> None:
        """Send heartbeats there from now on, and the status first."""
        sock.setblocking(False)
        self._watchers.append(sock)
        self._tell(sock, msgspec.json.encode(self._status()))

    def beat(self) -> None:
        """Tell the watchers that the worker's loop turns."""
        for watcher in list(self._watchers):
            self._tell(watcher, b"b")

    def changed(self) -> None:
        """Tell the watchers the status."""
        status = msgspec.json.encode(self._status())
        for watcher in list(self._watchers):
            self._tell(watcher, status)

    def close(self) -> None:
        """Hang up on everybody."""
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        for watcher in self._watchers:
            watcher.close()
        self._watchers.clear()

    def _accept(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            sock, _ = self._socket.accept()
            if peer(sock)[1] not in (0, os.geteuid()):
                sock.close()
                return
            sock.setblocking(False)
            self._loop.watch(sock.fileno(), lambda _: self._serve(sock))

    def _serve(self, sock: socket.socket) -> None:
        try:
            message = sock.recv(_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        self._loop.unwatch(sock.fileno())
        word, _, rest = message.partition(b" ")
        if word == b"watch":
            self.add_watcher(sock)
            return
        if word == b"status":
            self._tell(sock, msgspec.json.encode(self._status()))
        elif word in (b"kill", b"lock"):
            self._tell(sock, b"ok")
            if word == b"kill":
                self._kill(printable(rest, WHO_CHARACTERS))
            else:
                self._lock(printable(rest, WHY_CHARACTERS))
        sock.close()

    def _tell(self, sock: socket.socket, message: bytes) -> None:
        try:
            sock.send(message)
        except BlockingIOError:
            pass  # a watcher that does not read misses beats, and finds the next ones
        except OSError:
            if sock in self._watchers:
                self._watchers.remove(sock)
            sock.close()


def live(run_dir: Path) -> Iterator[str]:
    """The sessions that have a run directory: those that live, and remains of some that died."""
    try:
        names = sorted(os.listdir(run_dir))
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise Denied(f"cannot list {run_dir}: {describe(error)}", hint="root and sshrec's own user can") from error
    yield from (name for name in names if SESSION_ID.fullmatch(name))


def connect(run_dir: Path, session: str, seconds: float = ANSWER_SECONDS) -> socket.socket:
    """A connection to a session's control socket; Unreachable where nobody serves it (any more).

    `seconds`: for each thing that is done with it.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(seconds)
    try:
        sock.connect(str(run_dir / session / NAME))
    except PermissionError as error:
        sock.close()
        raise Denied(f"cannot ask session {session}", hint="root and sshrec's own user can") from error
    except OSError as error:
        sock.close()
        raise Unreachable(f"session {session} does not answer: {describe(error)}") from error
    return sock


def answers(run_dir: Path, session: str) -> bool:
    """Whether a worker serves the session's control socket."""
    try:
        connect(run_dir, session).close()
    except (Unreachable, Denied):
        return False
    return True


def ask(run_dir: Path, session: str, message: bytes, seconds: float = ANSWER_SECONDS) -> bytes:
    """One question and its answer."""
    with connect(run_dir, session, seconds) as sock:
        try:
            sock.send(message)
            answer = sock.recv(_MESSAGE_BYTES)
        except OSError as error:
            raise Unreachable(f"session {session} does not answer: {describe(error)}") from error
    if not answer:
        raise Denied(f"session {session} does not answer you", hint="root and sshrec's own user are heard")
    return answer


def status(run_dir: Path, session: str, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """What a live session says of itself."""
    try:
        return msgspec.json.decode(ask(run_dir, session, b"status", seconds), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise SshrecError(f"session {session} gave no status: {error}") from error


def end_all(run_dir: Path, who: str, meant: Callable[[dict[str, Any]], bool]) -> int:
    """End the sessions whose status is meant; how many. `who`: as people and recordings are told."""
    ended = 0
    for session in live(run_dir):
        with contextlib.suppress(Unreachable):  # it has just ended
            if meant(status(run_dir, session)):
                ask(run_dir, session, f"kill {who}".encode())
                ended += 1
    return ended


def find(run_dir: Path, beginning: str) -> str:
    """The live session whose id begins so; NotFound where there is none, or more than one."""
    matches = [session for session in live(run_dir) if session.startswith(beginning.upper())] if beginning else []
    if len(matches) != 1:
        count = "no live session" if not matches else f"{len(matches)} live sessions"
        raise NotFound(f"{count} with an id that begins with {beginning!r}", hint="see: sshrec who")
    return matches[0]
