"""Proving the audit log: what each attack on it comes to. The signatures are ssh-keygen's."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sshrec.audit.appender import Appender
from sshrec.audit.event import canonical, new_uid, packet
from sshrec.audit.log import GENESIS, files, read_log
from sshrec.audit.verify import Anchor, Report, read_anchors, verify_log
from sshrec.errors import DataError
from sshrec.openssh import keygen
from sshrec.openssh.signer import KeyFile
from sshrec.openssh.sshsig import sign_data, verify_data
from sshrec.session import session_id

WHO, WHAT = "audit@bastion", "sshrec-checkpoint-v1"
A, B = (session_id(1_764_000_000_000 + n, bytes(10)) for n in range(2))
SEAL = [hashlib.sha256(bytes([n])).hexdigest() for n in range(9)]


class Bastion:
    """A log that is written and signed as on a bastion, and the auditor's file of who may sign."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "audit"
        self.key = KeyFile(directory / "key", keygen.make_key(directory / "key", "audit"))
        self.allowed = directory / "allowed_signers"
        self.allowed.write_text(f'{WHO} namespaces="{WHAT}" {self.key.public.line}\n')
        self._appender = Appender(self.log)
        assert self._appender.lock()
        self._appender.ready()

    def say(self, event: str, sid: str, **fields: Any) -> None:
        self._appender.append([packet(event, {"sid": sid, **fields}) | {"sender_uid": 0}])

    def sign(
        self, heads: dict[str, list[Any]] | None = None, *, key: KeyFile | None = None, what: str = WHAT
    ) -> None:
        said = {"event": "checkpoint", "code": "SR002I", "uid": new_uid(), "heads": heads or {}, "sender_uid": 0}
        self._appender.append([said])
        body = sign_data(key or self.key, self._appender.last[:-1], what)
        said = {"event": "checkpoint.signature", "code": "SR003I", "uid": new_uid(), "sender_uid": 0}
        self._appender.append([said | {"signature": body, "identity": WHO, "namespace": what}])

    def verify(self, *anchors: Anchor) -> Report:
        def check(line: bytes, identity: str, namespace: str, signature: str, at: int) -> None:
            if (identity, namespace) != (WHO, WHAT):
                raise DataError(f"signed by {identity} for {namespace}")
            verify_data(self.allowed, WHO, WHAT, line, signature, at)

        return verify_log(read_log(self.log), check, anchors)

    @property
    def file(self) -> Path:
        (path,) = files(self.log)
        return path

    def lines(self) -> list[bytes]:
        return self.file.read_bytes().splitlines(keepends=True)

    def anchor(self, n: int) -> Anchor:
        return Anchor(n, hashlib.sha256(self.lines()[n]).hexdigest())

    def rewrite(self, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
        """As somebody does who has root and no key: change, and make the chain anew."""
        changed, prev = [], GENESIS
        for n, fields in enumerate(change([json.loads(line) for line in self.lines()])):
            changed.append(canonical(fields | {"n": n, "prev": prev}) + b"\n")
            prev = hashlib.sha256(changed[-1]).hexdigest()
        self.file.write_bytes(b"".join(changed))


@pytest.fixture
def bastion(tmp_path: Path) -> Bastion:
    """Two sessions, of which one has ended, three checkpoints, and one event after the last."""
    made = Bastion(tmp_path)
    made.say("session.start", A)
    made.sign({A: [0, SEAL[0]]})
    made.say("session.start", B)
    made.say("session.end", A, seal=2, seal_sha256=SEAL[2])
    made.sign({A: [2, SEAL[2]], B: [0, SEAL[5]]})
    made.sign({B: [1, SEAL[6]]})
    made.say("session.end", B)
    return made


def test_a_good_log(bastion: Bastion) -> None:
    report = bastion.verify(bastion.anchor(7))
    assert report.problems == []
    assert (report.lines, report.signed, report.signatures, report.anchored) == (10, 9, 3, 1)
    assert report.time is not None and abs(report.time - time.time()) < 60
    known = report.sessions[A]
    assert (known.started, known.last, known.heads) == (True, 2, {0: SEAL[0], 2: SEAL[2]})
    assert (report.sessions[B].last, report.sessions[B].heads) == (None, {0: SEAL[5], 1: SEAL[6]})


def test_what_is_not_signed_is_not_known(bastion: Bastion) -> None:
    extra = session_id(1_764_000_009_000, bytes(10))
    bastion.say("session.start", extra)
    report = bastion.verify()
    assert report.good
    assert extra not in report.sessions
    assert report.unsigned == {extra}


@pytest.mark.parametrize("n", range(9))
def test_a_line_that_is_missing_or_changed_is_seen(bastion: Bastion, n: int) -> None:
    lines = bastion.lines()
    bastion.file.write_bytes(b"".join(lines[:n] + lines[n + 1 :]))
    assert not bastion.verify().good
    flipped = lines[n].replace(b'"time":"2', b'"time":"3')
    assert flipped != lines[n]
    bastion.file.write_bytes(b"".join([*lines[:n], flipped, *lines[n + 1 :]]))
    assert not bastion.verify().good


def test_a_chain_made_anew_without_the_key(bastion: Bastion) -> None:
    bastion.rewrite(lambda log: [line for line in log if line.get("sid") != A])
    report = bastion.verify()
    assert [problem.partition(": ")[2][:32] for problem in report.problems] == [
        "the signature is not audit@basti"
    ] * 3
    assert report.signed == 0


def test_a_stranger_signs(bastion: Bastion, tmp_path: Path) -> None:
    stranger = KeyFile(tmp_path / "stranger", keygen.make_key(tmp_path / "stranger", "stranger"))
    bastion.sign(key=stranger)
    report = bastion.verify()
    assert len(report.problems) == 1 and "is not audit@bastion's" in report.problems[0]
    assert report.signed == 9


def test_a_signature_for_another_purpose(bastion: Bastion) -> None:
    bastion.sign(what="file")
    assert bastion.verify().problems == ["line 11: signed by audit@bastion for file"]


def test_a_key_whose_time_was_over(bastion: Bastion) -> None:
    bastion.allowed.write_text(
        f'{WHO} namespaces="{WHAT}",valid-before="20200101000000Z" {bastion.key.public.line}\n'
    )
    assert len(bastion.verify().problems) == 3


def test_rolled_back_to_an_older_copy(bastion: Bastion) -> None:
    anchor = bastion.anchor(7)
    bastion.file.write_bytes(b"".join(bastion.lines()[:3]))
    assert bastion.verify().good  # nothing here can tell: docs/evidence.md says so
    assert bastion.verify(anchor).problems == ["line 7 was anchored and is not there: the log was rolled back"]


def test_two_histories_for_two_anchors(bastion: Bastion) -> None:
    mine, other = bastion.anchor(7), Anchor(7, "0" * 64)
    assert bastion.verify(mine).good
    assert "is not the one that was anchored" in bastion.verify(other).problems[0]


def test_a_seal_that_the_log_has_twice(bastion: Bastion) -> None:
    bastion.sign({A: [0, SEAL[8]]})
    assert bastion.verify().problems == [f"line 10 has another seal 0 of {A} than a line before"]


def test_a_deletion_is_known(bastion: Bastion) -> None:
    bastion.say("recording.delete", A, reason="older than 90 days")
    bastion.sign()
    deleted = bastion.verify().sessions[A].deleted
    assert deleted is not None and deleted["reason"] == "older than 90 days"


def test_anchors_as_a_syslog_has_them(tmp_path: Path) -> None:
    file = tmp_path / "syslog"
    digest = "ab" * 32
    file.write_text(f"Nov 23 10:00:00 bastion sshrecd: sshrec-anchor n=7 sha256={digest} host=b\nnoise\n")
    assert read_anchors(file) == [Anchor(7, digest)]
    file.write_text("noise\n")
    with pytest.raises(DataError, match="has no anchor"):
        read_anchors(file)


# ---- gaps in time ------------------------------------------------------------------------------------------


class Dated(Bastion):
    """A log whose lines have the times that a test gives them: seconds after noon."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._path, self._n, self._prev = self.log / "2026-11-23.jsonl", 0, GENESIS

    def line(self, at: float, event: str, **fields: Any) -> bytes:
        """Append one; it is given back without its newline."""
        time = f"2026-11-23T12:{int(at) // 60:02}:{at % 60:06.3f}Z"
        own = {"n": self._n, "prev": self._prev, "time": time, "event": event, "code": "X", "uid": new_uid()}
        raw = canonical(own | fields) + b"\n"
        with self._path.open("ab") as file:
            file.write(raw)
        self._n, self._prev = self._n + 1, hashlib.sha256(raw).hexdigest()
        return raw[:-1]

    def signed(self, at: float) -> None:
        """A checkpoint of that time, and its signature."""
        body = sign_data(self.key, self.line(at, "checkpoint", heads={}), WHAT)
        self.line(at, "checkpoint.signature", signature=body, identity=WHO, namespace=WHAT)

    def by_script(self) -> tuple[int, list[str]]:
        """Status and lines of contrib/verify-log.sh."""
        script = Path(__file__).parents[2] / "contrib" / "verify-log.sh"
        argv = ["sh", str(script), str(self.log), str(self.allowed)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env={"PATH": os.environ["PATH"]})
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()


@pytest.fixture
def dated(tmp_path: Path) -> Dated:
    return Dated(tmp_path)


def test_a_log_that_was_signed_in_time_has_no_gaps(dated: Dated) -> None:
    dated.line(0, "session.start")
    dated.line(58, "session.end")
    dated.signed(60)
    dated.line(1800, "session.start")  # nothing happened meanwhile, so there was nothing to sign
    dated.signed(1805)
    dated.line(1806, "session.end")
    assert (dated.verify().problems, dated.verify().lapses) == ([], [])
    assert dated.by_script() == (0, [f"GOOD: 8 lines, 7 of them under 2 signatures of {WHO}"])


def test_lines_that_waited_for_a_signature(dated: Dated) -> None:
    dated.line(0, "session.start")
    dated.line(61.5, "session.end")
    dated.line(100, "session.start")
    dated.signed(125)
    report = dated.verify()
    assert report.problems == []
    assert [str(lapse) for lapse in report.lapses] == [
        "lines 0 to 1: 125 s without a signature: 2026-11-23T12:00:00.000Z to 2026-11-23T12:02:05.000Z"
    ]
    assert dated.by_script() == (
        3,
        [
            "GAP: line 0 waited 125 s for a signature: 2026-11-23T12:00:00.000Z to 2026-11-23T12:02:05.000Z",
            f"GOOD: 5 lines, 5 of them under 1 signatures of {WHO}",
        ],
    )


def test_a_bad_signature_is_none_for_the_time_either(dated: Dated, tmp_path: Path) -> None:
    dated.line(0, "session.start")
    good, dated.key = dated.key, KeyFile(tmp_path / "other", keygen.make_key(tmp_path / "other", "other"))
    dated.signed(5)
    dated.key = good
    dated.signed(90)
    report = dated.verify()
    assert len(report.problems) == 1
    assert [(lapse.kind, lapse.first, lapse.last) for lapse in report.lapses] == [("late", 0, 2)]


def test_lines_that_wait_still(dated: Dated) -> None:
    dated.line(0, "session.start")
    dated.signed(1)
    dated.line(10, "session.end")
    dated.line(80, "session.start")
    (lapse,) = dated.verify().lapses
    when = "2026-11-23T12:00:10.000Z to 2026-11-23T12:01:20.000Z"
    assert str(lapse) == f"line 3: 70 s without a signature: {when}, and there is none yet"
    assert dated.by_script()[0] == 3


def test_a_clock_that_was_set_back(dated: Dated) -> None:
    dated.line(600, "session.start")
    dated.line(599.5, "session.end")  # as clocks are set right all the time
    dated.line(300, "session.start")
    dated.signed(301)
    assert [str(lapse) for lapse in dated.verify().lapses] == [
        "line 2: the clock went back 299.500 s: 2026-11-23T12:09:59.500Z to 2026-11-23T12:05:00.000Z"
    ]
    assert dated.by_script() == (
        3,
        [
            "GAP: line 2: the clock went back from 2026-11-23T12:09:59.500Z to 2026-11-23T12:05:00.000Z",
            f"GOOD: 5 lines, 5 of them under 1 signatures of {WHO}",
        ],
    )


def test_how_late_is_late_is_the_caller_s_to_say(dated: Dated) -> None:
    dated.line(0, "session.start")
    dated.signed(125)
    assert verify_log(read_log(dated.log), lambda *_: None, late_seconds=180).lapses == []


def test_a_time_that_is_none_says_nothing(dated: Dated) -> None:
    dated.line(0, "session.start", time="9" * 400)
    dated.line(0, "session.start", time="yesterday")
    assert dated.verify().lapses == []
    assert dated.by_script() == (1, [f"BAD: line 0 of {dated.log}/2026-11-23.jsonl: it has no time"])
