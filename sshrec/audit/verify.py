"""Proves the audit log, and gathers what it knows of each recording: lines in, a report out.

Who signed is for `check` to say, which the caller passes in. Only what a good signature covers counts as known;
what came after the last of them may be a forger's as well as the truth.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sshrec.audit.log import Line, Problem
from sshrec.errors import DataError
from sshrec.session import SESSION_ID, printable

PROBLEMS_MAX = 100  # that are told; more say nothing new
_ANCHOR = re.compile(r"sshrec-anchor n=([0-9]{1,18}) sha256=([0-9a-f]{64})(?![0-9a-f])")

# DataError unless these bytes are signed so, at that Unix time: line, identity, namespace, signature, time.
Check = Callable[[bytes, str, str, str, int], None]


@dataclass(frozen=True, slots=True)
class Anchor:
    """A line of the log as somebody outside knows it: its number, and its SHA-256 with its newline, in hex."""

    n: int
    sha256: str


@dataclass(slots=True)
class Known:
    """What the signed part of the log says of one session.

    `heads`: number of a seal, from 0, to the SHA-256 of its line; `last`: of them the one that closed the
    recording, where it was; `deleted`: the event that told of its removal.
    """

    started: bool = False
    last: int | None = None
    heads: dict[int, str] = field(default_factory=dict)
    deleted: Mapping[str, Any] | None = None


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
    sessions: dict[str, Known] = field(default_factory=dict)
    unsigned: set[str] = field(default_factory=set)  # sessions that only the unsigned end knows

    @property
    def good(self) -> bool:
        return not self.problems


def verify_log(lines: Iterable[Line | Problem], check: Check | None, anchors: Iterable[Anchor] = ()) -> Report:
    """Read a log, as `read_log` gives it, to its end. Memory grows with the number of seals it names.

    A signature covers everything before it, for each line has the hash of the one before: so all are checked.
    Without `check` nobody's signature counts, and whatever the log says is taken as known.
    """
    report = Report()
    wanted = {anchor.n: anchor.sha256 for anchor in anchors}
    open_part: list[Line] = []  # since the last good signature
    checkpoint: Line | None = None
    for line in lines:
        if isinstance(line, Problem):
            if line.kind != "torn":  # its writer is at it, or the next one repairs it
                _tell(report, f"{line.file.name}, byte {line.offset}: {line.message}")
            checkpoint = None
            continue
        report.lines = line.n + 1
        report.begins = report.begins or str(line.fields["time"])
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
                for covered in open_part:
                    _learn(report, covered)
                open_part.clear()
            checkpoint = None
        else:
            checkpoint = None
    for n in sorted(wanted):
        _tell(report, f"line {n} was anchored and is not there: the log was rolled back")
    for line in open_part:
        sid = line.fields.get("sid")
        if isinstance(sid, str) and sid not in report.sessions:
            report.unsigned.add(sid)
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
    elif line.event == "recording.delete":
        report.sessions.setdefault(sid, Known()).deleted = fields


def _head(report: Report, line: Line, sid: str, n: int, digest: str) -> None:
    known = report.sessions.setdefault(sid, Known())
    if known.heads.setdefault(n, digest) != digest:
        _tell(report, f"line {line.n} has another seal {n} of {sid} than a line before")


def _tell(report: Report, problem: str) -> None:
    if len(report.problems) < PROBLEMS_MAX:
        report.problems.append(problem)


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
