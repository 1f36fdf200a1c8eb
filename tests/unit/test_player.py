"""`sshrec play` on a real pseudo-terminal: keys, pace, and a terminal that is always given back as it was."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from pexpect.fdpexpect import fdspawn

from sshrec.playback import timeline
from sshrec.playback.filter import Filter
from sshrec.playback.player import Pace, texts
from sshrec.recording import reader
from sshrec.recording.events import Event
from tests.recordings import Step, record, write

PLAY = [str(Path(sys.executable).with_name("sshrec")), "play"]
RESET = "\x1b[?1000l"
LONG = 3600.0  # seconds that no test would sit through: whoever gets past them did so by a key


# When


def test_idle_time_is_cut() -> None:
    events = [Event(time, "o", "") for time in (5.0, 6.0, 20.0, 20.0, 21.5)]
    assert [event.time for event in timeline.limit_idle(events, 2.0)] == [2.0, 3.0, 5.0, 5.0, 6.5]
    assert list(timeline.limit_idle(events, 0)) == events


def test_pace() -> None:
    pace = Pace(1.0, 100.0)
    assert pace.wait(5.0, 101.0) == 4.0
    assert pace.press("+", 5.0, 101.0)
    assert pace.wait(5.0, 101.0) == 2.0
    pace.press("-", 5.0, 102.0)
    assert pace.wait(5.0, 102.0) == 2.0
    pace.press("{", 5.0, 102.0)
    assert pace.wait(5.0, 102.0) == 4.0
    pace.press("=", 5.0, 102.0)
    assert pace.wait(5.0, 103.0) == 1.0
    pace.press(" ", 5.0, 103.0)
    assert pace.wait(5.0, 1000.0) is None
    pace.press("p", 5.0, 1000.0)
    assert pace.wait(5.0, 1000.0) == 1.0
    pace.press("\r", 5.0, 1000.0)
    assert pace.wait(5.0, 1000.0) == 0.0
    pace.stood_still(50.0)
    assert pace.wait(6.0, 1050.0) == 1.0
    assert not pace.press("q", 5.0, 1050.0)


def test_a_step_shows_the_next_output_and_stays_paused() -> None:
    pace = Pace(1.0, 0.0)
    pace.press(".", 5.0, 0.0)
    assert pace.wait(5.0, 0.0) == 5.0, "no step while playing"
    pace.press(" ", 5.0, 0.0)
    pace.press(".", 5.0, 1.0)
    assert pace.wait(5.0, 1.0) == 0.0
    assert pace.wait(6.0, 99.0) is None


def test_speed_has_bounds() -> None:
    pace = Pace(1.0, 0.0)
    for _ in range(20):
        pace.press("}", 1.0, 0.0)
    assert pace.speed == 64.0
    for _ in range(20):
        pace.press("<", 1.0, 0.0)
    assert pace.speed == 1 / 16
    pace.press("\x7f", 1.0, 0.0)
    assert pace.speed == 1.0


def test_what_is_shown() -> None:
    steps: list[Step] = [
        (0.5, b"out\n"),
        (0.5, (b"err\n", "stderr")),
        (0.5, b"\0\1\2"),
        (0.5, b"\0" * 1000),
        (0.5, b"text again \xff\n"),
        (0.5, b"\0"),
    ]
    recording = reader.open_stream(io.BytesIO(record(steps, terminal=False).text), "test")
    shown = list(texts(recording, Filter(), dim=False, resize=False))
    assert shown == [
        (0.5, "out\n"),
        (1.0, "err\n"),
        (2.5, "[1003 bytes that are not text]\n"),
        (2.5, "text again �\n"),
        (3.0, "[1 bytes that are not text]\n"),
    ]


def test_a_resize_is_asked_for_only_where_wanted_and_within_bounds() -> None:
    events = [Event(1.0, "r", "120x40"), Event(2.0, "r", "99999x99999"), Event(3.0, "r", "nonsense")]
    assert not list(texts(events, Filter(), dim=False, resize=False))
    shown = list(texts(events, Filter(), dim=False, resize=True))
    assert shown == [(1.0, "\x1b[8;40;120t"), (2.0, "\x1b[8;200;500t")]


# On a terminal


class Watcher:
    """A person at a terminal, watching. The test holds the terminal too, to see how it is left."""

    def __init__(self, *arguments: str | Path, typed: str = "", stdin: Path | None = None) -> None:
        self.main, self.terminal = pty.openpty()
        termios.tcsetwinsize(self.terminal, (24, 80))
        self.before = termios.tcgetattr(self.terminal)
        self.screen = fdspawn(self.main, encoding="utf-8", timeout=20)
        self.screen.send(typed)
        self.child = subprocess.Popen(
            [*PLAY, *map(str, arguments)],
            stdin=stdin.open("rb") if stdin else self.terminal,
            stdout=self.terminal,
            stderr=self.terminal,
            env={**os.environ, "TERM": "xterm-256color", "NO_COLOR": "1"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(1, termios.TIOCSCTTY, 0),
        )

    def sees(self, text: str) -> str:
        """Waits for the text; what came before it."""
        self.screen.expect_exact(text)
        return str(self.screen.before)

    def press(self, keys: str) -> None:
        self.screen.send(keys)

    def end(self) -> tuple[int, str]:
        """The status that the player ends with, and all that is shown after what was seen last."""
        status = self.child.wait(timeout=20)
        termios.tcdrain(self.terminal)
        os.write(self.terminal, b"END\n")
        return status, self.sees("END")

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        assert termios.tcgetattr(self.terminal) == self.before, "the terminal's modes are as they were"
        os.close(self.main)
        os.close(self.terminal)


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Watcher]]:
    """Starts to watch a recording of these steps."""
    watchers = []

    def start(steps: list[Step], *options: str, typed: str = "", **how: Any) -> Watcher:
        path = write(tmp_path / "a.cast", steps, **how)
        watchers.append(Watcher(*options, path, typed=typed))
        return watchers[-1]

    yield start
    for watcher in watchers:
        watcher.close()


THREE: list[Step] = [(0, b"one\r\n"), (LONG, b"two\r\n"), (LONG, b"three\r\n")]
KEEP_IDLE = ("-i", "0")


def test_to_the_end(watch: Callable[..., Watcher]) -> None:
    watcher = watch([(0, b"one\r\n"), (0.1, b"\x1b[31mtwo")])
    watcher.sees("one\r\n\x1b[31mtwo")
    status, rest = watcher.end()
    assert status == 0
    assert RESET in rest
    assert "1049" not in rest
    assert rest.endswith("\r\n"), "the prompt begins a line of its own"


def test_skipping_waits(watch: Callable[..., Watcher]) -> None:
    watcher = watch(THREE, *KEEP_IDLE)
    watcher.sees("one\r\n")
    watcher.press("\r")
    watcher.sees("two\r\n")
    watcher.press("\n")
    watcher.sees("three\r\n")
    assert watcher.end()[0] == 0


def test_pausing_and_stepping(watch: Callable[..., Watcher]) -> None:
    watcher = watch(THREE, *KEEP_IDLE)
    watcher.sees("one\r\n")
    watcher.press(" .")
    assert "three" not in watcher.sees("two\r\n")
    watcher.press(".")
    watcher.sees("three\r\n")
    assert watcher.end()[0] == 0


@pytest.mark.parametrize("keys", ["++++++", "}}}}}}", ">>>>>>", "-=++++++", "--\x7f++++++"])
def test_faster(watch: Callable[..., Watcher], keys: str) -> None:
    watcher = watch([(0, b"one"), (25, b"two")], *KEEP_IDLE)
    watcher.sees("one")
    before = time.monotonic()
    watcher.press(keys)
    watcher.sees("two")
    assert time.monotonic() - before < 15
    assert watcher.end()[0] == 0


def test_speed_and_idle_limit_from_the_start(watch: Callable[..., Watcher]) -> None:
    before = time.monotonic()
    watcher = watch([(0, b"one"), (LONG, b"two"), (20, b"three")], "-i", "20", "-s", "64")
    watcher.sees("three")
    assert watcher.end()[0] == 0
    assert 40 / 64 < time.monotonic() - before < 20


def test_other_keys_and_the_sequences_of_arrows_do_nothing(watch: Callable[..., Watcher]) -> None:
    watcher = watch(THREE, *KEEP_IDLE)
    watcher.sees("one\r\n")
    watcher.press("xyz.\x1b[A\x1bOP\x1b[1;5q\x1b[?1;2c")
    watcher.press("\r")
    assert watcher.sees("two\r\n") == ""
    watcher.press("q")
    assert watcher.end()[0] == 0


def test_keys_typed_before_are_not_for_us(watch: Callable[..., Watcher]) -> None:
    watcher = watch(THREE, *KEEP_IDLE, typed="q")
    watcher.sees("one\r\n")
    watcher.press("\r")
    watcher.sees("two\r\n")
    watcher.press("q")
    assert watcher.end()[0] == 0


FULL_SCREEN = b"\x1b[?1049h\x1b[?1000h\x1b[?2004h\x1b[?25l\x1b(0\x1b[5m\x1b[2;5r\x1b[?1hfull"  # T-W-03


@pytest.mark.parametrize(
    ("how", "status"),
    [("q", 0), ("\x03", 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP), ("\x1c", None)],
    ids=["q", "ctrl-c", "sigterm", "sighup", "quit"],
)
def test_the_terminal_is_restored(watch: Callable[..., Watcher], how: Any, status: int | None) -> None:
    watcher = watch([(0, FULL_SCREEN), (LONG, b"more")], *KEEP_IDLE)
    assert "\x1b[?1000h" not in watcher.sees("full")
    now = termios.tcgetattr(watcher.terminal)
    assert not now[3] & (termios.ECHO | termios.ICANON)
    assert not now[1] & termios.OPOST, "a terminal's recording brings its own carriage returns"
    if isinstance(how, str):
        watcher.press(how)
    else:
        watcher.child.send_signal(how)
    ended, rest = watcher.end()
    assert ended == (status if status is not None else -signal.SIGQUIT)
    for sequence in ("\x1b[?1049l", "\x1b[0m", "\x1b[?25h", "\x1b(B", "\x1b[r", RESET, "\x1b[?2004l"):
        assert sequence in rest
    assert "Traceback" not in rest


def test_the_terminal_is_restored_after_a_damaged_line(watch: Callable[..., Watcher], tmp_path: Path) -> None:
    path = tmp_path / "a.cast"
    path.write_bytes(record([(0, FULL_SCREEN)], outcome=None).text + b"nonsense\n" + b'[1,"o","x"]\n')
    watcher = Watcher(path)
    try:
        watcher.sees("sshrec: error: ")
        status, rest = watcher.end()
        assert status == os.EX_DATAERR
        assert re.search(r"a\.cast: line [0-9]+: not JSON", rest)
    finally:
        watcher.close()


def test_a_command_without_a_terminal_leaves_line_ends_to_this_one(watch: Callable[..., Watcher]) -> None:
    watcher = watch([(0, b"one\ntwo\n"), (0.1, (b"three\n", "stderr")), (0.1, b"\0\0")], terminal=False)
    watcher.sees("one\r\ntwo\r\nthree\r\n")
    watcher.sees("\x1b[2m[2 bytes that are not text]\x1b[22m")
    assert watcher.end()[0] == 0


def test_a_terminal_that_answers_is_asked_nothing(watch: Callable[..., Watcher]) -> None:
    """xterm would answer each of these; what it answers would be typed into the watcher's shell."""
    questions = (
        "\x1b[c \x1b[>c \x1b[=c \x1b[0c \x1b[5n \x1b[6n \x1b[?6n \x1bZ \x05 \x1b[x \x1b[18t \x1b[21t \x1b[?1$p"
        " \x1b[>q\x1b]4;1;?\x07 \x1b]10;?\x07 \x1b]11;?\x1b\\ \x1b]52;c;?\x07 \x1bP$qm\x1b\\ \x1bP+q544e\x1b\\"
        " \x1b[1;1;1;1;1;1*y \x9b6n \x9bc \x9d11;?\x9c \x90$qm\x9c"
        " \x1b[?u \x1b[?2;1;0S \x1b[5i \x1b[?1004h \x1b_Gi=1,a=q;AAAA\x1b\\"
    )
    watcher = watch([(0, b"one"), *((0, character.encode()) for character in questions), (0, b"two")])
    watcher.sees("one")
    between = watcher.sees("two")
    assert not between.strip(" ")
    status, rest = watcher.end()
    assert status == 0
    assert not re.search(r"\x1b\[[0-9;>=?]*[cntxq]|\x1bZ|\x05|\x1b[\]P_]|\x9b", rest)


def test_a_recording_from_a_pipe_leaves_the_keys_to_the_terminal(tmp_path: Path) -> None:
    watcher = Watcher("-i", "0", "-", stdin=write(tmp_path / "a.cast", THREE))
    try:
        watcher.sees("one\r\n")
        watcher.press("\r")
        watcher.sees("two\r\n")
        watcher.press("q")
        assert watcher.end()[0] == 0
    finally:
        watcher.close()


def test_what_is_not_finished_is_said_to_be(watch: Callable[..., Watcher]) -> None:
    watcher = watch([(0, b"one\r\n")], outcome=None)
    watcher.sees("sshrec: the recording ends here, and is not finished")
    assert watcher.end()[0] == 0


def test_a_terminal_too_small_is_said_to_be(watch: Callable[..., Watcher], tmp_path: Path) -> None:
    watcher = watch([(0, b"one\r\n")])
    assert "too small" not in watcher.sees("one")
    watcher.end()
    path = tmp_path / "b.cast"
    path.write_bytes(b'{"version":2,"width":120,"height":40}\n[0,"o","one"]\n')
    for options in ((), ("--resize",)):
        wide = Watcher(*options, path)
        try:
            assert ("too small" in wide.sees("one")) == (not options)
            assert wide.end()[0] == 0
        finally:
            wide.close()


def test_suspended_and_resumed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.cast", [(0, b"\x1b[?1049hone"), (LONG, b"two"), (LONG, b"three")])
    environment = {**os.environ, "PS1": "READY> ", "TERM": "xterm", "HISTFILE": "/dev/null"}
    shell = pexpect.spawn("bash", ["--norc", "-i"], encoding="utf-8", timeout=20, env=environment)
    shell.expect_exact("READY> ")
    shell.sendline("bind 'set enable-bracketed-paste off'; " + " ".join([*PLAY, *KEEP_IDLE, str(path)]))
    shell.expect_exact("\x1b[?1049hone")
    shell.send("\x1a")
    shell.expect_exact("\x1b[?1049l")
    shell.expect_exact("READY> ")
    shell.sendline("stty | tr -d '\\n'; fg")
    shell.expect_exact("speed")
    shell.expect_exact("\x1b[?1049h")
    assert "-echo" not in str(shell.before)
    shell.send("\r")
    shell.expect_exact("two")
    shell.send("q")
    shell.expect_exact("READY> ")
    shell.sendline("echo status $?; exit")
    shell.expect_exact("status 0")
    shell.close()


# Into a pipe


def play(*arguments: str | Path, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PLAY, *map(str, arguments)], input=stdin, capture_output=True, timeout=20, check=False)


def test_into_a_pipe_it_is_the_filtered_output_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.cast", [*THREE, (LONG, b"\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b[6nend\r\n")])
    for done in (play(*KEEP_IDLE, path), play(*KEEP_IDLE, "-", stdin=path.read_bytes())):
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == b"one\r\ntwo\r\nthree\r\n\x1b[31mred\x1b[0m end\r\n"


def test_into_a_pipe_in_its_time_where_a_speed_is_given(tmp_path: Path) -> None:
    path = write(tmp_path / "a.cast", [(0, b"one\n"), (20, b"two\n")])
    before = time.monotonic()
    assert play(*KEEP_IDLE, "-s", "64", path).stdout == b"one\ntwo\n"
    assert time.monotonic() - before > 20 / 64


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.cast", [(0.001, b"x" * 60_000) for _ in range(50)])
    child = subprocess.Popen([*PLAY, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.read(10) == b"x" * 10
    child.stdout.close()
    assert child.communicate(timeout=20)[1] == b""
    assert child.returncode == 0


def test_unfinished_into_a_pipe_is_said_on_stderr(tmp_path: Path) -> None:
    path = write(tmp_path / "a.cast", [(0, b"one\n")], outcome=None)
    path.write_bytes(path.read_bytes() + b'[1.0,"o","tor')
    done = play(path)
    assert (done.returncode, done.stdout) == (0, b"one\n")
    assert done.stderr.count(b"\n") == 1
    assert b"not finished" in done.stderr


@pytest.mark.parametrize(
    ("argument", "status", "message"),
    [
        ("/nowhere/a.cast", os.EX_NOINPUT, b"sshrec: error: /nowhere/a.cast: no such file or directory\n"),
        ("/dev/zero", os.EX_DATAERR, b"sshrec: error: /dev/zero: not a regular file\nhint: "),
        ("/", os.EX_DATAERR, b"sshrec: error: /: not a regular file\nhint: "),
        ("/etc/passwd", os.EX_DATAERR, b"sshrec: error: /etc/passwd: line 1: not the header of an asciicast\n"),
    ],
)
def test_what_cannot_be_played(argument: str, status: int, message: bytes) -> None:
    done = play(argument)
    assert (done.returncode, done.stdout) == (status, b"")
    assert done.stderr.startswith(message)


def test_a_bare_terminal_as_the_recording(tmp_path: Path) -> None:
    watcher = Watcher("-")
    try:
        watcher.sees("sshrec: error: standard input is this terminal, not a recording")
        assert watcher.end()[0] == os.EX_USAGE
    finally:
        watcher.close()
