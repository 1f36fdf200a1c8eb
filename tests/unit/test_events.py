"""From bytes to lines and back: whatever a target sends comes out of its recording again, bit for bit."""

from __future__ import annotations

import hashlib
import io
import json
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from sshrec.recording import asciicast, events, reader
from sshrec.recording.events import Event
from sshrec.recording.recorder import HOLD_US, MINUTE_US, Recorder, Stream
from sshrec.recording.seal import CHUNK_BYTES, CHUNK_US, Outcome
from tests.recordings import SESSION, WALL_MS, Memory, header, record

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
# Pieces of UTF-8, whole and broken, and of terminal output, rather than mostly noise.
PIECE = st.one_of(
    st.binary(max_size=8),
    TEXT.map(str.encode),
    st.sampled_from(
        [b"\xe2\x94", b"\x80", b"\xf0\x9f\x98", b"\xf0\x9f", b"\xc3", b"\xa9", b"\xed\xa0\x80", b"\0"]
    ),
    st.sampled_from(
        [b"\x1b[31m", b"\r\n", b"\xff", b'"\\', b"\xf8\x88\x80\x80\x80", b"\xc0\x80", b"\xef\xbf\xbd"]
    ),
)
BYTES = st.lists(PIECE, max_size=12).map(b"".join)


def read(sink: Memory) -> list[Event]:
    return list(reader.open_stream(io.BytesIO(sink.text), "test"))


def streams(sink: Memory) -> dict[str, bytes]:
    got: dict[str, bytes] = {"stdout": b"", "stderr": b""}
    for output in reader.output(read(sink)):
        got[output.stream] += output.data
    return got


def recorder(sink: Memory, *, terminal: bool = True, stream_limit: int = 1 << 24) -> Recorder:
    return Recorder(
        sink, SESSION, header(terminal=terminal), wall_ms=WALL_MS, terminal=terminal, stream_limit=stream_limit
    )


@given(st.integers(0, 10**15), st.sampled_from("oirmxSBEFCWzü"), TEXT)
def test_an_event_survives_its_line(us: int, code: str, data: str) -> None:
    line = asciicast.event_line(us, code, data)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == [us / 1_000_000, code, data]
    recording = reader.open_stream(io.BytesIO(header() + line), "test")
    assert list(recording) == [Event(min(us / 1_000_000, reader.TIME_MAX), code, data)]


@given(BYTES, st.lists(st.integers(1, 9), min_size=1, max_size=5), st.booleans())
def test_bytes_fed_in_any_pieces_are_read_back(data: bytes, sizes: list[int], terminal: bool) -> None:
    sink = Memory()
    recording = recorder(sink, terminal=terminal)
    shown = b""
    at = us = n = 0
    while at < len(data):
        piece = data[at : at + sizes[n % len(sizes)]]
        at, n, us = at + len(piece), n + 1, us + 30_000
        shown += b"".join(late for _, late in recording.tick(us, WALL_MS + us // 1000))
        shown += recording.output(us, piece)
    shown += b"".join(late for _, late in recording.close(us, WALL_MS + us // 1000, Outcome("exit", status=0)))
    assert shown == data, "what is shown is what came"
    assert streams(sink)["stdout"] == data, "and what was recorded"
    times = [event.time for event in read(sink)]
    assert times == sorted(times)


STREAM: st.SearchStrategy[Stream] = st.sampled_from(cast(list[Stream], ["stdout", "stderr"]))


@given(st.lists(st.tuples(BYTES.filter(len), STREAM)))
def test_two_streams_do_not_mix(pieces: list[tuple[bytes, Stream]]) -> None:
    sink = record([(0.01, piece) for piece in pieces], terminal=False)
    for stream in ("stdout", "stderr"):
        sent = b"".join(data for data, name in pieces if name == stream)
        assert streams(sink)[stream] == sent
        fact = next(
            fact
            for event in read(sink)
            if event.code == events.COUNT and (fact := json.loads(event.data))["stream"] == stream
        )
        assert fact == {"stream": stream, "bytes": len(sent), "sha256": hashlib.sha256(sent).hexdigest()}


def test_each_output_is_one_write_and_on_record_before_it_is_shown() -> None:
    sink = Memory()
    recording = recorder(sink)
    before = len(sink.writes)
    assert recording.output(1000, b"hello") == b"hello"
    assert sink.writes[before:] == [b'[0.001000,"o","hello"]\n']


def test_a_split_character_waits_for_its_rest() -> None:
    sink = Memory()
    recording = recorder(sink)
    assert recording.output(0, b"a\xe2\x94") == b"a"
    assert recording.due(10_000) == HOLD_US - 10_000
    assert recording.tick(10_000, WALL_MS) == []
    assert recording.output(20_000, b"\x80b") == "─b".encode()
    assert [event.data for event in read(sink) if event.code == "o"] == ["a", "─b"]
    assert not [event for event in read(sink) if event.code == events.BYTES]


def test_a_split_character_waits_no_longer_than_it_may() -> None:
    sink = Memory()
    recording = recorder(sink)
    assert recording.output(0, b"\xf0\x9f\x98") == b""
    assert recording.tick(HOLD_US - 1, WALL_MS) == []
    assert recording.tick(HOLD_US, WALL_MS) == [("stdout", b"\xf0\x9f\x98")]
    assert recording.output(HOLD_US + 1, b"\x80") == b"\x80", "the late rest is no character either"
    assert streams(sink)["stdout"] == b"\xf0\x9f\x98\x80"


def test_what_never_becomes_a_character_is_not_held() -> None:
    for data in (b"a\xff", b"a\xf8\x88", b"\x80\x80\x80", b"\xe2a"):
        sink = Memory()
        assert recorder(sink).output(0, data) == data
        assert streams(sink)["stdout"] == data


def test_invalid_bytes_are_replaced_for_players_and_kept_beside() -> None:
    sink = record([(0.5, b"caf\xe9 \x1b[1mok")])
    output, exact = read(sink)[1:3]
    assert output == Event(0.5, "o", "caf� \x1b[1mok")
    assert exact == Event(0.5, "B", "Y2Fm6SAbWzFtb2s=")


def test_a_binary_stream_is_silence_and_bytes() -> None:
    sink = record([(0.5, b"\0\1\2")], terminal=False)
    assert read(sink)[1:3] == [Event(0.5, "o", ""), Event(0.5, "B", "AAEC")]
    assert streams(sink)["stdout"] == b"\0\1\2"


def test_stderr_is_announced() -> None:
    sink = record([(0.5, (b"oops\n", "stderr")), (0.1, b"ok\n")], terminal=False)
    assert read(sink)[1:4] == [Event(0.5, "E", ""), Event(0.5, "o", "oops\n"), Event(0.6, "o", "ok\n")]


def test_a_stream_past_its_limit_is_counted_and_hashed() -> None:
    sink = record([(0.1, b"x" * 10), (0.1, b"y" * 10)], terminal=False, stream_limit=15)
    assert streams(sink)["stdout"] == b"x" * 10 + b"y" * 5
    counts = [json.loads(event.data) for event in read(sink) if event.code == events.COUNT]
    whole = hashlib.sha256(b"x" * 10 + b"y" * 10).hexdigest()
    assert {"stream": "stdout", "bytes": 20, "sha256": whole} in counts
    assert [event for event in read(sink) if event.code == events.MARKER]


def test_of_a_stream_that_passes_only_a_part_may_be_kept() -> None:
    """What is left out takes no room, and is kept after all where it turns out to be needed."""
    sink = Memory()
    recording = recorder(sink, terminal=False, stream_limit=10)
    recording.passed(1, b"head" + b"x" * 100, b"head", "stdout")
    recording.passed(2, b"x" * 100, b"", "stdout")
    recording.passed(3, b"", b"xx", "stdout")  # of what was left out
    recording.transfer(4, {"path": "/a", "action": "upload"})
    recording.output(5, b"12345678")
    recording.close(6, WALL_MS, Outcome("exit", status=0))
    assert streams(sink)["stdout"] == b"headxx1234"
    said = [(event.code, event.data) for event in read(sink) if event.code in ("F", "m")]
    assert said == [
        ("F", '{"action":"upload","path":"/a"}'),
        ("m", "stdout: from here on counted and hashed, not kept"),
    ]
    everything = b"head" + b"x" * 200 + b"12345678"
    counted = next(json.loads(e.data) for e in read(sink) if e.code == "C" and '"stdout"' in e.data)
    assert counted == {"stream": "stdout", "bytes": 212, "sha256": hashlib.sha256(everything).hexdigest()}


def test_a_terminal_is_never_cut_short() -> None:
    sink = record([(0.1, b"x" * 10), (0.1, b"y" * 10)], stream_limit=15)
    assert streams(sink)["stdout"] == b"x" * 10 + b"y" * 10


def test_input_is_counted_and_kept_only_where_asked() -> None:
    sink = Memory()
    recording = recorder(sink)
    recording.input(0, b"secret\r", keep=False)
    recording.input(1000, b"ls \xff\r", keep=True)
    recording.close(2000, WALL_MS, Outcome("exit", status=3))
    assert b"secret" not in sink.text
    assert [event.data for event in read(sink) if event.code == "i"] == ["ls �\r"]
    assert {"stream": "stdin", "bytes": 12} in [json.loads(e.data) for e in read(sink) if e.code == "C"]
    assert Event(0.002, "x", "3") in read(sink)
    assert streams(sink)["stdout"] == b""


def test_seals_come_by_size_and_by_time_and_not_while_idle() -> None:
    sink = Memory()
    recording = recorder(sink)
    recording.tick(CHUNK_US, WALL_MS + CHUNK_US // 1000)
    assert sink.text.count(b'"S"') == 1
    assert recording.due(CHUNK_US) is None
    recording.tick(10 * CHUNK_US, WALL_MS + 10 * CHUNK_US // 1000)
    assert sink.text.count(b'"S"') == 1, "nothing happened, nothing to seal"
    recording.output(10 * CHUNK_US, b"x" * CHUNK_BYTES)
    assert sink.text.count(b'"S"') == 2


def test_the_wall_clock_is_noted_at_the_start_each_minute_and_when_it_jumps() -> None:
    def clocks(sink: Memory) -> list[str]:
        return [event.data for event in read(sink) if event.code == events.WALL]

    sink = Memory()
    recording = recorder(sink)
    assert clocks(sink) == ["2025-11-23T09:14:14.123Z"]
    recording.tick(CHUNK_US, WALL_MS + CHUNK_US // 1000)
    recording.output(MINUTE_US + 1, b"x")
    recording.tick(MINUTE_US + 1, WALL_MS + 60_000)
    assert clocks(sink)[1:] == ["2025-11-23T09:15:14.123Z"]
    recording.tick(MINUTE_US + 2, WALL_MS - 3_540_000)
    assert clocks(sink)[2:] == ["2025-11-23T08:15:14.123Z"]
