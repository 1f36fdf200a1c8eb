"""Closes a recording whose writer died: what is there stays, what a power cut tore goes beside it.

Works on an open file that the caller has locked. May die anywhere itself; doing it twice changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, BinaryIO

from sshrec.atomic import sync_directory
from sshrec.errors import DataError
from sshrec.recording.packing import LINE_MAX, last_line, outcome
from sshrec.recording.seal import Chain, Outcome, is_seal, read_seal


class Found(Enum):
    """What became of a recording that was looked after."""

    SEALED = auto()  # as aborted, now
    FINISHED = auto()  # it was closed already
    EMPTY = auto()  # not even its header was written: nothing was recorded
    ALIVE = auto()  # its worker holds its lock
    ABSENT = auto()  # there is no plain file


# What a power cut takes was written since the last sync. One comes each second, and a worker whose disk hangs for
# long is killed: so what is older than this, by its events, was on disk, and a hole in it is damage.
UNSYNCED_US = 60_000_000

_TIME = re.compile(rb"\[([0-9]{1,9})\.([0-9]{6}),")
_BLOCK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class State:
    """What `scan` found: the chain after the last whole line, that line's end and time, and how it ends."""

    chain: Chain
    end: int  # offset in bytes
    us: int  # time of the last event, microseconds
    outcome: dict[str, object] | None  # of the last seal, where it closes the recording


def scan(file: BinaryIO, session: str, stop: int | None = None) -> State:
    """Read a recording from its start to its last whole line, or the last before the byte `stop`.

    Checks no hash: verification does that. A damaged seal counts as a line of its chunk: it stays, and
    verification will name it.
    """
    chain = Chain(session)
    end = us = 0
    outcome: dict[str, object] | None = None
    file.seek(0)
    while (line := file.readline(LINE_MAX)).endswith(b"\n") and (stop is None or end + len(line) <= stop):
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

    `file`: open for reading and writing; `torn`: where a last line without its end goes, and everything from the
    first hole on that a power cut left; `detail`: why, for people.
    EMPTY where not even the header is whole: then there is nothing to seal, and `torn` has what there was.
    """
    hole = _hole(file)
    if hole is None and file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read() == b"\n" and outcome(last_line(file)) is not None:
            os.fdatasync(file.fileno())  # its worker may have died before; and what follows counts on it
            return Found.FINISHED  # as nearly all are: without reading them line by line
    state = scan(file, session, hole)
    if hole is not None and _last_time(file, state.end) - state.us > UNSYNCED_US:
        state = scan(file, session)
    size = file.seek(0, os.SEEK_END)
    if state.end < size:
        _keep(torn, file, state.end)
    if state.end == 0:
        return Found.EMPTY
    if state.end < size:
        file.truncate(state.end)
        # Before the seal: a disk may have that first, in the midst of what was to go.
        os.fsync(file.fileno())
    if state.outcome is not None:
        return Found.FINISHED
    end = Outcome("aborted", detail=detail)
    file.seek(state.end)
    file.write(state.chain.seal(state.us, wall_ms, end))
    file.flush()
    os.fdatasync(file.fileno())
    return Found.SEALED


def _hole(file: BinaryIO) -> int | None:
    """Where the first zero byte is: no line has one, and file systems put them where data was to come."""
    at = file.seek(0)
    while block := file.read(_BLOCK):
        if (found := block.find(0)) >= 0:
            return at + found
        at += len(block)
    return None


def _last_time(file: BinaryIO, start: int) -> int:
    """The greatest time of an event after a line's end, microseconds; 0 where there is none."""
    file.seek(start)
    us = 0
    while line := file.readline(LINE_MAX):
        us = max(us, _time(line.lstrip(b"\0")))
    return us


def _keep(torn: Path, file: BinaryIO, start: int) -> None:
    """Put what follows `start` beside the recording, behind what is there, durably; not the zeros at its end.

    Once, even where whoever did it died before the recording was cut: what is there already ends with it.
    """
    end = _end_of_data(file, start)
    size = end - start
    with contextlib.suppress(FileNotFoundError), torn.open("rb") as kept:
        if kept.seek(0, os.SEEK_END) >= size and _same(kept, kept.tell() - size, file, start, size):
            return
    if not size:
        return
    new = torn.with_suffix(".torn.new")
    with new.open("wb") as beside:
        with contextlib.suppress(FileNotFoundError), torn.open("rb") as kept:
            shutil.copyfileobj(kept, beside)
        for block in _blocks(file, start, size):
            beside.write(block)
        beside.flush()
        os.fsync(beside.fileno())
    new.rename(torn)
    sync_directory(torn.parent)


def _end_of_data(file: BinaryIO, start: int) -> int:
    """Where the zeros begin with which the file ends, not before `start`."""
    end = file.seek(0, os.SEEK_END)
    while end > start:
        begin = max(start, end - _BLOCK)
        (block,) = _blocks(file, begin, end - begin)
        if data := block.rstrip(b"\0"):
            return begin + len(data)
        end = begin
    return start


def _same(one: BinaryIO, at: int, other: BinaryIO, start: int, size: int) -> bool:
    """Whether two files have the same `size` bytes at these places."""
    return all(a == b for a, b in zip(_blocks(one, at, size), _blocks(other, start, size), strict=True))


def _blocks(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    for at in range(start, start + size, _BLOCK):
        file.seek(at)
        yield file.read(min(_BLOCK, start + size - at))


def _seal(line: bytes) -> dict[str, Any] | None:
    if is_seal(line):
        with contextlib.suppress(DataError):
            return read_seal(line)
    return None


def _time(line: bytes) -> int:
    """Microseconds of an event line, 0 for any other."""
    match = _TIME.match(line)
    return int(match.group(1)) * 1_000_000 + int(match.group(2)) if match else 0
