"""What breaks, and what then: a clear line, nothing unrecorded, nothing lost, nothing left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from sshrec.recording import events, packing
from sshrec.recording.seal import is_seal
from sshrec.storage import local
from tests.e2e.recorded import last
from tests.lab import PROMPT, Lab
from tests.lab.processes import children

Child = Any  # pexpect.spawn[bytes]

LINES = "for n in $(seq 1 200000); do echo line $n of many; done"


def sessions(lab: Lab) -> list[dict[str, Any]]:
    """What `sshrec who` says."""
    found: list[dict[str, Any]] = json.loads(lab.sshrec("who", "--json").stdout)["sessions"]
    return found


def live(lab: Lab, count: int = 1) -> list[dict[str, Any]]:
    """The live sessions, once there are so many that have a hop."""

    def there() -> list[dict[str, Any]]:
        found = [session for session in sessions(lab) if session["state"] == "live"]
        return found if len(found) == count else []

    return lab.wait(there, f"{count} live sessions")


def ids(lab: Lab) -> list[str]:
    """The sessions that have a recording."""
    return [path.name.partition(".")[0] for path in lab.recordings()]


def shell(lab: Lab) -> Child:
    child: Child = lab.spawn("-tA", "bastion", "root@web1")
    child.expect(PROMPT)
    return child


def ended(child: Child) -> str:
    """The end of a client: what it still showed."""
    child.expect(pexpect.EOF)
    child.close()
    text: str = child.before.decode(errors="replace")
    return text


# ---- the disk ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def limited(lab: Lab, size: int) -> Iterator[None]:
    """sshrecd whose recordings may have `size` bytes: the next is refused, as by a full disk.

    The audit log has another disk.
    """
    lab.stop_sshrecd()
    lab.start_sshrecd(prefix=["prlimit", f"--fsize={size}:"])
    (writer,) = lab.wait(lambda: children(lab.sshrecd_pid, "sshrec-audit"), "the audit log's writer")
    lab.limit_files(writer, None)
    yield
    lab.stop_sshrecd()
    lab.start_sshrecd()


def test_no_room_for_the_header(lab: Lab) -> None:
    before = ids(lab)
    with limited(lab, 100):
        done = lab.ssh("-A", "bastion", "root@web1", "echo shown")
    assert done.returncode == 255
    assert done.stdout == b""
    assert b"sshrec: error: cannot write " in done.stderr
    assert b"file too large" in done.stderr
    assert ids(lab) == before


@pytest.mark.parametrize("size", [5_000, 100_000, 300_000])
def test_the_disk_fills_in_the_middle(lab: Lab, size: int) -> None:
    """What was shown is what was kept, and it is sealed once there is room."""
    with limited(lab, size):
        done = lab.ssh("-A", "bastion", "root@web1", LINES)
        assert done.returncode == 255
        assert b"sshrec: error: cannot write " in done.stderr
    recorded = last(lab)
    assert recorded.streams()["stdout"] == done.stdout
    assert recorded.end["reason"] in ("recording-failed", "aborted")


def test_the_disk_fills_at_the_end(lab: Lab) -> None:
    """There is room for the output and not for the last seal."""
    command = "seq 2000"
    done = lab.ssh("-A", "bastion", "root@web1", command)
    size = len(b"".join(last(lab).lines))
    with limited(lab, size - 100):
        again = lab.ssh("-A", "bastion", "root@web1", command)
        assert again.returncode == 255
        assert again.stdout == done.stdout
        assert b"sshrec: error: cannot write " in again.stderr
    recorded = last(lab)
    assert recorded.streams()["stdout"] == done.stdout
    assert recorded.end["reason"] == "aborted"


@pytest.mark.root
def test_a_full_file_system(lab: Lab) -> None:
    """A tmpfs of 256 KiB, so that the kernel says ENOSPC."""
    recordings = lab.directory / "small"
    recordings.mkdir()
    owner = lab.account("sshrec")
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size=256k,uid={owner.uid},mode=0750", "small", recordings], check=True
    )
    try:
        lab.stop_sshrecd()
        lab.start_sshrecd({"recordings": str(recordings), "limits": {"disk_floor": 0}})
        done = lab.ssh("-A", "bastion", "root@web1", LINES)
        assert done.returncode == 255
        assert b"sshrec: error: cannot write " in done.stderr
        assert b"no space left on device" in done.stderr
        assert b"hint: the disk of the recordings is full" in done.stderr
        (kept,) = lab.wait(lambda: list(recordings.glob("*/*.cast")), "the recording")
        shown = b"".join(
            json.loads(line)[2].encode() for line in kept.read_bytes().splitlines() if b',"o",' in line[:30]
        )
        assert shown == done.stdout
        with contextlib.suppress(OSError), (recordings / "filler").open("wb") as filler:
            filler.write(b"x" * 262144)
        refused = lab.ssh("-A", "bastion", "root@web1", "echo shown")
        assert refused.returncode == 255
        assert refused.stdout == b""
        assert b"sshrec: error: cannot " in refused.stderr
    finally:
        lab.stop_sshrecd()
        subprocess.run(["umount", recordings], check=True)


def test_shown_only_once_it_is_on_disk(lab: Lab) -> None:
    """session_recording: proxy-sync, with more output than any buffer holds."""
    lab.stop_sshrecd()
    lab.start_sshrecd({"session_recording": "proxy-sync"})
    data = os.urandom(3_000_000)
    done = lab.ssh("-A", "bastion", "root@web1", "cat; exit 3", input=data)
    assert (done.returncode, done.stdout) == (3, data)
    assert last(lab).facts["recording"] == "proxy-sync"
    child = shell(lab)
    child.sendline("seq 20000; exit 4")
    child.expect_exact("20000\r\n")
    ended(child)
    assert child.exitstatus == 4
    assert last(lab).end["status"] == 4


def test_a_directory_of_somebody_elses_among_the_recordings(lab: Lab) -> None:
    """A file system of its own has lost+found: nothing that sshrecd trips over."""
    other = lab.data_dir / "recordings" / "lost+found"
    other.mkdir(mode=0o700)
    try:
        lab.stop_sshrecd()
        lab.start_sshrecd()
        assert lab.ssh("-A", "bastion", "root@web1", "echo there").stdout == b"there\n"
        last(lab)
    finally:
        other.rmdir()


# ---- sshrecd ----------------------------------------------------------------------------------------------


def test_without_sshrecd_nothing_goes(lab: Lab) -> None:
    lab.stop_sshrecd()
    done = lab.ssh("-A", "bastion", "root@web1", "echo shown")
    assert (done.returncode, done.stdout) == (255, b"")
    assert b"sshrec: error: sshrecd does not answer, so no session can be recorded" in done.stderr
    assert b"hint: " in done.stderr


def test_with_a_hung_sshrecd_the_gateway_gives_up(lab: Lab) -> None:
    os.kill(lab.sshrecd_pid, signal.SIGSTOP)
    try:
        done = lab.ssh("-A", "bastion", "root@web1", "echo shown")
    finally:
        os.kill(lab.sshrecd_pid, signal.SIGCONT)
    assert (done.returncode, done.stdout) == (255, b"")
    assert done.stderr == b"sshrec: error: the recorder has not answered for 10 seconds: the session is over\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_sshrecd_restarts_under_a_live_session(lab: Lab, number: int) -> None:
    child = shell(lab)
    (before,) = live(lab)
    lab.stop_sshrecd(number)
    child.sendline("echo $((40 + 2)) without")
    child.expect_exact("42 without")
    lab.start_sshrecd()
    (after,) = live(lab)
    assert after["session"] == before["session"]
    assert after["pid"] == before["pid"]
    lab.sshrec("kill", after["session"][:20])
    assert "this session was ended by" in ended(child)
    recorded = last(lab)
    assert recorded.session == before["session"]
    assert recorded.end["reason"] == "killed"
    assert "42 without" in recorded.text


def test_a_session_that_ends_without_sshrecd_is_packed_by_the_next(lab: Lab) -> None:
    child = shell(lab)
    lab.stop_sshrecd()
    child.sendline("exit 4")
    ended(child)
    assert child.exitstatus == 4
    assert lab.recordings()[-1].suffix == ".cast"
    lab.start_sshrecd()
    assert last(lab).end["status"] == 4


# ---- the worker and the hop -------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
def test_a_killed_worker(lab: Lab, restart: bool) -> None:
    child = shell(lab)
    (session,) = live(lab)
    if restart:
        lab.stop_sshrecd()
    os.kill(session["pid"], signal.SIGKILL)
    assert "sshrec: error: the recorder ended without a word: the session is over" in ended(child)
    assert child.exitstatus == 255
    if restart:
        lab.start_sshrecd()
    recorded = last(lab)
    assert recorded.session == session["session"]
    assert recorded.end["reason"] == "aborted"


def test_a_torn_line_is_set_aside(lab: Lab) -> None:
    child = shell(lab)
    (session,) = live(lab)
    lab.stop_sshrecd()
    os.kill(session["pid"], signal.SIGKILL)
    ended(child)
    path = lab.recordings()[-1]
    with path.open("ab") as file:
        file.write(b'[1.5,"o","half a li')
    lab.start_sshrecd()
    last(lab)
    assert path.with_suffix(".torn").read_bytes() == b'[1.5,"o","half a li'


def test_a_killed_hop(lab: Lab) -> None:
    child = shell(lab)
    (session,) = live(lab)
    os.kill(session["hop"], signal.SIGKILL)
    assert "sshrec: error: ssh to web1 was killed by signal 9" in ended(child)
    assert last(lab).end["status"] == 255


def test_a_stuck_worker_loses_its_hop(lab: Lab) -> None:
    """A worker that does not turn (as on a hung disk): its hop is killed, and the person is told."""
    child = shell(lab)
    (session,) = live(lab)
    os.kill(session["pid"], signal.SIGSTOP)
    try:
        assert "the recorder has not answered for 10 seconds" in ended(child)
        lab.wait(lambda: _dead(session["hop"]), "the hop to be killed", timeout=30)
    finally:
        os.kill(session["pid"], signal.SIGCONT)
    assert last(lab).end["reason"] in ("exit", "client-disconnect")


def _dead(pid: int) -> bool:
    """Whether a process has ended: it is gone, or a zombie that its stopped parent has not reaped."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status[status.rindex(")") + 2] == "Z"


# ---- the person -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("stuck", [True, False])
def test_a_client_that_vanishes(lab: Lab, terminal: bool, stuck: bool) -> None:
    """Killed without a word; with a hop that hangs, too."""
    if terminal:
        child = shell(lab)
        pid = child.pid
    else:
        client = lab.popen("-A", "bastion", "root@web1", "echo there; sleep 1000")
        assert client.stdout
        assert client.stdout.readline() == b"there\n"
        pid = client.pid
    (session,) = live(lab)
    if stuck:
        os.kill(session["hop"], signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    recorded = last(lab)
    assert recorded.end["reason"] == "client-disconnect"
    if terminal:
        child.close(force=True)
    else:
        client.communicate()
        end_on_target(lab, "sleep 1000")


def end_on_target(lab: Lab, command: str) -> None:
    """A command without a terminal outlives its connection, as with plain ssh."""
    for process in lab.processes():
        if command in str(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def test_a_session_of_a_killed_gateway_ends(lab: Lab) -> None:
    child = shell(lab)
    gateway = [
        process for process in lab.processes() if "-IS" in str(process) and "sshrec-gateway" in str(process)
    ]
    os.kill(gateway[0].pid, signal.SIGKILL)
    ended(child)
    assert last(lab).end["reason"] == "client-disconnect"


def test_a_large_paste_while_the_reader_stalls(lab: Lab) -> None:
    """1 MiB typed into an echoing terminal whose output nobody reads: all of it arrives in the end."""
    child: Child = lab.spawn("-tA", "bastion", "root@web1", "stty -icanon; echo ready; head -c 1048576 | wc -c")
    child.expect_exact("ready")
    os.set_blocking(child.child_fd, False)
    text = b"0123456789abcde\n" * 65536
    sent = 0
    deadline = time.monotonic() + 60
    while sent < len(text):  # nothing is read while it can still be written
        assert time.monotonic() < deadline
        try:
            sent += os.write(child.child_fd, text[sent : sent + 4096])
        except BlockingIOError:
            with contextlib.suppress(BlockingIOError):
                os.read(child.child_fd, 1024)  # a reader far slower than the echo
    os.set_blocking(child.child_fd, True)
    child.expect_exact("1048576", timeout=60)
    ended(child)


def test_a_reader_that_stalls_stops_the_target(lab: Lab) -> None:
    """Nothing is buffered without bound: the target waits, and so does the recording."""
    client = lab.popen("-A", "bastion", "root@web1", "yes")
    (session,) = live(lab)

    def still() -> bool:
        first: int = sessions(lab)[0]["bytes"]
        time.sleep(0.2)
        return first > 0 and first == sessions(lab)[0]["bytes"]

    lab.wait(still, "the recording to stand still")
    memory = Path(f"/proc/{session['pid']}/smaps_rollup").read_text().split("Private_Dirty:")[1].split()[0]
    assert int(memory) < 16 * 1024  # KiB
    client.kill()
    client.communicate()
    last(lab)


# ---- sizes ------------------------------------------------------------------------------------------------


def test_ten_megabytes_without_a_newline(lab: Lab) -> None:
    done = lab.ssh("-ttA", "bastion", "root@web1", "head -c 10000000 /dev/zero | tr '\\0' x", timeout=100)
    assert done.stdout.count(b"x") == 10_000_000
    assert last(lab).text.count("x") == 10_000_000


def test_half_a_character_at_the_end(lab: Lab) -> None:
    done = lab.ssh("-A", "bastion", "root@web1", "printf 'a\\303'")
    assert done.stdout == b"a\xc3"
    recorded = last(lab)
    assert recorded.streams()["stdout"] == b"a\xc3"
    assert recorded.coded(events.OUTPUT) == ["a", "\ufffd"]


@pytest.mark.timeout(300)
def test_two_hundred_sessions_at_once(lab: Lab) -> None:
    quick = "curve25519-sha256"  # so that this measures us, not the key exchange
    lab.stop_sshrecd()
    lab.start_sshrecd({"hop": {"kex_algorithms": quick}})
    before = len(lab.recordings())
    clients = [
        lab.popen("-A", f"-oKexAlgorithms={quick}", "bastion", f"root@web{n % 2 + 1}", f"echo up; cat; echo {n}")
        for n in range(200)
    ]
    for client in clients:
        assert client.stdout
        assert client.stdout.readline() == b"up\n"
    assert len(sessions(lab)) == 200
    results = [client.communicate(b"in\n", timeout=60) for client in clients]
    assert [out for out, _ in results] == [f"in\n{n}\n".encode() for n in range(200)]
    assert {client.returncode for client in clients} == {0}
    lab.wait(lambda: all(path.suffix == ".zst" for path in lab.recordings()), "all to be packed", 60)
    assert len(lab.recordings()) - before == 200


def test_too_many_sessions(lab: Lab) -> None:
    lab.stop_sshrecd()
    lab.start_sshrecd({"limits": {"sessions_per_user": 1}})
    child = shell(lab)
    done = lab.ssh("-A", "bastion", "root@web1", "echo shown")
    assert (done.returncode, done.stdout) == (255, b"")
    assert done.stderr == b"sshrec: error: you have 1 sessions, and no more are allowed at once\n"
    child.sendline("exit")
    ended(child)


# ---- while it lives ---------------------------------------------------------------------------------------


def test_a_live_recording_plays(lab: Lab) -> None:
    child = shell(lab)
    child.sendline("echo $((40 + 2)) live")
    child.expect_exact("42 live")
    (path,) = [path for path in lab.recordings() if path.suffix == ".cast"]
    assert b"42 live" in lab.sshrec("play", str(path)).stdout
    assert lab.sshrec("ls").stdout.count(b" live") >= 1
    shown = subprocess.run(
        ["script", "-qec", f"asciinema cat {path}", "/dev/null"], capture_output=True, check=True, timeout=20
    ).stdout
    assert b"42 live" in shown
    lab.wait(lambda: is_seal(path.read_bytes().splitlines(keepends=True)[-1]), "an idle session to be sealed", 10)
    child.sendline("exit")
    ended(child)


def test_a_long_live_recording_is_packed_ahead(lab: Lab) -> None:
    """By the housekeeper, without a word to the session; at its end that much is done."""
    argv = lab.ssh_argv("-ttA", "bastion", "root@web1", "seq 9000000; read line; echo $line")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(argv, env=lab.laptop("joe").env, **pipes) as client:  # type: ignore[call-overload]
        try:
            live(lab)
            (path,) = [path for path in lab.recordings() if path.suffix == ".cast"]
            part = path.with_suffix(".cast.zst.part")
            lab.wait(lambda: path.stat().st_size > 9_000_000 * 8, "all of it to be recorded", 60)
            assert not part.exists()
            lab.stop_sshrecd()
            lab.start_sshrecd()  # which looks at once, and not within the minute
            lab.wait(lambda: part.exists() and _packed(part) > local.AHEAD_BYTES, "it to be packed ahead", 60)
            client.communicate(b"meanwhile\n", timeout=60)
        finally:
            client.kill()
    recorded = last(lab)
    assert recorded.end["reason"] == "exit"
    assert any(b"meanwhile" in line for line in recorded.lines[-10:])
    assert not part.exists()


def _packed(part: Path) -> int:
    with part.open("rb") as file:
        return packing.packed_ahead(file)


def test_whoever_asks_and_does_not_wait_costs_nothing(lab: Lab) -> None:
    """A client of the control socket that is gone before its answer: the worker does not turn for it."""
    child = shell(lab)
    (session,) = live(lab)
    for _ in range(3):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(lab.run_dir / session["session"] / "control"))
            sock.send(b"status")
    before = _turns(session["pid"])
    time.sleep(1.0)
    assert _turns(session["pid"]) - before < 50
    child.sendline("exit")
    ended(child)


def _turns(pid: int) -> int:
    """How often a process has gone to sleep and been woken."""
    status = Path(f"/proc/{pid}/status").read_text()
    cpu = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0]) + int(cpu[11]) + int(cpu[12])


def test_who_lists_who_is_there(lab: Lab) -> None:
    assert sessions(lab) == []
    child = shell(lab)
    (session,) = live(lab)
    assert session["user"] == "joe"
    assert session["target"] == "root@web1"
    shown = lab.sshrec("who").stdout.decode()
    assert session["session"] in shown
    assert "127.0.0.1" in shown
    child.sendline("exit")
    ended(child)


def test_nobody_else_may_kill(lab: Lab) -> None:
    missing = lab.sshrec("kill", "01ZZ", check=False)
    assert missing.returncode == os.EX_NOINPUT
    assert b"sshrec: error: no live session with an id that begins with '01ZZ'" in missing.stderr


@pytest.mark.root
def test_another_user_may_not_ask(lab: Lab) -> None:
    child = shell(lab)
    (session,) = live(lab)
    alice = lab.account("alice")
    done = subprocess.run(
        [lab.installation.programs / "sshrec", "--config", lab.config, "kill", session["session"]],
        user=alice.uid,
        group=alice.gid,
        extra_groups=[],
        env=lab.sshrec_env(),
        cwd="/",
        capture_output=True,
    )
    assert done.returncode == os.EX_NOPERM
    assert b"hint: root and sshrec's own user" in done.stderr
    child.sendline("echo still $((1 + 1)) here")
    child.expect_exact("still 2 here")
    child.sendline("exit")
    ended(child)
