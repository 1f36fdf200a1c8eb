"""Asking the auth service: one connection, made again when it is lost. Decides nothing."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, overload

from sshrec.access import protocol
from sshrec.access.protocol import (
    Advance,
    Allowed,
    Answer,
    At,
    Authenticate,
    Authenticated,
    Authorise,
    CertifyHost,
    CheckFactor,
    FactorNeeded,
    Failed,
    Forbidden,
    HostCertified,
    Issued,
    Lock,
    Locked,
    Locks,
    Position,
    Question,
    Redeem,
    Refused,
    Register,
    Registration,
    SessionQuestion,
    Sign,
    Signed,
    SignKey,
)
from sshrec.errors import DataError, Denied, SshrecError, Unreachable, describe

_SECONDS = 10.0
_PAUSE_SECONDS = 0.05  # between two tries to reach it

# What may be asked again, where nobody knows whether it was answered, and on any connection.
_AGAIN = (Authorise, Locks, Position)

Ready = Callable[[socket.socket | None, int, float], bool]

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")


def _ready(sock: socket.socket | None, events: int, seconds: float) -> bool:
    poll = select.poll()
    if sock is not None:
        poll.register(sock, events)
    return bool(poll.poll(seconds * 1000))


class _HungUp(Exception):
    """It has, before it answered."""


class AuthService:
    """The service at a socket. Any question raises Unreachable where it is not there, Denied where it says no.

    `seconds`: for one answer, with all tries. `patience`: for how many of them it may be away, as it is while it
    restarts. `ready(socket, events, seconds)`: what waits, as poll(2) does; for no socket, just so long.
    """

    def __init__(
        self, path: Path, seconds: float = _SECONDS, *, patience: float = 0.0, ready: Ready = _ready
    ) -> None:
        self._path = path
        self._seconds, self._patience, self._ready = seconds, patience, ready
        self._peer: socket.socket | None = None

    def close(self) -> None:
        """Hang up; the next question connects again, and the service begins at what is signed."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def position(self) -> At:
        """From where on the log is to be shown."""
        return self._at(Position())

    def advance(self, lines: bytes) -> At:
        """Show the lines that follow; half of protocol.MESSAGE_MAX at once, for it is base64."""
        return self._at(Advance(lines))

    def sign(self, line: bytes) -> Signed:
        """Have a checkpoint signed, a line without its end, right behind what was shown."""
        return self._expect(Sign(line.decode()), Signed)

    def _at(self, question: Question) -> At:
        return self._expect(question, At)

    # ---- a session -------------------------------------------------------------------------------------

    def authorise(self, question: Authorise) -> Allowed | Forbidden | FactorNeeded:
        """May this session be?"""
        return self._expect(question, Allowed, Forbidden, FactorNeeded)

    def check_factor(self, question: CheckFactor) -> Failed | None:
        """Whether a code is the user's; None where it is. Then `authorise` may be asked again."""
        answer = self._expect(question, Authenticated, Failed)
        return answer if isinstance(answer, Failed) else None

    def certify_host(self, asked: Authorise, public_key: str) -> HostCertified | Forbidden:
        """A host certificate for a key of ours, where some session there may be."""
        return self._expect(CertifyHost(asked, public_key), HostCertified, Forbidden)

    def locks(self) -> tuple[Lock, ...]:
        """What is locked now."""
        return self._expect(Locks(), Locked).locks

    # ---- a person, on one connection: Unreachable where it was lost between two questions --------------------

    def redeem(self, token: str, source: str | None) -> Registration | Failed:
        """Begin the registration that an invitation is for."""
        return self._expect(Redeem(token, source), Registration, Failed)

    def register(self, password: str, code: str | None) -> Authenticated | Failed:
        """Finish it."""
        return self._expect(Register(password, code), Authenticated, Failed)

    def authenticate(
        self, user: str, password: str, code: str | None, source: str | None
    ) -> Authenticated | Failed:
        """Log in."""
        return self._expect(Authenticate(user, password, code, source), Authenticated, Failed)

    def sign_key(self, public_key: str, ttl: int | None = None) -> Issued:
        """A certificate for a public key, a line, of the user whom this connection has proved."""
        return self._expect(SignKey(public_key, ttl), Issued)

    # ---- the wire --------------------------------------------------------------------------------------

    @overload
    def _expect(self, question: Question, kind: type[T], /) -> T: ...
    @overload
    def _expect(self, question: Question, kind: type[T], or_: type[U], /) -> T | U: ...
    @overload
    def _expect(self, question: Question, kind: type[T], or_: type[U], or_else: type[V], /) -> T | U | V: ...

    def _expect(self, question: Question, /, *kinds: type) -> object:
        answer = self._ask(question)
        if not isinstance(answer, kinds):
            raise SshrecError("the auth service answered another question")
        return answer

    def _ask(self, question: Question) -> Answer:
        start, data = time.monotonic(), protocol.packed(question)
        while True:
            try:
                if self._peer is not None and isinstance(question, SessionQuestion):
                    self._look()
                answer = self._exchange(data, start + self._seconds)
                break
            except TimeoutError as error:
                self.close()
                raise Unreachable(f"the auth service at {self._path} does not answer in time") from error
            except (_HungUp, OSError, DataError) as error:
                connected = self._peer is not None
                self.close()
                again = not connected or isinstance(question, _AGAIN)
                if not again or time.monotonic() >= start + self._patience:
                    raise Unreachable(f"the auth service at {self._path} {_said(error)}") from error
                self._ready(None, 0, _PAUSE_SECONDS)
            except BaseException:
                self.close()  # perhaps in the middle of an answer
                raise
        if isinstance(answer, Refused):
            raise Denied(f"the auth service refuses: {answer.reason}", hint=answer.hint)
        return answer

    def _look(self) -> None:
        """Hang up where the service has: it was restarted since the last question."""
        assert self._peer is not None
        with contextlib.suppress(BlockingIOError):
            self._peer.recv(1, socket.MSG_PEEK)
            self.close()

    def _exchange(self, data: bytes, deadline: float) -> Answer:
        if self._peer is None:
            self._peer = _connected(self._path)
        peer, rest = self._peer, memoryview(data)

        def wait(events: int) -> None:
            if not self._ready(peer, events, max(0.0, deadline - time.monotonic())):
                raise TimeoutError

        def receive(size: int) -> bytes:
            wait(select.POLLIN)
            return peer.recv(size)

        try:
            while rest:
                try:
                    rest = rest[peer.send(rest) :]
                except BlockingIOError:
                    wait(select.POLLOUT)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have said why
        if (answer := protocol.receive_answer(receive)) is None:
            raise _HungUp
        return answer


def _connected(path: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        peer.setblocking(False)
        peer.connect(str(path))  # at once, or not: unix(7)
    except BaseException:
        peer.close()
        raise
    return peer


def _said(error: Exception) -> str:
    if isinstance(error, _HungUp):
        return "has hung up"
    return f"does not answer: {describe(error) if isinstance(error, OSError) else error}"
