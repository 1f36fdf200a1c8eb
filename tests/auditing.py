"""A writer of the audit log as a process of its own, as sshrecd has one; and a signer that is ssh-keygen.

python -m tests.auditing DIRECTORY SOCKET [KEY]
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from sshrec.audit.checkpoint import CheckpointSigner, Signature
from sshrec.audit.client import Sender
from sshrec.audit.log import Line, Problem, read_log
from sshrec.audit.writer import Writer
from sshrec.errors import Unreachable

IDENTITY, NAMESPACE = "audit@bastion", "sshrec-checkpoint-v1"


class Keygen:
    """Signs with a key file; a file `hang` beside it makes it as slow as a dead agent."""

    def __init__(self, key: Path) -> None:
        self._key = key

    def sign(self, line: bytes, seconds: float) -> Signature:
        """As CheckpointSigner has it."""
        if self._key.with_name("hang").exists():
            time.sleep(min(seconds, 0.2))
            raise Unreachable("the signer does not answer")
        argv = ["ssh-keygen", "-Y", "sign", "-f", str(self._key), "-n", NAMESPACE]
        done = subprocess.run(argv, input=line, capture_output=True, timeout=10, check=True)
        return Signature("".join(done.stdout.decode().splitlines()[1:-1]), IDENTITY, NAMESPACE)


def start(directory: Path, path: Path, key: Path | None = None) -> subprocess.Popen[bytes]:
    """Start one; whether it listens yet, senders find out."""
    words = [str(word) for word in (directory, path, key) if word is not None]
    return subprocess.Popen([sys.executable, "-m", "tests.auditing", *words], cwd=Path(__file__).parents[1])


@contextlib.contextmanager
def running(directory: Path, path: Path, key: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """One that is ended, and must end well."""
    writer = start(directory, path, key)
    try:
        with contextlib.closing(Sender(path)) as sender:
            while sender.fileno() < 0:
                time.sleep(min(0.02, sender.tick()))
        yield writer
    finally:
        writer.terminate()
        assert writer.wait(20) == 0


def whole(directory: Path) -> list[Line]:
    """The lines of a log that has nothing wrong with it."""
    found = list(read_log(directory))
    assert [item for item in found if isinstance(item, Problem)] == []
    return [item for item in found if isinstance(item, Line)]


def main() -> None:
    """Serve until SIGTERM."""
    directory, path, *key = map(Path, sys.argv[1:])
    signer: CheckpointSigner | None = Keygen(key[0]) if key else None
    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGTERM, lambda *_: None)
    others = os.environ.get("SENDERS", "")
    senders = frozenset({os.geteuid(), *map(int, others.split())})
    Writer(directory, path, senders=lambda: senders, leave=wake, signer=signer).serve()


if __name__ == "__main__":
    main()
