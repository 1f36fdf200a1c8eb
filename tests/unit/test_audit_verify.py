"""Proving the audit log: what each attack on it comes to. The signatures are ssh-keygen's."""

from __future__ import annotations

import hashlib
import json
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
