"""`sshrec export`: what comes out of a recording, in each form, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect
import pyrage
import pytest

from sshrec.cli.main import run, sshrec
from tests.recordings import FACTS, SESSION, noise, write

SSHREC = str(Path(sys.executable).with_name("sshrec"))


@dataclass(frozen=True)
class Said:
    status: int
    out: bytes
    err: str


def export(*words: str | Path) -> Said:
    """Run the command within this process."""
    raw, err = io.BytesIO(), io.StringIO()
    out = io.TextIOWrapper(raw, "utf-8")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(sshrec, "sshrec", ["export", *map(str, words)])
        out.flush()
    return Said(status, raw.getvalue(), err.getvalue())


def objects(said: Said) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.out.splitlines()]


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    steps: Sequence[Any] = [
        (0.5, b"\x1b[32m$ \x1b[0mecho na\xc3\xafve\r\n"),
        (1.0, b"na\xc3\xafve\r\n"),
        (0.25, (100, 30)),
    ]
    return write(tmp_path / f"{SESSION}.cast", steps)


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """Text, an error, and bytes that are none."""
    steps: Sequence[Any] = [
        (0.1, (b"to begin with\n", "stdout")),
        (0.1, (b"oh no\n", "stderr")),
        (0.1, (b"\xff\xfe\x00binary", "stdout")),
        (0.1, (noise(5000, 1), "stdout")),
    ]
    return write(tmp_path / f"{SESSION}.cast", steps, terminal=False, command="make")


# ---- forms ---------------------------------------------------------------------------------------------------


def test_as_it_was_recorded(shell: Path) -> None:
    said = export(shell)
    assert (said.status, said.err) == (0, "")
    assert said.out == shell.read_bytes()


def test_a_packed_one_comes_out_plain(shell: Path) -> None:
    text = shell.read_bytes()
    subprocess.run(["zstd", "-q", "--rm", shell], check=True)
    assert export(f"{shell}.zst").out == text
    assert export("-f", "cast", f"{shell}.zst").out == text


def test_an_encrypted_one_is_opened_by_an_identity(shell: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    text = shell.read_bytes()
    recipient = pyrage.ssh.Recipient.from_str(key.with_suffix(".pub").read_text())
    sealed = tmp_path / f"{SESSION}.cast.age"
    sealed.write_bytes(pyrage.encrypt(text, [recipient]))
    said = export("-f", "text", sealed)
    assert said.status != 0
    assert "it is encrypted" in said.err
    assert export("--identity", key, sealed).out == text
    assert export("-f", "text", "--identity", key, sealed).out.decode() == "$ echo naïve\nnaïve\n"


def test_the_text(shell: Path) -> None:
    said = export("--format", "text", shell)
    assert (said.status, said.out.decode()) == (0, "$ echo naïve\nnaïve\n")


def test_the_text_of_a_command(command: Path) -> None:
    said = export("-f", "text", command)
    assert said.out == b"to begin with\noh no\n[5009 bytes that are not text]\n"


def test_the_exact_bytes_of_each_stream(command: Path) -> None:
    said = export("-f", "raw", command)
    assert (said.status, said.err) == (0, "")
    assert said.out == b"to begin with\n\xff\xfe\x00binary" + noise(5000, 1)
    assert export("-f", "raw", "--stream", "stderr", command).out == b"oh no\n"


def test_bytes_that_were_only_counted_are_missed(tmp_path: Path) -> None:
    steps: Sequence[Any] = [(0.1, (b"x" * 1000, "stdout")), (0.1, (b"y" * 1000, "stdout"))]
    path = write(tmp_path / "limited.cast", steps, terminal=False, command="cat", stream_limit=1500)
    said = export("-f", "raw", path)
    kept = len(said.out)
    assert 1000 <= kept <= 1500
    assert said.status == 3
    assert said.err == f"sshrec: {2000 - kept} bytes were counted, and are not in the recording\n"


def test_bytes_that_are_not_those_that_were_counted(command: Path) -> None:
    command.write_bytes(command.read_bytes().replace(b"to begin with", b"to start with"))
    said = export("-f", "raw", command)
    assert said.status == 65
    assert f"{command}: stdout is not what was counted at its end" in said.err


def test_events_as_json(command: Path) -> None:
    header, *events = objects(export("-f", "json", command))
    assert (header["event"], header["columns"], header["rows"]) == ("header", 80, 24)
    assert header["session"]["session"] == FACTS["session"]
    assert events[0] == {
        "event": "output",
        "time": "2025-11-23T09:14:14.223000Z",
        "seconds": 0.1,
        "stream": "stdout",
        "text": "to begin with\n",
    }
    assert (events[1]["stream"], events[1]["text"]) == ("stderr", "oh no\n")
    assert [event["bytes"] for event in events if "bytes" in event]
    assert events[-1]["event"] == "exit" and events[-1]["status"] == 0
    assert {event["fact"]["stream"] for event in events if event["event"] == "count"} == {
        "stdin",
        "stdout",
        "stderr",
    }


def test_resizes_as_json(shell: Path) -> None:
    (resize,) = [event for event in objects(export("-f", "json", shell)) if event["event"] == "resize"]
    assert (resize["columns"], resize["rows"], resize["seconds"]) == (100, 30, 1.75)


def test_times_follow_the_wall_clock_when_it_is_set(tmp_path: Path) -> None:
    path = tmp_path / "wall.cast"
    path.write_text(
        '{"version":2,"width":80,"height":24,"timestamp":1000}\n'
        '[1.0,"o","a"]\n[2.0,"W","2026-11-23T09:00:00.500Z"]\n[3.0,"o","b"]\n'
    )
    assert [event["time"] for event in objects(export("-f", "json", path))] == [
        "1970-01-01T00:16:40.000000Z",
        "1970-01-01T00:16:41.000000Z",
        "2026-11-23T09:00:01.500000Z",
    ]


@pytest.mark.parametrize("form", ["cast", "text", "raw", "json"])
def test_one_that_is_not_finished_is_told_as_such(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "live.cast", [(0.1, b"so far\r\n")], outcome=None)
    said = export("-f", form, path)
    assert said.status == 3
    assert b"so far" in said.out
    assert said.err.endswith("the recording ends here, and is not finished: it is live, or was cut off\n")


@pytest.mark.parametrize("form", ["cast", "text", "raw", "json"])
def test_one_that_was_changed_is_told_as_such(shell: Path, form: str) -> None:
    shell.write_bytes(shell.read_bytes().replace(b"echo", b"ohce"))
    said = export("-f", form, shell)
    assert (said.status, "UNVERIFIED: chunk 0" in said.err) == (1, True)


@pytest.mark.parametrize(
    "hostile",
    [
        b"\x00" * 100,
        b"{}\n",
        b'{"version":2,"timestamp":1e308}\n[1e999,"o","x"]\n[-1,"W","9999-12-31T23:59:59Z"]\n[1e9,"m","\\u001b[2J"]\n',
        b'{"version":2,"sshrec":{"terminal":NaN}}\n[0,"C","{\\"stream\\":\\"stdout\\",\\"bytes\\":\\"x\\"}"]\n',
        b'{"version":2}\n[0,"C","' + b"[" * 100_000 + b'"]\n[0,"o","\\ud800"]\n[0,"x","1e5"]\n[0,"B","%%%"]\n',
        b'{"version":2}\n[0,"o",""]\n[0,"B","not base64"]\n',
        b'{"version":2}\n[0,"o","cut of',
    ],
    ids=["nul", "empty", "times", "nan", "deep", "base64", "torn"],
)
@pytest.mark.parametrize("form", ["cast", "text", "raw", "json"])
def test_hostile_recordings(tmp_path: Path, hostile: bytes, form: str) -> None:
    path = tmp_path / "hostile.cast"
    path.write_bytes(hostile)
    said = export("-f", form, path)
    assert said.status in (0, 1, 3, 65)
    assert "mistake in sshrec" not in said.err
    if form != "cast" and form != "raw":
        assert b"\x1b" not in said.out


# ---- where it goes -------------------------------------------------------------------------------------------


def test_into_a_file_for_nobody_else_to_read(shell: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    said = export("-f", "text", "-o", target, shell)
    assert (said.status, said.out, said.err) == (0, b"", "")
    assert target.read_text() == "$ echo naïve\nnaïve\n"
    assert target.stat().st_mode & 0o777 == 0o600


def test_nothing_is_overwritten_unless_that_is_said(shell: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("mine")
    said = export("-f", "text", "-o", target, shell)
    assert said.status == 64
    assert said.err == f"sshrec: error: {target} is there already\nhint: --force replaces it\n"
    assert target.read_text() == "mine"
    assert export("-f", "text", "-o", target, "--force", shell).status == 0
    assert target.read_text() == "$ echo naïve\nnaïve\n"


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_nothing_is_written_through_what_is_no_file(shell: Path, tmp_path: Path, kind: str) -> None:
    target, victim = tmp_path / "out", tmp_path / "victim"
    victim.write_text("mine")
    if kind == "link":
        target.symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        target.mkdir()
    said = export("-o", target, "--force", shell)
    assert (said.status, said.err) == (
        64,
        f"sshrec: error: {target} is no regular file, and nothing is written through it\n",
    )
    assert victim.read_text() == "mine"


def test_what_fails_half_way_leaves_no_file(command: Path, tmp_path: Path) -> None:
    command.write_bytes(command.read_bytes().replace(b"to begin with", b"to start with"))
    before = sorted(tmp_path.iterdir())
    assert export("-f", "raw", "-o", tmp_path / "out", command).status == 65
    assert sorted(tmp_path.iterdir()) == before


def test_a_directory_that_is_not_there(shell: Path, tmp_path: Path) -> None:
    said = export("-o", tmp_path / "no" / "out", shell)
    assert said.err == f"sshrec: error: cannot write {tmp_path}/no/out: no such file or directory\n"


@pytest.mark.parametrize("form", ["cast", "raw"])
def test_what_a_terminal_would_obey_is_not_shown_on_one(shell: Path, form: str) -> None:
    child = pexpect.spawn(SSHREC, ["export", "-f", form, str(shell)], encoding="utf-8", timeout=20)
    child.expect(pexpect.EOF)
    assert child.wait() == 64
    assert f"a terminal might obey what is in {form}" in str(child.before)


def test_text_is_shown_on_a_terminal(shell: Path) -> None:
    child = pexpect.spawn(SSHREC, ["export", "-f", "text", str(shell)], encoding="utf-8", timeout=20)
    child.expect(pexpect.EOF)
    assert child.wait() == 0
    assert child.before == "$ echo naïve\r\nnaïve\r\n"


def test_from_standard_input_and_into_a_pipe_that_closes(shell: Path) -> None:
    done = subprocess.run([SSHREC, "export", "-f", "text", "-"], input=shell.read_bytes(), capture_output=True)
    assert (done.returncode, done.stdout.decode()) == (0, "$ echo naïve\nnaïve\n")
    line = f"{SSHREC} export -f json {shell} | head -c 10"
    piped = subprocess.run(["sh", "-c", line], capture_output=True)
    assert (piped.stdout, piped.stderr) == (b'{"event":"', b"")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--stream", "stderr"], "--stream is for --format raw"),
        (["--force"], "--force is for --output FILE"),
        (["-f", "raw", "--stream", "stderr"], "a session with a terminal has one stream: stdout"),
    ],
)
def test_options_that_do_not_fit(shell: Path, words: list[str], says: str) -> None:
    said = export(*words, shell)
    assert (said.status, said.out) == (64, b"")
    assert said.err == f"sshrec: error: {says}\n"


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    """200 MB of text, packed; the process may have 50 MB more than it begins with."""
    path = tmp_path / "big.cast"
    path.write_bytes(b'{"version":2,"width":80,"height":24}\n' + b'[1.0,"o","' + b"x" * 60_000 + b'"]\n')
    line = b'[1.0,"o","' + b"x" * 60_000 + b'"]\n'
    with path.open("ab") as file:
        for _ in range(3300):
            file.write(line)
    subprocess.run(["zstd", "-q", "--rm", path], check=True)
    code = (
        "import resource, sys; import sshrec.cli.export; from sshrec.cli.main import run, sshrec;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "status = run(sshrec, 'sshrec', sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr); sys.exit(status)"
    )
    for form in ("text", "raw", "json", "cast"):
        done = subprocess.run(
            [sys.executable, "-c", code, "export", "-f", form, f"{path}.zst"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stderr.split()[-1]) < 50 * 1024
