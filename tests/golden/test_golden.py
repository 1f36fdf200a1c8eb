"""Recordings as they must stay: byte for byte, and playable by every asciicast player there is, live or packed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from sshrec.recording import packing, reader
from tests.golden.sessions import EXEC, HERE, TERMINAL, sessions

GOLDEN = sorted(sessions())
SCRIPTS = Path(sys.executable).parent
ASCIINEMAS = {"debian": Path("/usr/bin/asciinema"), "pypi": SCRIPTS / "asciinema"}
AGG = SCRIPTS / "agg"
# The PyPI package of either is in the dev extra; Debian's comes by apt.
asciinema = pytest.mark.parametrize("player", list(ASCIINEMAS))


def output(recording: bytes) -> bytes:
    """What the format's specification says that a player prints."""
    events = [json.loads(line) for line in recording.splitlines()[1:]]
    return "".join(data for _, code, data in events if code == "o").encode()


def found(player: str) -> Path:
    path = ASCIINEMAS[player]
    if not path.exists():
        pytest.skip(f"no asciinema of {player} here ({path})")
    return path


def run(command: str, directory: Path) -> bytes:
    """What a shell command on a terminal of its own writes to its standard output, and that it succeeds."""
    # Debian's asciinema opens /dev/tty even to print a recording.
    environment = {**os.environ, "TERM": "xterm", "LANG": "C.UTF-8", "ASCIINEMA_CONFIG_HOME": str(directory)}
    result = directory / "output"
    arguments = ["-c", f"set -o pipefail; ({command}) > {result}"]
    shell = pexpect.spawn("bash", arguments, env=environment, encoding="utf-8", timeout=30, cwd=str(directory))
    shell.expect(pexpect.EOF)
    shell.close()
    assert (shell.exitstatus, str(shell.before).strip()) == (0, "")
    return result.read_bytes()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_recorder_writes_the_same_bytes_as_ever(name: str) -> None:
    assert (HERE / name).read_bytes() == sessions()[name], "meant? python -m tests.golden.sessions"


@pytest.mark.parametrize(("name", "steps"), [("terminal.cast", TERMINAL), ("exec.cast", EXEC)])
def test_the_reader_gives_back_what_was_sent(name: str, steps: list[tuple[float, object]]) -> None:
    sent = {"stdout": b"", "stderr": b""}
    for _, what in steps:
        if isinstance(what, bytes):
            sent["stdout"] += what
        elif isinstance(what, tuple) and isinstance(what[0], bytes):
            sent[what[1]] += what[0]
    got = {"stdout": b"", "stderr": b""}
    with reader.open_path(HERE / name) as recording:
        for piece in reader.output(recording):
            got[piece.stream] += piece.data
        assert recording.complete
    assert got == sent


@asciinema
@pytest.mark.parametrize("name", GOLDEN)
def test_asciinema_prints_and_plays_it(player: str, name: str, tmp_path: Path) -> None:
    program, recording = found(player), HERE / name
    expected = output(recording.read_bytes())
    assert run(f"{program} cat {recording}", tmp_path) == expected
    assert run(f"{program} play -s 100 -i 0.01 {recording}", tmp_path) == expected


def live() -> Iterator[bytes]:
    """A recording at some moments of its life: after its first write, in the middle, before its last seal."""
    lines = sessions()["terminal.cast"].splitlines(keepends=True)
    for count in (2, 5, 11, len(lines) - 1):
        yield b"".join(lines[:count])


@asciinema
def test_asciinema_plays_it_while_it_is_live(player: str, tmp_path: Path) -> None:
    program = found(player)
    for n, text in enumerate(live()):
        path = tmp_path / f"{n}.cast"
        path.write_bytes(text)
        assert run(f"{program} cat {path}", tmp_path) == output(text)
        assert run(f"{program} play -s 100 -i 0.01 {path}", tmp_path) == output(text)


@asciinema
@pytest.mark.parametrize("name", GOLDEN)
def test_asciinema_plays_the_packed_form_from_zstd(player: str, name: str, tmp_path: Path) -> None:
    program, path = found(player), tmp_path / f"{name}.zst"
    with (HERE / name).open("rb") as plain, path.open("w+b") as target:
        packing.pack(plain, target)
    expected = output((HERE / name).read_bytes())
    assert run(f"zstd -dc {path} | {program} cat -", tmp_path) == expected
    assert run(f"zstd -dc {path} | {program} play -s 100 -i 0.01 -", tmp_path) == expected


@pytest.mark.parametrize("name", GOLDEN)
def test_agg_renders_it(name: str, tmp_path: Path) -> None:
    if not AGG.exists():
        pytest.skip(f"no agg here ({AGG}): pip install -e .[dev]")
    if (
        not shutil.which("fc-list")
        or b"DejaVu Sans Mono" not in subprocess.run(["fc-list"], capture_output=True).stdout
    ):
        pytest.skip("agg needs a font: apt install fonts-dejavu-core fontconfig")
    image = tmp_path / "a.gif"
    options = ["--speed", "50", "--idle-time-limit", "1", "--last-frame-duration", "1"]
    subprocess.run([AGG, *options, HERE / name, image], check=True, capture_output=True, timeout=60)
    assert image.read_bytes().startswith(b"GIF89a")
