"""The connection's end of its channels: their workers ask here whose they are and how to go on, and stay joined.

channel.py is the other end. Nobody but our own uid is answered.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from sshrec.gateway.channel import KILL, SOCKET, Whose
from sshrec.gateway.master import SESSIONS, Master
from sshrec.gateway.relay import Loop
from sshrec.peer import peer

_NUMBER_BYTES = 16


class Channels:
    """Served in `directory`. `changed` is called with how many there are; `had`: whether there ever was one."""

    def __init__(
        self, loop: Loop, directory: Path, whose: Whose, changed: Callable[[int], None], backlog: int
    ) -> None:
        self.had = False
        self._loop, self._whose, self._changed = loop, whose, changed
        self._open: dict[int, socket.socket] = {}
        self._waiting: set[int] = set()  # who wants to know of the master
        self._by_master: set[int] = set()
        self._master: Master | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(directory / SOCKET))
        self._listener.listen(backlog)
        self._listener.setblocking(False)
        loop.watch(self._listener.fileno(), lambda _: self._accept())

    def __len__(self) -> int:
        return len(self._open)

    def go_by(self, master: Master) -> None:
        """They may go by that one, once it has come: call `master_known` then."""
        self._master = master

    def master_known(self) -> None:
        """Who waits learns whether to go by the master; not more than a target lets in."""
        shared = self._master.shared if self._master is not None else None
        for fd in sorted(self._waiting):
            there = shared is not None and len(self._by_master) < SESSIONS
            if there:
                self._by_master.add(fd)
            with contextlib.suppress(OSError):
                self._open[fd].send(msgspec.json.encode(shared if there else None))
        self._waiting.clear()

    def kill(self, who: str) -> None:
        """Have them all end. `who`: as people and recordings are told."""
        for channel in self._open.values():
            with contextlib.suppress(OSError):
                channel.send(KILL + who.encode())

    def close_door(self) -> None:
        """Take nobody more."""
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()

    def close(self) -> None:
        """Hang up on everybody."""
        self.close_door()
        for fd, channel in self._open.items():
            self._loop.unwatch(fd)
            channel.close()
        self._open.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            channel, _ = self._listener.accept()
            if peer(channel)[1] != os.geteuid():
                channel.close()
                return
            fd = channel.fileno()
            channel.setblocking(False)
            self._open[fd] = channel
            self._loop.watch(fd, lambda _: self._hear(fd))
            self.had = True
            self._changed(len(self._open))
            self._waiting.add(fd)
            whose = msgspec.structs.replace(self._whose, beside=len(self._open) - 1)
            channel.send(msgspec.json.encode(whose))
            if self._master is None or not self._master.coming:
                self.master_known()

    def _hear(self, fd: int) -> None:
        """How did the session end that has this number with the master? Or it ends itself."""
        number = b""
        with contextlib.suppress(OSError):
            number = self._open[fd].recv(_NUMBER_BYTES)
        if number.isdigit() and self._master is not None:
            with contextlib.suppress(OSError):
                self._open[fd].send(msgspec.json.encode(self._master.end(int(number))))
        elif not number:
            self._leave(fd)

    def _leave(self, fd: int) -> None:
        self._loop.unwatch(fd)
        self._waiting.discard(fd)
        self._by_master.discard(fd)
        self._open.pop(fd).close()
        self._changed(len(self._open))
