"""ssh-agents for tests: OpenSSH's own; and between ssh-add and it, those that refuse, hang and lie."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from sshrec.openssh.signer import own_agent

FAILURE = b"\0\0\0\1\5"  # SSH_AGENT_FAILURE
CONSTRAINED = b"restrict-destination-v00@openssh.com"
CERTIFICATE = b"ssh-ed25519-cert-v01@openssh.com"

# What to answer a message with, its four bytes of length included; None: ask the real one; b"": hang up.
Answer = Callable[[bytes], bytes | None]


@contextlib.contextmanager
def agent() -> Iterator[Path]:
    """The socket of an OpenSSH agent of its own."""
    with own_agent() as path:
        yield path


def refusing(words: bytes) -> Answer:
    """Say no to a key (SSH2_AGENTC_ADD_IDENTITY, or that with constraints) of which the message has `words`."""
    return lambda message: FAILURE if message[4] in (17, 25) and words in message else None


@contextlib.contextmanager
def between(answer: Answer, behind: Path | None = None, name: str = "agent") -> Iterator[Path]:
    """The socket of something that listens as an agent does, with a real one `behind` it."""
    directory = Path(tempfile.mkdtemp(prefix="sr-agent-", dir="/tmp"))
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    thread = threading.Thread(target=_accept, args=(listener, answer, behind))
    thread.start()
    try:
        yield path
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
        shutil.rmtree(directory)


def _accept(listener: socket.socket, answer: Answer, behind: Path | None) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(connection, answer, behind)).start()


def _serve(connection: socket.socket, answer: Answer, behind: Path | None) -> None:
    with connection, socket.socket(socket.AF_UNIX) as real:
        if behind:
            real.connect(str(behind))
        while message := _message(connection):
            said = answer(message)
            if said is None:
                real.sendall(message)
                said = _message(real)
            if not said:
                return
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(said)


def _message(source: socket.socket) -> bytes:
    """One message, or nothing at the end."""
    data = b""
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4]):
        try:
            more = source.recv(65536)
        except ConnectionResetError:
            return b""
        if not more:
            return b""
        data += more
    return data
