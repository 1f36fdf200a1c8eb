"""Turns what happens in a session into the lines of its recording. Knows no file: lines go to a sink.

Each method takes the time in microseconds since the start (`us`), never decreasing, and returns only when
the sink has the lines: what `output` returns may be shown. One event, one write.
"""

from __future__ import annotations

import hashlib
from binascii import b2a_base64
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal, Protocol

import msgspec

from sshrec.errors import RecordingError
from sshrec.recording import asciicast, events
from sshrec.recording.seal import CHUNK_BYTES, CHUNK_US, Chain, Outcome

HOLD_US = 50_000  # how long the first bytes of a split character may wait for the rest
MINUTE_US = 60_000_000
CLOCK_STEP_MS = 2_000  # a wall clock this far off the monotonic one has been stepped

Stream = Literal["stdin", "stdout", "stderr"]
Data = bytes | memoryview

_encode = msgspec.json.Encoder().encode


class Sink(Protocol):
    """Where a recording goes."""

    def write(self, data: bytes, /) -> None:
        """Append all of `data`, or raise RecordingError with nothing of it kept."""

    def sync(self) -> None:
        """Ask for what was written to become durable soon; does not wait."""


class Recorder:
    """One recording, being written.

    `terminal`: its output is a terminal's (one stream, kept whole); else streams of a command, kept up to
    `stream_limit` bytes each, counted and hashed whole. `without`: asked when the sink fails; what it returns is
    the marker that says so, and the session goes on, counted and not kept; what it raises passes through, as the
    sink's error does where there is no `without`.
    """

    def __init__(
        self,
        sink: Sink,
        session: str,
        header: bytes,
        *,
        wall_ms: int,
        terminal: bool,
        stream_limit: int,
        without: Callable[[RecordingError], str] | None = None,
    ) -> None:
        self._sink = sink
        self._terminal = terminal
        self._limit = stream_limit
        self._without = without
        self._lapsed = False
        self._chain = Chain(session)
        self._open_since: int | None = None
        self._held: dict[Stream, bytes] = {}
        self._held_since: dict[Stream, int] = {}
        self._wall_start = wall_ms
        self._wall_step = 0
        self._wall_next = MINUTE_US
        self.counts: dict[Stream, int] = {"stdin": 0, "stdout": 0, "stderr": 0}
        self._left_out: dict[Stream, int] = dict.fromkeys(self.counts, 0)  # of them, whatever room there was
        self._hashes = {} if terminal else {stream: hashlib.sha256() for stream in self.counts}
        first = header + asciicast.event_line(0, events.WALL, asciicast.rfc3339(wall_ms))
        self._put(0, first, 2)
        sink.sync()

    @property
    def head(self) -> tuple[int, str]:
        """Number of the next seal, and the SHA-256 of the seal line before it: the head of the chain."""
        return self._chain.n, self._chain.prev

    def output(self, us: int, data: Data, stream: Stream = "stdout") -> Data:
        """Record what the target sent; returns what of it (and of what was held before) may be shown.

        A character split between two reads is held back, from recording and display alike, until the rest
        of it comes or `tick` gives up waiting.
        """
        if stream in self._held:
            data = self._held.pop(stream) + bytes(data)
        if not self._terminal:
            room = self._room(stream)
            if room < len(data):
                self._fill(us, data, stream, room)
                self._account(stream, data)
                return data
        if not self._terminal and _binary(data):
            self._exact(us, data, stream)
            self._account(stream, data)
            return data
        try:
            text = str(data, "utf-8")
        except UnicodeDecodeError:
            tail = _split_tail(data)
            if tail:
                self._held[stream] = bytes(data[-tail:])
                self._held_since[stream] = us
                data = data[:-tail]
                if not data:
                    return data
            self._output(us, data, stream)
        else:
            self._event(us, text, stream)
        self._account(stream, data)
        return data

    def passed(self, us: int, data: Data, kept: Data, stream: Stream) -> None:
        """Count and hash what a command's stream had, and of it keep only that, as far as there is room.

        `kept` without `data`: what was left out before.
        """
        room = self._room(stream)
        if room < len(kept):
            self._fill(us, kept, stream, room)
        elif kept:
            self._output(us, kept, stream)
        self._left_out[stream] += len(data) - len(kept)
        self._account(stream, data)

    def _room(self, stream: Stream) -> int:
        return self._limit + self._left_out[stream] - self.counts[stream]

    def _fill(self, us: int, data: Data, stream: Stream, room: int) -> None:
        """More than there is room for."""
        if room > 0:
            self._output(us, data[:room], stream)
        if room >= 0:
            self.mark(us, f"{stream}: from here on counted and hashed, not kept")

    def _account(self, stream: Stream, data: Data) -> None:
        self.counts[stream] += len(data)
        if not self._terminal:
            self._hashes[stream].update(data)

    def _event(self, us: int, text: str, stream: Stream) -> None:
        line = b'[%d.%06d,"o",%b]\n' % (us // 1_000_000, us % 1_000_000, _encode(text))
        if stream == "stderr":
            self._put(us, asciicast.event_line(us, events.STDERR, "") + line, 2)
        else:
            self._put(us, line, 1)

    def _output(self, us: int, data: Data, stream: Stream) -> None:
        """An output event whose text alone may not tell its bytes: they follow it."""
        if not self._terminal and _binary(data):
            self._exact(us, data, stream)
            return
        text = str(data, "utf-8", "replace")
        lines = asciicast.event_line(us, events.OUTPUT, text)
        count = 1
        if text.encode() != data:
            lines += asciicast.event_line(us, events.BYTES, b2a_base64(data, newline=False).decode())
            count += 1
        if stream == "stderr":
            lines = asciicast.event_line(us, events.STDERR, "") + lines
            count += 1
        self._put(us, lines, count)

    def _exact(self, us: int, data: Data, stream: Stream) -> None:
        """A read of a stream that is no text: an empty output event, and its bytes. (Base64 needs no escapes.)"""
        time = b"%d.%06d" % (us // 1_000_000, us % 1_000_000)
        lines = b'[%b,"o",""]\n[%b,"B","%b"]\n' % (time, time, b2a_base64(data, newline=False))
        if stream == "stderr":
            self._put(us, asciicast.event_line(us, events.STDERR, "") + lines, 3)
        else:
            self._put(us, lines, 2)

    def input(self, us: int, data: Data, *, keep: bool, kept: Data | None = None) -> None:
        """Count what the person typed or sent; keep it as an event only where a role asks.

        `kept`: what of it is kept then, if not all.
        """
        self._account("stdin", data)
        data = data if kept is None else kept
        if keep and data:
            text = str(data, "utf-8", "replace")
            lines = asciicast.event_line(us, events.INPUT, text)
            count = 1
            if text.encode() != data:
                lines += asciicast.event_line(us, events.BYTES, b2a_base64(data, newline=False).decode())
                count = 2
            self._put(us, lines, count)

    def resize(self, us: int, columns: int, rows: int) -> None:
        """The terminal has this size from now on."""
        self._put(us, asciicast.event_line(us, events.RESIZE, f"{columns}x{rows}"), 1)

    def transfer(self, us: int, fact: Mapping[str, Any]) -> None:
        """What has come of a file: sshrec-recording(5)."""
        self._put(us, asciicast.event_line(us, events.FILE, asciicast.canonical(fact)), 1)

    def mark(self, us: int, label: str) -> None:
        """Something a viewer should see."""
        self._put(us, asciicast.event_line(us, events.MARKER, label), 1)

    def due(self, us: int) -> int | None:
        """Microseconds from `us` until `tick` has something to do; None while there is nothing to wait for."""
        times = []
        if self._open_since is not None:
            times.append(self._open_since + CHUNK_US)
        times += [self._held_since[stream] + HOLD_US for stream in self._held]
        return max(0, min(times) - us) if times else None

    def tick(self, us: int, wall_ms: int) -> list[tuple[Stream, bytes]]:
        """Do what time asks for: give up on held bytes (returned, to be shown), note the clock, seal."""
        shown: list[tuple[Stream, bytes]] = []
        for stream in [stream for stream in self._held if us - self._held_since[stream] >= HOLD_US]:
            shown += self.release(us, stream)
        step = wall_ms - self._wall_start - us // 1000
        stepped = abs(step - self._wall_step) > CLOCK_STEP_MS
        if stepped or (us >= self._wall_next and self._open_since is not None):
            self._wall_step = step
            self._wall_next = us + MINUTE_US
            self._put(us, asciicast.event_line(us, events.WALL, asciicast.rfc3339(wall_ms)), 1)
        if self._open_since is not None and us - self._open_since >= CHUNK_US:
            self._seal(us, wall_ms)
        return shown

    def release(self, us: int, stream: Stream | None = None) -> list[tuple[Stream, bytes]]:
        """Record held bytes (of one stream, or of all) as they are; returns them, to be shown."""
        held: list[Stream] = [name for name in self._held if stream in (None, name)]
        shown = [(name, self._held.pop(name)) for name in held]
        for name, data in shown:
            self._output(us, data, name)
            self._account(name, data)
        return shown

    def lapse(self, us: int, error: RecordingError) -> None:
        """The sink has failed: keep nothing from here on, where the session may go on so; else raise."""
        if self._without is None:
            raise error
        label = self._without(error)
        self._lapsed = True
        self._open_since = None
        with suppress(RecordingError):  # then the end of the recording says it, or the audit log alone
            self._append(asciicast.event_line(us, events.MARKER, label), 1)
            self._close_chunk(us, self._wall_at(us), None)

    def close(self, us: int, wall_ms: int, outcome: Outcome) -> list[tuple[Stream, bytes]]:
        """Write what the end has to say and the last seal; returns held bytes, to be shown."""
        shown = self.release(us)
        lines = b""
        count = 0
        for stream, number in self.counts.items():
            if self._terminal and stream == "stderr":
                continue
            fact: dict[str, object] = {"stream": stream, "bytes": number}
            if not self._terminal:
                fact["sha256"] = self._hashes[stream].hexdigest()
            lines += asciicast.event_line(us, events.COUNT, asciicast.canonical(fact))
            count += 1
        if outcome.status is not None:
            lines += asciicast.event_line(us, events.EXIT, str(outcome.status))
            count += 1
        self._append(lines, count)
        self._close_chunk(us, wall_ms, outcome)
        return shown

    def _put(self, us: int, lines: bytes, count: int) -> None:
        if self._lapsed:
            return
        try:
            self._append(lines, count)
        except RecordingError as error:
            self.lapse(us, error)
            return
        if self._open_since is None:
            self._open_since = us
        if self._chain.bytes >= CHUNK_BYTES:
            self._seal(us, self._wall_at(us))

    def _append(self, lines: bytes, count: int) -> None:
        self._sink.write(lines)
        self._chain.add(lines, count)

    def _seal(self, us: int, wall_ms: int) -> None:
        try:
            self._close_chunk(us, wall_ms, None)
        except RecordingError as error:
            self.lapse(us, error)

    def _close_chunk(self, us: int, wall_ms: int, end: Outcome | None) -> None:
        line = self._chain.seal(us, wall_ms, end)
        self._sink.write(line)
        self._chain.close(line)
        self._open_since = None
        self._sink.sync()

    def _wall_at(self, us: int) -> int:
        return self._wall_start + self._wall_step + us // 1000


def _binary(data: Data) -> bool:
    """Whether a read of a command's stream is no text: it has a zero byte."""
    return b"\0" in bytes(data)


def _split_tail(data: Data) -> int:
    """How many bytes at the end (0 to 3) begin a UTF-8 character that is not complete yet."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            width = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF8 else 0
            return back if width > back else 0
        if byte < 0x80:
            return 0
    return 0
