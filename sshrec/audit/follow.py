"""Reads the audit log on from where somebody came to: the lines to send, and the anchors of its checkpoints.

The log is the spool: a cursor beside it says what was delivered. Judges nobody: `log` and `verify` do.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import msgspec

from sshrec.atomic import replace_file
from sshrec.audit.event import LINE_MAX
from sshrec.audit.log import GENESIS, Head, Line, continues, files, parse
from sshrec.errors import DataError, SshrecError, describe

BATCH_BYTES = 1024 * 1024  # that are read at once

_NAME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\.jsonl|")


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the next line is: its file's name ("": the log's first), the byte there, its number and `prev`."""

    file: str = ""
    offset: int = 0
    n: int = 0
    prev: str = GENESIS


@dataclass(frozen=True, slots=True)
class Anchor:
    """A checkpoint as somebody off this host is to know it: number and SHA-256 of its line, newline included."""

    n: int
    sha256: str
    host: str
    time: str

    @property
    def text(self) -> str:
        """The line that `sshrec verify --anchor` looks for."""
        return f"sshrec-anchor n={self.n} sha256={self.sha256} host={self.host}"


Item = Line | Anchor


def load_cursor(path: Path) -> Cursor:
    """The cursor that was kept, or the log's beginning. DataError where the file has none in it."""
    try:
        cursor = msgspec.json.decode(path.read_bytes(), type=Cursor)
    except FileNotFoundError:
        return Cursor()
    except (OSError, msgspec.MsgspecError) as error:
        reason = describe(error) if isinstance(error, OSError) else str(error)
        raise DataError(f"{path}: {reason}") from error
    if not _NAME.fullmatch(cursor.file) or cursor.offset < 0:
        raise DataError(f"{path}: names no place in an audit log")
    return cursor


def save_cursor(path: Path, cursor: Cursor) -> None:
    """Keep it, durably; SshrecError where that cannot be."""
    try:
        replace_file(path, msgspec.json.encode(cursor) + b"\n", 0o640)
    except OSError as error:
        raise SshrecError(f"cannot write {path}: {describe(error)}") from error


def read_on(directory: Path, cursor: Cursor, lines: int) -> tuple[list[Item], Cursor]:
    """What stands after the cursor, and the cursor after it: `lines` lines at most, from one file.

    All of it is on disk: what was sent can be held against the log after a power cut. Each checkpoint that
    continues the line before is followed by its Anchor. Bytes that are no line are passed over (the repair after
    them tells), half a line at the end of the log is waited for: the cursor may move without an item.
    DataError where the log is no longer what the cursor says; SshrecError where it cannot be read.
    """
    paths = files(directory)  # listed before one is read: nobody writes to one that has a successor
    later = [path for path in paths if path.name > cursor.file]
    try:
        if cursor.file and (here := directory / cursor.file) in paths:
            items, cursor = _read_file(here, cursor, lines, last=not later)
            if items or not later:
                return items, cursor
        elif cursor.file and not later:
            raise DataError(f"{directory / cursor.file} is gone, and was not delivered to its end")
        if not later:
            return [], cursor
        return _read_file(later[0], Cursor(later[0].name, 0, cursor.n, cursor.prev), lines, last=len(later) == 1)
    except OSError as error:
        raise SshrecError(f"cannot read the audit log {directory}: {describe(error)}") from error


def _read_file(path: Path, cursor: Cursor, lines: int, *, last: bool) -> tuple[list[Item], Cursor]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if size < cursor.offset:
            raise DataError(f"{path} has {size} bytes, and {cursor.offset} of it were delivered: it was cut")
        if size > cursor.offset:
            os.fdatasync(fd)
        # No more than was there before the sync: what has come since may not be on disk.
        data = os.pread(fd, min(BATCH_BYTES, size - cursor.offset), cursor.offset)
    finally:
        os.close(fd)
    items: list[Item] = []
    at = count = 0
    while count < lines and (end := data.find(b"\n", at)) >= 0:
        raw = data[at : end + 1]
        at = end + 1
        try:
            fields = parse(raw)
        except DataError:
            cursor = replace(cursor, offset=cursor.offset + len(raw))
            continue
        chained = continues(fields, Head(cursor.n, cursor.prev))
        head = Head(fields["n"]).after(raw)
        line = Line(path, cursor.offset, fields["n"], head.prev, raw, fields)
        items.append(line)
        if line.event == "checkpoint" and chained:
            items.append(Anchor(line.n, line.digest, _word(fields.get("host")), fields["time"]))
        cursor = Cursor(path.name, cursor.offset + len(raw), head.n, head.prev)
        count += 1
    if at == 0 and (len(data) > LINE_MAX or not last):
        cursor = replace(cursor, offset=cursor.offset + len(data))  # will never be a line
    return items, cursor


def _word(host: object) -> str:
    """A host's name as one word of an anchor."""
    return re.sub(r"[^A-Za-z0-9._:-]", "", str(host))[:255] or "-"


def written(item: Item) -> float:
    """When the log's writer took it, by its own word: Unix time."""
    try:
        return datetime.fromisoformat(item.time if isinstance(item, Anchor) else item.fields["time"]).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def waiting_since(directory: Path, cursor: Cursor) -> float | None:
    """Since when the next line has been there, Unix time; None where there is none to deliver."""
    while True:
        items, after = read_on(directory, cursor, 1)
        if items:
            return written(items[0])
        if after == cursor:
            return None
        cursor = after
