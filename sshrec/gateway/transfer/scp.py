"""scp's own protocol decoded while it passes: `scp -t` and `scp -f` on the target. No I/O: bytes in, facts out.

A sender and a receiver take turns: a line or a file's content, and an answer to it. Whoever speaks out of turn
does not speak it, and is recorded like any command's streams from there on. So it is of no use as a disguise:

* Of an upload, the target's output is answers, and every byte of it is recorded. In the midst of a content it is
  silent. What is sent to it is kept as of any command: where a role asks for input, and then the first 64 KiB of
  each file, so that a shell is not spoken to unheard.
* Of a download, the output's contents are not recorded; but the person's side only acknowledges. What it says
  beyond that ends the eliding: what the target sends from then on is recorded, contents or not. Of the file that
  is passing when the protocol breaks, the first 64 KiB are held and then recorded, too.

What is left is a content that nobody asked for but by the command's own text, which is in the recording.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from sshrec.gateway.transfer.content import Content, Held
from sshrec.gateway.transfer.fact import OK, PATH_BYTES, Change, Data, Direction, Fact, File, Passed, words

LINE_BYTES = 16 * 1024
SIZE_MAX = (1 << 63) - 1
DEPTH = 256  # of directories; PATH_MAX is 4096

UNFINISHED = "not finished"

_OPTIONS = re.compile(rb"-[rpvdqCtfB46]+")
_ENTRY = re.compile(rb"([CD])([0-7]{4,5}) ([0-9]{1,19}) ([^/\n]{1,1024})")
_TIMES = re.compile(rb"T[0-9]{1,19} [0-9]{1,6} [0-9]{1,19} [0-9]{1,6}")


class NotScp(Exception):
    """These bytes are not the protocol; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Command:
    """What scp is told on the target; `directory`: that it must put files into one."""

    direction: Direction
    path: bytes
    directory: bool = False


def which(command: bytes) -> Command | None:
    """The scp that a command looks like. It chooses the decoder, and nothing else: anybody can write this."""
    program, *rest = command.split(b" ")
    if program.rpartition(b"/")[2] != b"scp":
        return None
    options = b""
    while rest and _OPTIONS.fullmatch(rest[0]):
        options += rest.pop(0)[1:]
    if rest and rest[0] == b"--":
        del rest[0]
    if not rest or (b"t" in options) == (b"f" in options):
        return None
    return Command("upload" if b"t" in options else "download", b" ".join(rest), b"d" in options)


class Scp:
    """One session's stream, after its command.

    `keep`: bytes of each file that the recording has, written and read. `broken`, `facts` and `held` as Sftp has
    them. `client` and `server` take the bytes of the two sides, whichever of them is the sender.
    """

    full = False
    directory = None

    def __init__(self, command: Command, keep: tuple[int, int] = (0, 0)) -> None:
        self.broken: str | None = None
        self.facts: list[Fact] = []
        self.held = Held()
        self._command = command
        self._uploads = command.direction == "upload"
        self._keep = keep[0] if self._uploads else keep[1]
        self._directories: list[bytes] = []
        self._line = bytearray()  # of the sender, as far as it has come
        self._answer = bytearray()  # of the receiver
        self._owes: Callable[[str], None] | None = self._started  # takes the answer that the receiver owes
        self._failed = False  # the last answer was an error, and more of them may follow
        self._file: Entry | None = None
        self._content: Content | None = None  # of the file whose content passes
        self._left = 0  # bytes of it to come
        self._trailer = False  # what follows the content
        self._problem: str | None = None  # that the sender had with it
        self._over = False  # somebody has given up
        self._spoken = False  # the receiver of a download has said more than it must

    def client(self, data: memoryview) -> Passed:
        """Bytes from the client."""
        return self._take(data, self._sent if self._uploads else self._received)

    def server(self, data: memoryview) -> Passed:
        """Bytes from the server."""
        return self._take(data, self._received if self._uploads else self._sent)

    def end(self) -> None:
        """Nothing more comes: tell of what is still open."""
        if self._file is not None:
            self._finish(UNFINISHED)

    def _take(self, data: memoryview, read: Callable[[memoryview], Data]) -> Passed:
        if self.broken is not None:
            return Passed(data, data)
        mark = self.held.mark()
        try:
            return Passed(data, read(data))
        except NotScp as error:
            self.broken = str(error)
            self.held.back(mark)
            self.end()
            return Passed(data, data)

    # ---- the sender ----------------------------------------------------------------------------------------

    def _sent(self, data: memoryview) -> Data:
        """The sender's bytes; returns what of them the recording has. NotScp: all of these are to be recorded."""
        at, size = 0, len(data)
        seen = 0
        kept: list[Data] = []
        while at < size:
            if self._left:
                assert self._content is not None
                upto = min(size, at + self._left)
                self._left -= upto - at
                beginning = self._content.add(data[at:upto])
                if not self._spoken:
                    kept.append(data[seen : at + beginning])
                    seen = upto
                at = upto
                self._trailer = not self._left
                continue
            if self._owes is not None or self._over:
                raise NotScp("the sender does not wait for an answer")
            if self._trailer and not self._line and data[at] == 0:
                at += 1
                self._sent_all(None)
                continue
            if not self._line and data[at] not in (b"\1\2" if self._trailer else b"\1\2CDET"):
                raise NotScp("what the sender says is not scp's")
            end = _line_end(data, at)
            self._line += data[at:end]
            at = end
            if len(self._line) > LINE_BYTES:
                raise NotScp(f"a line of more than {LINE_BYTES} bytes")
            if self._line.endswith(b"\n"):
                line = bytes(self._line[:-1])
                self._line.clear()
                self._said(line)
        return data if not seen else b"".join([*kept, data[seen:]])

    def _said(self, line: bytes) -> None:
        """The sender's line."""
        self._failed = False
        if line[:1] in (b"\1", b"\2"):
            self._over = line[:1] == b"\2"
            if self._trailer:
                self._sent_all(words(line[1:]))
            else:
                self.facts.append(
                    File(direction=self._command.direction, path=self._command.path, outcome=words(line[1:]))
                )
        elif _TIMES.fullmatch(line):
            self._owes = self._agreed
        elif line == b"E" and self._directories:
            self._owes = self._left_directory
        elif (entry := _ENTRY.fullmatch(line)) is not None:
            self._file = Entry(entry[1] == b"D", int(entry[2], 8), int(entry[3]), entry[4])
            if self._file.size > SIZE_MAX or self._file.name in (b".", b".."):
                raise NotScp("no file has such a name or size")
            self._owes = self._entered
        else:
            raise NotScp("a line that is none of scp's")

    def _sent_all(self, problem: str | None) -> None:
        """The sender is through with a file's content."""
        self._trailer = False
        self._problem = problem
        self._owes = self._finish

    # ---- the receiver --------------------------------------------------------------------------------------

    def _received(self, data: memoryview) -> Data:
        """The receiver's bytes: answers, all of them for the recording."""
        at, size = 0, len(data)
        while at < size:
            if not self._answer:
                kind = data[at]
                more_errors = self._failed and kind == 1
                if kind > 2 or self._over or (self._owes is None and not more_errors):
                    raise NotScp("the receiver says what it was not asked for")
                if kind == 0:
                    at += 1
                    self._answered(OK)
                    continue
            end = _line_end(data, at)
            self._answer += data[at:end]
            at = end
            if len(self._answer) > LINE_BYTES:
                raise NotScp(f"an answer of more than {LINE_BYTES} bytes")
            if self._answer.endswith(b"\n"):
                answer = bytes(self._answer[:-1])
                self._answer.clear()
                self._spoken = self._spoken or not self._uploads
                self._over = answer[:1] == b"\2"
                self._answered(words(answer[1:]) or "failed")
        return data

    def _answered(self, outcome: str) -> None:
        owed, self._owes = self._owes, None
        self._failed = outcome != OK
        if owed is not None:
            owed(outcome)

    def _started(self, outcome: str) -> None:
        if outcome != OK:
            self.facts.append(File(direction=self._command.direction, path=self._command.path, outcome=outcome))

    def _agreed(self, _outcome: str) -> None:
        pass

    def _left_directory(self, _outcome: str) -> None:
        self._directories.pop()

    def _entered(self, outcome: str) -> None:
        """The answer to a file's or a directory's line."""
        entry = self._file
        assert entry is not None
        if entry.directory:
            self._file = None
            if self._uploads:
                path, more = self._path(entry), {"mode": f"{entry.mode & 0o7777:04o}"}
                self.facts.append(Change(action="mkdir", path=path, more=more, outcome=outcome))
            if outcome == OK:
                self._directories.append(self._path(entry))
                if len(self._directories) > DEPTH:
                    raise NotScp(f"directories {DEPTH} deep")
        elif outcome == OK:
            held = None if self._uploads or self._spoken else self.held
            self._content = Content(self._keep, held)
            self._left = entry.size
            self._trailer = not entry.size
        else:
            self._finish(outcome)

    def _finish(self, outcome: str) -> None:
        """What has come of a file."""
        entry, content = self._file, self._content or Content()
        assert entry is not None
        whole = outcome == OK and self._problem is None
        self.facts.append(
            File(
                direction=self._command.direction,
                path=self._path(entry),
                name=entry.name,
                size=content.size,
                sha256=content.sha256 if whole else None,
                ranges=() if whole else content.ranges,
                mode=entry.mode,
                outcome=outcome if outcome != OK else self._problem or OK,
            )
        )
        self._file = self._content = self._problem = None
        if outcome != UNFINISHED:
            self.held.clear()

    def _path(self, entry: Entry) -> bytes:
        """Where it is on the target, as far as is known: not whether the command's path is a directory."""
        path, name = self._command.path[: PATH_BYTES + 1], entry.name
        if self._directories:
            return (self._directories[-1] + b"/" + name)[: PATH_BYTES + 1]
        into = self._command.directory or path.endswith((b"/", b"/.")) or path in (b".", b"..", b"~")
        if self._uploads:
            return path.rstrip(b"/") + b"/" + name if into or entry.directory else path
        directory, slash, last = path.rpartition(b"/")
        if last == name or not slash or re.search(rb"[*?\[{ $`'\"\\]", directory):
            return path
        return directory + slash + name


@dataclass(frozen=True, slots=True)
class Entry:
    """What the sender announces: a file, or a directory."""

    directory: bool
    mode: int
    size: int
    name: bytes


def _line_end(data: memoryview, at: int) -> int:
    """Where the line that goes on there ends, its newline included, as far as there is any need to know."""
    piece = bytes(data[at : at + LINE_BYTES + 1])
    return at + (piece.find(b"\n") + 1 or len(piece))
