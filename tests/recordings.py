"""Recordings for tests, made by the real recorder with a clock that the test holds."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sshrec.recording import asciicast
from sshrec.recording.recorder import Recorder, Stream
from sshrec.recording.seal import Outcome
from sshrec.session import session_id

WALL_MS = 1_763_889_254_123
SESSION = session_id(WALL_MS, b"0123456789")
FACTS: dict[str, Any] = {
    "session": SESSION,
    "user": "joe",
    "uid": 1004,
    "login": "root",
    "host": "web1",
    "port": 22,
    "target": "root@web1",
    "version": "0",
    "recording": "proxy",
}

EXIT = Outcome("exit", status=0)

# One step of a session: seconds since the one before, and output, output of a stream, or a new window size.
Step = tuple[float, bytes | tuple[bytes, Stream] | tuple[int, int]]


class Memory:
    """A sink that keeps the recording, and each write by itself, in memory."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.syncs = 0

    def write(self, data: bytes) -> None:
        self.writes.append(bytes(data))

    def sync(self) -> None:
        self.syncs += 1

    @property
    def text(self) -> bytes:
        return b"".join(self.writes)


def noise(size: int, seed: int) -> bytes:
    """Bytes that nothing compresses, the same each time."""
    return random.Random(seed).randbytes(size)  # noqa: S311


def header(*, terminal: bool = True, command: str | None = None, **facts: Any) -> bytes:
    """The header line of a session of Joe's."""
    kind = "shell" if command is None else "exec"
    return asciicast.header_line(
        width=80,
        height=24,
        timestamp=WALL_MS // 1000,
        title="joe → root@web1",
        command=command,
        env={"TERM": "xterm-256color"},
        facts={**FACTS, "kind": kind, "terminal": terminal, **facts},
    )


def record(
    steps: Iterable[Step],
    *,
    terminal: bool = True,
    outcome: Outcome | None = EXIT,
    command: str | None = None,
    session: str = SESSION,
    stream_limit: int = 1 << 24,
) -> Memory:
    """A session in which these things happened; no `outcome`: its worker was killed after the last one."""
    sink = Memory()
    start = header(terminal=terminal, command=command, session=session)
    recorder = Recorder(sink, session, start, wall_ms=WALL_MS, terminal=terminal, stream_limit=stream_limit)
    us = 0
    for seconds, what in steps:
        us += round(seconds * 1_000_000)
        due = recorder.due(us)
        if due == 0:
            recorder.tick(us, WALL_MS + us // 1000)
        if isinstance(what, bytes):
            recorder.output(us, what)
        elif isinstance(what[0], bytes):
            recorder.output(us, what[0], what[1])
        else:
            recorder.resize(us, what[0], what[1])
    if outcome is not None:
        recorder.close(us, WALL_MS + us // 1000, outcome)
    return sink


def write(path: Path, steps: Iterable[Step], **how: Any) -> Path:
    """The same, as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(record(steps, **how).text)
    return path
