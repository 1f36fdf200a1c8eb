"""A recording in other forms, for other programs: text, exact bytes, JSON lines, or as it is. Writes nothing.

Each is an iterator of pieces in constant memory.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from sshrec.errors import DataError
from sshrec.playback.transcript import Transcript
from sshrec.recording import events, packing, reader
from sshrec.recording.events import Event
from sshrec.recording.identity import Identities
from sshrec.recording.reader import Recording
from sshrec.session import printable

Stream = Literal["stdout", "stderr"]

_BUFFER = 1024 * 1024
_PIECE = 64 * 1024


class Copied(Recording):
    """A recording that is read, and of which every line can be had as it stood there; kept until it is."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._lines = _Lines(file)
        super().__init__(cast(BinaryIO, self._lines), name)

    def lines(self) -> bytes:
        """The lines since the last call."""
        taken = b"".join(self._lines.read_so_far)
        self._lines.read_so_far.clear()
        return taken


class _Lines:
    """A file to read from, with what was read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read_so_far: list[bytes] = []

    def readline(self, size: int = -1) -> bytes:
        self.read_so_far.append(self._file.readline(size))
        return self.read_so_far[-1]

    def read(self, size: int = -1) -> bytes:
        self.read_so_far.append(self._file.read(size))
        return self.read_so_far[-1]

    def close(self) -> None:
        self._file.close()


def open_path(path: Path, identities: Identities) -> Copied:
    """A recording in a file, plain, packed or encrypted; as reader.open_path."""
    return _opened(reader.open_recording(path, identities), str(path))


def open_stream(file: BinaryIO, name: str, identities: Identities) -> Copied:
    """The same from an open file; as reader.open_stream."""
    return _opened(reader.decrypted(file, name, identities), name)


def _opened(file: io.BufferedReader[Any], name: str) -> Copied:
    try:
        if file.peek(len(packing.MAGIC)).startswith(packing.MAGIC):
            file = io.BufferedReader(packing.Unpacked(cast(BinaryIO, file)), _BUFFER)
        return Copied(cast(BinaryIO, file), name)
    except BaseException:
        file.close()
        raise


def as_recorded(source: Copied) -> Iterator[bytes]:
    """The asciicast itself, every line as it was written, the seals too."""
    for _ in source:
        yield source.lines()
    yield source.lines()


def as_text(source: Recording) -> Iterator[bytes]:
    """What was to be read: output without control sequences, lines as they were edited; markers in brackets."""
    terminal = source.header.facts.get("terminal") is not False
    transcript = Transcript(source.header.size.columns if terminal else None)
    silent, binary = False, 0  # the event before was output without text, whose bytes may follow
    for event in source:
        if binary and event.code in (events.OUTPUT, events.MARKER) and event.data:
            yield transcript.note(f"{binary} bytes that are not text").encode()
            binary = 0
        if event.code == events.OUTPUT:
            yield transcript.feed(event.data).encode()
        elif event.code == events.MARKER:
            yield transcript.note(printable(event.data, 1000)).encode()
        elif event.code == events.BYTES and silent:
            binary += len(event.data) // 4 * 3 - event.data[-2:].count("=")
        silent = event.code == events.OUTPUT and not event.data
    if binary:
        yield transcript.note(f"{binary} bytes that are not text").encode()
    yield transcript.finish().encode()


class Bytes:
    """The exact bytes of a stream: to be iterated once, and then `missing` says how many are not recorded."""

    def __init__(self, source: Recording, stream: Stream) -> None:
        self._source, self._stream = source, stream
        self._counted: dict[str, Any] = {}
        self.missing = 0

    def __iter__(self) -> Iterator[bytes]:
        """DataError where the recording is damaged, or these are not the bytes that were counted."""
        digest, size = hashlib.sha256(), 0
        for output in reader.output(self._watched()):
            if output.stream == self._stream:
                digest.update(output.data)
                size += len(output.data)
                yield output.data
        counted = self._counted.get(self._stream)
        if counted is None:
            return
        total = counted.get("bytes")
        self.missing = total - size if type(total) is int else 0
        wrong = not self.missing and counted.get("sha256", digest.hexdigest()) != digest.hexdigest()
        if wrong or self.missing < 0:
            raise DataError(f"{self._source.name}: {self._stream} is not what was counted at its end")

    def _watched(self) -> Iterator[Event]:
        for event in self._source:
            if event.code == events.COUNT and (fact := _object(event.data)) is not None:
                self._counted[str(fact.get("stream"))] = fact
            yield event


def as_json(source: Recording) -> Iterator[bytes]:
    """A JSON object a line: the header, then each event with its `time`, RFC 3339 in UTC, and `seconds`.

    Exact bytes are base64 in `bytes`, where the text cannot be them. Seals are left out.
    """
    header, clock = source.header, _Clock(source)
    size = {"columns": header.size.columns, "rows": header.size.rows}
    facts = dict(header.facts) or {"title": header.title, "command": header.command}
    yield _line({"event": "header", "time": clock.at(0.0), **size, "session": facts})
    stream, held = "stdout", None
    for event in source:
        if held is not None:
            if event.code == events.BYTES:
                held["bytes"] = event.data
            yield _line(held)
            held = None
        if event.code == events.STDERR:
            stream = "stderr"
        elif event.code == events.WALL:
            clock.set(event)
        elif (name := _NAMES.get(event.code)) is not None:
            shown = {"event": name, "time": clock.at(event.time), "seconds": round(event.time, 6)}
            shown |= _data(event, stream)
            if event.code == events.OUTPUT:
                held, stream = shown, "stdout"  # until the next event has told whether its text is its bytes
            else:
                yield _line(shown)
    if held is not None:
        yield _line(held)


_NAMES = {
    events.OUTPUT: "output",
    events.INPUT: "input",
    events.RESIZE: "resize",
    events.MARKER: "marker",
    events.EXIT: "exit",
    events.FILE: "file",
    events.COUNT: "count",
}


def _data(event: Event, stream: str) -> dict[str, Any]:
    if event.code == events.OUTPUT:
        return {"stream": stream, "text": event.data}
    if event.code == events.RESIZE and (size := reader.winsize(event.data)) is not None:
        return {"columns": size.columns, "rows": size.rows}
    if event.code in (events.FILE, events.COUNT) and (fact := _object(event.data)) is not None:
        return {"fact": fact}
    if event.code == events.EXIT:
        with suppress(ValueError):
            return {"status": int(event.data[:11])}
    return {"text": event.data}


class _Clock:
    """Turns a recording's seconds into times, by the last that the recorder read off the wall."""

    def __init__(self, source: Recording) -> None:
        self._wall: datetime | None = None
        self._seconds = 0.0
        with suppress(ValueError, OverflowError, OSError):
            if source.header.timestamp is not None:
                self._wall = datetime.fromtimestamp(source.header.timestamp, UTC)

    def set(self, event: Event) -> None:
        with suppress(ValueError):
            wall = datetime.fromisoformat(event.data)
            if wall.tzinfo is not None:
                self._wall, self._seconds = wall, event.time

    def at(self, seconds: float) -> str | None:
        if self._wall is None:
            return None
        try:
            moment = (self._wall + timedelta(seconds=seconds - self._seconds)).astimezone(UTC)
        except OverflowError:
            return None
        return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _line(shown: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(shown, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"the {shown['event']} at {shown['time']} has what JSON cannot carry") from error
    return text.encode() + b"\n"


def pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same in pieces that are worth a write."""
    held: list[bytes] = []
    size = 0
    for part in parts:
        held.append(part)
        size += len(part)
        if size >= _PIECE:
            yield b"".join(held)
            held.clear()
            size = 0
    if held:
        yield b"".join(held)
