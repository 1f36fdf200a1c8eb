"""bin/try as a person sees it (without its set-up): what it shows, and that nothing stays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

_ROOT = Path(__file__).parents[2]
_DEMO = [sys.executable, "-m", "tests.lab.demo"]


def _gone(shown: str) -> bool:
    directory = re.search(r"/tmp/sr-\w+", shown)
    assert directory
    return not Path(directory[0]).exists()


def test_it_shows_a_session_the_list_and_the_replay() -> None:
    done = subprocess.run(_DEMO, cwd=_ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    shown = done.stdout.decode()
    assert (done.returncode, done.stderr.decode()) == (0, "")
    _, session, command, listed, replay, certificates, proved, *people = re.split(
        r"^\$ ", shown, flags=re.MULTILINE
    )
    assert session.startswith("ssh -t -A bastion root@web1\n")
    assert "│ line 1\n│ line 2\n│ line 3\n" in session
    assert re.fullmatch(r"ssh -A bastion root@web1 uname -sr\n│ Linux .*\n\n", command)
    assert re.findall(r"joe +root@web1 +(\w+)", listed) == ["exec", "shell"]
    heading = re.compile(r".*\n")
    played = heading.sub("", replay, count=1).rstrip("\n")
    assert re.findall(r"(user|host) +(\w+)", certificates) == [
        *([("user", "alice")] if people else []),
        ("user", "joe"),
        ("host", "bastion"),
        ("host", "web2"),
        ("host", "web1"),
    ]
    verdicts, *rest = proved.split("\n\n")
    assert len(re.findall(r"^│ COMPLETE  ", verdicts, flags=re.MULTILINE)) == 2
    assert "signed by audit@" in verdicts
    # The client's own last words are not of the session.
    assert session.split("\n", 1)[1].rstrip() == f"{played}\n│ Connection to 127.0.0.1 closed."
    if people:
        invited, registered, held, refused, through, locked, denied = people
        assert re.match(r"users add alice .*\n│ (?:\w{5}-){5}\w{5} ", invited[len("sshrec ") :])
        assert "│ Logged in as alice until " in registered
        assert re.search(r"^│ ssh-ed25519-cert-v01@openssh\.com .* sshrec:alice$", held, re.MULTILINE)
        assert "login deploy is not among alice, root" in refused
        assert re.search(r"^│ uid=\d+\(root\)", through, re.MULTILINE)
        assert "locked user alice" in locked
        assert "Permission denied" in denied
        rest = denied.split("\n\n")[1:]
    else:
        assert rest.pop(0) == "As root, bin/try shows how people register and log in, too."
    assert rest == ["A recorded shell of your own, and its replay: bin/try --shell\n"]
    assert "\x1b" not in shown
    assert _gone(shown)


def test_a_shell_to_play_with() -> None:
    child: pexpect.spawn[bytes] = pexpect.spawn(
        _DEMO[0], [*_DEMO[1:], "--shell"], cwd=str(_ROOT), env={**os.environ, "TERM": "vt100"}, timeout=30
    )
    shown = b""

    def expect(pattern: bytes) -> None:
        nonlocal shown
        child.expect(pattern)
        shown += (child.before or b"") + child.after  # type: ignore[operator]

    try:
        expect(rb"root@web1:[^ ]*[#$] ")
        child.sendline("echo $TERM-$((6*7))")
        expect(b"vt100-42\r\n")
        child.sendline("exit")
        expect(b"sshrec ls")
        expect(b"sshrec play ")
        expect(b"vt100-42\r\n")
        child.expect(pexpect.EOF)
    finally:
        child.close(force=True)
    assert child.exitstatus == 0
    assert _gone(shown.decode())


def test_a_shell_needs_a_terminal() -> None:
    done = subprocess.run(
        [*_DEMO, "--shell"], cwd=_ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (os.EX_USAGE, b"", b"bin/try --shell needs a terminal\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_interrupted_it_leaves_nothing(number: signal.Signals, code: int) -> None:
    demo = subprocess.Popen(_DEMO, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert demo.stdout is not None
    shown = b""
    while "│".encode() not in shown:  # the session has begun
        line = demo.stdout.readline()
        assert line, "it ended early"
        shown += line
    demo.send_signal(number)
    _, complaint = demo.communicate(timeout=30)
    assert (demo.returncode, complaint) == (code, b"")
    assert _gone(shown.decode())
