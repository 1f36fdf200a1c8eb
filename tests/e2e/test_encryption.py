"""Recordings that the bastion cannot read again: real sessions, the real age, what a log proves without keys."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.e2e.test_audit import log
from tests.e2e.test_evidence import Copy
from tests.lab import Lab

pytestmark = [
    pytest.mark.timeout(150),
    pytest.mark.skipif(shutil.which("age") is None, reason="age is not installed: apt-get install age"),
]


class Keys:
    """The private keys: `auditor` (age), `offline` (ssh-ed25519, its passphrase: secret), `other` (nobody's)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("auditor", "other"):
            subprocess.run(["age-keygen", "-o", directory / name], check=True, capture_output=True)
        command: list[str | Path] = [
            "ssh-keygen",
            "-q",
            "-t",
            "ed25519",
            "-N",
            "secret",
            "-C",
            "safe",
            "-f",
            directory / "offline",
        ]
        subprocess.run(command, check=True)
        public = subprocess.run(
            ["age-keygen", "-y", directory / "auditor"], check=True, capture_output=True
        ).stdout
        self.recipients = [public.decode().strip(), (directory / "offline.pub").read_text().strip()]

    def __getitem__(self, name: str) -> str:
        return str(self.directory / name)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def bastion(several_uids: bool, keys: Keys) -> Iterator[Lab]:
    """One that encrypts."""
    settings = {"recipients": keys.recipients, "limits": {"stream_bytes": 256 * 1024 * 1024}}
    with Lab(several_uids=several_uids, settings=settings) as lab:
        shutil.copytree(keys.directory, lab.directory / "keys")
        keys.directory = lab.directory / "keys"
        if lab.several_uids:
            for path in (keys.directory, *keys.directory.iterdir()):
                os.chown(path, lab.account("sshrec").uid, -1)
        yield lab


def encrypted(lab: Lab, words: str) -> Path:
    """The recording of a session that runs a command, once it is encrypted."""
    before = {path.name.partition(".")[0] for path in lab.recordings()}
    lab.ssh("-A", "bastion", "root@web1", words, check=True)

    def found() -> list[Path]:
        new = [path for path in lab.recordings() if path.name.partition(".")[0] not in before]
        return new if len(new) == 1 and new[0].suffix == ".age" else []

    return lab.wait(found, "the recording to be encrypted", 40)[0]


@pytest.fixture(scope="module")
def recording(bastion: Lab) -> Path:
    return encrypted(bastion, "echo the first secret")


def session_of(path: Path) -> str:
    return path.name.partition(".")[0]


def event(lab: Lab, path: Path) -> dict[str, Any]:
    """The event of a recording's encryption."""
    (found,) = [one for one in log(lab) if one["event"] == "recording.encrypt" and one["sid"] == session_of(path)]
    return found


def text_of(path: Path, key: str) -> bytes:
    """age -d -i KEY | zstd -dc."""
    packed = subprocess.run(["age", "-d", "-i", key, path], check=True, capture_output=True, timeout=60).stdout
    return subprocess.run(["zstd", "-dcq"], input=packed, check=True, capture_output=True, timeout=60).stdout


def signed(lab: Lab) -> None:
    lab.wait(lambda: lab.sshrec("verify", "--all", check=False).returncode == 0, "all of it to be signed", 60)


def test_stock_tools_give_what_play_shows(bastion: Lab, recording: Path, keys: Keys) -> None:
    text = text_of(recording, keys["auditor"])
    events = [json.loads(line) for line in text.splitlines()[1:]]
    output = "".join(data for _, code, data in events if code == "o").encode()
    assert output == b"the first secret\n"
    assert bastion.sshrec("play", "--identity", keys["auditor"], session_of(recording)).stdout == output
    with recording.open("rb") as file:
        program = [str(bastion.installation.programs / "sshrec"), "play", "--identity", keys["auditor"], "-"]
        assert subprocess.run(program, stdin=file, capture_output=True, check=True).stdout == output


def test_nothing_else_is_left(recording: Path) -> None:
    session = session_of(recording)
    left = sorted(path.name for path in recording.parent.iterdir() if path.name.startswith(session))
    assert left == [f"{session}.cast.zst.age", f"{session}.json"]
    assert b"the first secret\\n" not in recording.with_name(f"{session}.json").read_bytes()


def test_the_log_has_what_an_auditor_needs(bastion: Lab, recording: Path, keys: Keys) -> None:
    said, text = event(bastion, recording), text_of(recording, keys["auditor"])
    assert (said["code"], said["user"], said["login"]) == ("SR201I", "joe", "root")
    assert (said["server_hostname"], said["kind"], said["command"]) == ("web1", "exec", "echo the first secret")
    assert (said["reason"], said["status"], said["verdict"]) == ("exit", 0, "COMPLETE")
    assert said["recipients"] == [keys.recipients[0], keys.recipients[1].removesuffix(" safe")]
    content = recording.read_bytes()
    assert (said["file_bytes"], said["file_sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    last = text.splitlines(keepends=True)[-1]
    assert (said["recording_bytes"], said["seal_sha256"]) == (len(text), hashlib.sha256(last).hexdigest())
    (end,) = [one for one in log(bastion) if one["event"] == "session.end" and one["sid"] == said["sid"]]
    assert (said["seal"], said["seal_sha256"]) == (end["seal"], end["seal_sha256"])


def test_the_list_shows_it_all_the_same(bastion: Lab, recording: Path) -> None:
    (row,) = [
        row
        for row in json.loads(bastion.sshrec("ls", "--json").stdout)["recordings"]
        if row["id"] == session_of(recording)
    ]
    assert (row["state"], row["encrypted"], row["user"], row["target"]) == ("finished", True, "joe", "root@web1")
    assert (row["command"], row["status"], row["bytes"]) == (
        "echo the first secret",
        0,
        recording.stat().st_size,
    )


def test_without_an_identity_play_says_what_is_needed(bastion: Lab, recording: Path, keys: Keys) -> None:
    done = bastion.sshrec("play", session_of(recording), check=False)
    assert (done.returncode, done.stdout) == (os.EX_DATAERR, b"")
    assert done.stderr.decode() == (
        f"sshrec: error: {recording}: it is encrypted\nhint: --identity FILE opens it, or: age -d -i FILE\n"
    )
    done = bastion.sshrec("play", "--identity", keys["other"], session_of(recording), check=False)
    assert done.returncode == os.EX_DATAERR
    assert b"no identity that was given opens it" in done.stderr


def test_a_passphrase_is_asked_for_at_the_terminal_alone(bastion: Lab, recording: Path, keys: Keys) -> None:
    arguments = ["play", "--identity", keys["offline"], str(recording)]
    done = subprocess.run(
        [bastion.installation.programs / "sshrec", *arguments],
        input=b"secret\n",
        capture_output=True,
        start_new_session=True,
        timeout=30,
    )
    assert done.returncode == os.EX_NOPERM
    assert b"there is no terminal to ask for it at" in done.stderr
    child = pexpect.spawn(str(bastion.installation.programs / "sshrec"), arguments, timeout=30)
    child.expect_exact(f"Passphrase of {keys['offline']}: ")
    child.sendline("secret")
    child.expect_exact("the first secret")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_verification_with_and_without_a_key(bastion: Lab, recording: Path, keys: Keys) -> None:
    signed(bastion)
    session = session_of(recording)
    line = bastion.sshrec("verify", session).stdout.decode().splitlines()[-1]
    assert line == f"COMPLETE    {session}  encrypted: the file is the one that was sealed, and was not opened"
    with_key = bastion.sshrec("verify", "--identity", keys["auditor"], session).stdout.decode().splitlines()[-1]
    assert with_key == f"COMPLETE    {session}"
    assert bastion.sshrec("verify", "--all", "--identity", keys["auditor"]).returncode == 0
    alone = bastion.sshrec("verify", "--no-log", session, check=False)
    assert alone.returncode == 3
    assert b"encrypted: without an identity or the audit log nothing proves it" in alone.stdout
    alone = bastion.sshrec("verify", "--no-log", "--identity", keys["auditor"], session)
    assert alone.stdout.decode() == f"COMPLETE    {session}\n"
    (said,) = json.loads(bastion.sshrec("verify", "--json", session).stdout)["recordings"]
    content = recording.read_bytes()
    assert said["encrypted"] == {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "sealed": True,
        "opened": False,
    }


def test_what_an_auditor_finds(bastion: Lab, recording: Path, keys: Keys, tmp_path: Path) -> None:
    """Each attack on a copy of the recordings and the log, judged without a key, and with one."""
    other = encrypted(bastion, "echo the second secret")
    signed(bastion)
    copy = Copy(bastion, tmp_path)
    path, beside = (next(copy.data.rglob(f"{session_of(recording)}{suffix}")) for suffix in (".cast*", ".json"))
    content, facts = path.read_bytes(), beside.read_bytes()
    another = next(copy.data.rglob(f"{session_of(other)}.cast*")).read_bytes()
    forged = subprocess.run(
        ["age", "-r", keys.recipients[0]], input=b"not a recording", capture_output=True, check=True
    ).stdout
    hashed = "BAD it is not the file that was encrypted: the audit log has another hash of it"
    for data, with_key in (
        (content[:-1], "BAD damaged: decryption error"),
        (content[: len(content) // 2], "BAD damaged"),
        (content[:-1] + bytes([content[-1] ^ 1]), "BAD damaged: decryption error"),
        (content[:60] + (b"B" if content[60:61] == b"A" else b"A") + content[61:], hashed),  # nobody's any more
        (content + b"x", "BAD damaged: decryption error"),
        (another, f"BAD it is the recording of session {session_of(other)}"),
        (forged, "BAD it is not packed, and should be"),
        (b"", "BAD it is not encrypted, and should be"),
    ):
        path.write_bytes(data)
        status, states, _ = copy.verify()
        assert (status, states[session_of(recording)]) == (1, hashed if data else with_key)
        assert states[session_of(other)] == "COMPLETE"
        status, states, _ = copy.verify("--all", "--identity", keys["auditor"])
        assert status == 1
        assert states[session_of(recording)].startswith(with_key), data[:100]
        assert states[session_of(other)] == "COMPLETE"
    path.write_bytes(content)
    assert copy.verify()[0] == 0
    beside.write_bytes(facts.replace(b'\\"user\\":\\"joe\\"', b'\\"user\\":\\"eve\\"'))
    assert beside.read_bytes() != facts
    assert copy.verify()[1][session_of(recording)] == "BAD the file of its facts is not the one that was written"
    beside.unlink()
    assert copy.verify()[1][session_of(recording)] == "INCOMPLETE facts"
    assert copy.verify(path)[1] == {session_of(recording): "COMPLETE"}, "a file by itself is enough"
    path.unlink()
    assert copy.verify()[1][session_of(recording)] == "BAD there is no recording of it, and no removal in the log"


def test_killed_in_the_middle(bastion: Lab, keys: Keys) -> None:
    before = {session_of(path) for path in bastion.recordings()}
    command = ["root@web1", "head -c 60000000 /dev/urandom"]
    assert len(bastion.ssh("-A", "bastion", *command, check=True).stdout) == 60_000_000
    (session,) = {session_of(path) for path in bastion.recordings()} - before
    directory = bastion.recordings()[-1].parent
    half = directory / f"{session}.cast.zst.age.new"
    housekeeper = bastion.wait(lambda: holder(half), "it to be half encrypted", 60)
    assert housekeeper is not None
    os.kill(housekeeper, signal.SIGKILL)
    assert half.exists()
    bastion.stop_sshrecd()
    assert bastion.recordings()[-1].name == f"{session}.cast.zst"
    assert not [one for one in log(bastion) if one["event"] == "recording.encrypt" and one["sid"] == session]
    bastion.start_sshrecd()
    bastion.wait(lambda: bastion.recordings()[-1].suffix == ".age", "it to be encrypted", 60)
    path = bastion.recordings()[-1]
    assert sorted(one.name for one in directory.iterdir() if one.name.startswith(session)) == [
        f"{session}.cast.zst.age",
        f"{session}.json",
    ]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == event(bastion, path)["file_sha256"]
    signed(bastion)
    assert bastion.sshrec("verify", "--identity", keys["auditor"], session).returncode == 0


def holder(path: Path) -> int | None:
    """The process that has a file open."""
    if not path.exists():
        return None
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(path):
                return int(link.parts[2])
        except OSError:
            continue
    return None


def test_recipients(bastion: Lab, keys: Keys) -> None:
    assert bastion.sshrec("recipients", "ls").stdout.decode().splitlines() == [
        keys.recipients[0],
        keys.recipients[1].replace(" safe", "  safe"),
    ]
    one = bastion.sshrec("recipients", "test", "--identity", keys["auditor"], check=False)
    assert (one.returncode, one.stdout.decode().splitlines()) == (
        3,
        [
            f"proved      {keys.recipients[0]}  by {keys['auditor']}",
            f"not proved  {keys.recipients[1].replace(' safe', '  safe')}",
        ],
    )
    none = bastion.sshrec("recipients", "test", "--identity", keys["other"], check=False)
    assert none.returncode == 1
    assert none.stderr.decode() == (f"useless     {keys['other']}  decrypts nothing that is encrypted to these\n")
    program = [bastion.installation.programs / "sshrec", "--config", bastion.config, "recipients", "test"]
    arguments = [*map(str, program), "--identity", keys["auditor"], "--identity", keys["offline"]]
    child = pexpect.spawn(arguments[0], arguments[1:], timeout=30)
    child.expect_exact("Passphrase of")
    child.sendline("secret")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_one_recipient_is_a_warning(bastion: Lab, keys: Keys) -> None:
    bastion.write_config({"recipients": keys.recipients[:1]})
    try:
        done = bastion.sshrec("recipients", "ls")
        said = "recordings are encrypted to one recipient only: with its key they would all be lost"
        assert done.stderr.decode() == f"sshrec: warning: {said}\n"
        checked = subprocess.run(
            [bastion.installation.programs / "sshrecd", "--config", bastion.config, "--check"], capture_output=True
        )
        assert f"WARNING: {said}\n" in checked.stderr.decode()
    finally:
        bastion.write_config()


def test_retention_removes_it_with_its_event(bastion: Lab) -> None:
    path = encrypted(bastion, "echo to be removed")
    content = path.read_bytes()
    gone = json.loads(bastion.sshrec("prune", "--json", "--max-size", "1B").stdout)["removed"]
    assert session_of(path) in [one["id"] for one in gone]
    assert not [left for left in path.parent.iterdir() if left.name.startswith(session_of(path))]
    (told,) = [
        one for one in log(bastion) if one["event"] == "recording.delete" and one["sid"] == session_of(path)
    ]
    assert (told["file_bytes"], told["file_sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    bastion.wait(
        lambda: b"DELETED" in bastion.sshrec("verify", session_of(path), check=False).stdout, "it to be signed", 30
    )


def test_embedded(keys: Keys) -> None:
    """Without a daemon the worker encrypts, after its session."""
    with Lab(several_uids=False, sshrecd=False) as lab:
        directory = lab.directory / "own"
        directory.mkdir()
        config = directory / "sshrec.yaml"
        port = lab.sshds["web1"].port
        config.write_text(
            f"data_dir: {directory}/data\nrun_dir: {directory}/run\nknown_hosts: [{lab.known_hosts}]\n"
            f"nodes: [{{name: web1, address: 127.0.0.1, port: {port}}}]\n"
            f"recipients_file: {directory}/recipients\n"
        )
        (directory / "recipients").write_text("# two\n" + "\n".join(keys.recipients) + "\n")
        python = directory / "python"
        accounts = " ".join(f"{name}={value}" for name, value in lab.sshrec_env().items())
        python.write_text(f'#!/bin/sh\nexec env {accounts} {lab.installation.programs}/python "$@"\n')
        python.chmod(0o755)
        program = lab.gateway.split()[0]
        lab.start_bastion("embedded", force_command=f"{program} --embedded --config {config} --python {python}")
        lab.ssh("-A", "embedded", "root@web1", "echo one", check=True)
        lab.wait(lambda: list(directory.glob("data/recordings/*/*.age")), "it to be encrypted")
        lab.wait(lambda: not list(directory.glob("data/recordings/*/*.zst")), "the packed file to go")
        (path,) = directory.glob("data/recordings/*/*.age")
        said = [json.loads(line) for line in (next(directory.glob("data/audit/*.jsonl"))).read_text().splitlines()]
        (told,) = [one for one in said if one["event"] == "recording.encrypt"]
        assert told["file_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
