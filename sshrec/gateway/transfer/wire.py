"""The SFTP protocol's packets as OpenSSH speaks them, version 3. Reads bytes into values; knows no state.

draft-ietf-secsh-filexfer-02, and OpenSSH's file PROTOCOL for where it differs: SYMLINK has its paths the other
way round.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

from sshrec.gateway.transfer.fact import octal, words

VERSION_3: Final = 3
PACKET_MAX: Final = 256 * 1024  # OpenSSH's; it hangs up on more
HANDLE_MAX: Final = 256
OFFSET_MAX: Final = (1 << 63) - 1

INIT, VERSION = 1, 2
OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT, OPENDIR, READDIR = range(3, 13)
REMOVE, MKDIR, RMDIR, REALPATH, STAT, RENAME, READLINK, SYMLINK = range(13, 21)
STATUS, HANDLE, DATA, NAME, ATTRS = range(101, 106)
EXTENDED, EXTENDED_REPLY = 200, 201

F_READ, F_WRITE, F_APPEND, F_CREAT, F_TRUNC, F_EXCL = 1, 2, 4, 8, 16, 32

S_OK, S_EOF, S_NO_SUCH_FILE, S_DENIED = range(4)
S_UNSUPPORTED = 8
_TEXTS = (
    "ok",
    "end of file",
    "no such file",
    "permission denied",
    "failure",
    "bad message",
    "no connection",
    "connection lost",
    "operation unsupported",
)

_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")


class NotSftp(Exception):
    """These bytes are not the protocol; the text says what is wrong."""


class Attributes(NamedTuple):
    """What is told of a file's attributes, None where it is not."""

    size: int | None = None
    owner: tuple[int, int] | None = None
    mode: int | None = None
    times: tuple[int, int] | None = None  # of access and of modification, Unix seconds

    def said(self) -> dict[str, Any]:
        """For a fact."""
        more: dict[str, Any] = {}
        if self.size is not None:
            more["size"] = self.size
        if self.owner is not None:
            more["owner"] = list(self.owner)
        if self.mode is not None:
            more["mode"] = octal(self.mode)
        if self.times is not None:
            more["times"] = list(self.times)
        return more


class Body:
    """The rest of a packet, read from its beginning; NotSftp where it is shorter than it says."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = data, 0, what

    def u32(self) -> int:
        """A number of four bytes."""
        return int(_U32.unpack(self._take(4))[0])

    def u64(self) -> int:
        """A number of eight bytes."""
        return int(_U64.unpack(self._take(8))[0])

    def string(self) -> bytes:
        """Bytes with their length before them."""
        return self._take(self.u32())

    def version(self) -> int:
        """All of a packet that says a version: that, and what extensions there are."""
        version = self.u32()
        while self:
            self.string()
            self.string()
        return version

    def handle(self) -> bytes:
        """A handle."""
        handle = self.string()
        if len(handle) > HANDLE_MAX:
            raise NotSftp(f"{self._what} has a handle of {len(handle)} bytes")
        return handle

    def attributes(self) -> Attributes:
        """A file's."""
        flags = self.u32()
        size = self.u64() if flags & 1 else None
        owner = (self.u32(), self.u32()) if flags & 2 else None
        mode = self.u32() if flags & 4 else None
        times = (self.u32(), self.u32()) if flags & 8 else None
        if flags & 0x80000000:
            for _ in range(self.u32()):
                self.string()
                self.string()
        if flags & ~0x8000000F:
            raise NotSftp(f"{self._what} has attributes 0x{flags:x}")
        return Attributes(size, owner, mode, times)

    def status(self) -> tuple[int, str]:
        """A status: its code, and what that means in words."""
        code = self.u32()
        message = b""
        if self:
            message = self.string()
            if self:
                self.string()
        text = _TEXTS[code] if code < len(_TEXTS) else f"status {code}"
        more = words(message)
        common = not more or more.lower() in (text, "success") or code == S_OK
        return code, text if common else f"{text}: {more}"

    def names(self) -> tuple[int, bytes]:
        """A list of names: how many, and the first."""
        count = self.u32()
        first = b""
        for number in range(count):
            name = self.string()
            self.string()
            self.attributes()
            if not number:
                first = name
        return count, first

    def rest(self) -> bytes:
        """All that is left."""
        return self._take(len(self._data) - self._at)

    def end(self) -> None:
        """There must be nothing left."""
        if self:
            raise NotSftp(f"{self._what} has {len(self._data) - self._at} bytes too many")

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def _take(self, count: int) -> bytes:
        data = self._data[self._at : self._at + count]
        if len(data) != count:
            raise NotSftp(f"{self._what} is cut short")
        self._at += count
        return data


def denial(request: int, code: int, text: str) -> bytes:
    """A STATUS packet, for a request that was not passed on."""
    message = text.encode()
    body = _U32.pack(request) + _U32.pack(code) + _U32.pack(len(message)) + message + _U32.pack(0)
    return _U32.pack(len(body) + 1) + bytes([STATUS]) + body
