"""Reads recordings: asciicast v1, v2 and v3, plain or packed, from a file or a stream, whoever wrote them.

Trusts nothing it reads: lines, times, sizes and nesting are bounded, and what is wrong is a DataError that
names the line. Knows no store and no clock, and checks no hash.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import stat
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple, Self, cast

import msgspec

from sshrec.errors import DataError, NotFound, describe
from sshrec.recording import events, packing
from sshrec.recording.asciicast import FALLBACK
from sshrec.recording.encryption import HINT, MAGIC, Decrypted, NoIdentity
from sshrec.recording.events import Event
from sshrec.recording.identity import Identities
from sshrec.recording.packing import LINE_MAX
from sshrec.session import Winsize

TIME_MAX = 10 * 365 * 86400.0  # seconds; a recording of ten years is a mistake or an attack
COLUMNS_MAX, ROWS_MAX = 500, 200  # so that nobody allocates a screen by a recording's word

_HEADER_MAX = 1024 * 1024
_BUFFER = 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile("[\ud800-\udfff]")
_SIZE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})")
_KNOWN = frozenset({events.OUTPUT, events.INPUT, events.RESIZE, events.MARKER})
_decode = msgspec.json.Decoder(Event).decode


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a recording. `size` is clamped to 500x200 at most; `facts` are ours (key `sshrec`)."""

    version: int
    size: Winsize
    timestamp: int | None = None
    title: str | None = None
    command: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Summary:
    """What is known of a recording without reading its middle.

    `duration`: time of its last event, in seconds; `end`: the outcome that the last seal carries, None where
    the recording is not finished; `bytes`: size of the file.
    """

    header: Header
    duration: float
    end: Mapping[str, Any] | None
    bytes: int


class Output(NamedTuple):
    """Bytes that the target sent, exactly."""

    time: float
    stream: Literal["stdout", "stderr"]
    data: bytes


class Recording:
    """One recording, being read: its header, then, by iterating once, its events.

    Times come out in seconds since the start, finite and never decreasing. After the last event `torn` tells
    whether the last line was cut short, and `end` has the outcome of the last seal, if that closed the file.
    """

    header: Header

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.torn = False
        self.end: Mapping[str, Any] | None = None
        self._line = 1
        self._file = file
        self._events = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Event]:
        return self._events

    @property
    def complete(self) -> bool:
        """After the last event: whether the recording was read to its proper end.

        Only ours can tell, by their last seal; of others a torn line is all there is to see.
        """
        return not self.torn and (self.end is not None or not self.header.facts)

    def _open(self) -> Iterator[Event]:
        first = self._read(_BOM)
        if not first:
            raise DataError(f"{self.name}: empty, not a recording")
        try:
            header = _loads(first)
        except ValueError:
            header = None
        if header is None and first.lstrip().startswith(b"{"):
            # Version 1 is one JSON object over any number of lines.
            try:
                header = _loads(first + self._file.read(LINE_MAX))
            except ValueError:
                header = None
        if not isinstance(header, dict):
            raise DataError(f"{self.name}: line 1: not the header of an asciicast")
        version = header.get("version")
        if version == 1:
            self.header = _header(header, header)
            return self._from_v1(header)
        if version == 2:
            self.header = _header(header, header)
            return self._from_lines(intervals=False)
        if version == 3:
            term = header.get("term")
            term = term if isinstance(term, dict) else {}
            self.header = _header(header, {"width": term.get("cols"), "height": term.get("rows")})
            return self._from_lines(intervals=True)
        raise DataError(f"{self.name}: line 1: asciicast version {str(version)[:20]!r} is not known")

    def _read(self, strip: bytes = b"") -> bytes:
        try:
            line = self._file.readline(LINE_MAX + 1)
        except DataError as error:  # of the unpacking
            raise DataError(f"{self.name}: {error}") from error
        except OSError as error:
            raise DataError(f"{self.name}: {describe(error)}") from error
        if len(line) > LINE_MAX:
            raise DataError(f"{self.name}: line {self._line}: longer than {LINE_MAX >> 20} MiB")
        return line.removeprefix(strip)

    def _from_lines(self, *, intervals: bool) -> Iterator[Event]:
        last = 0.0
        seal: str | None = None
        while line := self._read():
            self._line += 1
            try:
                event = _decode(line)
            except (ValueError, RecursionError, msgspec.MsgspecError):
                odd = self._odd(line)
                if odd is None:
                    continue
                event = odd
            time = event.time
            if intervals:
                time = last + (time if time > 0 else 0.0)
            if time != event.time or not last <= time <= TIME_MAX:
                time = min(time, TIME_MAX) if time > last else last  # NaN is not greater
                event = Event(time, event.code, event.data)
            last = time
            seal = event.data if event.code == events.SEAL else None
            yield event
        if seal is not None and not self.torn:
            with contextlib.suppress(msgspec.MsgspecError, RecursionError):
                end = msgspec.json.decode(seal, type=dict[str, Any]).get("end")
                self.end = end if isinstance(end, dict) else None

    def _odd(self, line: bytes) -> Event | None:
        """The event of a line that is not plainly one; None for a line without any."""
        if not line.strip() or line.startswith(b"#"):
            return None
        try:
            return _event(_loads(line))
        except ValueError as error:
            if not line.endswith(b"\n"):
                self.torn = True
                return None
            raise DataError(f"{self.name}: line {self._line}: {error}") from error

    def _from_v1(self, header: Mapping[str, Any]) -> Iterator[Event]:
        last = 0.0
        stdout = header.get("stdout")
        for n, frame in enumerate(stdout if isinstance(stdout, list) else ()):
            try:
                delay, data = frame
                event = _event([delay, events.OUTPUT, data])
            except (TypeError, ValueError) as error:
                raise DataError(f"{self.name}: frame {n}: not a delay and a text") from error
            last = min(last + max(event.time, 0.0), TIME_MAX) if event.time > 0 else last
            yield event._replace(time=last)


NO_IDENTITIES = Identities()


def open_path(path: Path, identities: Identities = NO_IDENTITIES) -> Recording:
    """Read a recording from a file, plain, packed or encrypted; NotFound or DataError say why that cannot be."""
    file = _regular(path)
    try:
        return open_stream(file, str(path), identities)
    except BaseException:
        file.close()
        raise


def open_stream(file: BinaryIO, name: str, identities: Identities = NO_IDENTITIES) -> Recording:
    """Read a recording from an open file, pipe or socket, in any form; `name` is what errors call it."""
    buffered = decrypted(file, name, identities)
    if _begins(buffered, name, packing.MAGIC):
        text = io.BufferedReader(packing.Unpacked(cast(BinaryIO, buffered)), _BUFFER)
        return Recording(cast(BinaryIO, text), name)
    return Recording(cast(BinaryIO, buffered), name)


def open_recording(path: Path, identities: Identities = NO_IDENTITIES) -> io.BufferedReader[Any]:
    """A recording's bytes as they were before it was encrypted: packed or plain, for `open_stream` and for copies.

    Of an encrypted one not seekable. NotFound, DataError (damage may show only when it is read), NoIdentity.
    """
    file = _regular(path)
    try:
        return decrypted(file, str(path), identities)
    except BaseException:
        file.close()
        raise


def decrypted(file: BinaryIO, name: str, identities: Identities = NO_IDENTITIES) -> io.BufferedReader[Any]:
    """What is in an open file, decrypted if it was encrypted. NoIdentity where no identity opens it."""
    buffered: io.BufferedReader[Any] = io.BufferedReader(cast(io.RawIOBase, file), _BUFFER)
    if not _begins(buffered, name, MAGIC):
        return buffered
    if not identities:
        raise NoIdentity(f"{name}: it is encrypted", hint=HINT)
    keys = identities.keys  # before anything of ours can be wrong with the file
    try:
        text: io.BufferedReader[Any] = io.BufferedReader(Decrypted(cast(BinaryIO, buffered), keys), _BUFFER)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    _begins(text, name, b"?")  # so that the wrong identity shows at once
    return text


def _begins(file: io.BufferedReader[Any], name: str, magic: bytes) -> bool:
    try:
        return file.peek(len(magic))[: len(magic)] == magic
    except DataError as error:
        raise type(error)(f"{name}: {error}", hint=error.hint) from error
    except OSError as error:
        raise DataError(f"{name}: {describe(error)}") from error


def _regular(path: Path) -> BinaryIO:
    """A file, opened for unbuffered reading; anything else (a FIFO would block, a device act) is refused."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"{path}: {describe(error)}") from error
    except OSError as error:
        raise DataError(f"{path}: {describe(error)}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DataError(f"{path}: not a regular file", hint="a recording from a pipe is read with: sshrec play -")
    return cast(BinaryIO, os.fdopen(fd, "rb", buffering=0))


def summary(path: Path) -> Summary:
    """Header, duration and outcome of one of our recordings, from its two ends."""
    with _regular(path) as raw, io.BufferedReader(cast(io.RawIOBase, raw)) as buffered:
        file = cast(BinaryIO, buffered)
        size = os.fstat(raw.fileno()).st_size
        try:
            if file.read(4) == packing.MAGIC:
                frames = packing.frames(file)
                if not frames:
                    raise DataError("empty, not a recording")
                header = first_line(file, frames[0])
                last = packing.last_line(io.BytesIO(packing.unpack(file, frames[-1])))
            else:
                file.seek(0)
                header, last = file.readline(_HEADER_MAX), packing.last_line(file)
            return replace(of_ends(header, last), bytes=size)
        except (DataError, ValueError, OSError) as error:
            reason = describe(error) if isinstance(error, OSError) else str(error)
            raise DataError(f"{path}: {reason}") from error


def first_line(packed: BinaryIO, frame: packing.Frame) -> bytes:
    """The header line of a packed recording, by its first frame; b"" where that has none."""
    for size in (16 * 1024, _HEADER_MAX):  # mostly the first is enough, and cheap
        line, newline, _ = packing.head(packed, frame, size).partition(b"\n")
        if newline:
            return line + newline
    return b""


def of_ends(first: bytes, last: bytes) -> Summary:
    """What the first and the last line say; `bytes` is theirs. DataError or ValueError where they are not ours."""
    header = _loads(first) if first.endswith(b"\n") else None
    if not isinstance(header, dict) or header.get("version") != 2:
        raise DataError("no header of ours")
    time = 0.0
    if last != first:
        time = _event(_loads(last)).time
        time = min(time, TIME_MAX) if time > 0 else 0.0
    return Summary(_header(header, header), time, packing.outcome(last), len(first) + len(last))


def output(recorded: Iterable[Event]) -> Iterator[Output]:
    """The exact bytes of every output event, by stream; DataError where an exact-bytes event is damaged."""
    stream: Literal["stdout", "stderr"] = "stdout"
    held: Output | None = None  # until the next event has told whether its text is its bytes
    for event in recorded:
        if held is not None:
            if event.code == events.BYTES:
                try:
                    held = held._replace(data=a2b_base64(event.data, strict_mode=True))
                except (Base64Error, ValueError) as error:
                    raise DataError(f"exact bytes at {event.time:.6f} s are not base64") from error
            yield held
            held = None
        if event.code == events.STDERR:
            stream = "stderr"
        elif event.code == events.OUTPUT:
            held = Output(event.time, stream, event.data.encode())
            stream = "stdout"
    if held is not None:
        yield held


def winsize(data: str) -> Winsize | None:
    """The size that a resize event's data names, clamped; None where it names none."""
    match = _SIZE.fullmatch(data)
    return _clamped(int(match[1]), int(match[2])) if match else None


def _clamped(columns: object, rows: object) -> Winsize:
    return Winsize(_side(columns, FALLBACK[0], COLUMNS_MAX), _side(rows, FALLBACK[1], ROWS_MAX))


def _side(value: object, fallback: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return fallback
    return min(value, most)


def _header(raw: Mapping[str, Any], size: Mapping[str, Any]) -> Header:
    """A header of what is usable in the raw one; the rest is passed over, as players do."""
    timestamp, env, facts = raw.get("timestamp"), raw.get("env"), raw.get("sshrec")
    return Header(
        version=raw["version"],
        size=_clamped(size.get("width"), size.get("height")),
        timestamp=int(timestamp) if isinstance(timestamp, int | float) and math.isfinite(timestamp) else None,
        title=_text(raw.get("title")),
        command=_text(raw.get("command")),
        env={k: v for k, v in env.items() if isinstance(v, str)} if isinstance(env, dict) else {},
        facts=facts if isinstance(facts, dict) else {},
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _event(raw: object) -> Event:
    """An event of a decoded line, forgiving what other writers do; ValueError where there is none in it."""
    if not isinstance(raw, list) or len(raw) < 3:
        raise ValueError("not an event")
    time, code, data = raw[:3]
    if isinstance(time, bool) or not isinstance(time, int | float) or not isinstance(code, str):
        raise ValueError("not an event")
    if not isinstance(data, str):
        if code in _KNOWN:
            raise ValueError("an event without text")
        data = json.dumps(data)  # of a code that nobody here knows
    try:
        return Event(float(time), code, data)
    except OverflowError:
        return Event(math.inf if time > 0 else -math.inf, code, data)


def _loads(line: bytes) -> Any:
    """JSON as lenient as it comes: NaN, lone surrogates (as U+FFFD), bytes that are no UTF-8; else ValueError."""
    try:
        return _whole(json.loads(line.decode("utf-8", "replace").removeprefix("\ufeff")))
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg}") from error


def _whole(value: Any) -> Any:
    """The value without lone surrogates, which no UTF-8 can carry."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return value
