"""The file of a live recording on disks that fill up: what is kept for the end is there at the end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshrec.errors import DiskFull, RecordingError
from sshrec.recording.recorder import Recorder
from sshrec.recording.seal import Outcome
from sshrec.recording.verification import State, verify
from sshrec.storage.local import Store
from sshrec.storage.recording_file import RecordingFile
from tests.disks import Kind, disk, fill
from tests.recordings import SESSION, WALL_MS, header, noise

pytestmark = pytest.mark.root


@pytest.fixture(params=["tmpfs", "ext4"])
def small(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of 8 MiB, somewhere below /tmp."""
    kind: Kind = request.param
    with tempfile.TemporaryDirectory() as above, disk(Path(above, "disk"), 8 << 20, kind) as directory:
        yield directory


def start(directory: Path, **how: object) -> tuple[RecordingFile, Recorder]:
    file = Store(directory).create(SESSION, durable=False)
    try:
        recorder = Recorder(
            file,
            SESSION,
            header(),
            wall_ms=WALL_MS,
            terminal=True,
            stream_limit=0,
            **how,  # type: ignore[arg-type]
        )
    except RecordingError:
        file.finish()
        raise
    return file, recorder


def write_until_full(recorder: Recorder) -> int:
    """How much was recorded until the disk had no more room."""
    for n in range(100_000):
        try:
            recorder.output(n, b"%d " % n + noise(3000, n).hex().encode())
        except DiskFull:
            return n
    raise AssertionError("the disk never filled up")


def test_the_end_finds_its_room_on_a_full_disk(small: Path) -> None:
    file, recorder = start(small)
    shown = write_until_full(recorder)
    fill(small)
    with pytest.raises(DiskFull, match="no space left on device"):
        recorder.output(shown, b"one more" + noise(40_000, 0).hex().encode())
    file.use_reserve()
    recorder.close(shown, WALL_MS, Outcome("enospc", status=255, detail="no space left on device"))
    file.finish()
    with file.path.open("rb") as recording:
        verdict = verify(recording, SESSION)
    assert (verdict.state, str(verdict.gap)) == (State.INCOMPLETE, "enospc: no space left on device")
    assert f"{shown - 1} ".encode() in file.path.read_bytes()
    assert b"one more" not in file.path.read_bytes()


def test_what_was_set_aside_is_given_back(small: Path) -> None:
    file, recorder = start(small)
    recorder.output(0, b"hello")
    assert os.stat(file.path).st_blocks * 512 >= file.written + 16 * 1024
    recorder.close(1, WALL_MS, Outcome("exit", status=0))
    file.finish()
    assert os.stat(file.path).st_blocks * 512 <= 8192


def test_one_session_does_not_take_what_is_set_aside_for_another(small: Path) -> None:
    idle, _ = start(small)
    other = Store(small).create("01KARVVVZ0B9GPPM3T5V7PZW0Q", durable=False)
    with pytest.raises(DiskFull):
        for _ in range(10_000):
            other.write(bytes(4096))
    fill(small)
    idle.use_reserve()
    idle.write(bytes(16 * 1024))
    other.use_reserve()
    other.write(bytes(16 * 1024))
    for file in (idle, other):
        file.finish()


def test_a_session_that_may_goes_on_without_being_recorded(small: Path) -> None:
    asked: list[RecordingError] = []

    def without(error: RecordingError) -> str:
        asked.append(error)
        file.use_reserve()
        return "from here on not recorded"

    file, recorder = start(small, without=without)
    for n in range(1600):
        recorder.output(n, b"%d " % n + noise(3000, n).hex().encode())
        if n == 100:
            fill(small)
    (error,) = asked
    assert isinstance(error, DiskFull)
    assert recorder.output(2000, b"shown") == b"shown"
    outcome = Outcome("exit", status=0, unrecorded="2026-11-23T09:20:00.000Z")
    recorder.close(2001, WALL_MS, outcome)
    file.finish()
    text = file.path.read_bytes()
    assert text.count(b"from here on not recorded") == 1
    assert text.count(b'"shown"') == 0
    with file.path.open("rb") as recording:
        verdict = verify(recording, SESSION)
    assert str(verdict.gap) == "unrecorded: it went on without being recorded, since 2026-11-23T09:20:00.000Z"


def test_no_room_to_begin_with(small: Path) -> None:
    Store(small).create("01KARVVVZ0B9GPPM3T5V7PZW0Q", durable=False).finish()  # so that there is a directory
    fill(small)
    with pytest.raises(RecordingError, match="no space left on device"):
        start(small)
