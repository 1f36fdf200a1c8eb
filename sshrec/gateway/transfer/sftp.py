"""SFTP decoded while it passes, version 3 as OpenSSH speaks it. No I/O: bytes of both directions in, facts out.

It trusts neither side. What it elides from the recording is the payload of DATA that answers a READ of an open
file, and of WRITE to one; the moment anything else passes than the protocol, it is `broken` and elides nothing.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sshrec.gateway.transfer import wire
from sshrec.gateway.transfer.asked import (
    Asked,
    Close,
    Do,
    Open,
    OpenDirectory,
    Plain,
    Read,
    Reset,
    Resolve,
    Stat,
    Write,
    understood,
)
from sshrec.gateway.transfer.content import Content, Held
from sshrec.gateway.transfer.fact import Direction, Fact, Passed, words
from sshrec.gateway.transfer.known import Known
from sshrec.gateway.transfer.lane import Lane
from sshrec.gateway.transfer.wire import Attributes, Body, NotSftp, denial

REQUESTS = 32 * 1024  # not answered; paramiko asks for all of a file at once, 32 KiB each
PATHS = 1024  # of them, with paths

UNANSWERED = "not answered"
UNCLOSED = "not closed"

_HEAD = struct.Struct(">IB")
_TWO = struct.Struct(">II")
_PLACE = struct.Struct(">QI")

_LIGHT = (Read, Write, Close, Plain)  # requests that carry no path
_ANSWERS: Mapping[type[Asked], frozenset[int]] = {
    Open: frozenset({wire.HANDLE, wire.STATUS}),
    OpenDirectory: frozenset({wire.HANDLE, wire.STATUS}),
    Read: frozenset({wire.DATA, wire.STATUS}),
    Stat: frozenset({wire.ATTRS, wire.STATUS}),
    Resolve: frozenset({wire.NAME, wire.STATUS}),
    Do: frozenset({wire.EXTENDED_REPLY, wire.STATUS}),
    Plain: frozenset({wire.NAME, wire.EXTENDED_REPLY, wire.STATUS}),
}
_STATUS_ALONE = frozenset({wire.STATUS})


@dataclass(slots=True)
class _Reply:
    """An answer of ours, to a request that was refused."""

    packet: bytes
    waits: bool  # for what was asked before it


class Sftp:
    """One session's stream.

    `forbid`: directions whose requests are answered `permission denied`, by us; then nothing goes on that was
    not understood. `keep`: bytes of each file that the recording has, written and read. `broken`: why it is not
    the protocol, or not any more; `facts`: what has come of it, for the caller to take; `held`: what the recording
    of the output should have got, if it is broken.
    """

    def __init__(self, forbid: frozenset[Direction] = frozenset(), keep: tuple[int, int] = (0, 0)) -> None:
        self.broken: str | None = None
        self.facts: list[Fact] = []
        self.held = Held()
        self._forbid, self._keep = forbid, keep
        self._up = Lane(self._request, holds=bool(forbid))
        self._down = Lane(self._reply, between=self._due_replies)
        self._begun = self._agreed = False
        self._known = Known()
        self._asked: dict[int, Asked] = {}
        self._with_paths = 0
        self._replies: deque[_Reply] = deque()
        self._awaited: dict[int, list[_Reply]] = {}  # by the request whose answer they must follow

    def client(self, data: memoryview) -> Passed:
        """Bytes from the client."""
        forward, kept = self._up.feed(data)
        self._check(self._up)
        return Passed(forward, kept, self._due_replies() if self._replies and self._down.whole else b"")

    def server(self, data: memoryview) -> Passed:
        """Bytes from the server."""
        forward, kept = self._down.feed(data)
        self._check(self._down)
        return Passed(forward, kept)

    @property
    def full(self) -> bool:
        """Whether no more should be read from the client until the server has answered some."""
        many = len(self._asked) >= REQUESTS or self._with_paths >= PATHS or len(self._replies) >= PATHS
        return many and self.broken is None

    @property
    def directory(self) -> bytes | None:
        """The session's own, once the server has named it."""
        return self._known.directory

    def end(self) -> None:
        """Nothing more comes: tell of what is still open."""
        asked, self._asked = self._asked, {}
        for one in asked.values():
            match one:
                case Open(file):
                    self.facts += file.told(UNANSWERED)
                case Do(change) | Reset(change=change):
                    self.facts.append(replace(change, outcome=UNANSWERED))
        for file in self._known.still_open():
            self.facts += file.told(UNCLOSED)

    def _check(self, lane: Lane) -> None:
        if lane.broken is not None and self.broken is None:
            self.broken = self._up.broken = self._down.broken = lane.broken
            self._replies.clear()
            self.end()

    # ---- what the client asks ----------------------------------------------------------------------------

    def _request(self, buffer: memoryview | bytearray, at: int, end: int) -> int:
        have = end - at
        if have < 5:
            return -5
        length: int
        kind: int
        length, kind = _HEAD.unpack_from(buffer, at)
        if not 1 <= length <= wire.PACKET_MAX:
            raise NotSftp(f"a packet of {length} bytes from the client")
        if not self._begun and kind != wire.INIT:
            raise NotSftp("the client does not begin with its version")
        if kind == wire.WRITE:
            return self._write(buffer, at, have, length)
        if have < 4 + length:
            return -4 - length
        body = Body(bytes(buffer[at + 5 : at + 4 + length]), f"a packet {kind} from the client")
        if kind == wire.INIT:
            if self._begun:
                raise NotSftp("the client says its version twice")
            if (version := body.version()) < wire.VERSION_3:
                raise NotSftp(f"protocol version {version}")
            self._begun = True
            return 4 + length
        request = body.u32()
        self._new(request)
        asked = understood(kind, body, self._known)
        body.end()
        refusal = self._refusal(asked) if self._forbid else None
        if refusal is None:
            self._ask(request, asked)
        else:
            self._refuse(request, *refusal)
            if isinstance(asked, Open):
                asked.file.denied = True
                self.facts += asked.file.told(refusal[1])
        return 4 + length

    def _write(self, buffer: memoryview | bytearray, at: int, have: int, length: int) -> int:
        """The head of a WRITE: its payload need not be here."""
        if length < 21:
            raise NotSftp("a write that is cut short")
        if have < 13:
            return -13
        size: int
        request, size = _TWO.unpack_from(buffer, at + 5)
        head = 25 + size
        if size > wire.HANDLE_MAX or length + 4 < head:
            raise NotSftp(f"a write with a handle of {size} bytes")
        if have < head:
            return -head
        offset, count = _PLACE.unpack_from(buffer, at + 13 + size)
        if length + 4 != head + count or offset + count > wire.OFFSET_MAX:
            raise NotSftp(f"a write of {count} bytes in a packet of {length}")
        self._new(request)
        if "upload" in self._forbid:
            self._refuse(request, wire.S_DENIED, _denied("upload"))
            self._up.payload(count, None)
            return head
        file = self._known.open(bytes(buffer[at + 13 : at + 13 + size]))
        if file is None or not file.writes:
            self._up.payload(count, None)
            self._ask(request, Write(None))
            return head
        if file.up is None:
            file.up = Content(self._keep[0])
        file.up.at(offset)
        file.unacked += 1
        self._up.payload(count, file.up)
        self._ask(request, Write(file))
        return head

    def _new(self, request: int) -> None:
        if request in self._asked:
            raise NotSftp(f"two requests at once are number {request}")

    def _ask(self, request: int, asked: Asked) -> None:
        """The request goes on."""
        self._asked[request] = asked
        if not isinstance(asked, _LIGHT):
            self._with_paths += 1
        if len(self._asked) > 4 * REQUESTS:  # the caller has no eye for `full`
            raise NotSftp(f"{len(self._asked)} requests at once")

    # ---- what may not be ---------------------------------------------------------------------------------

    def _refusal(self, asked: Asked) -> tuple[int, str] | None:
        """Why a request does not go on: the code and the text that the client gets."""
        match asked:
            case Open(file) if file.writes and "upload" in self._forbid:
                return wire.S_DENIED, _denied("upload")
            case Open(file) if file.reads and "download" in self._forbid:
                return wire.S_DENIED, _denied("download")
            case Read() if "download" in self._forbid:  # of a handle that was guessed
                return wire.S_DENIED, _denied("download")
            case Do(change, unknown=True):
                return wire.S_UNSUPPORTED, f"operation unsupported: {words(change.path)}"
        return None

    def _refuse(self, request: int, code: int, text: str) -> None:
        """Answer it ourselves, once what was asked before is answered."""
        self._up.refuse()
        reply = _Reply(denial(request, code, text), waits=bool(self._asked))
        self._replies.append(reply)
        if self._asked:
            self._awaited.setdefault(next(reversed(self._asked)), []).append(reply)
        if len(self._replies) > 64 * PATHS:
            raise NotSftp(f"{len(self._replies)} refused requests at once")

    def _due_replies(self) -> bytes:
        """Our answers whose turn it is; none before the server has said its version."""
        due = bytearray()
        while self._agreed and self._replies and not self._replies[0].waits:
            due += self._replies.popleft().packet
        return bytes(due)

    # ---- what the server answers ---------------------------------------------------------------------------

    def _reply(self, buffer: memoryview | bytearray, at: int, end: int) -> int:
        have = end - at
        if have < 5:
            return -5
        length: int
        kind: int
        length, kind = _HEAD.unpack_from(buffer, at)
        if not 1 <= length <= wire.PACKET_MAX:
            raise NotSftp(f"a packet of {length} bytes from the server")
        if not self._begun or (not self._agreed and kind != wire.VERSION):
            raise NotSftp("the server does not begin with its version")
        if kind == wire.DATA:
            return self._data(buffer, at, have, length)
        if have < 4 + length:
            return -4 - length
        body = Body(bytes(buffer[at + 5 : at + 4 + length]), f"a packet {kind} from the server")
        if kind == wire.VERSION:
            if self._agreed:
                raise NotSftp("the server says its version twice")
            if (version := body.version()) != wire.VERSION_3:
                raise NotSftp(f"protocol version {version}")
            self._agreed = True
            return 4 + length
        asked = self._answered(body.u32(), kind)
        match kind:
            case wire.STATUS:
                self._done(asked, *body.status())
            case wire.HANDLE:
                self._known.opened(body.handle(), asked.file if isinstance(asked, Open) else None)
            case wire.NAME:
                count, name = body.names()
                if isinstance(asked, Resolve) and count == 1:
                    self._known.resolved(asked.path, name)
            case wire.ATTRS:
                if isinstance(asked, Stat):
                    self._told(asked, body.attributes())
            case wire.EXTENDED_REPLY:
                body.rest()
                if isinstance(asked, Do):
                    self.facts.append(asked.change)
        body.end()
        return 4 + length

    def _data(self, buffer: memoryview | bytearray, at: int, have: int, length: int) -> int:
        """The head of DATA: its payload need not be here."""
        if length < 9:
            raise NotSftp("data that is cut short")
        if have < 13:
            return -13
        request, count = _TWO.unpack_from(buffer, at + 5)
        read = self._answered(request, wire.DATA)
        assert isinstance(read, Read)
        if length != 9 + count or count > read.size:
            raise NotSftp(f"{count} bytes of data in a packet of {length}, where {read.size} were asked for")
        file = read.file
        if file is None or file.closed or not file.reads:
            raise NotSftp("data of a file that is not open for reading")
        if file.down is None:
            file.down = Content(self._keep[1], self.held)
        file.down.at(read.offset)
        self._down.payload(count, file.down)
        return 13

    def _answered(self, request: int, kind: int) -> Asked:
        """What is answered, which may be answered so."""
        asked = self._asked.pop(request, None)
        if asked is None:
            raise NotSftp(f"an answer to request {request}, which nobody made")
        if not isinstance(asked, _LIGHT):
            self._with_paths -= 1
        if kind not in _ANSWERS.get(type(asked), _STATUS_ALONE):
            raise NotSftp(f"a packet {kind} in answer to request {request}")
        for reply in self._awaited.pop(request, ()):
            reply.waits = False
        return asked

    def _done(self, asked: Asked, code: int, text: str) -> None:
        """A request's status."""
        failed = code != wire.S_OK
        match asked:
            case Do(change):
                self.facts.append(replace(change, outcome=text) if failed else change)
            case Write(None) if not failed:
                raise NotSftp("what was written went to a file that was not open for writing")
            case Write(file) if file is not None:
                file.unacked -= 1
                if failed:
                    file.problem = file.problem or text
            case Read(file, offset) if file is not None and code == wire.S_EOF:
                file.eof = offset if file.eof is None else min(file.eof, offset)
            case Read(file) if file is not None and failed:
                file.problem = file.problem or text
            case Close(handle):
                closed = self._known.closed(handle)
                self.facts += closed.told(text) if closed is not None else []
                if not self._known.files:
                    self.held.clear()
            case Open(file):
                self.facts += file.told(text)
            case Stat(bytes(path)) if code == wire.S_NO_SUCH_FILE:
                self._known.told(path, Attributes(size=0))
            case Reset():
                self._reset(asked, text if failed else None)

    def _reset(self, asked: Reset, problem: str | None) -> None:
        """Part of an upload, where it only gives the file its mode, size and times; else told by itself."""
        file, attributes = asked.file, asked.attributes
        if problem is not None:
            self.facts.append(replace(asked.change, outcome=problem))
            return
        if file is None or not file.writes or attributes.owner is not None:
            self.facts.append(asked.change)
        if file is not None:
            file.mode = file.mode if attributes.mode is None else attributes.mode
            file.resized = file.resized if attributes.size is None else attributes.size

    def _told(self, asked: Stat, attributes: Attributes) -> None:
        """The server tells a file's attributes: as they are before it changes, or while it is read."""
        match asked.of:
            case bytes(path):
                self._known.told(path, attributes)
            case None:
                pass
            case file:
                if not file.writes:
                    file.known = attributes.size
                if file.mode is None:
                    file.mode = attributes.mode


def _denied(direction: Direction) -> str:
    return f"permission denied: {direction}s are not allowed here"
