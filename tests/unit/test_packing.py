"""Packing a finished recording: bit for bit, for zstd itself too, and with a crash at every step."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sshrec.errors import DataError, NotFound, RecordingError
from sshrec.recording import packing, reader
from sshrec.recording.recovery import Found
from sshrec.recording.seal import is_seal
from sshrec.storage import local
from sshrec.storage.local import Store
from tests.recordings import SESSION, WALL_MS, Step, noise, record

if sys.version_info >= (3, 14):
    from compression import zstd as zstandard
else:
    from backports import zstd as zstandard

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
    store.part(SESSION).write_bytes(b"and of another")
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


# Ahead of a session's end


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions are long from a megabyte on."""
    monkeypatch.setattr(local, "AHEAD_BYTES", 1 << 20)
    monkeypatch.setattr(packing, "FRAME_BYTES", 1 << 18)


def compressed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is compressed from now on."""
    sizes: list[int] = []

    real = zstandard.ZstdCompressor

    class Counting:
        FLUSH_FRAME = real.FLUSH_FRAME

        def __init__(self, options: Any) -> None:
            self._real = real(options=options)
            self.compress = self._real.compress

        def set_pledged_input_size(self, size: int) -> None:
            sizes.append(size)
            self._real.set_pledged_input_size(size)

    monkeypatch.setattr(packing, "zstd", SimpleNamespace(**{**vars(zstandard), "ZstdCompressor": Counting}))
    return sizes


def test_a_long_live_recording_is_packed_ahead(
    store: Store, text: bytes, little: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(store, b"")
    whole = pack(text).getvalue()
    grew = []
    with path.open("ab", buffering=0) as worker:
        fcntl.flock(worker, fcntl.LOCK_EX)
        for at in range(0, len(text), 700_000):
            worker.write(text[at : at + 700_000])  # in the midst of lines, too
            grew.append(store.pack_ahead(SESSION))
            assert path.read_bytes() == text[: at + 700_000], "the plain file stays whole"
            assert list(store) == [(SESSION, path)], "readers see no part"
        part = store.part(SESSION)
        assert whole.startswith(part.read_bytes()[:-2000])
        assert text.startswith(zstd("-dc", part))
        assert not store.pack(SESSION), "its worker lives"
    assert grew.count(True) in (1, 2), "a megabyte each time, or not at all"
    done = packing.packed_ahead(io.BytesIO(part.read_bytes()))
    assert done > 1 << 20
    sizes = compressed(monkeypatch)
    assert store.pack(SESSION)
    assert sum(sizes) == len(text) - done, "only the rest is compressed at the end"
    assert os.listdir(path.parent) == [f"{SESSION}.cast.zst"]
    assert store.packed(SESSION).read_bytes() == whole


def test_a_short_one_is_not_nor_one_that_is_not_there(store: Store, text: bytes, little: None) -> None:
    with pytest.raises(NotFound):
        store.pack_ahead(SESSION)
    path = put(store, text[: (1 << 20) - 1])
    assert not store.pack_ahead(SESSION)
    assert os.listdir(path.parent) == [path.name]


def test_two_packers_do_not_meet(store: Store, text: bytes, little: None) -> None:
    path = put(store, text)
    assert store.pack_ahead(SESSION)
    with store.part(SESSION).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        put(store, text + text)
        assert not store.pack_ahead(SESSION)
        put(store, text)
        assert not store.pack(SESSION)
    assert path.exists()
    assert store.pack(SESSION)


def _other(text: bytes) -> bytes:
    """The part of another recording of that length, and with the same ends of its chunks."""
    return text.replace(b"0", b"1")


@pytest.mark.parametrize("harm", ["cut", "flipped", "zeros", "stale", "empty", "doubled", "noise", "small frames"])
def test_a_part_that_is_wrong_is_thrown_away(store: Store, text: bytes, little: None, harm: str) -> None:
    path = put(store, text)
    assert store.pack_ahead(SESSION)
    part = store.part(SESSION)
    good = part.read_bytes()
    first = packing.frames(io.BytesIO(good))[0]
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 8
    small = b"".join(zstandard.compress(text[at : at + 1000]) for at in range(0, 100_000, 1000))
    harmed = {
        "cut": good[: len(good) // 2],
        "flipped": bytes(flipped),
        "zeros": good[:9000] + bytes(len(good) - 9000),
        "stale": zstandard.compress(_other(text[: first.size])) + good[first.packed :],
        "empty": b"",
        "doubled": good + good,
        "noise": noise(100_000, seed=1),
        "small frames": small,
    }[harm]
    part.write_bytes(harmed)
    put(store, text + text)
    store.pack_ahead(SESSION)  # may go on with it, or not
    put(store, text)
    assert store.pack(SESSION)
    assert store.packed(SESSION).read_bytes() == pack(text).getvalue()
    assert os.listdir(path.parent) == [f"{SESSION}.cast.zst"]


@pytest.mark.parametrize("kind", ["link", "fifo", "hard link", "of a strange mode"])
def test_a_part_that_is_no_file_of_ours_is_not_written_to(
    store: Store, text: bytes, little: None, kind: str, tmp_path: Path
) -> None:
    put(store, text)
    part, precious = store.part(SESSION), tmp_path / "precious"
    precious.write_bytes(b"precious")
    if kind == "link":
        part.symlink_to(precious)
    elif kind == "fifo":
        os.mkfifo(part)
    elif kind == "hard link":
        os.link(precious, part)
    else:
        part.write_bytes(b"")
        part.chmod(0o666)
    assert store.pack_ahead(SESSION)
    assert store.pack(SESSION)
    assert precious.read_bytes() == b"precious"
    assert store.packed(SESSION).stat().st_mode & 0o777 == 0o640
    assert zstd("-dc", store.packed(SESSION)) == text


def test_what_was_begun_and_never_became_a_recording_goes(store: Store) -> None:
    path = put(store, b"")
    path.rename(path.with_suffix(".new"))
    store.part(SESSION).touch()
    assert list(store.unfinished()) == [SESSION]
    assert list(store) == []
    assert store.recover(SESSION, WALL_MS, "") is Found.ABSENT
    assert os.listdir(path.parent) == [f"{SESSION}.new"], "it may be about to begin"
    assert store.recover(SESSION, WALL_MS + 7200_000, "") is Found.ABSENT
    assert os.listdir(path.parent) == []
    assert list(store.unfinished()) == []
