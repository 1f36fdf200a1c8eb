"""Who is served by the auth service, and who goes when there is no room. Reads and writes nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass

ROOM = 512


@dataclass(eq=False, slots=True)
class Guest:
    """A connection of a process. `since`: idle since then, by the monotonic clock; None while it is answered."""

    asker: socket.socket
    pid: int
    since: float | None


class Guests:
    """The connections there are. For want of room, whichever process has most loses the one idle longest."""

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._all: set[Guest] = set()
        self._one = threading.Lock()

    def add(self, asker: socket.socket, pid: int) -> Guest:
        """One more."""
        guest = Guest(asker, pid, time.monotonic())
        with self._one:
            if len(self._all) >= self._room:
                self._make_room()
            self._all.add(guest)
        return guest

    def remove(self, guest: Guest) -> None:
        """One less; to be called before it is closed."""
        with self._one:
            self._all.discard(guest)

    def _make_room(self) -> None:
        idle = [(guest.since, guest) for guest in self._all if guest.since is not None]
        if not idle:
            return  # all are being answered, which ends
        has = Counter(guest.pid for _, guest in idle)
        _, found = min(idle, key=lambda one: (-has[one[1].pid], one[0]))
        self._all.discard(found)
        with contextlib.suppress(OSError):
            found.asker.shutdown(socket.SHUT_RDWR)
