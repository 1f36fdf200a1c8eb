"""A channel of a transparent connection: whose it is, as the connection itself tells, and no client.

The inner sshd's ForceCommand names the connection; only our own uid reaches its socket.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from sshrec.errors import DataError, Denied, Unreachable
from sshrec.gateway.relay import Loop
from sshrec.gateway.visit import Visit
from sshrec.openssh.server import SFTP
from sshrec.session import SESSION_ID, Credential, Request, Target, User, printable

SOCKET = "channel"  # in the connection's run directory
ANSWER_SECONDS = 5.0
KILL = b"kill "  # before who it is
_BYTES = 64 * 1024

T = TypeVar("T")


class Whose(msgspec.Struct, frozen=True, kw_only=True):
    """Whose a connection is: what a channel's worker is told."""

    connection: str
    user: str
    uid: int
    algorithm: str
    blob: str
    key_id: str | None
    serial: int | None
    verify_required: bool
    login: str
    host: str
    port: int | None
    client: str
    local: str
    agent: bool
    beside: int = 0  # channels that it has already

    @property
    def credential(self) -> Credential:
        """What opened the outer connection."""
        return Credential(self.algorithm, self.blob, self.key_id, self.serial, self.verify_required)

    @property
    def person(self) -> User:
        """Whose account it came to."""
        return User(self.user, self.uid)

    @property
    def target(self) -> Target:
        """Where it leads."""
        return Target(self.login, self.host, self.port)

    def request(self, visit: Visit) -> Request:
        """What one of its channels asks for."""
        subsystem = "sftp" if visit.command == SFTP.encode() else None
        command = None if subsystem else visit.command or None
        return Request(self.target, command, visit.terminal, subsystem)


class Shared(msgspec.Struct, frozen=True):
    """A master to go by. `control`: its socket; `address`, `host_key`: what it dialled and saw there."""

    control: str
    address: str
    host_key: str | None


class End(msgspec.Struct, frozen=True):
    """What a master knows of a session's end. `lost`: why the connection to the target is."""

    signalled: bool = False
    lost: str | None = None


class Joined:
    """A channel's end of a socket to its connection, which counts it for as long as that is open.

    Made by asking whose it is; Unreachable where the connection is over.
    """

    def __init__(self, run_dir: Path, connection: str) -> None:
        if not SESSION_ID.fullmatch(connection):
            raise DataError("that is no connection")
        self._unwatch: Callable[[], None] = lambda: None
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(ANSWER_SECONDS)
        try:
            self._sock.connect(str(run_dir / connection / SOCKET))
            self.whose = msgspec.json.decode(self._sock.recv(_BYTES), type=Whose)
        except (OSError, msgspec.MsgspecError) as error:
            self._sock.close()
            raise Unreachable(f"the connection {connection} does not answer") from error

    def shared(self, loop: Loop, until: Callable[[Callable[[], bool]], None], seconds: float) -> Shared | None:
        """The master, once it has come; None where there is none in time. `until` turns the loop."""
        deadline = time.monotonic() + seconds
        come: list[int] = []

        def over() -> bool:
            left = deadline - time.monotonic()
            loop.within(max(0.0, left))
            return bool(come) or left <= 0

        loop.watch(self._sock.fileno(), come.append)
        try:
            until(over)
        finally:
            loop.unwatch(self._sock.fileno())
        return self._receive(Shared) if come else None

    def watch(self, loop: Loop, kill: Callable[[str], None]) -> None:
        """Call `kill` when the connection says who ends its sessions."""

        def hear(_events: int) -> None:
            message = b""
            with contextlib.suppress(OSError):
                message = self._sock.recv(_BYTES)
            if message.startswith(KILL):
                kill(message.removeprefix(KILL).decode())
            if not message:
                loop.unwatch(self._sock.fileno())

        self._unwatch = lambda: loop.unwatch(self._sock.fileno())
        loop.watch(self._sock.fileno(), hear)

    def end(self, number: int) -> End:
        """How the session ended that has this number with the master."""
        self._unwatch()
        with contextlib.suppress(OSError):
            self._sock.send(b"%d" % number)
        return self._receive(End) or End()

    def close(self) -> None:
        """It is over."""
        self._unwatch()
        self._sock.close()

    def _receive(self, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode(self._sock.recv(_BYTES), type=kind | None)
        except (OSError, msgspec.MsgspecError):  # the connection is over
            return None


def identify(found: Whose, visit: Visit) -> tuple[User, Credential]:
    """The person of a channel, and their credential. Denied where another one opened it."""
    if visit.credential() != found.credential:
        raise Denied(f"another key than the one that opened the connection came for {printable(found.user)}")
    visit.behind(found.client, found.local)
    return found.person, found.credential
