"""Reading recordings that we wrote, that others wrote, that were cut off, and that were made to hurt."""

from __future__ import annotations

import io
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshrec.errors import DataError, NotFound, SshrecError
from sshrec.recording import packing, reader
from sshrec.recording.events import Event
from sshrec.recording.reader import Output, Recording
from sshrec.session import Winsize
from tests.recordings import SESSION, Step, noise, record, write

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

HEADER = b'{"version": 2, "width": 80, "height": 24}\n'
STEPS: list[Step] = [(0.5, b"hello\r\n"), (1.0, (120, 40)), (6.0, b"caf\xe9\r\n")]


def stream(text: bytes) -> Recording:
    return reader.open_stream(io.BytesIO(text), "test")


def events_of(text: bytes) -> list[Event]:
    return list(stream(text))


def packed(path: Path, text: bytes) -> Path:
    plain = io.BytesIO(text)
    with path.open("w+b") as target:
        packing.pack(plain, target)
    return path


# What we wrote


def test_a_recording_of_ours(tmp_path: Path) -> None:
    path = write(tmp_path / "a.cast", STEPS, command="uptime")
    with reader.open_path(path) as recording:
        header = recording.header
        assert (header.version, header.size, header.timestamp) == (2, Winsize(80, 24), 1_763_889_254)
        assert (header.title, header.command) == ("joe → root@web1", "uptime")
        assert header.env == {"TERM": "xterm-256color"}
        assert header.facts["session"] == SESSION
        events = list(recording)
        assert [event.code for event in events if event.code in "or"] == ["o", "r", "o"]
        assert recording.end == {"reason": "exit", "status": 0}
        assert recording.complete
        assert not recording.torn


def test_packed_it_is_the_same(tmp_path: Path) -> None:
    text = record(STEPS).text
    path = packed(tmp_path / "a.cast.zst", text)
    assert list(reader.open_path(path)) == events_of(text)


def test_from_a_pipe_plain_or_packed(tmp_path: Path) -> None:
    text = record(STEPS).text
    for content in (text, packed(tmp_path / "a.cast.zst", text).read_bytes()):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert isinstance(child.stdin, io.BufferedWriter)
        assert isinstance(child.stdout, io.BufferedReader)
        child.stdin.write(content)
        child.stdin.close()
        with reader.open_stream(child.stdout, "pipe") as recording:
            assert list(recording) == events_of(text)
        assert child.wait() == 0


def test_exact_bytes_by_stream() -> None:
    steps: list[Step] = [(0.5, b"a\xff"), (0.5, (b"err\xfe", "stderr")), (0.5, b"\0\1"), (0.5, b"plain")]
    outputs = list(reader.output(stream(record(steps, terminal=False).text)))
    assert outputs == [
        Output(0.5, "stdout", b"a\xff"),
        Output(1.0, "stderr", b"err\xfe"),
        Output(1.5, "stdout", b"\0\1"),
        Output(2.0, "stdout", b"plain"),
    ]


def test_exact_bytes_of_input_are_not_output() -> None:
    text = HEADER + b'[1.0,"o","x"]\n[2.0,"i","?"]\n[2.0,"B","/w=="]\n[3.0,"o","y"]\n'
    assert [output.data for output in reader.output(stream(text))] == [b"x", b"y"]


def test_exact_bytes_that_are_no_base64() -> None:
    with pytest.raises(DataError, match=r"exact bytes at 1\.000000 s are not base64"):
        list(reader.output(stream(HEADER + b'[1.0,"o","x"]\n[1.0,"B","!"]\n')))


# What was cut off


def test_every_way_to_cut_a_recording_short() -> None:
    text = record(STEPS).text
    whole = events_of(text)
    first = text.index(b"\n") + 1
    for cut in range(first, len(text)):
        recording = stream(text[:cut])
        events = list(recording)
        assert events == whole[: len(events)], cut
        assert recording.torn == (not text[:cut].endswith((b"\n", b"]"))), cut
        assert recording.complete == (cut == len(text) - 1), "all but the last newline is all there is to say"


def test_a_live_recording_is_read_as_far_as_it_goes() -> None:
    recording = stream(record(STEPS, outcome=None).text)
    assert [event.code for event in recording][-2:] == ["o", "B"]
    assert not recording.torn
    assert recording.end is None
    assert not recording.complete


def test_a_foreign_recording_has_no_seal_and_is_complete_all_the_same() -> None:
    recording = stream(HEADER + b'[1.0,"o","x"]\n')
    assert list(recording)
    assert recording.complete


def test_a_packed_recording_that_was_cut(tmp_path: Path) -> None:
    content = packed(tmp_path / "a.cast.zst", record(STEPS).text).read_bytes()
    with pytest.raises(DataError, match="test: the packed recording ends in the middle"):
        events_of(content[:100])


# What others write


def test_version_1() -> None:
    cast = {
        "version": 1,
        "width": 80,
        "height": 24,
        "duration": 1.5,
        "command": "/bin/sh",
        "title": "",
        "env": {"TERM": "xterm"},
        "stdout": [[0.5, "a"], [1, "b"], [-3, "c"], [0.25, "d"]],
    }
    for indent in (None, 2):
        recording = stream(json.dumps(cast, indent=indent).encode())
        assert recording.header.command == "/bin/sh"
        assert list(recording) == [
            Event(0.5, "o", "a"),
            Event(1.5, "o", "b"),
            Event(1.5, "o", "c"),
            Event(1.75, "o", "d"),
        ]


def test_version_3_counts_from_the_event_before() -> None:
    recording = stream(
        b'{"version":3,"term":{"cols":100,"rows":50,"type":"xterm"},"timestamp":1504467315}\n'
        b"# a comment\n"
        b'[0.5,"o","a"]\n\n[1,"r","80x24"]\n# another\n[-1,"o","b"]\n[0.25,"x","0"]\n'
    )
    assert recording.header.size == Winsize(100, 50)
    assert [(event.time, event.code) for event in recording] == [(0.5, "o"), (1.5, "r"), (1.5, "o"), (1.75, "x")]


def test_a_byte_order_mark_and_carriage_returns() -> None:
    text = b"\xef\xbb\xbf" + (HEADER + b'[1.0,"o","x"]\n[2.0,"o","y"]\n').replace(b"\n", b"\r\n")
    assert [event.data for event in stream(text)] == ["x", "y"]


def test_codes_that_nobody_knows_pass_whatever_their_data() -> None:
    text = HEADER + b'[1,"zz","a"]\n[2,"k",{"a":1}]\n[3,"o","x",4]\n'
    assert events_of(text) == [Event(1, "zz", "a"), Event(2, "k", '{"a": 1}'), Event(3, "o", "x")]


def test_surrogates_and_broken_utf8_become_replacement_characters() -> None:
    text = HEADER + b'[1,"o","a\\udcffb"]\n[2,"o","a\xffb"]\n[3,"o","\\ud83d\\ude00"]\n[4,"o","\xed\xb3\xbf"]\n'
    assert [event.data for event in stream(text)] == ["a�b", "a�b", "😀", "���"]


def test_a_last_line_without_its_newline_counts_if_it_is_whole() -> None:
    recording = stream(HEADER + b'[1,"o","x"]')
    assert [event.data for event in recording] == ["x"]
    assert not recording.torn


# What was made to hurt


@pytest.mark.parametrize(
    "line",
    [
        b"[1,2,3]",
        b'[1,"o"]',
        b'["1","o","x"]',
        b'[true,"o","x"]',
        b'[1,"o",5]',
        b"{}",
        b"nonsense",
        b'[1,"o","x"',
        b"[" * 100_000,
        b'[1,"k",' + b"[" * 100_000 + b"]" * 100_000 + b"]",
        b'[1,"o","\n"]',
        b"1" * 10_000,
    ],
    ids=lambda line: line[:12].decode(),
)
def test_a_malformed_line_is_named(line: bytes) -> None:
    with pytest.raises(DataError, match="test: line 3: "):
        events_of(HEADER + b'[1,"o","x"]\n' + line + b"\n" + b'[2,"o","y"]\n')


def test_an_exact_number_too_long_for_a_line_is_refused() -> None:
    with pytest.raises(DataError, match="line 2"):
        events_of(HEADER + b"[" + b"9" * 100_000 + b',"o","x"]\n')


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"[]\n", b"null\n", b"\0" * 100, b'{"version":2', b"{}\n", b"hello\n"]
)
def test_what_is_no_recording_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"test: (line 1: |empty)"):
        stream(content)


def test_a_version_of_the_future_is_refused() -> None:
    with pytest.raises(DataError, match="version '4' is not known"):
        stream(b'{"version": 4}\n')


def test_times_are_made_finite_and_never_go_back() -> None:
    raw = ["1", "0.5", "-3", "NaN", "2", "Infinity", "1e308", "1e999", "-Infinity", "3"]
    text = HEADER + "".join(f'[{time},"o",""]\n' for time in raw).encode()
    limit = reader.TIME_MAX
    expected = [1, 1, 1, 1, 2, limit, limit, limit, limit, limit]
    assert [event.time for event in stream(text)] == expected


@given(st.lists(st.floats() | st.integers(-(10**400), 10**400)), st.sampled_from([2, 3]))
def test_any_times(times: list[float], version: int) -> None:
    lines = "".join(f'[{json.dumps(time)},"o","x"]\n' for time in times)
    got = [event.time for event in stream(b'{"version":%d}\n' % version + lines.encode())]
    assert len(got) == len(times)
    assert all(math.isfinite(time) and 0 <= time <= reader.TIME_MAX for time in got)
    assert got == sorted(got)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (0, 0, (80, 24)),
        (-1, -5, (80, 24)),
        (10**9, 10**9, (500, 200)),
        ("100", None, (80, 24)),
        (120.5, True, (80, 24)),
        (1, 1, (1, 1)),
    ],
)
def test_window_sizes_are_clamped(width: Any, height: Any, size: tuple[int, int]) -> None:
    recording = stream(json.dumps({"version": 2, "width": width, "height": height}).encode() + b"\n")
    assert recording.header.size == Winsize(*size)


def test_resizes_are_clamped() -> None:
    assert reader.winsize("120x40") == Winsize(120, 40)
    assert reader.winsize("999999999x1") == Winsize(500, 1)
    assert reader.winsize("0x0") == Winsize(80, 24)
    for data in ("", "x", "80", "-1x5", "80x24x3", "9999999999x1", "８０x２４"):
        assert reader.winsize(data) is None


def test_odd_header_fields_are_passed_over() -> None:
    raw = {"version": 2, "title": 5, "command": ["a"], "env": {"A": None, "B": "b"}, "timestamp": "x", "sshrec": 3}
    header = stream(json.dumps(raw).encode() + b"\n").header
    assert (header.title, header.command, header.env, header.timestamp, header.facts) == (
        None,
        None,
        {"B": "b"},
        None,
        {},
    )
    assert stream(b'{"version":2,"timestamp":NaN}\n').header.timestamp is None
    assert stream(b'{"version":2,"timestamp":1.5}\n').header.timestamp == 1


def test_a_line_longer_than_any_is_not_read_into_memory() -> None:
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            buffer[:] = b"x" * len(buffer)
            return len(buffer)

    text = io.BufferedReader(Endless())
    with pytest.raises(DataError, match="line 1: longer than 64 MiB"):
        reader.open_stream(text, "endless")


@pytest.fixture
def limited_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 1024 * 1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("limited_memory")
def test_a_bomb_of_zeros_ends_at_its_first_line() -> None:
    bomb = zstd.compress(bytes(100 * 1024 * 1024), 1) * 100
    assert len(bomb) < 2_000_000
    with pytest.raises(DataError, match="longer than 64 MiB"):
        stream(bomb)


def test_a_bomb_of_lines_ends_at_the_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "UNPACKED_MAX", 1024 * 1024)
    bomb = zstd.compress(HEADER + b"\n" * 64 * 1024 * 1024)
    with pytest.raises(DataError, match="not read any further"):
        events_of(bomb)


def test_what_repeats_itself_is_no_bomb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packing, "UNPACKED_MAX", 1024)
    yes: list[Step] = [(0.001, b"y\r\n" * 5461) for _ in range(1000)]
    path = packed(tmp_path / "a.cast.zst", record(yes).text)
    assert sum(event.code == "o" for event in reader.open_path(path)) == 1000


def test_skippable_frames_and_trailing_garbage() -> None:
    skippable = b"\x5e\x2a\x4d\x18\x04\0\0\0abcd"
    text = HEADER + b'[1,"o","x"]\n'
    half = zstd.compress(text[:20]) + skippable + zstd.compress(text[20:])
    assert len(events_of(half + skippable)) == 1
    with pytest.raises(DataError, match="damaged after 5"):
        events_of(half + b"garbage")


@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_no_bytes_at_all_raise_anything_but_our_errors(data: bytes, after_header: bool, pack: bool) -> None:
    text = HEADER + data if after_header else data
    try:
        for _ in reader.output(stream(zstd.compress(text) if pack else text)):
            pass
    except SshrecError as error:
        assert str(error)


# What is no file


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, Path("/dev/zero"), Path("/dev/tty")):
        for read in (reader.open_path, reader.summary):
            with pytest.raises(DataError, match=r"not a regular file|no such device"):
                read(path)
    with pytest.raises(NotFound, match="no such file"):
        reader.open_path(tmp_path / "none")


def test_a_link_of_ones_own_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "a.cast", STEPS)
    (tmp_path / "link").symlink_to("a.cast")
    assert reader.open_path(tmp_path / "link").header.title


# Summaries


def test_the_summary_of_a_finished_recording_plain_and_packed(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.cast", STEPS)
    for path in (plain, packed(tmp_path / "a.cast.zst", plain.read_bytes())):
        summary = reader.summary(path)
        assert summary.header == reader.open_path(plain).header
        assert summary.duration == 7.5
        assert summary.end == {"reason": "exit", "status": 0}
        assert summary.bytes == path.stat().st_size


def test_the_summary_of_a_live_recording(tmp_path: Path) -> None:
    text = record(STEPS, outcome=None).text
    path = tmp_path / "a.cast"
    header = text.index(b"\n") + 1
    for cut in range(header, len(text) + 1):
        path.write_bytes(text[:cut])
        summary = reader.summary(path)
        assert summary.end is None
        whole = text[: text.rindex(b"\n", 0, cut) + 1]
        assert summary.duration == max((event.time for event in stream(whole)), default=0.0)


def test_the_summary_reads_the_ends_alone(tmp_path: Path) -> None:
    steps: list[Step] = [(0.5, noise(60_000, n).hex().encode()) for n in range(400)]
    text = record(steps).text
    plain = tmp_path / "a.cast"
    middle = text.index(b'[100.000000,"o"')
    plain.write_bytes(text[:middle] + b"\0" * 1000 + text[middle + 1000 :])
    assert reader.summary(plain).duration == 200.0
    path = packed(tmp_path / "b.cast.zst", text)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert reader.summary(path).duration == 200.0


def test_a_last_line_longer_than_a_block(tmp_path: Path) -> None:
    path = write(tmp_path / "a.cast", [(0.5, b"x" * 200_000)], outcome=None)
    assert reader.summary(path).duration == 0.5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{}\n",
        b"hello\n",
        b'{"version":2',
        b'{"version":3}\n',
        packing.MAGIC,
        packing.MAGIC * 100,
        b"\0" * 5000,
        HEADER + b"nonsense\n",
        HEADER + b"[" * 100_000 + b"\n",
    ],
    ids=lambda content: content[:12].hex(),
)
def test_what_cannot_be_summed_up(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.cast"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.cast: "):
        reader.summary(path)
