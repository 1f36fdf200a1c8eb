"""`sshrec ls`, and what all commands share: errors in one line, no traceback, statuses of sysexits."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from sshrec.cli.ls import duration, size
from sshrec.cli.main import run
from sshrec.errors import DataError, Denied
from sshrec.recording.seal import Outcome
from sshrec.session import session_id
from sshrec.storage.local import Store
from tests.recordings import WALL_MS, Step, record

SSHREC = str(Path(sys.executable).with_name("sshrec"))
STEPS: list[Step] = [(0.5, b"hello\r\n"), (83.0, b"bye\r\n")]
HEADINGS = ["ID", "START", "DURATION", "USER", "TARGET", "KIND", "STATUS", "SIZE", "COMMAND"]


class Place:
    """A configuration and its recordings."""

    def __init__(self, path: Path) -> None:
        self.config = path / "sshrec.yaml"
        self.config.write_text(f"data_dir: {path}\n")  # a run_dir below it would be too long for sockets
        self.store = Store(path / "recordings")
        self._n = 0

    def put(self, text: bytes | None = None, **how: Any) -> str:
        """A new recording, a second later than the one before; its session's id."""
        session = session_id(WALL_MS + self._n * 1000, b"%010d" % self._n)
        self._n += 1
        path = self.store.path(session)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record(STEPS, session=session, **how).text if text is None else text)
        return session

    def sshrec(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [SSHREC, "--config", str(self.config), *arguments]
        env = {**os.environ, "TZ": "UTC", **environment}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=20, check=False)

    def json(self) -> list[dict[str, Any]]:
        done = self.sshrec("ls", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        document = json.loads(done.stdout)
        assert document["schema"] == 1
        recordings: list[dict[str, Any]] = document["recordings"]
        return recordings


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_an_empty_directory_and_none_at_all(place: Place) -> None:
    for _ in range(2):
        done = place.sshrec("ls")
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == f"no recordings in {place.store.root} yet\n"
        place.store.root.mkdir(exist_ok=True)
    assert place.json() == []


def test_the_table(place: Place) -> None:
    shell = place.put()
    execution = place.put(command="uptime -p", outcome=Outcome("exit", status=3), terminal=False)
    place.store.pack(shell)
    done = place.sshrec("ls")
    assert (done.returncode, done.stderr) == (0, "")
    packed, plain = (place.store.current(session).stat().st_size for session in (shell, execution))
    assert [line.split() for line in done.stdout.splitlines()] == [
        HEADINGS,
        f"{execution} 2025-11-23 09:14:15 1:23 joe root@web1 exec 3 {size(plain)} uptime -p".split(),
        f"{shell} 2025-11-23 09:14:14 1:23 joe root@web1 shell 0 {size(packed)}".split(),
    ]
    assert "\x1b" not in done.stdout


def test_those_of_one_user(place: Place) -> None:
    own = place.put()
    place.put(record(STEPS).text.replace(b'"user":"joe"', b'"user":"alice"'))
    place.put(b"damaged\n")
    done = place.sshrec("ls", "--user", "joe")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ID", own]
    (found,) = json.loads(place.sshrec("ls", "--user", "joe", "--json").stdout)["recordings"]
    assert found["id"] == own
    done = place.sshrec("ls", "--user", "nobody")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no recordings of nobody yet\n")


def test_start_is_local_time(place: Place) -> None:
    place.put()
    assert " 2025-11-23 10:14:14 " in place.sshrec("ls", TZ="Europe/Berlin").stdout
    assert place.json()[0]["start"] == "2025-11-23T09:14:14.123Z"


def statuses(place: Place) -> dict[str, str]:
    return {line.split()[0]: line.split()[7] for line in place.sshrec("ls").stdout.splitlines()[1:]}


def test_live_and_unfinished_and_how_sessions_end(place: Place) -> None:
    live, dead = place.put(outcome=None), place.put(outcome=None)
    aborted = place.put(outcome=Outcome("aborted", detail="its worker died"))
    gone = place.put(outcome=Outcome("client-disconnect", status=255))
    killed = place.put(outcome=Outcome("exit", status=137, signal="KILL"))
    with place.store.path(live).open("ab") as worker:
        fcntl.flock(worker, fcntl.LOCK_EX)
        worker.write(b'[99.0,"o","tor')
        worker.flush()
        assert statuses(place) == {
            live: "live",
            dead: "unfinished",
            aborted: "aborted",
            gone: "client-disconnect",
            killed: "KILL",
        }
        assert [row["state"] for row in place.json()] == ["finished"] * 3 + ["unfinished", "live"]
    assert statuses(place)[live] == "unfinished"


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense\n", b'{"version":2', b"\0" * 9999, b"{}\n", b'{"version":2}\n[[[\n', b"\x28\xb5\x2f\xfd"],
)
def test_what_cannot_be_read_is_a_row_that_says_so(place: Place, content: bytes) -> None:
    good = place.put()
    bad = place.put(content)
    lines = place.sshrec("ls").stdout.splitlines()
    assert lines[1].split()[0] == bad
    assert " unreadable " in lines[1]
    assert "(" in lines[1]
    assert lines[2].split()[0] == good
    first, second = place.json()
    assert (first["id"], first["state"]) == (bad, "unreadable")
    assert first["error"]
    assert second["state"] == "finished"


def test_a_file_that_may_not_be_read_or_is_none(place: Place) -> None:
    session = place.put()
    path = place.store.path(session)
    path.unlink()
    path.mkdir()
    assert place.json()[0]["error"] == f"{path}: not a regular file"


def test_foreign_words_cannot_reach_the_terminal(place: Place) -> None:
    evil = "\x1b]0;x\x07\x9b31m\u202e\ud83d\ude00\n".encode("utf-16", "surrogatepass").decode("utf-16")
    session = place.put(command=evil + "rm")
    path = place.store.path(session)
    facts = b'"user":"joe\\u001b[2J","target":5,"kind":{"a":"\\u009b"}'
    content = path.read_bytes().replace(b'"user":"joe"', facts).replace(b'"target":"root@web1",', b"", 1)
    path.write_bytes(content)
    done = place.sshrec("ls")
    assert done.returncode == 0
    assert all(character.isprintable() or character == "\n" for character in done.stdout)
    assert len(done.stdout.splitlines()) == 2
    assert r"joe\x1b[2J" in done.stdout
    assert r"\x1b]0;x\x07\x9b31m\u202e" in done.stdout
    done = place.sshrec("ls", "--json")
    assert done.stdout.isascii(), "and JSON has it escaped"
    assert json.loads(done.stdout)["recordings"][0]["command"] == evil + "rm"


def test_the_json_of_a_recording(place: Place) -> None:
    session = place.put(command="uptime", terminal=False, outcome=Outcome("exit", status=3))
    path = place.store.path(session)
    assert place.json() == [
        {
            "id": session,
            "start": "2025-11-23T09:14:14.123Z",
            "state": "finished",
            "encrypted": False,
            "path": str(path),
            "duration": 83.5,
            "bytes": path.stat().st_size,
            "user": "joe",
            "login": "root",
            "host": "web1",
            "port": 22,
            "target": "root@web1",
            "kind": "exec",
            "terminal": False,
            "command": "uptime",
            "status": 3,
            "reason": "exit",
        }
    ]


def test_colour_on_a_terminal_alone_and_not_where_it_is_unwelcome(place: Place) -> None:
    place.put(outcome=Outcome("aborted"))

    def on_a_terminal(**environment: str) -> str:
        command = ["script", "-qec", f"{SSHREC} --config {place.config} ls", "/dev/null"]
        plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        env = {**plain, "TERM": "xterm", **environment}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=20, check=True).stdout

    assert "\x1b[31maborted\x1b[0m" in on_a_terminal()
    assert "\x1b" not in on_a_terminal(NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(TERM="dumb")


def test_a_long_command_is_cut_to_the_terminal(place: Place) -> None:
    place.put(command="echo " + "日本" * 100)
    command = ["script", "-qec", f"stty columns 130; {SSHREC} --config {place.config} ls", "/dev/null"]
    env = {**os.environ, "COLUMNS": ""}
    shown = subprocess.run(command, env=env, capture_output=True, text=True, timeout=20, check=True).stdout
    line = shown.splitlines()[1]
    assert line.endswith("…")
    assert len(line) + sum(character in "日本" for character in line) in (129, 130)


def test_play_by_id_and_by_its_beginning(place: Place) -> None:
    first, second = place.put(), place.put()
    place.store.pack(second)
    for name in (first, second, second.lower()):
        done = place.sshrec("play", name)
        assert (done.returncode, done.stdout, done.stderr) == (0, "hello\nbye\n", "")
    done = place.sshrec("play", first[:5])
    assert (done.returncode, done.stderr) == (
        os.EX_NOINPUT,
        f"sshrec: error: '{first[:5]}' begins the ids of 2 recordings\nhint: give more of the id\n",
    )
    done = place.sshrec("play", "nothing")
    assert (done.returncode, done.stderr) == (
        os.EX_NOINPUT,
        f"sshrec: error: no recording 'nothing' in {place.store.root}\nhint: see: sshrec ls\n",
    )


# What all commands share


def sshrec(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SSHREC, *arguments], capture_output=True, text=True, timeout=20, check=False)


def test_config_before_or_after_the_command(place: Place) -> None:
    place.put()
    config = ["--config", str(place.config)]
    assert sshrec(*config, "ls").stdout == sshrec("ls", *config).stdout != ""


def test_a_wrong_configuration_is_one_line_and_a_hint(place: Place) -> None:
    place.config.write_text("datadir: /x\n")
    done = place.sshrec("ls")
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.splitlines() == [
        f"sshrec: error: {place.config}: unknown setting 'datadir'",
        "hint: did you mean data_dir?",
    ]


def test_what_needs_no_configuration_does_not_read_it(place: Place) -> None:
    place.put()
    place.config.write_text("datadir: /x\n")
    assert place.sshrec("play", str(next(iter(place.store))[1])).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (["nonsense"], "no such command nonsense", "sshrec --help"),
        (["--nonsense"], "no such option --nonsense", "sshrec --help"),
        (["play"], "missing argument RECORDING", "sshrec play --help"),
        (["play", "-s", "0", "x"], "invalid value --speed 0 is not in the range", "sshrec play --help"),
    ],
)
def test_usage_errors(arguments: list[str], words: str, hint: str) -> None:
    done = sshrec(*arguments)
    assert (done.returncode, done.stdout) == (os.EX_USAGE, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("sshrec: error: " + words.split()[0])
    assert all(word in first for word in words.split())
    assert not first.endswith(".")
    assert second == f"hint: see: {hint}"


def test_help_and_version() -> None:
    for arguments in ([], ["--help"], ["-h"]):
        done = sshrec(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert "  ls " in done.stdout
        assert "  play " in done.stdout
    assert sshrec("--version").stdout.startswith("sshrec ")
    assert "twice as fast" in sshrec("play", "--help").stdout


def test_a_closed_pipe_is_no_error(place: Place) -> None:
    for _ in range(3):
        place.put()
    command = f"{SSHREC} --config {place.config} ls --json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (DataError("x.cast: broken"), os.EX_DATAERR, ["sshrec: error: x.cast: broken"]),
        (Denied("not yours", hint="ask"), os.EX_NOPERM, ["sshrec: error: not yours", "hint: ask"]),
        (PermissionError(13, "Permission denied", "/x"), os.EX_OSERR, ["sshrec: error: /x: permission denied"]),
        (KeyboardInterrupt(), 130, []),
        (
            ZeroDivisionError("division by zero"),
            os.EX_SOFTWARE,
            [
                "sshrec: error: ZeroDivisionError: division by zero",
                "hint: this is a mistake in sshrec; please report it with what you did",
            ],
        ),
    ],
)
def test_whatever_goes_wrong_is_told_in_words(
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int, lines: list[str]
) -> None:
    @click.command()
    def command() -> None:
        raise error

    assert run(command, "sshrec", []) == status
    assert [line for line in capsys.readouterr().err.splitlines() if line] == lines


def test_durations_and_sizes() -> None:
    assert [duration(seconds) for seconds in (0, 59.9, 60, 3600, 90061)] == [
        "0:00",
        "0:59",
        "1:00",
        "1:00:00",
        "25:01:01",
    ]
    assert [size(number) for number in (0, 999, 1000, 10_000, 1_500_000, 2**40)] == [
        "0 B",
        "999 B",
        "1.0 KiB",
        "9.8 KiB",
        "1.4 MiB",
        "1.0 TiB",
    ]
