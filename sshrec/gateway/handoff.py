"""The messages between sshrec-gateway and a worker, on one SOCK_SEQPACKET socket: the worker's side.

The gateway's side is libexec/sshrec-gateway, a program of its own that imports nothing of ours: whoever
changes a letter here changes it there. A message is a letter and what belongs to it:

    gateway to worker
      H name=value␀…   who comes and with what; carries descriptors 0, 1, 2
      S n              signal number n arrived (SIGWINCH, SIGHUP, SIGINT, SIGQUIT, SIGTERM)
      A n              answer to A: carries a connection to the forwarded agent, or none if that failed
    worker to gateway
      R                ready: say hello
      T                the descriptors are here: let go of 0 and 1
      B                a heartbeat, each second
      A n              dial the forwarded agent (n: a byte that tells the answers apart)
      X status text    the end: the person's descriptors are closed; print the text on 2 and exit
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from dataclasses import dataclass

from sshrec.errors import SshrecError, UsageError
from sshrec.peer import peer

MESSAGE_BYTES = 256 * 1024
HELLO_SECONDS = 5.0
FACTS = ("command", "connection", "tty", "term", "lang", "auth", "agent", "channel")


@dataclass(frozen=True, slots=True)
class Hello:
    """Who came, by the kernel's word, and what sshd told the gateway, by the gateway's."""

    pid: int
    uid: int
    facts: dict[str, bytes]  # of FACTS, those that were there
    descriptors: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal that the gateway got."""

    number: int


@dataclass(frozen=True, slots=True)
class Agent:
    """A connection to the person's agent, or None where it could not be had."""

    tag: int
    descriptor: int | None


def receive_hello(sock: socket.socket) -> Hello:
    """Ask for the first message, and take it; UsageError where it is not one, or does not come in time."""
    sock.settimeout(HELLO_SECONDS)
    try:
        sock.send(b"R")
        message, descriptors = _receive(sock, 3)
    except OSError as error:
        raise UsageError(f"no request came: {error}") from error
    sock.setblocking(False)
    if message[:1] != b"H" or len(descriptors) != 3:
        _close(descriptors)
        raise UsageError("the first message is not a request with three descriptors")
    facts = {}
    for part in message[1:].split(b"\0"):
        name, _, value = part.partition(b"=")
        if name.decode("ascii", "replace") in FACTS:
            facts[name.decode()] = value
    pid, uid = peer(sock)
    return Hello(pid, uid, facts, (descriptors[0], descriptors[1], descriptors[2]))


def receive(sock: socket.socket) -> Signal | Agent | None:
    """The next message; None at the end of the connection. BlockingIOError while there is none."""
    message, descriptors = _receive(sock, 1)
    if not message:
        return None
    if message[:1] == b"S" and len(message) == 2 and not descriptors:
        return Signal(message[1])
    if message[:1] == b"A" and len(message) == 2:
        _close(descriptors[1:])  # the kernel's padding has room for one that nobody asked for
        return Agent(message[1], descriptors[0] if descriptors else None)
    _close(descriptors)
    raise SshrecError("the gateway sent a message that is none")


def finish(sock: socket.socket, status: int, text: str) -> None:
    """Tell the gateway the end. Whether it still listens no longer matters."""
    sock.setblocking(True)
    sock.settimeout(1.0)
    with contextlib.suppress(OSError):
        sock.send(b"X" + bytes([status & 255]) + text.encode()[: MESSAGE_BYTES // 2])


def _receive(sock: socket.socket, count: int) -> tuple[bytes, list[int]]:
    try:
        message, ancillary, flags, _ = sock.recvmsg(
            MESSAGE_BYTES, socket.CMSG_SPACE(count * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:
        return b"", []
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        _close(list(descriptors))
        what = f"{MESSAGE_BYTES} bytes" if flags & socket.MSG_TRUNC else "descriptors than there is room for"
        raise UsageError(f"the gateway's message has more than {what}")
    return message, list(descriptors)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
