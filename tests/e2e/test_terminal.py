"""Shells and commands with a terminal: as with plain ssh, driven through a real PTY."""

from __future__ import annotations

import itertools
import socket
import subprocess
import termios
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pexpect
import pytest

from sshrec.recording import events
from sshrec.session import Winsize
from tests.e2e.recorded import last
from tests.lab import PROMPT, Lab

IUTF8 = 0o040000  # asm-generic/termbits.h; Python's termios does not name it

Child = Any  # pexpect.spawn[bytes]


def shell(lab: Lab, *args: str, **options: Any) -> Child:
    """A recorded shell on web1, at its first prompt."""
    child: Child = lab.spawn(*(args or ("-tA", "bastion", "root@web1")), **options)
    child.expect(PROMPT)
    return child


def say(child: Child, command: str) -> str:
    """Type a command; what it printed."""
    child.sendline(command)
    child.expect_exact(command + "\r\n")
    child.expect(PROMPT)
    text: str = child.before.decode().replace("\x1b[?2004l\r", "").replace("\x1b[?2004h", "")
    return text.strip()


def leave(child: Child, status: int = 0) -> str:
    """End the shell; what was still printed."""
    child.sendline(f"exit {status}")
    child.expect(pexpect.EOF)
    rest: str = child.before.decode()
    child.close()
    assert child.exitstatus == status
    return rest


def test_a_shell(lab: Lab) -> None:
    child = shell(lab)
    assert say(child, "echo $((6 * 7)) $TERM $LINES $COLUMNS").split() == ["42", "xterm", "24", "80"]
    assert "Connection to web1 closed." in leave(child, 9)
    recorded = last(lab)
    assert recorded.facts["kind"] == "shell"
    assert recorded.facts["terminal"] is True
    assert recorded.size == Winsize(80, 24)
    assert "42 xterm 24 80" in recorded.text
    assert recorded.end["status"] == 9
    assert recorded.end["host_key"].startswith("ssh-ed25519-cert-v01@openssh.com SHA256:")
    assert "stdin" in recorded.counts()
    assert not recorded.coded(events.INPUT)


def test_a_command_with_a_terminal(lab: Lab) -> None:
    child: Child = lab.spawn("-tA", "bastion", "root@web1", "tty; exit 6")
    child.expect("/dev/pts/")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 6
    assert last(lab).facts["kind"] == "exec"


def test_the_modes_of_the_terminal_arrive(lab: Lab) -> None:
    """Erase character, output and input modes, utf8: what the target sees is what it sees without us."""

    def odd(child: Child) -> None:
        modes = termios.tcgetattr(child.child_fd)
        modes[6][termios.VERASE] = b"\x08"
        modes[6][termios.VINTR] = b"\x07"
        modes[0] |= IUTF8
        modes[1] &= ~termios.ONLCR
        termios.tcsetattr(child.child_fd, termios.TCSANOW, modes)

    shown = []
    for args in (("-tt", "web1"), ("-ttA", "bastion", "root@web1")):
        child: Child = lab.spawn(*args, "stty -g; stty -a; read x")
        odd(child)
        child.expect(rb"([0-9a-f]+:[0-9a-f:]+)\r?\n")
        shown.append(child.match.group(1))
        child.send("\r")
        child.expect(pexpect.EOF)
        child.close()
    assert shown[0] == shown[1]


# Prints the size of its terminal each time that changes.
WATCH_SIZE = "trap 'stty size' WINCH; echo ready; while ! read -t 0.05 x; do :; done"


def test_resizes_arrive_and_are_recorded(lab: Lab) -> None:
    child: Child = lab.spawn("-tA", "bastion", "root@web1", WATCH_SIZE)
    child.expect_exact("ready\r\n")
    for rows, columns in ((50, 132), (10, 20), (65535, 65535)):
        child.setwinsize(rows, columns)
        child.expect_exact(f"{rows} {columns}\r\n")
    child.send("\r")
    child.expect(pexpect.EOF)
    child.close()
    assert last(lab).coded(events.RESIZE) == ["132x50", "20x10", "65535x65535"]


def test_a_storm_of_resizes_ends_at_the_right_size(lab: Lab) -> None:
    child: Child = lab.spawn("-tA", "bastion", "root@web1", WATCH_SIZE)
    child.expect_exact("ready\r\n")
    for size in itertools.islice(itertools.cycle(((30, 90), (40, 100), (50, 110))), 999):
        child.setwinsize(*size)
    child.setwinsize(25, 81)
    child.expect_exact("25 81\r\n")
    child.send("\r")
    child.expect(pexpect.EOF)
    child.close()
    recorded = last(lab)
    assert recorded.coded(events.RESIZE)[-1] == "81x25"
    assert len(recorded.coded(events.RESIZE)) < 200


def test_keys_that_signal_reach_the_target(lab: Lab) -> None:
    child = shell(lab)
    child.sendline("cat")
    _echoed(child)
    child.sendcontrol("c")
    child.expect_exact("^C")
    child.expect(PROMPT)
    child.sendline("cat")
    _echoed(child)
    child.sendcontrol("z")
    child.expect("Stopped")
    child.expect(PROMPT)
    child.sendline("fg")
    _echoed(child)
    child.sendcontrol("\\")
    child.expect("Quit")
    child.expect(PROMPT)
    assert say(child, "echo still here") == "still here"
    leave(child)


COUNT_BYTES = "stty raw -echo; echo ready; head -c 256 | od -An -v -tu1 -w256"


def _echoed(child: Child) -> None:
    """`cat` runs: a line comes back from the terminal and from it."""
    child.expect_exact("cat\r\n")
    child.send("line\r")
    child.expect_exact("line\r\nline\r\n")


def test_every_byte_reaches_the_target(lab: Lab) -> None:
    """Also those that are an escape or a signal elsewhere: ~. of ssh, ^] of telnet, 0xff, NUL."""
    child: Child = lab.spawn(
        "-tA",
        "-e",
        "none",
        "bastion",
        "root@web1",
        "stty raw -echo; echo ready; head -c 256 | od -An -v -tu1 -w256",
    )
    child.expect_exact("ready")
    child.send(bytes(range(256)))
    child.expect(rb"  0   1   2[0-9 ]* 254 255")
    assert child.match.group(0).split() == [str(n).encode() for n in range(256)]
    child.expect(pexpect.EOF)
    child.close()


def test_an_escape_of_ssh_is_only_the_outer_clients(lab: Lab) -> None:
    """The hop's ssh has none: what would be one reaches the target as text."""
    child: Child = lab.spawn("-tA", "-e", "none", "bastion", "root@web1")
    child.expect(PROMPT)
    for escape in ("~C", "~."):
        child.send(f"\r{escape}\r")
        child.expect_exact(f"{escape}: command not found")
    child.send("echo still $((1 + 1)) here\r")
    child.expect_exact("still 2 here")
    leave(child)


def test_type_ahead_is_not_lost(lab: Lab) -> None:
    child: Child = lab.spawn("-tA", "bastion", "root@web1")
    child.send("echo typed $((40 + 2)) early\r")
    child.expect_exact("typed 42 early")
    leave(child)


def test_typing_before_the_session_can_interrupt_it(lab: Lab) -> None:
    """Ctrl-C while the target does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        lab.stop_sshrecd()
        lab.start_sshrecd({"nodes": [{"name": "mute", "address": "127.0.0.1", "port": silent.getsockname()[1]}]})
        child: Child = lab.spawn("-tA", "bastion", "root@mute")
        connection, _ = silent.accept()
        child.sendcontrol("c")
        child.expect(pexpect.EOF)
        child.close()
        connection.close()
    assert child.exitstatus == 255
    assert last(lab).end["reason"] == "client-disconnect"


def test_invalid_utf8_is_shown_and_kept(lab: Lab) -> None:
    child: Child = lab.spawn(
        "-tA", "bastion", "root@web1", "printf 'a\\377b\\303'; sleep 0.2; printf '\\251c\\360\\237'"
    )
    child.expect(pexpect.EOF)
    shown = child.before
    child.close()
    assert b"a\xffb\xc3\xa9c\xf0\x9f" in shown
    recorded = last(lab)
    assert recorded.streams()["stdout"] in (shown, shown.partition(b"Connection to 127.0.0.1")[0])
    assert "a\ufffdb" in recorded.text


def test_a_hostile_term(lab: Lab) -> None:
    for term in ("\x1b]0;pwn\x07", "../../etc/passwd", "x" * 5000, ""):
        child: Child = lab.spawn("-tA", "bastion", "root@web1", "echo =$TERM=", env={"TERM": term})
        child.expect("=(.*?)=")
        assert child.match.group(1) == b"dumb"
        child.expect(pexpect.EOF)
        child.close()


def test_the_persons_terminal_is_as_before(lab: Lab) -> None:
    child: Child = lab.spawn("-tA", "bastion", "root@web1")
    before = termios.tcgetattr(child.child_fd)
    child.expect(PROMPT)
    assert termios.tcgetattr(child.child_fd) != before
    child.sendline("exit")
    child.expect_exact("closed.")
    lab.wait(lambda: termios.tcgetattr(child.child_fd) == before, "the terminal to be as it was")
    child.expect(pexpect.EOF)
    child.close()


def test_choosing_a_target(lab: Lab) -> None:
    child: Child = lab.spawn("-A", "bastion")
    child.expect_exact("  web1\r\n  web2\r\nConnect to: ")
    child.send("root@w\t")
    child.expect_exact("root@w\r\n  web1\r\n  web2\r\nConnect to: root@web")
    child.send("9\x7f1\r")
    child.expect(PROMPT)
    leave(child)
    assert last(lab).facts["target"] == "root@web1"


def test_a_mistyped_target_is_asked_again(lab: Lab) -> None:
    child: Child = lab.spawn("-A", "bastion")
    child.expect_exact("Connect to: ")
    child.send("root@web1;id\r")
    child.expect_exact("not a host name: 'web1;id'")
    child.expect_exact("Connect to: ")
    child.send("root@we\x15root@web2\r")
    child.expect(PROMPT)
    leave(child)


@pytest.mark.parametrize("key", ["\x03", "\x04"])
def test_choosing_none(lab: Lab, key: str) -> None:
    child: Child = lab.spawn("-A", "bastion")
    child.expect_exact("Connect to: ")
    child.send(key)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 255


def test_a_shell_without_a_terminal_says_so(lab: Lab) -> None:
    client = lab.popen("-A", "bastion", "root@web1")
    assert client.stderr and client.stdin
    assert client.stderr.readline() == b"sshrec: this shell has no terminal; for one, connect with ssh -tA\n"
    client.stdin.write(b"exit 3\n")
    client.stdin.close()
    assert client.wait(20) == 3
    assert last(lab).streams()["stderr"].startswith(b"sshrec: this shell has no terminal")


def test_a_script_for_a_shell_is_not_told(lab: Lab) -> None:
    done = lab.ssh("-A", "bastion", "root@web1", input=b"sleep 1.5; echo done\n")
    assert (done.stdout, done.stderr) == (b"done\n", b"")


class Tmux:
    """A terminal of 80×24 that can be looked at."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._socket = str(lab.directory / f"tmux-{uuid.uuid4().hex[:8]}")
        self._env = {**lab.laptop("joe").env, "TERM": "xterm-256color", "LANG": "C.UTF-8"}

    def __call__(self, *args: str) -> str:
        return subprocess.run(
            ["tmux", "-S", self._socket, "-f", "/dev/null", *args],
            env=self._env,
            capture_output=True,
            check=True,
            timeout=20,
        ).stdout.decode()

    def start(self, *ssh: str) -> None:
        self("new-session", "-d", "-x", "80", "-y", "24", "--", *self._lab.ssh_argv(*ssh))

    def screen(self) -> str:
        return self("capture-pane", "-p", "-e")

    def end(self) -> None:
        subprocess.run(["tmux", "-S", self._socket, "kill-server"], env=self._env, capture_output=True)


@pytest.fixture
def tmux(lab: Lab) -> Iterator[Callable[[], Tmux]]:
    made: list[Tmux] = []

    def make() -> Tmux:
        made.append(Tmux(lab))
        return made[-1]

    yield make
    for terminal in made:
        terminal.end()


# What is run, the keys that are typed, and those that end it.
_SCREENS = {
    "vim": (
        "vim -u NONE -c 'set nocp ruler' /etc/services",
        ["/smtp\r", "yyp", "Ax äöü\x1b", ":set number\r"],
        ":q!\r",
    ),
    "less": ("less -M /etc/services", ["/ssh\r", "gg", " "], "q"),
    "tmux": (
        "tmux -L inner -f /dev/null new \\; set -g assume-paste-time 0 \\; set -g status off",
        ["echo left\r", "\x02%", "echo right\r"],
        "tmux -L inner kill-server\r",
    ),
}


@pytest.mark.parametrize("program", _SCREENS)
def test_full_screen_programs(lab: Lab, tmux: Callable[[], Tmux], program: str) -> None:
    """After the same keys, the screen is the same as with plain ssh."""
    command, keys, end = _SCREENS[program]
    screens = []
    for ssh in (("-t", "web1"), ("-tA", "bastion", "root@web1")):
        terminal = tmux()
        terminal.start(*ssh, f"cd; export TMUX_TMPDIR=$HOME; PS1='> ' LC_ALL=C.UTF-8 {command}")
        screens.append(_after(lab, terminal, keys))
        terminal("send-keys", "-l", end)
        lab.wait(partial(_gone, terminal), f"{program} to end")
    assert screens[0] == screens[1]
    assert last(lab).end["reason"] == "exit"


def _after(lab: Lab, terminal: Tmux, keys: list[str]) -> str:
    """The screen, after typing each of `keys` into one that has settled since the last."""
    seen = _settled(lab, terminal, "")
    for key in keys:
        terminal("send-keys", "-l", key)
        seen = _settled(lab, terminal, seen)
    return seen


def _settled(lab: Lab, terminal: Tmux, before: str) -> str:
    """The screen, once it is another than before and has stayed the same for some looks."""
    looks = [before]

    def same() -> bool:
        looks.append(terminal.screen())
        return len(looks) > 5 and len(set(looks[-5:])) == 1 and looks[-1].strip() not in ("", before.strip())

    lab.wait(same, "another screen, settled")
    return looks[-1]


def _gone(terminal: Tmux) -> bool:
    try:
        terminal("has-session")
    except subprocess.CalledProcessError:
        return True
    return False
