"""The audit log of a bastion: what happened is in it, whatever dies; what cannot be logged is not."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest

from sshrec.audit.client import Sender, tell
from sshrec.audit.log import Line, Problem, read_log
from sshrec.recording.seal import is_seal
from tests.e2e.recorded import last, packed
from tests.lab import PROMPT, Lab
from tests.lab.processes import children

Child = Any  # pexpect.spawn[bytes]


_LATER = ("cert.", "ca.", "node.", "recording.pack")


def log(lab: Lab) -> list[dict[str, Any]]:
    """Every event of the log but checkpoints, and what authority and packer did, which comes when it comes."""
    return [event for event in everything(lab) if not event["event"].startswith(_LATER)]


def everything(lab: Lab) -> list[dict[str, Any]]:
    """Every event of the log but checkpoints; nothing else is wrong in it than an end that is being written."""
    directory = lab.data_dir / "audit"
    items = list(read_log(directory)) if any(directory.iterdir()) else []
    assert [item for item in items if isinstance(item, Problem) and item.kind != "torn"] == []
    events = [item.fields for item in items if isinstance(item, Line)]
    return [event for event in events if not event["event"].startswith("checkpoint")]


def of(lab: Lab, session: str) -> list[dict[str, Any]]:
    """The events of one session, once it has ended."""

    def ended() -> list[dict[str, Any]]:
        found = [event for event in log(lab) if event.get("sid") == session]
        return found if found and found[-1]["event"] == "session.end" else []

    return lab.wait(ended, "the end of the session in the log")


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def newest(lab: Lab) -> str:
    """The session of the newest recording."""
    return lab.recordings()[-1].name.partition(".")[0]


def writer(lab: Lab) -> int:
    """The process that writes the log, once it listens."""

    def there() -> list[int]:
        found = children(lab.sshrecd_pid, "sshrec-audit")
        return found if found and _listens(lab) else []

    return lab.wait(there, "the audit log's writer")[0]


def _listens(lab: Lab) -> bool:
    sender = Sender(lab.run_dir / "audit.sock")
    sender.tick()
    try:
        return sender.fileno() >= 0
    finally:
        sender.close()


def shell(lab: Lab) -> Child:
    child: Child = lab.spawn("-tA", "bastion", "root@web1")
    child.expect(PROMPT)
    return child


def left(child: Child) -> str:
    child.expect(pexpect.EOF)
    child.close()
    text: str = child.before.decode(errors="replace")
    return text


# ---- what the authority did --------------------------------------------------------------------------------


def told(lab: Lab, name: str, **wanted: Any) -> dict[str, Any]:
    """The newest event of that name with these fields, once it is there."""

    def found() -> list[dict[str, Any]]:
        return [
            event
            for event in everything(lab)
            if event["event"] == name and all(event.get(field) == value for field, value in wanted.items())
        ]

    return lab.wait(found, f"{name} in the log")[-1]


def test_a_certificate_is_in_the_log_when_the_command_ends(lab: Lab) -> None:
    key = lab.laptop("joe").key.with_suffix(".pub")
    made = json.loads(lab.sshrec_ca("sign", key, "--user", "joe", "--principals", "root", "--json").stdout)
    serial = made["certificates"][0]["serial"]
    (event,) = [event for event in everything(lab) if event.get("serial") == serial]
    assert (event["event"], event["identity.user"], event["identity.logins"]) == (
        "cert.create",
        "joe",
        ["sshrec:joe", "root"],
    )
    assert event["sender_uid"] == lab.account("sshrec-auth").uid


def test_what_was_done_without_sshrecd_comes_later(lab: Lab) -> None:
    """The authority's first keys are older than the log; nobody runs a command for those of the second."""
    assert [told(lab, "ca.init", ca_type=kind)["code"] for kind in ("user", "host", "gateway", "audit")]
    lab.stop_sshrecd()
    key = lab.laptop("joe").key.with_suffix(".pub")
    made = json.loads(lab.sshrec_ca("sign", key, "--user", "joe", "--principals", "root", "--json").stdout)
    serial = made["certificates"][0]["serial"]
    assert json.loads(lab.sshrec_ca("status", "--json").stdout)["events_waiting"] == 1
    lab.start_sshrecd()
    event = told(lab, "cert.create", serial=serial)
    assert event["occurred"] < event["time"]


# ---- what is logged ---------------------------------------------------------------------------------------


def test_a_command(lab: Lab) -> None:
    done = lab.ssh("-A", "bastion", "root@web1", "cat; echo naïve >&2; exit 3", input=b"12345")
    assert done.returncode == 3
    recorded = last(lab)
    events = of(lab, recorded.session)
    assert names(events) == ["session.start", "exec", "session.data", "session.end"]
    start, command, data, end = events
    account = lab.account("joe")
    for event in events:
        assert event["user"] == "joe"
        assert event["account_uid"] == account.uid
        assert event["login"] == "root"
        assert event["server_hostname"] == "web1"
        assert event["namespace"] == "default"
        assert event["addr.remote"].startswith("127.0.0.1:")
        assert event["sender_uid"] == lab.account("sshrec").uid
    assert (start["code"], start["rule"], start["target"]) == ("T2000I", 'role "everyone"', "root@web1")
    assert start["key_id"] == "joe"
    assert start["serial"] > 0
    assert start["session_recording"] == "proxy"
    assert (command["code"], command["exitCode"]) == ("T3002E", "3")
    assert command["command"] == "cat; echo naïve >&2; exit 3"
    assert (data["rx"], data["tx"]) == (5, 5 + len("naïve\n".encode()))
    assert (end["reason"], end["status"], end["interactive"], end["participants"]) == ("exit", 3, False, ["joe"])
    assert end["session_start"] < end["session_stop"]
    assert end["server_addr"] == recorded.end["address"]
    seals = [line for line in recorded.lines if is_seal(line)]
    assert (end["seal"], end["seal_sha256"]) == (len(seals) - 1, hashlib.sha256(seals[-1]).hexdigest())


def test_what_becomes_of_a_recording(lab: Lab) -> None:
    lab.ssh("-A", "bastion", "root@web1", "echo packed", check=True)
    (path,) = packed(lab, 1)
    session = path.name.partition(".")[0]
    event, end = told(lab, "recording.pack", sid=session), of(lab, session)[-1]
    assert (event["code"], event["user"], event["login"]) == ("SR200I", "joe", "root")
    data = path.read_bytes()
    assert (event["file_bytes"], event["file_sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    for name in ("recording_bytes", "seal", "seal_sha256"):
        assert event[name] == end[name]


def test_a_terminal_that_changes_its_size(lab: Lab) -> None:
    """Once a second at most, and the last size is told."""
    child = shell(lab)
    for columns in range(81, 121):
        child.setwinsize(30, columns)
        time.sleep(0.02)
    size = b""
    while size != b"120":  # until the target has the last one
        child.sendline("stty size")
        child.expect(rb"30 (\d+)")
        size = child.match[1]
    child.sendline("exit")
    left(child)
    events = of(lab, last(lab).session)
    sizes = [event["size"] for event in events if event["event"] == "resize"]
    assert events[0]["size"] == "80:24"
    assert events[0]["interactive"]
    assert 1 <= len(sizes) <= 4
    assert sizes[-1] == "120:30"


@pytest.mark.parametrize(
    ("target", "rule", "reason"),
    [
        ("root@nosuch", "nodes", "there is no node nosuch"),
        ("root@web1:1", "nodes", "web1 is reached on port"),
        ("-oProxyCommand=id", None, "not a host name"),
    ],
)
def test_a_refusal(lab: Lab, target: str, rule: str | None, reason: str) -> None:
    before = len(log(lab))
    lab.ssh("-A", "bastion", "--", target, "id")
    (event,) = lab.wait(lambda: log(lab)[before:], "the refusal in the log")
    assert (event["event"], event["code"], event["user"]) == ("session.rejected", "T1006W", "joe")
    assert event.get("rule") == rule
    assert reason in event["reason"]


def test_a_client_that_leaves(lab: Lab) -> None:
    child = shell(lab)
    child.close(force=True)
    events = of(lab, last(lab).session)
    assert names(events) == ["session.start", "client.disconnect", "session.data", "session.end"]
    assert events[1]["reason"] == events[-1]["reason"] == "client-disconnect"


def test_a_target_that_does_not_answer(lab: Lab) -> None:
    lab.stop_sshrecd()
    lab.start_sshrecd({"nodes": [{"name": "down", "address": "127.0.0.1", "port": 1}]})
    lab.ssh("-A", "bastion", "root@down", "id")
    events = of(lab, last(lab).session)
    assert names(events) == ["session.start", "session.data", "session.end"]
    assert events[-1]["reason"] == "unreachable"


def test_who_looked_at_a_recording(lab: Lab) -> None:
    lab.ssh("-A", "bastion", "root@web1", "echo seen")
    session = last(lab).session
    before = len(log(lab))
    assert lab.sshrec("play", session).stdout == b"seen\n"
    (event,) = log(lab)[before:]
    assert (event["event"], event["sid"]) == ("session.recording.access", session)
    assert event["account_uid"] == lab.account("sshrec").uid
    assert lab.sshrec("export", "--format", "text", session).stdout == b"seen\n"
    event = log(lab)[-1]
    assert (event["event"], event["sid"]) == ("session.recording.access", session)
    assert (event["action"], event["format"]) == ("export", "text")
    lab.stop_sshrecd()
    lab.end_sessions()
    assert lab.sshrec("play", session).stdout == b"seen\n"


@pytest.mark.root
def test_whoever_may_not_send_plays_all_the_same(lab: Lab, tmp_path: Path) -> None:
    lab.ssh("-A", "bastion", "root@web1", "echo seen")
    copy = lab.directory / "copy.cast.zst"
    copy.write_bytes(last(lab).path.read_bytes())
    copy.chmod(0o644)
    alice = lab.account("alice")
    before = len(log(lab))
    done = subprocess.run(
        [lab.installation.programs / "sshrec", "--config", lab.config, "play", copy],
        user=alice.uid,
        group=alice.gid,
        extra_groups=[],
        env=lab.sshrec_env(),
        cwd="/",
        capture_output=True,
    )
    copy.unlink()
    assert (done.stdout, done.stderr) == (b"seen\n", b"")
    assert len(log(lab)) == before


# ---- what cannot be logged --------------------------------------------------------------------------------


def test_nothing_runs_that_is_not_in_the_log(lab: Lab) -> None:
    """A full disk below the log: the session is refused before anything runs, and the person is told why."""
    lab.stop_sshrecd()
    lab.start_sshrecd()
    marker = lab.directory / "ran"
    lab.limit_files(writer(lab), 100)
    done = lab.ssh("-A", "bastion", "root@web1", f"touch {marker}; echo shown")
    assert (done.returncode, done.stdout) == (255, b"")
    assert b"sshrec: error: this session cannot be logged: cannot write the audit log " in done.stderr
    assert b"file too large" in done.stderr
    assert b"hint: " in done.stderr
    assert not marker.exists()
    session = newest(lab)
    lab.limit_files(writer(lab), None)
    lab.stop_sshrecd()
    lab.start_sshrecd()
    assert of(lab, session)[-1]["reason"] == "audit-failed"
    assert last(lab).end["reason"] == "audit-failed"


def test_a_log_that_hangs(lab: Lab) -> None:
    """Nobody waits for ever."""
    stuck = writer(lab)
    os.kill(stuck, signal.SIGSTOP)
    try:
        done = lab.ssh("-A", "bastion", "root@web1", "echo shown")
    finally:
        os.kill(stuck, signal.SIGCONT)
    assert (done.returncode, done.stdout) == (255, b"")
    assert b"sshrec: error: this session cannot be logged: its writer does not answer" in done.stderr
    assert of(lab, newest(lab))[-1]["reason"] == "audit-failed"


# ---- what dies --------------------------------------------------------------------------------------------


def test_a_killed_writer_is_started_again(lab: Lab) -> None:
    """A session that lives does not notice, and its end is in the log."""
    child = shell(lab)
    killed = writer(lab)
    os.kill(killed, signal.SIGKILL)
    lab.wait(lambda: children(lab.sshrecd_pid, "sshrec-audit") not in ([], [killed]), "another writer")
    assert lab.ssh("-A", "bastion", "root@web1", "echo another").stdout == b"another\n"
    child.sendline("exit 4")
    left(child)
    assert child.exitstatus == 4
    for path in lab.recordings()[-2:]:
        events = of(lab, path.name.partition(".")[0])
        assert (names(events)[0], names(events)[-1]) == ("session.start", "session.end")
    last(lab)


def test_a_killed_worker(lab: Lab) -> None:
    child = shell(lab)
    session = newest(lab)
    (path,) = [path for path in lab.recordings() if session in path.name]
    (pid,) = [pid for pid in _holders(path) if pid != os.getpid()]
    os.kill(pid, signal.SIGKILL)
    left(child)
    events = of(lab, session)
    assert names(events) == ["session.start", "session.end"]
    assert events[-1]["reason"] == "aborted"
    recorded = last(lab)
    assert events[-1]["seal_sha256"] == hashlib.sha256(recorded.lines[-1]).hexdigest()


def _holders(path: Path) -> list[int]:
    """The processes that have a file open."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(path):
                found.append(int(link.parts[2]))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_sshrecd_ends_and_the_log_goes_on(lab: Lab, number: int) -> None:
    """The writer stays for as long as a session does, and then a new sshrecd has its own."""
    before = writer(lab)
    child = shell(lab)
    session = newest(lab)
    lab.stop_sshrecd(number)
    child.sendline("exit")
    left(child)
    assert names(of(lab, session))[-1] == "session.end"
    lab.wait(lambda: not Path(f"/proc/{before}/fd").exists() or not _open(before), "the old writer to leave")
    lab.start_sshrecd()
    assert writer(lab) != before
    assert lab.ssh("-A", "bastion", "root@web1", "echo there").stdout == b"there\n"
    assert of(lab, last(lab).session)


def _open(pid: int) -> bool:
    """Whether a process has files open: a zombie has none."""
    try:
        return bool(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def test_a_new_sshrecd_takes_the_log_over_from_a_writer_that_lives(lab: Lab) -> None:
    child = shell(lab)
    before = writer(lab)
    lab.stop_sshrecd()
    assert _open(before)
    lab.start_sshrecd()
    assert writer(lab) != before
    lab.wait(lambda: not _open(before), "the old writer to leave")
    child.sendline("exit")
    left(child)
    assert names(of(lab, last(lab).session))[-1] == "session.end"


def test_every_session_ends_once(lab: Lab) -> None:
    """Worker and recovery both tell; the log has it once."""
    for _ in range(5):
        lab.ssh("-A", "bastion", "root@web1", "true")
    last(lab)
    lab.stop_sshrecd()
    lab.start_sshrecd()
    ends = [event["sid"] for event in log(lab) if event["event"] == "session.end"]
    assert len(ends) == len(set(ends))


# ---- who may write ----------------------------------------------------------------------------------------


def test_root_and_the_authority_may_send(lab: Lab) -> None:
    writer(lab)
    sender = Sender(lab.run_dir / "audit.sock")
    tell(sender, "user.create", {"name": "joe", "roles": ["admin"]})
    sender.close()
    assert log(lab)[-1]["sender_uid"] == os.geteuid()


@pytest.mark.root
@pytest.mark.parametrize(("name", "may"), [("joe", False), ("sshrec-auth", True)])
def test_who_may_send(lab: Lab, name: str, may: bool, several_uids: bool) -> None:
    writer(lab)
    account = lab.account(name)
    code = (
        "import sys, pathlib; from sshrec.audit.client import *;"
        "tell(Sender(pathlib.Path(sys.argv[1])), 'user.update', {'name': 'joe'})"
    )
    before = len(log(lab))
    done = subprocess.run(
        [lab.installation.programs / "python", "-c", code, lab.run_dir / "audit.sock"],
        user=account.uid,
        group=account.gid,
        extra_groups=[],
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        timeout=30,
    )
    assert (done.returncode == 0) is may, done.stderr
    if may:
        assert log(lab)[-1]["sender_uid"] == account.uid
    else:
        assert f"uid {account.uid} may not write the audit log".encode() in done.stderr
        assert len(log(lab)) == before
