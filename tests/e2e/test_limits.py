"""How long a session may last, how long be idle, how large its recording may become; and what people are told."""

from __future__ import annotations

from typing import Any

import pexpect
import pytest

from sshrec.recording import events
from tests.e2e.recorded import last
from tests.e2e.test_faults import end_on_target, ended
from tests.lab import PROMPT, Lab


def restart(lab: Lab, **limits: Any) -> None:
    lab.stop_sshrecd()
    lab.start_sshrecd({"limits": limits})


def shell(lab: Lab) -> Any:
    child = lab.spawn("-tA", "bastion", "root@web1")
    child.expect(PROMPT)
    return child


def test_whoever_types_nothing_is_warned_and_shown_out(lab: Lab) -> None:
    restart(lab, idle="10s")
    child = shell(lab)
    child.sendline("while sleep 0.2; do echo still here; done")
    child.expect_exact("still here")
    child.expect(r"sshrec: this session ends in [0-9]s: nothing was typed for [0-9]+s\r\n")
    child.sendcontrol("c")  # that is typing
    child.expect(PROMPT)
    child.expect(r"sshrec: this session ends in [0-9]s: nothing was typed for [0-9]+s\r\n")
    assert "sshrec: error: this session was ended: nothing was typed for 10s" in ended(child)
    assert child.exitstatus == 255
    recorded = last(lab)
    assert (recorded.end["reason"], recorded.end["detail"]) == ("limit", "nothing was typed for 10s")
    # The warnings are told as what they are, and not as anything that the target said.
    assert [mark[:28] for mark in recorded.coded(events.MARKER)] == ["sshrec: this session ends in"] * 2
    assert "this session ends" not in recorded.text


def test_a_command_is_idle_where_nothing_passes(lab: Lab) -> None:
    restart(lab, idle="4s")
    done = lab.ssh("-A", "bastion", "root@web1", "for n in $(seq 25); do sleep 0.2; echo $n; done")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[-1] == b"25"
    done = lab.ssh("-A", "bastion", "root@web1", "echo once; sleep 1000")
    assert (done.returncode, done.stdout) == (255, b"once\n")
    assert done.stderr == b"sshrec: error: this session was ended: not a byte has passed for 4s\n"
    assert last(lab).end["reason"] == "limit"
    end_on_target(lab, "sleep 1000")


@pytest.mark.parametrize("terminal", [True, False])
def test_the_longest_session(lab: Lab, terminal: bool) -> None:
    restart(lab, session_length="6s")
    if terminal:
        child = shell(lab)
        child.expect(r"sshrec: this session ends in [0-9]s: it may last 6s\r\n")
        assert "sshrec: error: this session was ended: it has lasted 6s, and may last no longer" in ended(child)
        assert child.exitstatus == 255
    else:
        done = lab.ssh("-A", "bastion", "root@web1", "while echo busy; do sleep 0.1; done")
        assert done.returncode == 255
        assert set(done.stdout.splitlines()) == {b"busy"}
        assert done.stderr == (
            b"sshrec: error: this session was ended: it has lasted 6s, and may last no longer\n"
        )
        assert last(lab).streams()["stdout"] == done.stdout
    assert last(lab).end["reason"] == "limit"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_size_of_a_recording(lab: Lab, terminal: bool) -> None:
    restart(lab, session_bytes="100KiB")
    done = lab.ssh("-A", "bastion", "root@web1", "seq 1000000; echo never", tty=terminal)
    assert done.returncode == 255
    text = b"this session was ended: its recording has 100KiB, and may have no more"
    assert text in (done.stdout if terminal else done.stderr) + done.stderr
    recorded = last(lab)
    assert recorded.end["reason"] == "limit"
    assert 100 * 1024 < len(b"".join(recorded.lines)) < 100 * 1024 + 2 * 1024 * 1024
    shown = done.stdout.split(b"\r\nsshrec")[0].split(b"sshrec: error")[0].rstrip()
    assert recorded.text.encode().startswith(shown)


def test_nothing_is_limited_by_itself(lab: Lab) -> None:
    child = shell(lab)
    child.sendline("exit 3")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 3
    assert last(lab).coded(events.MARKER) == []
