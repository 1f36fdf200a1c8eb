"""One file that an SFTP client has open: what passes of it, and what has come of that once it is closed."""

from __future__ import annotations

from sshrec.gateway.transfer import wire
from sshrec.gateway.transfer.content import Content
from sshrec.gateway.transfer.fact import OK, Direction, File


class OpenFile:
    """A file from its OPEN on, with what passes of it. `known`: its size before, as the server told it."""

    __slots__ = (
        "closed",
        "closing",
        "denied",
        "down",
        "eof",
        "flags",
        "known",
        "mode",
        "path",
        "problem",
        "resized",
        "unacked",
        "up",
    )

    def __init__(self, path: bytes, flags: int, mode: int | None, known: int | None) -> None:
        self.path, self.flags, self.mode = path, flags, mode
        self.known = known
        self.resized: int | None = None  # its size, as the client set it
        self.eof: int | None = None  # where the server says it ends
        self.up: Content | None = None  # what was written
        self.down: Content | None = None  # what was read
        self.unacked = 0  # writes that are not answered
        self.closing = self.closed = False  # asked, and answered
        self.problem: str | None = None
        self.denied = False  # by us

    @property
    def writes(self) -> bool:
        """Whether it can be changed through its handle; a flag to create or cut it is enough."""
        return bool(self.flags & ~wire.F_READ)

    @property
    def reads(self) -> bool:
        """Whether it can be read; without any flag it can, too."""
        return bool(self.flags & wire.F_READ) or not self.flags & wire.F_WRITE

    def told(self, outcome: str) -> list[File]:
        """What has become of it."""
        done: list[File] = []
        if self.up is not None or self.writes:
            content = self.up or Content()
            done.append(self._file("upload", content, self._all_written(content), outcome))
        if self.down is not None or not self.writes:
            content = self.down or Content()
            done.append(self._file("download", content, content.end in (self.eof, self.known), outcome))
        return done

    def _all_written(self, content: Content) -> bool:
        before = 0 if self.flags & (wire.F_TRUNC | wire.F_EXCL) else self.known
        if self.unacked or self.problem is not None or (self.flags & wire.F_APPEND and before != 0):
            return False
        if self.resized is not None:
            return self.resized == content.end
        return before is not None and before <= content.end

    def _file(self, direction: Direction, content: Content, whole: bool, outcome: str) -> File:
        whole = whole and content.in_order and outcome == OK
        return File(
            direction=direction,
            path=self.path,
            size=content.size,
            sha256=content.sha256 if whole else None,
            ranges=() if whole else content.ranges,
            mode=self.mode,
            flags=self.flags,
            denied=self.denied,
            outcome=outcome if self.problem is None else self.problem,
        )
