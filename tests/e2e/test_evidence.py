"""Recordings as evidence: real sessions, a signed log, and what `sshrec verify` says when somebody was at them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sshrec.recording import asciicast
from sshrec.recording.seal import Chain, Outcome, is_seal
from tests.e2e.recorded import packed
from tests.lab import Lab

pytestmark = pytest.mark.timeout(150)


class Copy:
    """What an auditor has: a copy of the recordings and the log, and the allowed_signers of before."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.data = directory / "data"
        shutil.copytree(lab.data_dir, self.data)
        self.log = self.data / "audit"
        self.signers = directory / "allowed_signers"
        shutil.copy(lab.authority_dir / "public" / "allowed_signers", self.signers)
        self.config = directory / "sshrec.yaml"
        self.config.write_text(f"data_dir: {self.data}\nrun_dir: /nowhere\n")

    def verify(self, *args: str | Path) -> tuple[int, dict[str, str], list[str]]:
        """Exit status, session → state and why, and what the log's problems are; on no bastion at all."""
        argv = [self.lab.installation.programs / "sshrec", "--config", self.config, "verify", "--json"]
        argv += ["--log", self.log, "--allowed-signers", self.signers, *(args or ("--all",))]
        done = subprocess.run(
            [str(word) for word in argv],
            capture_output=True,
            timeout=100,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        )
        assert done.stdout, done.stderr
        said = json.loads(done.stdout)
        states = {}
        for recording in said["recordings"]:
            why = recording.get("problem", {}).get("what") or recording.get("incomplete", {}).get("why") or ""
            states[recording["id"]] = f"{recording['state']} {why}".rstrip()
        return done.returncode, states, said["log"]["problems"]

    def recording(self, session: str) -> Path:
        return next(self.data.rglob(f"{session}.cast*"))

    def text(self, session: str) -> bytes:
        return subprocess.run(["zstd", "-dcq", self.recording(session)], capture_output=True, check=True).stdout

    def put(self, session: str, text: bytes) -> None:
        path = self.recording(session)
        path.unlink()
        path.with_name(f"{session}.cast").write_bytes(text)


def made_anew(text: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A recording with other contents and a chain that fits them: what root can do, without a key."""
    lines = text.splitlines(keepends=True)
    session = json.loads(lines[0])["sshrec"]["session"]
    chain, out = Chain(session), b""
    for line in lines:
        if is_seal(line):
            said: dict[str, Any] = json.loads(json.loads(line)[2])
            end = Outcome(**said["end"]) if "end" in said else None
            us = round(json.loads(line)[0] * 1_000_000)
            line = chain.seal(us, said["wall"], end)
            chain.close(line)
        else:
            line = change(line)
            if line:
                chain.add(line)
        out += line
    assert asciicast.canonical({}) == "{}"
    return out


@pytest.fixture(scope="module")
def two(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Lab, list[str], Path]]:
    """A bastion on which two sessions ended, and the copy that was taken when their ends were signed."""
    lab: Lab = request.getfixturevalue("shared_lab")
    lab.reset()
    before = {path.name.partition(".")[0] for path in lab.recordings()}
    for words in ("echo the first", "echo the second"):
        lab.ssh("-A", "bastion", "root@web1", words, check=True)
    packed(lab, len(before) + 2)
    sessions = [name for path in lab.recordings() if (name := path.name.partition(".")[0]) not in before]
    lab.wait(lambda: lab.sshrec("verify", *sessions, check=False).returncode == 0, "the ends to be signed", 60)
    directory = tmp_path_factory.mktemp("auditor")
    Copy(lab, directory)
    yield lab, sessions, directory


@pytest.fixture
def copy(two: tuple[Lab, list[str], Path], tmp_path: Path) -> Copy:
    lab, _, directory = two
    made = Copy.__new__(Copy)
    shutil.copytree(directory, tmp_path / "copy")
    made.lab, made.data = lab, tmp_path / "copy" / "data"
    made.log, made.signers = made.data / "audit", tmp_path / "copy" / "allowed_signers"
    made.config = tmp_path / "copy" / "sshrec.yaml"
    made.config.write_text(f"data_dir: {made.data}\nrun_dir: /nowhere\n")
    return made


def test_what_was_recorded_is_proved_without_the_bastion(copy: Copy, two: tuple[Lab, list[str], Path]) -> None:
    status, states, problems = copy.verify()
    assert problems == []
    assert {states[session] for session in two[1]} == {"COMPLETE"}
    assert status in (0, 3)  # of other sessions of this lab some may have had no proper end
    assert copy.verify(*map(copy.recording, two[1]))[0] == 0


def test_a_recording_made_anew_by_somebody_without_the_key(copy: Copy, two: tuple[Lab, list[str], Path]) -> None:
    first, second = two[1]
    copy.put(first, made_anew(copy.text(first), lambda line: line.replace(b"the first", b"the worst")))
    alone = subprocess.run(
        [str(copy.lab.installation.programs / "sshrec"), "verify", "--no-log", str(copy.recording(first))],
        capture_output=True,
    )
    assert alone.returncode == 0  # the file is consistent in itself: only the log can tell
    status, states, _ = copy.verify()
    assert status == 1
    assert states[first] == "BAD the audit log has another seal here: this is not what was recorded"
    assert states[second] == "COMPLETE"


def test_a_recording_that_vanished(copy: Copy, two: tuple[Lab, list[str], Path]) -> None:
    copy.recording(two[1][0]).unlink()
    status, states, _ = copy.verify()
    assert (status, states[two[1][0]]) == (1, "BAD there is no recording of it, and no removal in the log")


def test_a_recording_whose_end_was_cut_off_with_a_new_end(copy: Copy, two: tuple[Lab, list[str], Path]) -> None:
    session = two[1][0]
    text = made_anew(
        copy.text(session), lambda line: b"" if b"the first\\r" in line or b'"o","the first' in line else line
    )
    copy.put(session, text)
    assert copy.verify()[1][session].startswith("BAD the audit log has another seal")


def test_two_sessions_exchanged(copy: Copy, two: tuple[Lab, list[str], Path]) -> None:
    first, second = (copy.text(session) for session in two[1])
    copy.put(two[1][0], second)
    copy.put(two[1][1], first)
    states = copy.verify()[1]
    assert sum(state.startswith("BAD") for state in states.values()) == 2


def test_a_recording_that_nobody_logged(copy: Copy, two: tuple[Lab, list[str], Path]) -> None:
    session = two[1][1]  # the first is no older than the log by a hair
    forged = session[:-1] + ("0" if session[-1] != "0" else "1")
    text = copy.text(session).replace(session.encode(), forged.encode())
    path = copy.recording(session).with_name(f"{forged}.cast")
    path.write_bytes(made_anew(text, lambda line: line))
    status, states, _ = copy.verify()
    assert (status, states[forged]) == (1, "BAD the audit log knows nothing of this session")


def test_a_log_without_a_line(copy: Copy) -> None:
    path = max(copy.log.glob("*.jsonl"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-4] + lines[-3:]))
    status, _, problems = copy.verify()
    assert status == 1 and problems


def test_a_log_that_was_rolled_back_is_seen_by_an_anchor(copy: Copy, tmp_path: Path) -> None:
    path = max(copy.log.glob("*.jsonl"))
    lines = path.read_bytes().splitlines(keepends=True)
    said = json.loads(lines[-1])
    digest = (
        subprocess.run(["sha256sum"], input=lines[-1], capture_output=True, check=True).stdout.split()[0].decode()
    )
    anchor = tmp_path / "anchors"
    anchor.write_text(f"sshrec-anchor n={said['n']} sha256={digest}\n")
    assert copy.verify("--all", "--anchor", anchor)[2] == []
    path.write_bytes(b"".join(lines[:-1]))
    assert copy.verify()[2] == []
    status, _, problems = copy.verify("--all", "--anchor", anchor)
    assert (status, problems) == (1, [f"line {said['n']} was anchored and is not there: the log was rolled back"])


def test_a_stranger_can_check_the_log_with_ssh_keygen_and_coreutils(copy: Copy) -> None:
    script = Path(__file__).parents[2] / "contrib" / "verify-log.sh"

    def check() -> subprocess.CompletedProcess[str]:
        argv = ["sh", str(script), str(copy.log), str(copy.signers)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=100, env={"PATH": "/usr/bin:/bin"})

    good = check()
    assert good.returncode == 0, good.stdout + good.stderr
    assert good.stdout.splitlines()[-1].startswith("GOOD: ")
    path = max(copy.log.glob("*.jsonl"))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for bad in (lines[:2] + lines[3:], [*lines[:2], lines[2].replace(b'"event"', b'"Event"'), *lines[3:]]):
        path.write_bytes(b"".join(bad))
        assert check().returncode == 1
    path.write_bytes(whole)
    copy.signers.write_text(copy.signers.read_text().replace("sshrec-checkpoint-v1", "another"))
    assert check().returncode == 1


def test_while_the_auth_service_is_away_sessions_go_on_and_are_signed_later(lab: Lab) -> None:
    child = lab.popen("-A", "bastion", "root@web1", "echo here; cat")
    assert child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    lab.stop_authd()
    try:
        assert child.communicate(b"still here\n", timeout=30)[0] == b"still here\n"
        session = packed(lab, 1)[0].name.partition(".")[0]
        done = lab.sshrec("verify", session, check=False)
        assert (done.returncode, b"unsigned" in done.stdout) == (3, True)
    finally:
        lab.start_authd()
    lab.wait(
        lambda: lab.sshrec("verify", session, check=False).returncode == 0, "what was missed to be signed", 90
    )


def test_a_log_that_was_changed_gets_no_further_signature(lab: Lab) -> None:
    """Somebody with the recorder's rights takes back what was signed, and writes something else."""
    lab.ssh("-A", "bastion", "root@web1", "true", check=True)
    session = packed(lab, 1)[0].name.partition(".")[0]
    lab.wait(lambda: lab.sshrec("verify", session, check=False).returncode == 0, "the end to be signed", 60)
    memory = lab.authority_dir / "checkpoint.json"
    before = memory.read_bytes()
    log = max((lab.data_dir / "audit").glob("*.jsonl"))
    whole, recorded = log.read_bytes(), set(lab.recordings())
    lines = whole.splitlines(keepends=True)
    lab.stop_sshrecd()
    log.write_bytes(b"".join(lines[:-3]))  # back to before the last checkpoint
    try:
        lab.start_sshrecd()
        lab.ssh("-A", "bastion", "root@web1", "true", check=True)
        lab.wait(lambda: "a checkpoint is not signed" in lab.logs(200), "the refusal", 30)
        assert memory.read_bytes() == before
    finally:
        packed(lab, len(recorded) + 1)
        lab.stop_sshrecd()
        log.write_bytes(whole)
        for path in set(lab.recordings()) - recorded:  # what the log that is back knows nothing of
            path.unlink()
        lab.start_sshrecd()


def test_what_was_deleted_by_policy_is_told_as_such(lab: Lab) -> None:
    lab.ssh("-A", "bastion", "root@web1", "true", check=True)
    session = packed(lab, 1)[0].name.partition(".")[0]
    lab.wait(lambda: lab.sshrec("verify", session, check=False).returncode == 0, "the end to be signed", 60)

    def removed() -> bool:
        lab.sshrec("prune", "--older-than", "1s")
        return not list(lab.data_dir.rglob(f"{session}.cast*"))

    lab.wait(removed, "the recording to be old enough")

    def told() -> bytes:
        done = lab.sshrec("verify", session, check=False)
        return done.stdout if done.returncode == 0 else b""

    assert re.match(
        rf"DELETED     {session}  deleted: 20.*older".encode(), lab.wait(told, "the removal to be signed", 60)
    )
    everything = lab.sshrec("verify", "--all", check=False).stdout.decode()
    assert f"DELETED     {session}" in everything
    assert lab.sshrec("verify", session[:-1] + ("Z" if session[-1] != "Z" else "0"), check=False).returncode == 66
