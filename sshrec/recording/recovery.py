"""Closes a recording whose writer died: what is there stays, a torn last line goes beside it.

Works on an open file that the caller has locked. Doing it twice changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, BinaryIO

from sshrec.errors import DataError
from sshrec.recording.packing import last_line, outcome
from sshrec.recording.seal import Chain, Outcome, is_seal, read_seal


class Found(Enum):
    """What became of a recording that was looked after."""

    SEALED = auto()  # as aborted, now
    FINISHED = auto()  # it was closed already
    EMPTY = auto()  # not even its header was written: nothing was recorded
    ALIVE = auto()  # its worker holds its lock
    ABSENT = auto()  # there is no plain file


_TIME = re.compile(rb"\[([0-9]{1,9})\.([0-9]{6}),")


@dataclass(frozen=True, slots=True)
class State:
    """What `scan` found: the chain after the last whole line, that line's end and time, and how it ends."""

    chain: Chain
    end: int  # offset in bytes
    us: int  # time of the last event, microseconds
    outcome: dict[str, object] | None  # of the last seal, where it closes the recording


def scan(file: BinaryIO, session: str) -> State:
    """Read a recording from its start to its last whole line. Checks no hash: verification does that.

    A damaged seal counts as a line of its chunk: it stays, and verification will name it.
    """
    chain = Chain(session)
    end = us = 0
    outcome: dict[str, object] | None = None
    file.seek(0)
    for line in file:
        if not line.endswith(b"\n"):
            break
        seal = _seal(line)
        outcome = None
        if seal is None:
            chain.add(line)
        else:
            chain.close(line)
            outcome = seal.get("end")
        us = max(us, _time(line))
        end += len(line)
    return State(chain, end, us, outcome)


def recover(file: BinaryIO, session: str, torn: Path, wall_ms: int, detail: str) -> Found:
    """Seal a recording as `aborted` unless it is closed already.

    `file`: open for reading and writing; `torn`: where a torn last line goes; `detail`: why, for people.
    EMPTY where not even the header is whole: then there is nothing to seal, and `torn` has what there was.
    """
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read() == b"\n" and outcome(last_line(file)) is not None:
            return Found.FINISHED  # as nearly all are: without reading them through
    state = scan(file, session)
    file.seek(state.end)
    tail = file.read()
    if tail:
        _keep(torn, tail)
        file.truncate(state.end)
    if state.outcome is not None:
        return Found.FINISHED
    if state.end == 0:
        return Found.EMPTY
    end = Outcome("aborted", detail=detail)
    file.seek(state.end)
    file.write(state.chain.seal(state.us, wall_ms, end))
    file.flush()
    os.fdatasync(file.fileno())
    return Found.SEALED


def _keep(torn: Path, tail: bytes) -> None:
    with torn.open("wb") as beside:
        beside.write(tail)
        beside.flush()
        os.fsync(beside.fileno())


def _seal(line: bytes) -> dict[str, Any] | None:
    if is_seal(line):
        with contextlib.suppress(DataError):
            return read_seal(line)
    return None


def _time(line: bytes) -> int:
    """Microseconds of an event line, 0 for any other."""
    match = _TIME.match(line)
    return int(match.group(1)) * 1_000_000 + int(match.group(2)) if match else 0
