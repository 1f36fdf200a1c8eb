"""Verdicts by the signed log: on encrypted recordings that nobody opened, and on what has no header."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sshrec.audit.log import Line
from sshrec.audit.verify import Known, Report, verify_log
from sshrec.audit.weigh import weigh
from sshrec.recording.verification import EMPTY, NO_HEADER, EncryptedFile, Gap, State, Verdict
from tests.recordings import SESSION

FILE, OTHER, SEAL, FACTS = "f" * 64, "0" * 64, "5" * 64, "a" * 64
EVENT: dict[str, Any] = {
    "file_bytes": 1000,
    "file_sha256": FILE,
    "facts_sha256": FACTS,
    "packed_sha256": "9" * 64,
    "recording_bytes": 5000,
    "seals": 4,
    "seal": 3,
    "seal_sha256": SEAL,
    "verdict": "COMPLETE",
}
UNOPENED = Verdict(
    State.INCOMPLETE,
    SESSION,
    gap=Gap("encrypted", "nobody looked"),
    file=EncryptedFile(1000, FILE, opened=False, facts=FACTS),
)


def known(**event: Any) -> Known:
    return Known(started=True, last=3, heads={1: "1" * 64, 3: SEAL}, encrypted={FILE: {**EVENT, **event}})


def weighed(known: Known | None = None, *, verdict: Verdict = UNOPENED, unsigned: str = "", **file: Any) -> str:
    """The verdict as people read it."""
    assert verdict.file is not None
    report = Report(begins="2025-01-01T00:00:00.000Z", unsigned_files={unsigned})
    if known is not None:
        report.sessions[SESSION] = known
    found = weigh(replace(verdict, file=replace(verdict.file, **file)), report)
    return f"{found.state} {found.problem.what if found.problem else found.gap or ''}".rstrip()


def test_the_file_that_was_sealed() -> None:
    report = Report(sessions={SESSION: known()})
    found = weigh(UNOPENED, report)
    assert (found.state, found.gap, found.problem) == (State.COMPLETE, None, None)
    assert (found.seals, found.head, found.sealed) == (4, SEAL, 5000)
    assert found.file == EncryptedFile(1000, FILE, opened=False, sealed=True, facts=FACTS)


def test_what_it_was_found_to_be_before() -> None:
    said = {"verdict": "INCOMPLETE", "incomplete": "aborted", "incomplete_detail": "its worker died"}
    assert weighed(known(**said)) == "INCOMPLETE aborted: its worker died"
    assert weighed(known(**{**said, "incomplete_detail": None})) == "INCOMPLETE aborted"


def test_another_file() -> None:
    other = "BAD it is not the file that was encrypted: the audit log has another hash of it"
    assert weighed(known(), sha256=OTHER) == other
    assert weighed(known(), bytes=999) == other
    assert weighed(Known(started=True), sha256=OTHER) == "BAD the audit log knows of no encryption of it"
    assert weighed() == "BAD the audit log knows nothing of this session"


def test_what_is_not_signed_yet() -> None:
    unsigned = "INCOMPLETE unsigned: its encryption is in no signed part of the audit log"
    assert weighed(Known(started=True), unsigned=FILE) == unsigned
    opened = replace(UNOPENED, state=State.COMPLETE, gap=None, seals=4, head=SEAL)
    assert weighed(Known(started=True, last=3, heads={3: SEAL}), verdict=opened, unsigned=FILE, opened=True) == (
        unsigned
    )


def test_the_file_of_its_facts() -> None:
    assert weighed(known(), facts=OTHER) == "BAD the file of its facts is not the one that was written"
    assert weighed(known(), facts="") == "INCOMPLETE facts: the file of its facts is missing"
    assert weighed(known(), facts=None) == "COMPLETE", "of a file by itself nobody asks"


def test_a_log_that_has_more_of_it_than_was_encrypted() -> None:
    longer = known()
    longer.heads[7] = "7" * 64
    assert weighed(longer) == "BAD its end was cut off: the audit log has seal 7 of it"


@pytest.mark.parametrize(
    "said", [{"verdict": "BAD"}, {"verdict": None}, {"seals": "4"}, {"recording_bytes": None}]
)
def test_an_event_without_a_verdict(said: dict[str, Any]) -> None:
    assert weighed(known(**said)) == "BAD the audit log has no verdict on what was encrypted"


# What the log teaches


def lines(*events: dict[str, Any]) -> Report:
    made = [
        Line(Path("a"), n, n, "", b"", {"event": "recording.encrypt", "sid": SESSION, "time": "x", **fields})
        for n, fields in enumerate(events)
    ]
    return verify_log(made, None)


def test_a_second_try_is_known_beside_the_first() -> None:
    report = lines(EVENT, {**EVENT, "file_sha256": OTHER})
    assert report.good
    assert set(report.sessions[SESSION].encrypted) == {FILE, OTHER}
    assert (report.sessions[SESSION].last, report.sessions[SESSION].heads) == (3, {3: SEAL})


def test_another_recording_under_the_same_name_is_none() -> None:
    assert lines(EVENT, {**EVENT, "packed_sha256": OTHER}).problems == [
        f"line 1 encrypts another recording of {SESSION} than a line before"
    ]
    assert lines(EVENT, {**EVENT, "seal": 2}).problems == [
        f"line 1 has {SESSION} closed by another seal than a line before"
    ]
    assert lines(EVENT, {**EVENT, "seal_sha256": OTHER}).problems == [
        f"line 1 has another seal 3 of {SESSION} than a line before"
    ]


def test_an_event_that_says_too_little_teaches_nothing() -> None:
    for field in ("seal", "seal_sha256", "file_sha256"):
        assert lines({**EVENT, field: None}).sessions == {}


@pytest.mark.parametrize("gap", [NO_HEADER, EMPTY])
def test_a_session_whose_header_never_was_on_disk(gap: Gap) -> None:
    """Its start is in the log only once the header is: a power cut before leaves no word of it there."""
    verdict, report = Verdict(State.INCOMPLETE, SESSION, gap=gap), Report(begins="2025-01-01T00:00:00.000Z")
    assert weigh(verdict, report) == verdict
    report.sessions[SESSION] = Known(started=True)
    found = weigh(verdict, report)
    assert found.problem is not None
    assert (found.state, found.problem.what) == (
        State.BAD,
        "its header is gone, and was durable before the audit log had its start",
    )
