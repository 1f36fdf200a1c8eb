"""Asking the auth service: one connection, made again when it is lost. Decides nothing."""

from __future__ import annotations

import socket
from pathlib import Path

from sshrec.access import protocol
from sshrec.access.protocol import Advance, Answer, At, Position, Question, Refused, Sign, Signed
from sshrec.errors import Denied, SshrecError, Unreachable, describe

_SECONDS = 10.0


class AuthService:
    """The service at a socket. Any question raises Unreachable where it is not there, Denied where it says no."""

    def __init__(self, path: Path, seconds: float = _SECONDS) -> None:
        self._path = path
        self._seconds = seconds
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
        answer = self._ask(Sign(line.decode()))
        if not isinstance(answer, Signed):
            raise SshrecError("the auth service answered another question")
        return answer

    def _at(self, question: Question) -> At:
        answer = self._ask(question)
        if not isinstance(answer, At):
            raise SshrecError("the auth service answered another question")
        return answer

    def _ask(self, question: Question) -> Answer:
        try:
            if self._peer is None:
                self._peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._peer.settimeout(self._seconds)
                self._peer.connect(str(self._path))
            protocol.send(self._peer, question)
            answer = protocol.receive_answer(self._peer)
        except OSError as error:
            self.close()
            raise Unreachable(f"the auth service at {self._path} does not answer: {describe(error)}") from error
        except SshrecError:
            self.close()
            raise
        if answer is None:
            self.close()
            raise Unreachable(f"the auth service at {self._path} has hung up")
        if isinstance(answer, Refused):
            raise Denied(f"the auth service refuses: {answer.reason}")
        return answer
