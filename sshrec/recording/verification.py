"""Proves a recording by its seals: a file in, a verdict out. Trusts nothing it reads, in constant memory.

Knows no name, lock or clock, and no audit log: whether a whole chain was made anew, or a tail cut off with what
would show it, only the log can tell, which has the heads of the chain.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO, cast

import msgspec

from sshrec.errors import DataError, NotFound, describe
from sshrec.recording import encryption
from sshrec.recording.encryption import Decrypted, Digesting, NoIdentity
from sshrec.recording.identity import Identities
from sshrec.recording.packing import MAGIC, RATIO_MAX, UNPACKED_MAX
from sshrec.recording.seal import CHUNK_BYTES, Chain, Outcome, read_seal
from sshrec.session import SESSION_ID, printable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# No line of ours comes near: a read is 64 KiB, which JSON makes six times that at most.
LINE_MAX = 8 * 1024 * 1024
_HEADER_MAX = 1024 * 1024
_SEAL_MAX = 64 * 1024
_CHUNK_MAX = CHUNK_BYTES + 2 * LINE_MAX  # a chunk is closed by the write that fills it
_BLOCK = 1024 * 1024
_PACKED_BLOCK = 128 * 1024
_WINDOW_LOG = 23  # 8 MiB: more than any level that is not "ultra" asks for

# How each line but header and seals begins, and goes on where its data is not anybody's, as asciicast.py and
# recorder.py write it; all end with _LINE_END. That data is valid JSON is not looked at: the hash vouches for it.
_LINE = (
    rb'\[[0-9]{1,9}+\.[0-9]{6},"(?:'
    rb'[oimF]","'
    rb'|B","[A-Za-z0-9+/]*+={0,2}"\]\n'
    rb'|E",""\]\n'
    rb'|W","[0-9T:.-]++Z"\]\n'
    rb'|r","[0-9]{1,5}x[0-9]{1,5}"\]\n'
    rb'|x","-?[0-9]{1,10}"\]\n'
    rb'|C","\{\\"bytes\\":[0-9]++,\\"s'
    rb")"
)
_LINE_END = b'"]\n'
_FIRST = re.compile(_LINE)
# Between two lines: the one before does not end, or the one after does not begin, as it should. A newline comes
# first because memchr(3) finds those.
_ODD = re.compile(rb'\n(?:(?<!"\]\n)|(?!' + _LINE + rb"|\Z))")
_SEAL = re.compile(rb'\[([0-9]{1,9})\.([0-9]{6}),"S",".*"\]\n')
# What a line may look like that was cut off: everything up to any of its bytes but the newline.
_TORN = re.compile(rb'\[[0-9]{0,9}\.?[0-9]{0,6},?"?[A-Za-z]?"?,?(?:"(?:[^"\\]++|\\.)*+\\?(?:"\]?)?)?', re.DOTALL)
_HEADER = b'{"version":2,"width":'
_NOT_KEPT = b': from here on counted and hashed, not kept"]\n'  # recorder.py
_LIMITED = re.compile(rb',"m","(stdin|stdout|stderr)\Z')
_LIMITED_MAX = 16

# https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md
_TABLE = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")
_SKIPPABLE, _SEEKABLE = 0x184D2A5E, 0x8F92EAB1

NO_IDENTITIES = Identities()
_SUFFIXES = ("cast", "cast.zst", "cast.zst.age", "torn")
_NOT_OURS = "a line that the recorder does not write"
_UNWHOLE = frozenset({"aborted", "recording-failed", "enospc"})  # reasons of an end that is none


class State(StrEnum):
    """What a recording proves."""

    COMPLETE = "COMPLETE"  # from its header to its end it is what was sealed
    INCOMPLETE = "INCOMPLETE"  # what is there is what was sealed; the end, or a part, is not there
    BAD = "BAD"  # it is not what was sealed
    DELETED = "DELETED"  # it is not there, and its removal is in the audit log


@dataclass(frozen=True, slots=True)
class Problem:
    """What makes a recording BAD, and where.

    `chunk`: the number of the first chunk that does not hold; `offset`: bytes into the text, of that chunk or of
    the line at fault; `seconds`: time of the last seal that holds, so the recording is good up to there.
    """

    what: str
    chunk: int
    offset: int
    seconds: float

    def __str__(self) -> str:
        return f"chunk {self.chunk}, byte {self.offset}, after {self.seconds:.6f} s: {self.what}"


@dataclass(frozen=True, slots=True)
class Gap:
    """What makes a recording INCOMPLETE.

    `why`: `empty`, `torn`, `unfinished`, `stream-limit`, `unrecorded`, or the reason of an outcome that is no
    proper end (`aborted`, `recording-failed`, `enospc`); `detail`: a line for people.
    """

    why: str
    detail: str | None = None

    def __str__(self) -> str:
        return f"{self.why}: {self.detail}" if self.detail else self.why


# Of a session whose worker died before its header was durable: the audit log need not know it.
NO_HEADER = Gap("torn", "not even its header is whole")
EMPTY = Gap("empty")


@dataclass(frozen=True, slots=True)
class EncryptedFile:
    """The file of an encrypted recording. `opened`: whether an identity did, so that its content was looked at.

    `sealed`: whether the audit log has this very file; `facts`: SHA-256 of the file of its facts, "" where that is
    missing, None where nobody looked for it.
    """

    bytes: int
    sha256: str
    opened: bool
    sealed: bool = False
    facts: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came out.

    `session`: by the header where nobody knew better, None where that has none; `seals`: how many hold, from
    the first; `head`: SHA-256 of the last of them, as the audit log has it (before the first: of the session
    id); `sealed`: bytes of text that they cover, seals included; `unsealed`: bytes after them;
    `heads`: those that were asked for; `file`: of an encrypted recording.
    """

    state: State
    session: str | None
    seals: int = 0
    head: str | None = None
    sealed: int = 0
    unsealed: int = 0
    outcome: Outcome | None = None
    problem: Problem | None = None
    gap: Gap | None = None
    heads: Mapping[int, str] = field(default_factory=dict)
    file: EncryptedFile | None = None

    def head_at(self, n: int) -> str | None:
        """The head of the chain when `n` seals were written, as Recorder.head gives it.

        None where the recording does not go that far, and where `n` was not asked for.
        """
        return self.head if n == self.seals else self.heads.get(n)


class _Bad(Exception):
    """Ends the reading: `at` as Problem's `offset`, None for where the open chunk begins."""

    def __init__(self, what: str, at: int | None = None) -> None:
        super().__init__(what)
        self.at = at


def verify(
    file: BinaryIO,
    session: str | None = None,
    *,
    packed: bool | None = None,
    heads: Container[int] = (),
    progress: Callable[[int], object] | None = None,
) -> Verdict:
    """Read a recording, plain or packed, from where `file` stands to its end; never raises for what it reads.

    `session`: whose recording it should be, by its name, its place or the log; None: whose it says it is.
    `packed`: which form it should have, by its name; None: whichever it has.
    `heads`: the numbers for which `Verdict.head_at` should know the head. `progress` gets the bytes of each read.
    """
    reading = _Reading(session, heads)
    source = _Source(file, packed, progress or (lambda _bytes: None))
    rest = b""
    try:
        for block in source:
            end = block.rfind(b"\n") + 1
            if end:
                reading.feed(rest + block[:end])
                rest = block[end:]
            elif block:
                rest += block
                reading.bound(len(rest))
            else:
                reading.frame_ends(rest)
        return reading.verdict(rest, packed=source.packed)
    except _Bad as error:
        return reading.bad(str(error), error.at)
    except DataError as error:  # of the decryption
        return reading.bad(str(error))
    except OSError as error:
        return reading.bad(f"cannot be read: {describe(error)}")


def verify_path(
    path: Path,
    session: str | None = None,
    *,
    heads: Container[int] = (),
    progress: Callable[[int], object] | None = None,
    identities: Identities = NO_IDENTITIES,
) -> Verdict:
    """The same for a file; its name says which form it should have and, if it has one of ours, whose it should be.

    An encrypted one is read with the identities; where none of them opens it, it is INCOMPLETE, `encrypted`, and
    the verdict has its hash for the log to judge. What reading the identities raises passes through.

    NotFound where there is none. What is no regular file is BAD, and not read: a FIFO would block, a device act.
    """
    stem, _, suffix = path.name.partition(".")
    if session is None and SESSION_ID.fullmatch(stem) and suffix in _SUFFIXES:
        session = stem
    packed = True if path.suffix == ".zst" else False if path.suffix == ".cast" else None
    nobody = _Reading(session, ())
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"{path}: {describe(error)}") from error
    except OSError as error:
        return nobody.bad(f"cannot be read: {describe(error)}")
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return nobody.bad("it is no regular file")
    with open(fd, "rb", buffering=0) as file:
        encrypted = _is_encrypted(fd)
        if path.suffix == ".age" and not encrypted:
            return nobody.bad("it is not encrypted, and should be")
        if encrypted and packed is None:
            return _verify_encrypted(cast(BinaryIO, file), session, heads, progress, identities)
        verdict = verify(cast(BinaryIO, file), session, packed=packed, heads=heads, progress=progress)
    if path.suffix == ".torn" and verdict.problem and not verdict.seals:
        return replace(verdict, state=State.INCOMPLETE, problem=None, gap=NO_HEADER)  # with holes, and so no text
    return verdict


def _is_encrypted(fd: int) -> bool:
    try:
        return os.pread(fd, len(encryption.MAGIC), 0) == encryption.MAGIC
    except OSError:
        return False  # whoever reads on says why


def _verify_encrypted(
    file: BinaryIO,
    session: str | None,
    heads: Container[int],
    progress: Callable[[int], object] | None,
    identities: Identities,
) -> Verdict:
    raw = Digesting(file, progress)
    verdict, opened = None, False
    why = "without an identity or the audit log nothing proves it"
    nobody = _Reading(session, ())
    try:
        if identities:
            keys = identities.keys
            try:
                with Decrypted(cast(BinaryIO, raw), keys) as raw_text, io.BufferedReader(raw_text, _BLOCK) as text:
                    text.peek(1)
                    opened = True
                    verdict = verify(cast(BinaryIO, text), session, packed=True, heads=heads)
            except NoIdentity as error:
                why = str(error)
        while raw.read(_BLOCK):
            pass
    except DataError as error:
        verdict = nobody.bad(str(error))
    except OSError as error:
        verdict = nobody.bad(f"cannot be read: {describe(error)}")
    if verdict is None:
        verdict = Verdict(State.INCOMPLETE, session, gap=Gap("encrypted", why))
    return replace(verdict, file=EncryptedFile(raw.bytes, raw.sha256, opened))


class _Facts(msgspec.Struct):
    session: str


class _Header(msgspec.Struct):
    version: int
    sshrec: _Facts


_Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class _Seal(msgspec.Struct):
    n: _Number
    count: _Number
    bytes: _Number
    sha256: str
    prev: str
    wall: _Number
    end: Outcome | None = None


_decode_header = msgspec.json.Decoder(_Header).decode


class _Reading:
    """The chain as far as it was followed. Takes the text in whole lines."""

    def __init__(self, session: str | None, heads: Container[int]) -> None:
        self._session = session
        self._chain = Chain(session or "")
        self._begun = False
        self._wanted = heads
        self._heads: dict[int, str] = {}
        self._start = 0  # of the open chunk, in the text
        self._us = 0  # of the last seal
        self._outcome: Outcome | None = None
        self._limited: str | None = None
        self._keep()

    def feed(self, lines: bytes) -> None:
        """Take whole lines; _Bad where one of them cannot be."""
        at = 0
        if not self._begun:
            at = self._header(lines)
        while at < len(lines):
            if self._outcome is not None:
                raise _Bad("it goes on after its end")
            if _FIRST.match(lines, at):
                odd = _ODD.search(lines, at)
                end = odd.end() if odd else len(lines)
                if not lines.endswith(_LINE_END, at, end):
                    before = max(at, lines.rfind(b"\n", at, end - 1) + 1)
                    raise _Bad(_NOT_OURS, self._read + before - at)
                self._add(lines, at, end)
                at = end
            else:
                at = self._seal(lines, at)

    def bound(self, rest: int) -> None:
        """_Bad where a line that has so many bytes already is none of ours."""
        if rest > (LINE_MAX if self._begun else _HEADER_MAX):
            raise _Bad("a line of more bytes than the recorder writes", self._read)

    def frame_ends(self, rest: bytes) -> None:
        """_Bad where no chunk ends here."""
        if rest or self._chain.count:
            raise _Bad("a packed frame ends in the middle of a chunk")

    @property
    def _read(self) -> int:
        """Bytes of text that were taken."""
        return self._start + self._chain.bytes

    def _header(self, lines: bytes) -> int:
        end = lines.index(b"\n") + 1
        self.bound(end)
        try:
            found = _decode_header(lines[:end]).sshrec.session
        except (ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise _Bad("it has no header of ours") from error
        if self._session is None and SESSION_ID.fullmatch(found):
            self._session = found
            self._chain = Chain(found)
            self._keep()
        if found != self._session:
            raise _Bad(f"it is the recording of session {printable(found, 40)}")
        self._begun = True
        self._chain.add(lines[:end])
        return end

    def _add(self, lines: bytes, at: int, end: int) -> None:
        # Each of them ends and begins so: the longer needle is found four times as fast as a newline.
        self._chain.add(lines[at:end], 1 + lines.count(_LINE_END + b"[", at, end))
        if self._chain.bytes > _CHUNK_MAX:
            raise _Bad("a chunk of more bytes than the recorder makes one of")
        while self._limited is None and (at := lines.find(_NOT_KEPT, at, end)) >= 0:
            # Behind a quotation mark that is not escaped there is no text of anybody's.
            if match := _LIMITED.search(lines[max(0, at - _LIMITED_MAX) : at]):
                self._limited = match[1].decode()
            at += len(_NOT_KEPT)

    def _seal(self, lines: bytes, at: int) -> int:
        """Check the seal that is at `at`, and where the next line begins; _Bad where it does not hold."""
        end = lines.index(b"\n", at) + 1
        line = lines[at:end]
        match = _SEAL.fullmatch(line) if len(line) <= _SEAL_MAX else None
        if match is None:
            raise _Bad(_NOT_OURS, self._read)
        try:
            seal = msgspec.convert(read_seal(line), _Seal)
        except (DataError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise _Bad("its seal is damaged", self._read) from error
        us = int(match[1]) * 1_000_000 + int(match[2])
        # Byte for byte what the recorder would have written here, whatever else JSON lets one say the same by.
        if line != self._chain.seal(us, seal.wall, seal.end):
            raise _Bad(self._difference(seal))
        self._start = self._read + len(line)
        self._chain.close(line)
        self._us = us
        self._outcome = seal.end
        self._keep()
        return end

    def _difference(self, seal: _Seal) -> str:
        chain = self._chain
        if seal.n != chain.n:
            return f"seal {seal.n} stands where seal {chain.n} should"
        if seal.prev != chain.prev:
            return (
                "its seal follows another seal than the one before it"
                if chain.n
                else "its seal is another session's"
            )
        if seal.count != chain.count:
            return f"it has {chain.count} lines, and {seal.count} were sealed"
        if seal.bytes != chain.bytes:
            return f"it has {chain.bytes} bytes, and {seal.bytes} were sealed"
        if seal.sha256 != chain.expected()["sha256"]:
            return "its text is not what was sealed"
        return "its seal is not as the recorder writes it"

    def _keep(self) -> None:
        if self._chain.n in self._wanted:
            self._heads[self._chain.n] = self._chain.prev

    def verdict(self, rest: bytes, *, packed: bool) -> Verdict:
        """After the last whole line; `rest`: what follows it."""
        if self._outcome is not None and rest:
            raise _Bad("it goes on after its end")
        if packed and self._outcome is None:
            raise _Bad("it was packed without its end")
        if not self._begun:
            if not _HEADER.startswith(rest[: len(_HEADER)]):
                raise _Bad("it has no header of ours")
            return self._verdict(State.INCOMPLETE, gap=NO_HEADER if rest else EMPTY, unsealed=len(rest))
        unsealed = self._chain.bytes + len(rest)
        if self._outcome is None:
            if rest and not _TORN.fullmatch(rest):
                raise _Bad(_NOT_OURS, self._read)
            after = f"{unsealed} bytes after its last seal" if unsealed else "it ends with a seal"
            gap = Gap(
                "torn" if rest else "unfinished", f"it has no end, and {after}" if unsealed else "it has no end"
            )
            return self._verdict(State.INCOMPLETE, gap=gap, unsealed=unsealed)
        if self._outcome.reason in _UNWHOLE:
            detail = printable(self._outcome.detail) if self._outcome.detail else None
            return self._verdict(State.INCOMPLETE, gap=Gap(self._outcome.reason, detail))
        if self._outcome.unrecorded is not None:
            since = printable(self._outcome.unrecorded, 40)
            return self._verdict(
                State.INCOMPLETE, gap=Gap("unrecorded", f"it went on without being recorded, since {since}")
            )
        if self._limited is not None:
            detail = f"{self._limited} was kept up to its limit, then counted and hashed"
            return self._verdict(State.INCOMPLETE, gap=Gap("stream-limit", detail))
        return self._verdict(State.COMPLETE)

    def bad(self, what: str, at: int | None = None) -> Verdict:
        """The verdict on what does not hold."""
        offset = self._start if at is None else at
        return self._verdict(State.BAD, problem=Problem(what, self._chain.n, offset, self._us / 1_000_000))

    def _verdict(
        self, state: State, *, problem: Problem | None = None, gap: Gap | None = None, unsealed: int = 0
    ) -> Verdict:
        return Verdict(
            state,
            self._session,
            self._chain.n,
            self._chain.prev if self._session is not None else None,
            self._start,
            unsealed,
            self._outcome,
            problem,
            gap,
            self._heads,
        )


class _Source:
    """The text of a file, plain or packed, in blocks; an empty block where a packed frame ends.

    _Bad where the packed form is not, bit for bit, what packing.py makes of its frames.
    """

    def __init__(self, file: BinaryIO, packed: bool | None, progress: Callable[[int], object]) -> None:
        self._file = file
        self._expected = packed
        self._progress = progress
        self._bytes = 0
        self.packed = False

    def __iter__(self) -> Iterator[bytes]:
        block = self._block(_PACKED_BLOCK)
        self.packed = block.startswith(MAGIC)
        if self._expected not in (None, self.packed):
            raise _Bad("it is packed, and should not be" if self.packed else "it is not packed, and should be")
        if self.packed:
            yield from self._frames(block)
            return
        while block:
            yield block
            block = self._block(_BLOCK)

    def _block(self, size: int) -> bytes:
        block = self._file.read(size)
        self._bytes += len(block)
        self._progress(len(block))
        return block

    def _frames(self, ahead: bytes) -> Iterator[bytes]:
        made = size = 0
        table = bytearray()
        while ahead.startswith(MAGIC):
            if table and size < CHUNK_BYTES:
                raise _Bad("a packed frame is smaller than the packer makes them")
            decompressor = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})
            packed = size = 0
            while not decompressor.eof:
                if decompressor.needs_input and not ahead and not (ahead := self._block(_PACKED_BLOCK)):
                    raise _Bad("the packed file ends in the middle")
                packed += len(ahead)
                try:
                    text = decompressor.decompress(ahead, _BLOCK)
                except zstd.ZstdError as error:
                    raise _Bad("a packed frame is damaged") from error
                ahead = b""
                size += len(text)
                if made + size > max(UNPACKED_MAX, RATIO_MAX * self._bytes):
                    raise _Bad(f"{self._bytes} packed bytes unpack to more than {made + size}")
                if text:
                    yield text
            ahead = decompressor.unused_data
            packed -= len(ahead)
            made += size
            if max(packed, size) >> 32:
                raise _Bad("a packed frame is larger than a seek table can say")
            table += _TABLE.pack(packed, size)
            yield b""
            if len(ahead) < len(MAGIC):
                ahead += self._block(_PACKED_BLOCK)
        self._seek_table(ahead, bytes(table))

    def _seek_table(self, found: bytes, entries: bytes) -> None:
        head = _TABLE.pack(_SKIPPABLE, len(entries) + _FOOTER.size)
        expected = head + entries + _FOOTER.pack(len(entries) // _TABLE.size, 0, _SEEKABLE)
        while len(found) <= len(expected) and (block := self._block(_PACKED_BLOCK)):
            found += block
        if found == expected:
            return
        if expected.startswith(found):
            raise _Bad("the packed file ends in the middle")
        if found.startswith(expected):
            raise _Bad("there is more after the packed file's end")
        raise _Bad("its seek table is not that of its frames")
