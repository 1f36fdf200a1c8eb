"""sshrec prune on a bastion: what goes is in the audit log first, and what must stay stays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pexpect
import pytest

from sshrec.recording.seal import read_seal
from tests.e2e.recorded import last, packed
from tests.e2e.test_audit import log, newest, of, writer
from tests.lab import PROMPT, Lab

ALL = ("--max-size", "1B")  # whatever may go, goes


@pytest.fixture
def two(lab: Lab) -> Iterator[list[str]]:
    """Two sessions, recorded, packed and in the log; nothing older, and nobody held."""
    writer(lab)
    for number in (1, 2):
        lab.ssh("-A", "bastion", "root@web1", f"echo {number}")
    sessions = [path.name.partition(".")[0] for path in packed(lab, 2)]
    for session in sessions:
        of(lab, session)
    (lab.data_dir / "holds.json").unlink(missing_ok=True)
    for path in (lab.data_dir / "recordings").rglob("*"):  # torn ends that other tests left, too
        if path.is_file() and path.name.partition(".")[0] not in sessions:
            path.unlink(missing_ok=True)
    yield sessions
    (lab.data_dir / "holds.json").unlink(missing_ok=True)


def prune(lab: Lab, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The sessions that were removed, and why others were kept."""
    said = json.loads(lab.sshrec("prune", "--json", *arguments).stdout)
    return [one["id"] for one in said["removed"]], {one["id"]: one["reason"] for one in said["kept"]}


def program(lab: Lab) -> list[str]:
    """A command line that removes what it may."""
    return [str(lab.installation.programs / "sshrec"), "--config", str(lab.config), "prune", *ALL]


def stored(lab: Lab) -> list[str]:
    return [path.name.partition(".")[0] for path in lab.recordings()]


def deletions(lab: Lab, *sessions: str) -> list[dict[str, Any]]:
    return [one for one in log(lab) if one["event"] == "recording.delete" and one["sid"] in sessions]


def test_what_goes_is_in_the_log(lab: Lab, two: list[str]) -> None:
    path = lab.recordings()[0]
    data, recorded = path.read_bytes(), last(lab)
    text = subprocess.run(["zstd", "-dcq", path], capture_output=True, check=True).stdout
    assert prune(lab, *ALL) == (two, {})
    assert stored(lab) == []
    assert not [path for session in two for path in (lab.data_dir / "recordings").rglob(f"{session}*")]
    first, second = deletions(lab, *two)
    assert (first["sid"], second["sid"]) == tuple(two)
    assert first["code"] == "SR203I"
    assert first["reason"] == "all recordings take more than 1B"
    assert first["recording_bytes"] == len(text)
    assert (first["file_bytes"], first["file_sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    seal = text.splitlines(keepends=True)[-1]
    assert (first["seal"], first["seal_sha256"]) == (read_seal(seal)["n"], hashlib.sha256(seal).hexdigest())
    (end,) = [one for one in of_all(lab, two[1]) if one["event"] == "session.end"]
    assert (second["seal"], second["seal_sha256"]) == (end["seal"], end["seal_sha256"])
    assert second["recording_bytes"] == end["recording_bytes"] == sum(map(len, recorded.lines))
    account = lab.account("sshrec")
    assert (first["sender_uid"], first["account_uid"]) == (account.uid, account.uid)


def of_all(lab: Lab, session: str) -> list[dict[str, Any]]:
    return [one for one in log(lab) if one.get("sid") == session]


def test_a_second_run_changes_nothing(lab: Lab, two: list[str]) -> None:
    prune(lab, *ALL)
    events = len(log(lab))
    assert prune(lab, *ALL) == ([], {})
    assert len(log(lab)) == events


def test_without_a_policy_nothing_goes(lab: Lab, two: list[str]) -> None:
    done = lab.sshrec("prune")
    assert (done.stdout, stored(lab)) == (b"", two)
    assert done.stderr == b"sshrec: neither retention in sshrec.yaml nor an option limits what is kept\n"


def test_by_age(lab: Lab, two: list[str]) -> None:
    assert prune(lab, "--older-than", "1h") == ([], {})
    assert stored(lab) == two


def test_the_configuration_has_the_policy(lab: Lab, two: list[str]) -> None:
    lab.write_config({"retention": {"size": "1B"}})
    try:
        assert prune(lab) == (two, {})
    finally:
        lab.write_config()


def test_dry_run(lab: Lab, two: list[str]) -> None:
    events = len(log(lab))
    assert prune(lab, "--dry-run", *ALL) == (two, {})
    lines = lab.sshrec("prune", "-n", *ALL).stdout.decode().splitlines()
    assert [line.split()[:3] for line in lines] == [["would", "remove", session] for session in two]
    assert (stored(lab), len(log(lab))) == (two, events)


def test_a_live_session_stays(lab: Lab, two: list[str]) -> None:
    child = lab.spawn("-tA", "bastion", "root@web1")
    child.expect(PROMPT)
    live = newest(lab)
    removed, kept = prune(lab, *ALL)
    assert removed == two
    assert list(kept) == [live]
    assert kept[live] == "live, unfinished or not packed yet"
    child.sendline("echo go''es on")
    child.expect("goes on")
    child.sendline("exit")
    child.expect(pexpect.EOF)
    child.close()
    assert last(lab).session == live


def test_what_cannot_be_logged_stays(lab: Lab, two: list[str]) -> None:
    lab.limit_files(writer(lab), 100)
    try:
        done = lab.sshrec("prune", *ALL, check=False, timeout=60)
    finally:
        lab.limit_files(writer(lab), None)
    assert done.returncode == os.EX_IOERR
    assert b"sshrec: error: recording.delete is not in the audit log: cannot write the audit log" in done.stderr
    assert stored(lab) == two
    lab.stop_sshrecd()
    lab.start_sshrecd()
    assert deletions(lab, *two) == []
    assert prune(lab, *ALL) == (two, {})
    assert [one["sid"] for one in deletions(lab, *two)] == two


def test_a_log_that_hangs_and_then_has_it_all_the_same(lab: Lab, two: list[str]) -> None:
    """Nothing goes that may not be in the log; and what turns out to be in it goes with the next one."""
    stuck = writer(lab)
    os.kill(stuck, signal.SIGSTOP)
    try:
        done = lab.sshrec("prune", *ALL, check=False)
    finally:
        os.kill(stuck, signal.SIGCONT)
    assert done.returncode == os.EX_IOERR
    assert b"recording.delete is not in the audit log: its writer does not answer" in done.stderr
    assert stored(lab) == two
    lab.wait(lambda: deletions(lab, *two), "what was sent to be logged")
    assert prune(lab) == ([two[0]], {})
    assert [one["sid"] for one in deletions(lab, *two)] == [two[0]]


def test_a_prune_that_died_between_log_and_removal_is_finished(lab: Lab, two: list[str]) -> None:
    """Whatever the policy says by then; and the log has it once."""
    path = lab.recordings()[0]
    data = path.read_bytes()
    prune(lab, *ALL)
    (told,) = deletions(lab, two[0])
    # As it was right after the event: the intent and the recording are still there.
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o640)
    account = lab.account("sshrec")
    if lab.several_uids:
        os.chown(path, account.uid, account.gid)
    intent = lab.data_dir / "removal.json"
    intent.write_text(json.dumps({"session": two[0], "uid": told["uid"]}))
    assert prune(lab, "--older-than", "10y") == ([two[0]], {})
    assert stored(lab) == []
    assert len(deletions(lab, two[0])) == 1
    assert not intent.exists()


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace: apt-get install strace")
@pytest.mark.parametrize("number", range(1, 7))
def test_killed_anywhere(lab: Lab, two: list[str], number: int) -> None:
    """What is gone is in the log; the next one does the rest."""
    account = lab.account("sshrec")
    own: dict[str, Any] = {"user": account.uid, "group": account.gid, "extra_groups": []}
    killed = subprocess.run(
        [
            *("strace", "-f", "-qq", "-o", "/dev/null"),
            *("-e", f"inject=rename,unlink,fsync,sendto:signal=KILL:when={number}"),
            *program(lab),
        ],
        env=lab.sshrec_env(),
        cwd="/",
        capture_output=True,
        timeout=60,
        **(own if lab.several_uids else {}),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    told = {one["sid"] for one in deletions(lab, *two)}
    assert set(two) - set(stored(lab)) <= told
    prune(lab, *ALL)
    assert stored(lab) == []
    assert {one["sid"] for one in deletions(lab, *two)} == set(two)


def test_without_sshrecd_it_goes_straight_into_the_log(lab: Lab, two: list[str]) -> None:
    lab.stop_sshrecd()
    try:
        assert prune(lab, *ALL) == (two, {})
    finally:
        lab.start_sshrecd()
    assert [one["sid"] for one in deletions(lab, *two)] == two


def test_a_damaged_recording_stays(lab: Lab, two: list[str]) -> None:
    path = lab.recordings()[0]
    path.write_bytes(path.read_bytes()[:-3])
    removed, kept = prune(lab, *ALL)
    assert removed == two[1:]
    assert kept == {two[0]: "damaged: no seek table"}
    path.unlink()


@pytest.mark.parametrize("value", ["5", "0d", "-1d", "forever"])
def test_what_is_no_age(lab: Lab, value: str) -> None:
    done = lab.sshrec("prune", f"--older-than={value}", check=False)
    assert done.returncode == os.EX_USAGE
    assert b"is no duration such as 30m, 12h, 7d or 1y" in done.stderr


@pytest.mark.root
def test_root_prunes_as_the_owner_and_is_named(lab: Lab, two: list[str], several_uids: bool) -> None:
    done = subprocess.run(
        program(lab), env={**lab.sshrec_env(), "SUDO_USER": "alice"}, cwd="/", capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    (event, _) = deletions(lab, *two)
    assert (event["sender_uid"], event["account_uid"]) == (0, 0)
    assert event["user"].endswith("(alice)")
    owner = lab.account("sshrec").uid
    assert {path.stat().st_uid for path in lab.data_dir.rglob("*")} == {owner}


@pytest.mark.root
def test_others_may_not(lab: Lab, two: list[str], several_uids: bool) -> None:
    joe = lab.account("joe")
    done = subprocess.run(
        program(lab),
        env=lab.sshrec_env(),
        cwd="/",
        capture_output=True,
        timeout=60,
        user=joe.uid,
        group=joe.gid,
        extra_groups=[],
    )
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr
    assert stored(lab) == two
    assert deletions(lab, *two) == []


# ---- holds ------------------------------------------------------------------------------------------------


def held(lab: Lab) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(lab.sshrec("hold", "--json").stdout)["holds"]
    return found


def told_holds(lab: Lab, since: int) -> list[tuple[Any, ...]]:
    names = ("action", "sid", "held_user", "reason")
    return [tuple(map(one.get, names)) for one in log(lab)[since:] if one["event"] == "recording.hold"]


def test_a_session_on_hold_stays_until_it_is_released(lab: Lab, two: list[str]) -> None:
    events = len(log(lab))
    assert lab.sshrec("hold", two[0], "--reason", "case 17").stdout == b""
    (hold,) = held(lab)
    assert (hold["kind"], hold["name"], hold["reason"]) == ("session", two[0], "case 17")
    assert [two[0], "case", "17"] == [lab.sshrec("hold").stdout.decode().split()[at] for at in (6, -2, -1)]
    assert prune(lab, "--dry-run", *ALL) == ([two[1]], {two[0]: "on hold: case 17"})
    assert prune(lab, *ALL) == ([two[1]], {two[0]: "on hold: case 17"})
    assert stored(lab) == [two[0]]
    lab.sshrec("hold", "--release", two[0])
    assert held(lab) == []
    assert prune(lab, *ALL) == ([two[0]], {})
    assert told_holds(lab, events) == [("place", two[0], None, "case 17"), ("release", two[0], None, None)]


def test_a_user_on_hold(lab: Lab, two: list[str]) -> None:
    events = len(log(lab))
    user = lab.sshrec("ls", "--json")
    name = json.loads(user.stdout)["recordings"][0]["user"]
    lab.sshrec("hold", "--user", "somebody-else")
    lab.sshrec("hold", "--user", name)
    assert prune(lab, *ALL) == ([], dict.fromkeys(two, f"on hold of user {name}"))
    lab.sshrec("hold", "--user", name, "--release", "--reason", "closed")
    assert prune(lab, *ALL) == (two, {})
    assert told_holds(lab, events) == [
        ("place", None, "somebody-else", None),
        ("place", None, name, None),
        ("release", None, name, "closed"),
    ]


def test_a_hold_that_came_between_log_and_removal_wins(lab: Lab, two: list[str]) -> None:
    path = lab.recordings()[0]
    data = path.read_bytes()
    prune(lab, *ALL)
    (told,) = deletions(lab, two[0])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o644)
    (lab.data_dir / "removal.json").write_text(json.dumps({"session": two[0], "uid": told["uid"]}))
    (lab.data_dir / "removal.json").chmod(0o644)
    lab.sshrec("hold", two[0])
    assert prune(lab) == ([], {two[0]: "on hold"})
    assert stored(lab) == [two[0]]
    lab.sshrec("hold", two[0], "--release")
    assert prune(lab) == ([two[0]], {})


def test_what_is_on_hold_is_not_known_so_nothing_goes(lab: Lab, two: list[str]) -> None:
    (lab.data_dir / "holds.json").write_bytes(b'{"schema": 1, "holds": [')
    done = lab.sshrec("prune", *ALL, check=False)
    assert done.returncode == os.EX_DATAERR
    assert b"holds.json is no list of holds" in done.stderr
    assert stored(lab) == two


def test_holds_and_a_log_that_cannot_be_written(lab: Lab, two: list[str]) -> None:
    """Either way the recordings stay."""
    lab.sshrec("hold", two[0])
    lab.limit_files(writer(lab), 100)
    try:
        for arguments in (("hold", two[1]), ("hold", two[0], "--release")):
            assert lab.sshrec(*arguments, check=False).returncode == os.EX_IOERR
    finally:
        lab.limit_files(writer(lab), None)
    assert {hold["name"] for hold in held(lab)} == set(two)
    lab.stop_sshrecd()
    lab.start_sshrecd()


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("--release",), os.EX_USAGE),
        (("--reason", "x"), os.EX_USAGE),
        (("--user", ""), os.EX_USAGE),
        (("--user", "a\nb"), os.EX_USAGE),
        (("--user", "joe", "0"), os.EX_USAGE),
        (("--user", "joe", "--json"), os.EX_USAGE),
        (("--user", "joe", "--reason", "x" * 501), os.EX_USAGE),
        (("--user", "nobody-held", "--release"), os.EX_NOINPUT),
        (("NOSUCH",), os.EX_NOINPUT),
        (("NOSUCH", "--release"), os.EX_NOINPUT),
    ],
)
def test_holds_that_cannot_be(lab: Lab, arguments: tuple[str, ...], status: int) -> None:
    before = held(lab)
    done = lab.sshrec("hold", *arguments, check=False)
    assert (done.returncode, held(lab)) == (status, before)
    assert done.stderr.startswith(b"sshrec: error: ")
