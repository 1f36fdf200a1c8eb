"""A disk that fills up under live sessions: how they end, or go on, and what is left of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from sshrec.audit.log import Line, read_log
from sshrec.recording import events
from tests.disks import disk, fill
from tests.e2e.recorded import Recorded
from tests.e2e.test_faults import ended, live, sessions
from tests.lab import PROMPT, Lab
from tests.lab.processes import children

pytestmark = pytest.mark.root

SIZE = 24 << 20
LENIENT = [{"name": "lenient", "logins": ["*"], "recording": "best_effort"}]


class Small:
    """A bastion whose disk is small: all of data_dir is on it, the audit log too."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab, self.directory = lab, directory

    def start(self, **settings: Any) -> None:
        self.lab.stop_sshrecd()
        place = {"data_dir": str(self.directory), "authority": {"directory": str(self.lab.authority_dir)}}
        self.lab.start_sshrecd({**place, "limits": {"disk_floor": 0}, **settings})

    def log(self, session: str, *events: str) -> list[dict[str, Any]]:
        """What the audit log says of a session, once its end is there."""

        def there() -> list[dict[str, Any]]:
            lines = [line.fields for line in read_log(self.directory / "audit") if isinstance(line, Line)]
            of = [line for line in lines if line.get("sid") == session]
            return of if any(line["event"] == "session.end" for line in of) else []

        return [line for line in self.lab.wait(there, "its end in the log") if line["event"] in events]

    def recorded(self, session: str) -> Recorded:
        def packed() -> list[Path]:
            return list((self.directory / "recordings").rglob(f"{session}.cast.zst"))

        recorded = Recorded(self.lab.wait(packed, "it to be packed")[0])
        recorded.check_chain()
        return recorded

    def listed(self, session: str) -> dict[str, Any]:
        found = json.loads(self.lab.sshrec("ls", "--json").stdout)["recordings"]
        (row,) = [row for row in found if row["id"] == session]
        return dict(row)


@pytest.fixture
def small(lab: Lab) -> Iterator[Small]:
    lab.stop_sshrecd()
    account = lab.account("sshrec")
    with disk(lab.directory / "small", SIZE, "ext4", (account.uid, account.gid)) as directory:
        bastion = Small(lab, directory)
        try:
            yield bastion
        finally:
            lab.end_sessions()
            lab.stop_sshrecd()
    (lab.directory / "small").rmdir()
    lab.start_sshrecd()


def shell(lab: Lab) -> Any:
    child = lab.spawn("-tA", "bastion", "root@web1")
    child.expect(PROMPT)
    return child


def refusal(lab: Lab, small: Small) -> bytes:
    """What somebody who comes is told, once there is no room at all; what is shown until then is recorded."""
    fill(small.directory, name=f"rest-{time.monotonic_ns()}")
    done = lab.ssh("-A", "bastion", "root@web1", "echo shown")
    assert (done.returncode, done.stdout) in ((255, b""), (0, b"shown\n"))
    return done.stderr


def test_strict(lab: Lab, small: Small) -> None:
    """Sessions end, with a proper end of their recordings and in the log; nobody comes; prune makes room."""
    small.start()
    assert lab.ssh("-A", "bastion", "root@web1", "head -c 600000 /dev/urandom | base64").returncode == 0
    child = shell(lab)
    (session,) = live(lab)
    filler = fill(small.directory)
    child.sendline("seq 200000")
    text = ended(child)
    assert "sshrec: error: cannot write " in text
    assert "no space left on device" in text
    assert "hint: the disk of the recordings is full" in text
    (end,) = small.log(session["session"], "session.end")
    assert end["reason"] == "enospc"
    kept = lab.sshrec("export", session["session"], check=False).stdout
    shown = text.partition("sshrec: error")[0].splitlines()[1:-1]
    assert all(line.encode() in kept for line in shown[-50:])
    said = lab.sshrec("verify", session["session"], check=False).stdout
    assert b"INCOMPLETE" in said
    assert b"enospc" in said

    refused = lab.wait(lambda: refusal(lab, small), "the disk to be full for good: packing makes room")
    assert b"no space left on device" in refused
    lab.sshrec("prune", "--max-size", "1B")
    for rest in small.directory.glob("rest-*"):
        rest.unlink()
    assert lab.ssh("-A", "bastion", "root@web1", "echo shown").stdout == b"shown\n"
    filler.unlink()
    lab.stop_sshrecd()
    small.start()
    assert small.recorded(session["session"]).end["reason"] == "enospc"


def test_best_effort(lab: Lab, small: Small) -> None:
    """It goes on, and that is said everywhere, before another byte is shown."""
    small.start(roles=LENIENT)
    child = shell(lab)
    (session,) = live(lab)
    filler = fill(small.directory)
    child.sendline("seq 100000; echo done $((40 + 2))")
    child.expect(
        r"sshrec: since [^ ]*Z this session is not recorded: cannot write [^\r]*: no space left on device"
    )
    child.expect_exact("done 42")
    (now,) = sessions(lab)
    assert now["state"] == "live"
    assert f"unrecorded since {now['unrecorded'][11:13]}"[:16] in lab.sshrec("who").stdout.decode()
    assert b"unrecorded since" in lab.sshrec("ls").stdout
    child.sendline("exit 3")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 3

    failed, end = small.log(session["session"], "session.recording.failed", "session.end")
    assert failed["unrecorded"] == end["unrecorded"] == now["unrecorded"]
    assert (end["reason"], end["status"]) == ("exit", 3)
    filler.unlink()
    small.start()
    recorded = small.recorded(session["session"])
    assert recorded.end["unrecorded"] == now["unrecorded"]
    assert "done 42" not in recorded.text
    (mark,) = recorded.coded(events.MARKER)
    assert mark.startswith("sshrec: from here on not recorded: ")
    assert recorded.counts()["stdout"][0] > 588895  # of all that there was
    assert small.listed(session["session"])["unrecorded"] == now["unrecorded"]
    assert b"unrecorded: it went on" in lab.sshrec("verify", session["session"], check=False).stdout


def test_best_effort_of_a_command(lab: Lab, small: Small) -> None:
    """Its output is what it is, to the last byte; what we have to say comes after it."""
    small.start(roles=LENIENT)
    client = lab.popen("-A", "bastion", "root@web1", "echo before; read line; seq 200000; exit 3")
    assert client.stdin and client.stdout
    assert client.stdout.readline() == b"before\n"
    filler = fill(small.directory)
    out, err = client.communicate(b"go\n", timeout=60)
    assert out == b"".join(b"%d\n" % n for n in range(1, 200001))
    assert client.returncode == 3
    assert err.startswith(b"sshrec: since ")
    assert err.count(b"\n") == 1
    filler.unlink()


def test_where_neither_recording_nor_log_can_have_it(lab: Lab, small: Small) -> None:
    """Even best_effort is not without a trace."""
    small.start(roles=LENIENT)
    child = shell(lab)
    (session,) = live(lab)
    (writer,) = children(lab.sshrecd_pid, "sshrec-audit")
    lab.limit_files(writer, 100)
    filler = fill(small.directory)
    child.sendline("seq 100000; echo done $((40 + 2))")
    text = ended(child)
    assert "sshrec: error: this session can be neither recorded nor logged: cannot write " in text
    assert "done 42" not in text
    lab.limit_files(writer, None)
    filler.unlink()
    assert small.recorded(session["session"]).end["reason"] == "audit-failed"
