"""A file system that hangs: nothing is shown that is not kept, and the session ends all the same."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.disks import disk, frozen
from tests.e2e.recorded import Recorded, last, packed
from tests.e2e.test_faults import live
from tests.lab import PROMPT, Lab
from tests.lab.processes import every

pytestmark = pytest.mark.root


@pytest.fixture
def recordings(lab: Lab) -> Iterator[Path]:
    """The recordings on a file system that can be frozen."""
    lab.stop_sshrecd()
    account = lab.account("sshrec")
    with disk(lab.data_dir / "recordings", 64 << 20, "ext4", (account.uid, account.gid)) as directory:
        try:
            lab.start_sshrecd()
            yield directory
        finally:
            lab.end_sessions()
            lab.stop_sshrecd()
    lab.start_sshrecd()


def gone(pid: int) -> bool:
    return all(process.pid != pid or process.zombie for process in every())


def recorded_of(lab: Lab, session: str) -> Recorded:
    """A session's recording, once it is packed."""
    (path,) = lab.wait(
        lambda: [path for path in lab.recordings() if path.name == f"{session}.cast.zst"], "it to be packed", 60
    )
    recorded = Recorded(path)
    recorded.check_chain()
    return recorded


def doomed(pid: int) -> bool:
    """Whether it was killed, and dies once the kernel lets go of it."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.split("\nShdPnd:")[1].split()[0], 16) & 1 << signal.SIGKILL - 1)


def test_sessions_end_and_those_on_another_disk_go_on(lab: Lab, recordings: Path) -> None:
    """A terminal and a command on the disk that hangs; a terminal on another, which a new sshrecd was given."""
    child: Any = lab.spawn("-tA", "bastion", "root@web1", timeout=40)
    child.expect(PROMPT)
    child.sendline("echo $((40 + 2)) before")
    child.expect_exact("42 before")
    child.expect(PROMPT)
    client = lab.popen("-A", "bastion", "root@web1", "echo before; read line; echo after")
    assert client.stdin and client.stdout
    assert client.stdout.readline() == b"before\n"
    stuck = sorted(live(lab, 2), key=lambda session: str(session["kind"]))
    lab.stop_sshrecd()
    lab.start_sshrecd({"recordings": str(lab.data_dir / "elsewhere")})
    other: Any = lab.spawn("-tA", "bastion", "root@web2", timeout=40)
    other.expect(PROMPT)
    live(lab, 3)
    with frozen(recordings):
        child.sendline("echo $((50 + 2)) after")
        out, err = client.communicate(b"go\n", timeout=60)
        assert (out, client.returncode) == (b"", 255)
        assert b"sshrec: error: the recorder has not answered for 10 seconds: the session is over" in err
        child.expect(pexpect.EOF)
        child.close()
        told = child.before.decode()
        assert "52 after" not in told
        assert "sshrec: error: the recorder has not answered for 10 seconds: the session is over" in told
        assert child.exitstatus == 255

        lab.wait(lambda: all(gone(session["hop"]) for session in stuck), "the hops to be gone", 30)
        other.sendline("echo $((60 + 2)) lives")
        other.expect_exact("62 lives")
        assert lab.ssh("-A", "bastion", "root@web1", "echo more").stdout == b"more\n"
        lab.wait(lambda: all(doomed(session["pid"]) for session in stuck), "the workers to be killed", 30)
    other.sendline("exit")
    other.expect(pexpect.EOF)
    other.close()
    lab.wait(lambda: all(gone(session["pid"]) for session in stuck), "the workers to die", 30)
    lab.stop_sshrecd()
    subprocess.run(["rm", "-r", lab.data_dir / "elsewhere"], check=True)
    lab.start_sshrecd()
    for session, shown in zip(stuck, (b"before\n", b"42 before"), strict=True):
        recorded = recorded_of(lab, session["session"])
        assert recorded.end["reason"] == "aborted"
        assert shown in recorded.text.encode()
        assert "after" not in recorded.text


def test_nobody_gets_in_and_the_end_is_told(lab: Lab, recordings: Path) -> None:
    child: Any = lab.spawn("-tA", "bastion", "root@web1", timeout=40)
    child.expect(PROMPT)
    (session,) = live(lab)
    with frozen(recordings):
        child.sendline("echo never")
        done = lab.ssh("-A", "bastion", "root@web1", "echo shown")
        assert (done.returncode, done.stdout) == (255, b"")
        assert b"sshrec: error: the recorder has not answered for 10 seconds" in done.stderr
        lab.wait(lambda: doomed(session["pid"]), "the worker to be killed", 30)
    child.expect(pexpect.EOF)
    child.close()
    recorded = recorded_of(lab, session["session"])
    assert recorded.end["reason"] == "aborted"
    assert recorded.end["detail"] == "its worker was stuck, as on a disk that hangs"
    said = lab.sshrec("verify", session["session"], check=False).stdout
    assert b"INCOMPLETE" in said
    assert b"aborted: its worker was stuck" in said
    assert lab.ssh("-A", "bastion", "root@web1", "echo after").stdout == b"after\n"
    packed(lab, 1)


SLOW = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <sys/syscall.h>

/* A disk that takes what is written, and never says that it has it, while there is a file SLOW. */
int fdatasync(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n > 5 && !memcmp(path + n - 5, ".cast", 5))
        while (access(SLOW, F_OK) == 0) usleep(50000);
    return syscall(SYS_fdatasync, fd);
}
"""


def test_a_disk_that_never_says_that_it_has_it(lab: Lab) -> None:
    """The kernel takes every write, and no sync returns: that is no place to keep anything, either."""
    if shutil.which("cc") is None:
        pytest.skip("there is no cc here")
    slow, library = lab.directory / "slow", lab.directory / "slow.so"
    argv = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), f'-DSLOW="{slow}"']
    subprocess.run(argv, input=SLOW.encode(), check=True, timeout=60)
    lab.stop_sshrecd()
    lab.start_sshrecd(prefix=["env", f"LD_PRELOAD=libnss_wrapper.so:{library}"])
    child: Any = lab.spawn("-tA", "bastion", "root@web1", timeout=40)
    child.expect(PROMPT)
    child.sendline("for n in $(seq 1000); do echo number $n; sleep 0.1; done")
    child.expect_exact("number 2\r\n")
    slow.touch()
    try:
        child.expect(pexpect.EOF)
        child.close()
        shown, _, told = child.before.decode().partition("sshrec: error: ")
        assert told.startswith("the disk of the recordings has not answered for 10 s"), shown[-2000:]
        assert child.exitstatus == 255
        assert int(shown.split("number ")[-1].split()[0]) < 60  # of the hundred that came until then
    finally:
        slow.unlink()
    recorded = last(lab)
    assert recorded.end["reason"] == "recording-failed"
    assert "".join(line for line in shown.splitlines(keepends=True)[1:-1]) in recorded.text
    lab.stop_sshrecd()
    for path in (library, slow):
        path.unlink(missing_ok=True)
