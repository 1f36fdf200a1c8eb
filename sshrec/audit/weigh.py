"""Holds a recording's verdict against what the audit log knows of it. Values in, a verdict out.

A chain of seals can be made anew by whoever can write the file; what a signed log has of it, can not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sshrec.audit.verify import Known, Report
from sshrec.recording.verification import EMPTY, NO_HEADER, EncryptedFile, Gap, Problem, State, Verdict
from sshrec.session import printable, started


def heads_wanted(known: Known | None) -> frozenset[int]:
    """What a verification is to remember, for `weigh`: how many seals there were at each head of the log."""
    return frozenset(n + 1 for n in known.heads) if known else frozenset()


def weigh(verdict: Verdict, report: Report) -> Verdict:
    """The verdict on one recording, once the log was asked too. What was BAD without it stays so."""
    session = verdict.session
    if verdict.state is State.BAD or session is None:
        return verdict
    known = report.sessions.get(session)
    if known is None:
        if session in report.unsigned:
            return _incomplete(verdict, "unsigned", "the audit log is not signed that far")
        if _before(session, report.begins):
            return _incomplete(verdict, "unlogged", "it is older than the audit log")
        if verdict.gap in (NO_HEADER, EMPTY):
            return verdict
        return _bad(verdict, 0, "the audit log knows nothing of this session")
    if known.started and verdict.gap in (NO_HEADER, EMPTY):
        return _bad(verdict, 0, "its header is gone, and was durable before the audit log had its start")
    if verdict.file is not None:
        verdict = _weigh_file(verdict, verdict.file, known, report)
        if verdict.state is State.BAD or verdict.file is None or not verdict.file.opened:
            return verdict
    for n, digest in sorted(known.heads.items()):
        head = verdict.head_at(n + 1)
        if head is None:
            return _bad(verdict, verdict.seals, f"its end was cut off: the audit log has seal {n} of it")
        if head != digest:
            return _bad(verdict, n, "the audit log has another seal here: this is not what was recorded")
    if known.last is not None and verdict.seals != known.last + 1:
        return _bad(verdict, known.last + 1, f"the audit log has it closed by seal {known.last}")
    if known.last is None and verdict.state is State.COMPLETE:
        return _incomplete(verdict, "unsigned", "its end is in no signed part of the audit log")
    return verdict


def _weigh_file(verdict: Verdict, file: EncryptedFile, known: Known, report: Report) -> Verdict:
    """The verdict once the file is held against the event of its encryption: the whole, where nobody opened it."""
    event = known.encrypted.get(file.sha256)
    if event is None or event.get("file_bytes") != file.bytes:
        if file.sha256 in report.unsigned_files:
            return _incomplete(verdict, "unsigned", "its encryption is in no signed part of the audit log")
        if known.encrypted:
            return _bad(verdict, 0, "it is not the file that was encrypted: the audit log has another hash of it")
        return _bad(verdict, 0, "the audit log knows of no encryption of it")
    verdict = replace(verdict, file=replace(file, sealed=True))
    if file.facts and file.facts != event.get("facts_sha256"):
        return _bad(verdict, 0, "the file of its facts is not the one that was written")
    if not file.opened:
        verdict = _sealed(verdict, event)
        newest = max(known.heads)
        if verdict.state is not State.BAD and newest >= verdict.seals:
            return _bad(verdict, verdict.seals, f"its end was cut off: the audit log has seal {newest} of it")
    if file.facts == "" and verdict.state is not State.BAD:
        return _incomplete(verdict, "facts", "the file of its facts is missing")
    return verdict


def _sealed(verdict: Verdict, event: Mapping[str, Any]) -> Verdict:
    """What a recording was found to be when it was encrypted: the file is the same."""
    match event.get("verdict"), event.get("seals"), event.get("seal_sha256"), event.get("recording_bytes"):
        case str(state), int(seals), str(head), int(size) if state in (State.COMPLETE, State.INCOMPLETE):
            pass
        case _:
            return _bad(verdict, 0, "the audit log has no verdict on what was encrypted")
    gap = None
    if state == State.INCOMPLETE:
        detail = event.get("incomplete_detail")
        gap = Gap(printable(str(event.get("incomplete"))), printable(str(detail)) if detail else None)
    return replace(verdict, state=State(state), seals=seals, head=head, sealed=size, gap=gap)


def absent(report: Report, there: frozenset[str], since_ms: float = 0) -> list[Verdict]:
    """Verdicts on sessions that the log has, and nobody else: DELETED where it has their removal, else BAD."""
    return [
        gone(session, known)
        for session, known in sorted(report.sessions.items())
        if session not in there and known.started and started(session) >= since_ms
    ]


def gone(session: str, known: Known) -> Verdict:
    """The verdict on a recording that is not there."""
    if known.deleted is None:
        problem = Problem("there is no recording of it, and no removal in the log", 0, 0, 0)
        return Verdict(State.BAD, session, problem=problem)
    why = f"{known.deleted.get('time')}: {known.deleted.get('reason') or 'no reason given'}"
    return Verdict(State.DELETED, session, gap=Gap("deleted", printable(why)))


def _before(session: str, begins: str) -> bool:
    try:
        return started(session) / 1000 < datetime.fromisoformat(begins).timestamp()
    except ValueError:
        return False


def _bad(verdict: Verdict, chunk: int, what: str) -> Verdict:
    at = verdict.sealed if chunk == verdict.seals else 0
    return replace(verdict, state=State.BAD, problem=Problem(what, chunk, at, 0.0), gap=None)


def _incomplete(verdict: Verdict, why: str, detail: str) -> Verdict:
    looked = verdict.gap is None or verdict.gap.why != "encrypted"
    if verdict.state is State.INCOMPLETE and looked:
        return verdict
    return replace(verdict, state=State.INCOMPLETE, gap=Gap(why, detail))
