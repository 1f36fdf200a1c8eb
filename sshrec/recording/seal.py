"""The chain of seals: each `S` line closes a chunk and names the seal before it. Knows lines and hashes only.

A seal's data is canonical JSON `{n, count, bytes, sha256, prev, wall}`: its number from 0; how many lines
the chunk has and how many bytes; the SHA-256 over these lines, newlines included; the SHA-256 of the whole
seal line before (for the first: of the session id); the wall clock in milliseconds. The last seal of a
recording has `end` besides: the outcome.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from sshrec.errors import DataError
from sshrec.recording import asciicast, events

CHUNK_BYTES = 256 * 1024
CHUNK_US = 5_000_000

_SEAL_LINE = re.compile(rb'\[[0-9]+\.[0-9]+,"S",')
_decode = msgspec.json.Decoder(list[Any]).decode


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended, and what was learned after its recording had begun.

    `reason`: `exit` (the hop ended), `client-disconnect`, `killed`, `limit`, `unreachable`, `enospc`,
    `recording-failed`, `aborted` (the worker died, and recovery closed the recording), …; `detail`: a line for
    people.
    """

    reason: str
    status: int | None = None
    signal: str | None = None
    detail: str | None = None
    address: str | None = None  # that was dialled, host:port
    host_key: str | None = None  # that the target showed, "ssh-ed25519 SHA256:…"
    unrecorded: str | None = None  # since when the session went on without being recorded, RFC 3339


def is_seal(line: bytes) -> bool:
    """Whether a complete line of a recording is a seal."""
    return _SEAL_LINE.match(line) is not None


def read_seal(line: bytes) -> dict[str, Any]:
    """A seal line's fields; DataError where it is none."""
    try:
        _, code, data = _decode(line)
        seal = msgspec.json.decode(data, type=dict[str, Any])
    except (ValueError, TypeError, msgspec.MsgspecError) as error:
        raise DataError(f"not a seal: {error}") from error
    if code != events.SEAL:
        raise DataError("not a seal")
    return seal


class Chain:
    """The running state of a recording's chain: feed it every line, ask it for seals.

    The writer (recorder.py), recovery and verification all advance it the same way.
    """

    def __init__(self, session: str) -> None:
        self.n = 0
        self.prev = hashlib.sha256(session.encode()).hexdigest()
        self._open()

    def _open(self) -> None:
        self.count = 0
        self.bytes = 0
        self._sha = hashlib.sha256()

    def add(self, lines: bytes, count: int = 1) -> None:
        """Take `count` whole lines, none of them a seal, into the open chunk."""
        self._sha.update(lines)
        self.count += count
        self.bytes += len(lines)

    def seal(self, us: int, wall_ms: int, end: Outcome | None = None) -> bytes:
        """The line that would close the open chunk; hand it to `close` once it is written."""
        seal: dict[str, Any] = {**self.expected(), "wall": wall_ms}
        if end is not None:
            seal["end"] = {key: value for key, value in asdict(end).items() if value is not None}
        return asciicast.event_line(us, events.SEAL, asciicast.canonical(seal))

    def expected(self) -> dict[str, Any]:
        """What a seal that closes the open chunk must say (all but the wall clock and the outcome)."""
        return {
            "n": self.n,
            "count": self.count,
            "bytes": self.bytes,
            "sha256": self._sha.hexdigest(),
            "prev": self.prev,
        }

    def close(self, line: bytes) -> None:
        """Take a seal line as the end of the open chunk."""
        self.n += 1
        self.prev = hashlib.sha256(line).hexdigest()
        self._open()
