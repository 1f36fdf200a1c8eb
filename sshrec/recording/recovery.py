"""Closes a recording whose writer died: what is there stays, a torn last line goes beside it.

Works on an open file that the caller has locked. Doing it twice changes nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sshrec.errors import DataError
from sshrec.recording.seal import Chain, Outcome, is_seal, read_seal


@dataclass(frozen=True, slots=True)
class State:
    """What `scan` found: the chain after the last whole line, that line's end and time, and how it ends."""

    chain: Chain
    end: int  # offset in bytes
    us: int  # time of the last event, microseconds
    outcome: dict[str, object] | None  # of the last seal, where it closes the recording


def scan(file: BinaryIO, session: str) -> State:
    """Read a recording from its start to its last whole line. Checks no hash: verification does that."""
    chain = Chain(session)
    end = us = 0
    outcome: dict[str, object] | None = None
    file.seek(0)
    for line in file:
        if not line.endswith(b"\n"):
            break
        outcome = None
        if is_seal(line):
            chain.close(line)
            outcome = read_seal(line).get("end")
        else:
            chain.add(line)
        if line.startswith(b"["):
            us = max(us, _time(line))
        end += len(line)
    return State(chain, end, us, outcome)


def recover(file: BinaryIO, session: str, torn: Path, wall_ms: int, detail: str) -> bool:
    """Seal a recording as `aborted` unless it is closed already; True where that was needed.

    `file`: open for reading and writing; `torn`: where a torn last line goes; `detail`: why, for people.
    DataError where not even the header is whole: then there is nothing to seal, and `torn` has it all.
    """
    state = scan(file, session)
    if state.outcome is not None:
        return False
    file.seek(state.end)
    tail = file.read()
    if tail:
        _keep(torn, tail)
        file.truncate(state.end)
    if state.end == 0:
        raise DataError("not even the header was written")
    end = Outcome("aborted", detail=detail)
    file.seek(state.end)
    file.write(state.chain.seal(state.us, wall_ms, end))
    file.flush()
    os.fdatasync(file.fileno())
    return True


def _keep(torn: Path, tail: bytes) -> None:
    with torn.open("wb") as beside:
        beside.write(tail)
        beside.flush()
        os.fsync(beside.fileno())


def _time(line: bytes) -> int:
    seconds, _, fraction = line[1 : line.index(b",")].partition(b".")
    return int(seconds) * 1_000_000 + int(fraction[:6].ljust(6, b"0"))
