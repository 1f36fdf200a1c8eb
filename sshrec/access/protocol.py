"""What is said between the auth service and those who ask it: one question, one answer, on a Unix stream socket.

Each message is its length in four bytes, big-endian, and so many bytes of JSON. Who asks, the kernel says.
"""

from __future__ import annotations

import socket
from typing import TypeVar

import msgspec

from sshrec.errors import DataError

MESSAGE_MAX = 8 * 1024 * 1024

T = TypeVar("T")


class Position(msgspec.Struct, frozen=True, tag="position"):
    """Where does the signed part of the audit log end?"""


class Advance(msgspec.Struct, frozen=True, tag="advance"):
    """Lines of the audit log that follow what is signed, or what this connection has shown before."""

    lines: bytes


class Sign(msgspec.Struct, frozen=True, tag="sign"):
    """Sign this checkpoint, a line without its end, which continues what this connection has shown."""

    line: str


class At(msgspec.Struct, frozen=True, tag="at"):
    """How far the log was shown: the number that the next line must have, and the hash that it must name.

    `line`, `signature`: of the checkpoint that was signed last, "" where there is none. Where the log ends
    before that line, it was signed and never written: it comes next, and nothing else.
    """

    n: int
    prev: str
    line: str
    signature: str


class Signed(msgspec.Struct, frozen=True, tag="signed"):
    """A signature (the base64 of an SSHSIG), and whose it is for what."""

    signature: str
    identity: str
    namespace: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """No, and why: a line for people."""

    reason: str


Question = Position | Advance | Sign
Answer = At | Signed | Refused

_question: msgspec.json.Decoder[Question] = msgspec.json.Decoder(Question)
_answer: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
_encode = msgspec.json.Encoder().encode


def send(peer: socket.socket, message: Question | Answer) -> None:
    """Send a message whole. OSError as it comes; DataError where it is too long."""
    data = _encode(message)
    if len(data) > MESSAGE_MAX:
        raise DataError(f"a message of {len(data)} bytes is too long")
    peer.sendall(len(data).to_bytes(4) + data)


def receive_question(peer: socket.socket) -> Question | None:
    """The next question, None where the peer has hung up. DataError where it is none."""
    return _receive(peer, _question)


def receive_answer(peer: socket.socket) -> Answer | None:
    """The next answer, None where the service has hung up. DataError where it is none."""
    return _receive(peer, _answer)


def _receive(peer: socket.socket, decoder: msgspec.json.Decoder[T]) -> T | None:
    head = _read(peer, 4)
    if not head:
        return None
    length = int.from_bytes(head)
    if len(head) < 4 or length > MESSAGE_MAX:
        raise DataError("not a message")
    data = _read(peer, length)
    if len(data) < length:
        raise DataError("a message that was cut short")
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise DataError(f"not a message: {error}") from error


def _read(peer: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length and (more := peer.recv(min(length - len(data), 1 << 20))):
        data += more
    return bytes(data)
