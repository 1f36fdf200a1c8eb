"""Packing a finished recording: bit for bit, for zstd itself too, and with a crash at every step."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sshrec.errors import DataError, NotFound, RecordingError
from sshrec.recording import packing, reader
from sshrec.recording.seal import is_seal
from sshrec.storage import local
from sshrec.storage.local import Store
from tests.recordings import SESSION, Step, noise, record

STEPS: list[Step] = [(0.01, b"%06d \x1b[1m" % n + noise(1500, n).hex().encode()) for n in range(1000)]


@pytest.fixture(scope="module")
def text() -> bytes:
    return record(STEPS).text


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "recordings")


def put(store: Store, text: bytes) -> Path:
    path = store.path(SESSION)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return path


def pack(text: bytes) -> io.BytesIO:
    target = io.BytesIO()
    packing.pack(io.BytesIO(text), target)
    return target


def zstd(*arguments: str | Path) -> bytes:
    return subprocess.run(["zstd", *map(str, arguments)], check=True, capture_output=True, timeout=30).stdout


# The form


def test_zstd_itself_takes_it(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.cast.zst"
    path.write_bytes(pack(text).getvalue())
    zstd("-t", path)
    assert zstd("-dc", path) == text


def test_frames_are_whole_chunks_and_the_table_finds_them(text: bytes) -> None:
    packed = pack(text)
    frames = packing.frames(packed)
    assert len(frames) >= 3
    start = 0
    for frame in frames:
        part = packing.unpack(packed, frame)
        assert frame.start == start
        assert part == text[start : start + frame.size]
        assert is_seal(part.splitlines(keepends=True)[-1])
        start += frame.size
    assert start == len(text)
    assert all(frame.size >= packing.FRAME_BYTES for frame in frames[:-1])


def test_each_frame_stands_for_itself(text: bytes, tmp_path: Path) -> None:
    packed = pack(text)
    frame = packing.frames(packed)[2]
    alone = tmp_path / "frame.zst"
    alone.write_bytes(packed.getvalue()[frame.offset : frame.offset + frame.packed])
    assert zstd("-dc", alone) == text[frame.start : frame.start + frame.size]


def test_what_is_not_finished_is_not_packed() -> None:
    whole = record([(1.0, b"hello\r\n")]).text
    for left in (record([(1.0, b"hello\r\n")], outcome=None).text, whole[:-1], whole + b"[", b"", b"x"):
        with pytest.raises(DataError, match="not finished"):
            pack(left)


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=200_000), max_size=8))
def test_any_recording_survives(pieces: list[bytes]) -> None:
    text = record([(0.1, piece) for piece in pieces]).text
    packed = pack(text)
    assert packing.same(io.BytesIO(text), packed)
    assert io.BufferedReader(packing.Unpacked(io.BytesIO(packed.getvalue()))).read() == text


def test_the_comparison_sees_every_difference(text: bytes) -> None:
    packed = pack(text)
    for other in (text[:-1], text + b"\n", b"!" + text[1:], b""):
        assert not packing.same(io.BytesIO(other), packed)
    content = packed.getvalue()
    for at in (0, 10, len(content) // 2, len(content) - 30, len(content) - 1):
        broken = bytearray(content)
        broken[at] ^= 1
        assert not packing.same(io.BytesIO(text), io.BytesIO(bytes(broken)))
    assert not packing.same(io.BytesIO(text), io.BytesIO(content[:-1]))
    assert not packing.same(io.BytesIO(text), io.BytesIO(content + b"x"))


@given(st.binary(max_size=60), st.integers(0, 2**32 - 1))
def test_no_seek_table_raises_anything_but_our_errors(noise: bytes, number: int) -> None:
    good = pack(record([(1.0, b"hello\r\n")]).text).getvalue()
    footer = number.to_bytes(4, "little") + b"\0" + good[-4:]
    for content in (noise, noise + good[-4:], noise + footer, good[: -len(footer)] + footer, good[:-20] + noise):
        file = io.BytesIO(content)
        try:
            for frame in packing.frames(file):
                packing.unpack(file, frame)
        except DataError as error:
            assert str(error)


def test_sizes(text: bytes) -> None:
    """The budget on what is recorded most; random bytes are not among it."""
    seq = b"".join(b"%d\r\n" % n for n in range(400_000))
    ansi = b"".join(
        b"\x1b[%d;%dH\x1b[38;5;%dm%d\x1b[0m\x1b[K" % (n % 24, n * 7 % 80, n % 256, n * 31 % 1000)
        + "│├──┤┌─┐".encode()
        for n in range(60_000)
    )
    for output, most in ((seq, 0.4), (ansi, 0.25)):
        for size in (4096, 65536):
            steps: list[Step] = [(0.001, output[at : at + size]) for at in range(0, len(output), size)]
            assert len(pack(record(steps).text).getvalue()) <= most * len(output)


# The store


def test_the_packed_file_takes_the_place_of_the_plain_one(store: Store, text: bytes) -> None:
    path = put(store, text)
    with path.open("rb") as open_before:
        assert store.pack(SESSION)
        assert open_before.read() == text, "a reader that has it open goes on"
    assert not path.exists()
    assert store.current(SESSION) == store.packed(SESSION)
    assert list(store) == [(SESSION, store.packed(SESSION))]
    assert os.listdir(path.parent) == [f"{SESSION}.cast.zst"]
    assert zstd("-dc", store.packed(SESSION)) == text
    with pytest.raises(NotFound):
        store.pack(SESSION)


def test_a_live_recording_is_left_alone(store: Store, text: bytes) -> None:
    path = put(store, text)
    with path.open("rb") as worker:
        fcntl.flock(worker, fcntl.LOCK_EX)
        assert store.alive(SESSION)
        assert not store.pack(SESSION)
    assert not store.alive(SESSION)
    assert path.read_bytes() == text
    assert store.pack(SESSION)
    assert not store.alive(SESSION)


def test_an_unfinished_recording_is_refused_and_stays(store: Store) -> None:
    path = put(store, text := record([(1.0, b"hello\r\n")], outcome=None).text)
    with pytest.raises(DataError, match="not finished"):
        store.pack(SESSION)
    assert path.read_bytes() == text
    assert os.listdir(path.parent) == [path.name]


CRASHES = [
    (packing, "pack"),
    (os, "fsync"),
    (packing, "same"),
    (Path, "rename"),
    (local, "sync_directory"),
    (Path, "unlink"),
]


def die_at(step: Callable[..., object], *, after: bool, only: Path | None) -> Callable[..., object]:
    """The step, as the last thing that its process does, or does not do."""

    def last(*arguments: Any, **named: Any) -> object:
        if only is not None and arguments[0] != only:
            return step(*arguments, **named)
        if after:
            step(*arguments, **named)
        os._exit(9)

    return last


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("where", "name"), CRASHES, ids=lambda value: str(getattr(value, "__name__", value)))
def test_a_crash_at_any_step_loses_nothing(store: Store, text: bytes, where: Any, name: str, after: bool) -> None:
    path = put(store, text)
    child = os.fork()
    if child == 0:
        try:
            setattr(
                where, name, die_at(getattr(where, name), after=after, only=path if name == "unlink" else None)
            )
            store.pack(SESSION)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    kept = store.current(SESSION)
    assert (path.read_bytes() if kept == path else zstd("-dc", kept)) == text
    if kept == path:
        assert store.pack(SESSION)
    assert os.listdir(path.parent) == [f"{SESSION}.cast.zst"]
    assert zstd("-dc", store.packed(SESSION)) == text


def test_while_both_are_there_the_plain_one_is_the_truth(store: Store, text: bytes) -> None:
    put(store, text)
    store.packed(SESSION).write_bytes(b"half of an older try")
    store.packed(SESSION).with_suffix(".zst.new").write_bytes(b"and of another")
    assert store.current(SESSION) == store.path(SESSION)
    assert store.pack(SESSION)
    assert zstd("-dc", store.packed(SESSION)) == text
    assert os.listdir(store.packed(SESSION).parent) == [f"{SESSION}.cast.zst"]


def test_a_packed_form_that_differs_is_never_believed(
    store: Store, text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = pack(record([(1.0, b"something else")]).text).getvalue()

    def lossy(_source: Any, target: Any) -> None:
        target.write(other)

    path = put(store, text)
    monkeypatch.setattr(packing, "pack", lossy)
    with pytest.raises(DataError, match="did not keep every bit"):
        store.pack(SESSION)
    assert path.read_bytes() == text
    assert os.listdir(path.parent) == [path.name]


def test_a_full_disk_is_an_error_and_nothing_else(
    store: Store, text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    path = put(store, text)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordingError, match="no space left on device"):
        store.pack(SESSION)
    assert path.read_bytes() == text
    assert os.listdir(path.parent) == [path.name]


def test_reading_while_it_is_packed(store: Store, text: bytes) -> None:
    path = put(store, text)
    with reader.open_path(path) as recording:
        events = [next(iter(recording))]
        assert store.pack(SESSION)
        events += list(recording)
    assert events == list(reader.open_path(store.current(SESSION)))
