"""Proves the audit log, and gathers what it knows of each recording: lines in, a report out.

Who signed is for `check` to say, which the caller passes in. Only what a good signature covers counts as known;
what came after the last of them may be a forger's as well as the truth.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sshrec.audit.log import Line, Problem
from sshrec.errors import DataError
from sshrec.session import SESSION_ID, printable

PROBLEMS_MAX = 100  # that are told; more say nothing new
LATE_SECONDS = 60.0  # from a line to the checkpoint that covers it: an anchor of that is off the host by then
CLOCK_SECONDS = 1.0  # that a clock may be set back by and nobody asks why
_ANCHOR = re.compile(r"sshrec-anchor n=([0-9]{1,18}) sha256=([0-9a-f]{64})(?![0-9a-f])")

# DataError unless these bytes are signed so, at that Unix time: line, identity, namespace, signature, time.
Check = Callable[[bytes, str, str, str, int], None]


@dataclass(frozen=True, slots=True)
class Anchor:
    """A line of the log as somebody outside knows it: its number, and its SHA-256 with its newline, in hex."""

    n: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Lapse:
    """A time for which the log proves less than it should.

    `kind`: `late` (the lines from `first` to `last` waited that long for a signature, open to whoever could write
    there), `unsigned` (they still wait), `clock` (line `last` is older than the one before it). `begins`, `ends`:
    Unix seconds, by the log's own times; a clock that was set back ends before it begins.
    """

    kind: Literal["late", "unsigned", "clock"]
    first: int
    last: int
    begins: float
    ends: float

    def __str__(self) -> str:
        when = f"{_rfc3339(self.begins)} to {_rfc3339(self.ends)}"
        if self.kind == "clock":
            return f"line {self.last}: the clock went back {self.begins - self.ends:.3f} s: {when}"
        lines = f"line {self.first}" if self.first == self.last else f"lines {self.first} to {self.last}"
        waited = f"{self.ends - self.begins:.0f} s without a signature"
        return f"{lines}: {waited}: {when}" + ("" if self.kind == "late" else ", and there is none yet")


@dataclass(slots=True)
class Known:
    """What the signed part of the log says of one session.

    `heads`: number of a seal, from 0, to the SHA-256 of its line; `last`: of them the one that closed the
    recording, where it was; `deleted`: the event that told of its removal; `encrypted`: those that told of its
    encryption, by the SHA-256 of the file it came to: more than one where that was interrupted.
    """

    started: bool = False
    last: int | None = None
    heads: dict[int, str] = field(default_factory=dict)
    deleted: Mapping[str, Any] | None = None
    encrypted: dict[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """What came out. `signed`: how many lines a good signature covers; `lines`: how many there are.

    `time`: of the last signed checkpoint, Unix seconds; `anchored`: how many anchors were found in the log;
    `begins`: the first line's time, as it stands there.
    """

    lines: int = 0
    signed: int = 0
    signatures: int = 0
    time: float | None = None
    anchored: int = 0
    begins: str = ""
    problems: list[str] = field(default_factory=list)
    lapses: list[Lapse] = field(default_factory=list)
    sessions: dict[str, Known] = field(default_factory=dict)
    unsigned: set[str] = field(default_factory=set)  # sessions that only the unsigned end knows
    unsigned_files: set[str] = field(default_factory=set)  # SHA-256 of encrypted recordings that only it knows

    @property
    def good(self) -> bool:
        return not self.problems


def verify_log(
    lines: Iterable[Line | Problem],
    check: Check | None,
    anchors: Iterable[Anchor] = (),
    late_seconds: float = LATE_SECONDS,
) -> Report:
    """Read a log, as `read_log` gives it, to its end. Memory grows with the number of seals it names.

    A signature covers everything before it, for each line has the hash of the one before: so all are checked.
    Without `check` nobody's signature counts, and whatever the log says is taken as known. `late_seconds`: how
    long a line may wait for its signature.
    """
    report = Report()
    wanted = {anchor.n: anchor.sha256 for anchor in anchors}
    open_part: list[Line] = []  # since the last good signature
    checkpoint: Line | None = None
    before: float | None = None
    for line in lines:
        if isinstance(line, Problem):
            if line.kind != "torn":  # its writer is at it, or the next one repairs it
                _tell(report, f"{line.file.name}, byte {line.offset}: {line.message}")
            checkpoint = None
            continue
        report.lines = line.n + 1
        report.begins = report.begins or str(line.fields["time"])
        before = _clock(report, line, before)
        if (digest := wanted.pop(line.n, None)) is not None:
            report.anchored += 1
            if digest != line.digest:
                _tell(
                    report, f"line {line.n} is not the one that was anchored: the log was rolled back, or changed"
                )
        if check is None:
            _learn(report, line)
        else:
            open_part.append(line)
        if line.event == "checkpoint":
            checkpoint = line
        elif check is not None and line.event == "checkpoint.signature" and checkpoint is not None:
            if _good(report, checkpoint, line, check):
                _late(report, "late", open_part, checkpoint, late_seconds)
                for covered in open_part:
                    _learn(report, covered)
                open_part.clear()
            checkpoint = None
        else:
            checkpoint = None
    for n in sorted(wanted):
        _tell(report, f"line {n} was anchored and is not there: the log was rolled back")
    if open_part:
        _late(report, "unsigned", open_part, open_part[-1], late_seconds)
    for line in open_part:
        sid = line.fields.get("sid")
        if isinstance(sid, str) and sid not in report.sessions:
            report.unsigned.add(sid)
        if line.event == "recording.encrypt":
            report.unsigned_files.add(str(line.fields.get("file_sha256")))
    return report


def _good(report: Report, checkpoint: Line, signature: Line, check: Check) -> bool:
    fields = signature.fields
    try:
        when = datetime.fromisoformat(str(checkpoint.fields["time"])).timestamp()
        body, identity, namespace = (str(fields.get(name, "")) for name in ("signature", "identity", "namespace"))
        check(checkpoint.raw[:-1], identity, namespace, body, int(when))
    except (DataError, ValueError, OverflowError) as error:
        _tell(report, f"line {signature.n}: {printable(str(error))}")
        return False
    report.signatures += 1
    report.signed, report.time = signature.n + 1, when
    return True


def _clock(report: Report, line: Line, before: float | None) -> float | None:
    """The line's time, or that of the line before where it has none; tells of a clock that was set back."""
    now = _time(line)
    if now is None:
        return before
    if before is not None and before - now > CLOCK_SECONDS:
        _lapse(report, Lapse("clock", line.n - 1, line.n, before, now))
    return now


def _late(
    report: Report, kind: Literal["late", "unsigned"], waited: list[Line], until: Line, late_seconds: float
) -> None:
    """Tell of lines that waited too long, until that one."""
    ends = _time(until)
    times = [(begins, line.n) for line in waited if (begins := _time(line)) is not None]
    if ends is None or not times:
        return
    late = [(begins, n) for begins, n in times if ends - begins > late_seconds]
    if late:
        _lapse(report, Lapse(kind, late[0][1], late[-1][1], min(late)[0], ends))


def _lapse(report: Report, lapse: Lapse) -> None:
    if len(report.lapses) < PROBLEMS_MAX:
        report.lapses.append(lapse)


def _time(line: Line) -> float | None:
    """Unix seconds; None for what is no time."""
    try:
        return datetime.fromisoformat(str(line.fields["time"])).timestamp()
    except (ValueError, OverflowError):
        return None


def _learn(report: Report, line: Line) -> None:
    """What a signed line says of recordings."""
    fields = line.fields
    if line.event == "checkpoint" and isinstance(heads := fields.get("heads"), dict):
        for sid, head in heads.items():
            match head:
                case [int(n), str(digest)] if SESSION_ID.fullmatch(sid):
                    _head(report, line, sid, n, digest)
        return
    sid = fields.get("sid")
    if not isinstance(sid, str) or not SESSION_ID.fullmatch(sid):
        return
    if line.event == "session.start":
        report.sessions.setdefault(sid, Known()).started = True
    elif line.event == "session.end":
        match fields.get("seal"), fields.get("seal_sha256"):
            case int(n), str(digest):
                _head(report, line, sid, n, digest)
                report.sessions[sid].last = n
    elif line.event == "recording.encrypt":
        _encrypted(report, line, sid)
    elif line.event == "recording.delete":
        report.sessions.setdefault(sid, Known()).deleted = fields


def _encrypted(report: Report, line: Line, sid: str) -> None:
    fields = line.fields
    match fields.get("seal"), fields.get("seal_sha256"), fields.get("file_sha256"):
        case int(n), str(digest), str(file):
            _head(report, line, sid, n, digest)
            known = report.sessions[sid]
            for before in known.encrypted.values():
                if before.get("packed_sha256") != fields.get("packed_sha256"):
                    _tell(report, f"line {line.n} encrypts another recording of {sid} than a line before")
            if known.last not in (None, n):
                _tell(report, f"line {line.n} has {sid} closed by another seal than a line before")
            known.last = n if known.last is None else known.last
            known.encrypted[file] = fields


def _head(report: Report, line: Line, sid: str, n: int, digest: str) -> None:
    known = report.sessions.setdefault(sid, Known())
    if known.heads.setdefault(n, digest) != digest:
        _tell(report, f"line {line.n} has another seal {n} of {sid} than a line before")


def _tell(report: Report, problem: str) -> None:
    if len(report.problems) < PROBLEMS_MAX:
        report.problems.append(problem)


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_anchors(path: Path) -> list[Anchor]:
    """Anchors of a file: `sshrec-anchor n=… sha256=…`, one a line, whatever stands around it, as in a syslog.

    DataError where there is none.
    """
    found = []
    for line in path.read_text("utf-8", "replace").splitlines():
        if match := _ANCHOR.search(line):
            found.append(Anchor(int(match[1]), match[2]))
    if not found:
        raise DataError(f"{path} has no anchor", hint="one is: sshrec-anchor n=NUMBER sha256=HEX")
    return found
