"""The files of the audit log, as a reader sees them: lines in a chain, day by day. Writes nothing, judges nobody.

The format is in sshrec-audit(5). What is read is foreign: bounded in memory, whatever it is.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from sshrec.audit.event import LINE_MAX, canonical
from sshrec.errors import DataError, NotFound, describe

FORMAT = b"sshrec-audit-v1"
GENESIS = hashlib.sha256(FORMAT).hexdigest()  # the `prev` of the first line
TORN_MAX = 2 * 1024 * 1024  # bytes that one repair may set aside; more than a group of lines written at once has

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\.jsonl")
_HASH = re.compile(r"[0-9a-f]{64}")
_SEARCHES = 500  # for a repair, in one reading: damage without end must not cost time without end
_CANDIDATES = 64  # looked at in one search
_REPAIR = b'"event":"log.repair"'
_decode = msgspec.json.Decoder(dict[str, Any]).decode

# What is wrong at a place of the log:
#   file      a file cannot be read, or is none of ours
#   begins    the log does not begin with line 0: earlier files are missing
#   line      this is no line of an audit log
#   canonical it is one, but not in the form that is hashed
#   number    its number does not follow the one before: lines are missing, or doubled
#   chain     it does not continue the line before: that one, or this, was changed
#   signature a signature without its checkpoint right before it
#   torn      the last line of a file is none: its writer is at it, or died, or has no room for more
Kind = Literal["file", "begins", "line", "canonical", "number", "chain", "signature", "torn"]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log. `offset`: in its file; `raw`: as it stands there, with its newline; `digest`: of that."""

    file: Path
    offset: int
    n: int
    digest: str
    raw: bytes
    fields: dict[str, Any]

    @property
    def event(self) -> str:
        """What happened."""
        return str(self.fields["event"])


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that should not be. `n`: of the line at fault, or the one that was due there."""

    file: Path
    offset: int
    n: int
    kind: Kind
    message: str


@dataclass(frozen=True, slots=True)
class Head:
    """Where the chain stands: the number of the next line, and its `prev`."""

    n: int = 0
    prev: str = GENESIS

    def after(self, raw: bytes) -> Head:
        """The head once this line is there, newline included."""
        return Head(self.n + 1, hashlib.sha256(raw).hexdigest())


def files(directory: Path) -> list[Path]:
    """The log's files, oldest first."""
    try:
        return sorted(directory / name for name in os.listdir(directory) if _DAY.fullmatch(name))
    except FileNotFoundError:
        return []


def parse(raw: bytes) -> dict[str, Any]:
    """The fields of a line, its newline included; DataError where it is none. Checks neither chain nor form."""
    if not raw.endswith(b"\n") or len(raw) > LINE_MAX:
        raise DataError("not a whole line")
    try:
        fields = _decode(raw[:-1])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"not a JSON object: {error}") from None
    n, prev = fields.get("n"), fields.get("prev")
    if type(n) is not int or n < 0 or not isinstance(prev, str) or not _HASH.fullmatch(prev):
        raise DataError("no number, or no hash of the line before")
    if not all(isinstance(fields.get(name), str) for name in ("event", "code", "time", "uid")):
        raise DataError("no event, code, time or uid")
    return fields


def continues(fields: dict[str, Any], head: Head) -> bool:
    """Whether a line is the next one of the chain."""
    return bool(fields["n"] == head.n and fields["prev"] == head.prev)


def read_log(directory: Path) -> Iterator[Line | Problem]:
    """Every line of the log, and what is wrong with it, in order.

    Checked: the files are regular, and named as a log's are; each line is a JSON object of at most LINE_MAX bytes
    in canonical form, with number, hash, event, code, time and uid; numbers begin at 0 and follow each other, and
    each `prev` is the hash of the line before, over all files; torn bytes are followed by the repair that names
    their length and hash (they are passed over, and the repair is a Line like any other); a signature follows its
    checkpoint. After a Problem the reading goes on from what is there, with the next Line.

    Not checked: signatures and what checkpoints say of recordings; whether times go back (clocks do); whether the
    end is missing (only an anchor tells); what an event's own fields mean.

    Memory: a few times TORN_MAX. Of a log that somebody writes to, the last line may be half there: `torn`.
    """
    paths = files(directory)
    if not paths:
        raise NotFound(f"no audit log in {directory}")
    reader = Reader()
    for path in paths:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            yield Problem(path, 0, reader.head.n, "file", f"cannot be read: {describe(error)}")
            continue
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            yield Problem(path, 0, reader.head.n, "file", "not a regular file")
            continue
        with os.fdopen(fd, "rb") as file:
            yield from reader.read(path, file)


def _is_canonical(fields: dict[str, Any], raw: bytes) -> bool:
    try:
        return canonical(fields) + b"\n" == raw
    except (ValueError, RecursionError):
        return False


class Reader:
    """Reads files one after the other, with the chain from one to the next: `read_log`, piece by piece.

    `head`: where the chain stands after what was read; or before, where that is known already.
    """

    def __init__(self, head: Head | None = None) -> None:
        self.head = head or Head()
        self._begun = head is not None
        self._checkpoint = False  # the line before is one
        self._searches = 0

    def read(self, path: Path, file: BinaryIO, offset: int = 0) -> Iterator[Line | Problem]:
        """A file from `offset` on, where it must stand."""
        while raw := file.readline(LINE_MAX + 1):
            end = offset + len(raw)
            fields, fault = None, ""
            try:
                fields = parse(raw)
            except DataError as error:
                fault = str(error)
            if fields is None or (self._begun and not continues(fields, self.head)):
                repair = self._find_repair(file, offset, raw)
                if repair is not None:
                    file.seek(repair)
                    offset = repair
                    continue
                file.seek(end)
            if fields is None:
                piece = raw
                while piece and not piece.endswith(b"\n"):  # longer than a line can be: only passed over
                    piece = file.readline(LINE_MAX + 1)
                    end += len(piece)
                if not file.read(1):
                    yield Problem(path, offset, self.head.n, "torn", f"the last {end - offset} bytes are no line")
                    return
                file.seek(end)
                yield Problem(path, offset, self.head.n, "line", fault)
                self.head = self.head.after(raw)
                self._checkpoint = False
            else:
                yield from self._judge(path, offset, raw, fields)
                self.head = Head(fields["n"]).after(raw)
                yield Line(path, offset, fields["n"], self.head.prev, raw, fields)
                self._checkpoint = fields["event"] == "checkpoint"
            self._begun = True
            offset = end

    def _judge(self, path: Path, offset: int, raw: bytes, fields: dict[str, Any]) -> Iterator[Problem]:
        n = fields["n"]
        if not self._begun and n != 0:
            yield Problem(path, offset, n, "begins", f"the log begins with line {n}")
        elif n != self.head.n:
            yield Problem(path, offset, n, "number", f"line {n} stands where {self.head.n} was due")
        elif fields["prev"] != self.head.prev:
            yield Problem(path, offset, n, "chain", f"line {n} does not continue what is before it")
        if not _is_canonical(fields, raw):
            yield Problem(path, offset, n, "canonical", f"line {n} is not in canonical form")
        if fields["event"] == "checkpoint.signature" and not self._checkpoint:
            yield Problem(path, offset, n, "signature", f"line {n} signs no checkpoint right before it")

    def _find_repair(self, file: BinaryIO, offset: int, first: bytes) -> int | None:
        """Where the repair is that sets aside what begins at `offset`; None where there is none."""
        if self._searches >= _SEARCHES:
            return None
        self._searches += 1
        file.seek(offset)
        data = file.read(TORN_MAX + LINE_MAX)
        at = len(first) - 1
        for _ in range(_CANDIDATES):
            at = data.find(_REPAIR, at)
            if at < 0:
                return None
            size = data.rfind(b"\n", 0, at) + 1
            end = data.find(b"\n", at) + 1
            if size and end and self._is_repair(data, size, data[size:end]):
                return offset + size
            at += 1
        return None

    def _is_repair(self, data: bytes, size: int, raw: bytes) -> bool:
        """Whether a line sets aside the `size` bytes before it."""
        try:
            fields = parse(raw)
        except DataError:
            return False
        if not continues(fields, self.head) or fields.get("torn_bytes") != size:
            return False
        return bool(fields.get("torn_sha256") == hashlib.sha256(data[:size]).hexdigest())
