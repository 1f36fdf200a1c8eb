"""What a session's packets have told of the target's files so far: names, attributes, what is open. Bounded."""

from __future__ import annotations

from typing import TypeVar

from sshrec.gateway.transfer.fact import PATH_BYTES
from sshrec.gateway.transfer.openfile import OpenFile
from sshrec.gateway.transfer.wire import Attributes, NotSftp

HANDLES = 1024  # open at once; OpenSSH's server has as many as descriptors
REMEMBERED = 256  # paths whose names or attributes the server told

_T = TypeVar("_T")


class Known:
    """`directory`: the session's own, once the server has named it. Paths are kept no longer than shown."""

    def __init__(self) -> None:
        self.directory: bytes | None = None
        self._handles: dict[bytes, OpenFile | None] = {}  # None: of a directory
        self._files = 0
        self._names: dict[bytes, bytes] = {}
        self._attributes: dict[bytes, Attributes] = {}

    def path(self, said: bytes) -> bytes:
        """A path as the server resolved it where that is known, else made absolute."""
        said = short(said)
        name = self._names.get(said)
        if name is not None:
            return name
        if said.startswith(b"/") or self.directory is None:
            return said
        return self.directory.rstrip(b"/") + b"/" + said

    def resolved(self, said: bytes, name: bytes) -> None:
        """The server has resolved a path."""
        name = short(name)
        if self.directory is None and said in (b"", b"."):
            self.directory = name
        if name.startswith(b"/"):
            _remember(self._names, said, name)

    def told(self, path: bytes, attributes: Attributes) -> None:
        """The server has told a file's attributes."""
        _remember(self._attributes, path, attributes)

    def recall(self, *paths: bytes | None) -> Attributes:
        """What was told of the first of these files; they change now, so it is known no more."""
        found = [self._attributes.pop(path, None) for path in paths if path is not None]
        return found[0] or Attributes()

    @property
    def files(self) -> int:
        """How many are open, directories aside."""
        return self._files

    def open(self, handle: bytes) -> OpenFile | None:
        """What a handle stands for; None where that is a directory, nothing, or about to be closed."""
        file = self._handles.get(handle)
        return file if file is not None and not file.closing else None

    def opened(self, handle: bytes, file: OpenFile | None) -> None:
        """The server has given a handle."""
        if handle in self._handles:
            raise NotSftp("the server gives the same handle twice")
        if len(self._handles) >= HANDLES:
            raise NotSftp(f"more than {HANDLES} files are open")
        self._handles[handle] = file
        self._files += file is not None

    def closed(self, handle: bytes) -> OpenFile | None:
        """The server has closed it."""
        file = self._handles.pop(handle, None)
        if file is not None:
            file.closed = True
            self._files -= 1
        return file

    def still_open(self) -> list[OpenFile]:
        """The end of it all: what was never closed."""
        handles, self._handles = self._handles, {}
        return [file for file in handles.values() if file is not None]


def short(path: bytes) -> bytes:
    """A path as far as it is shown, and one byte more if it is longer."""
    return path[: PATH_BYTES + 1]


def _remember(table: dict[bytes, _T], key: bytes, value: _T) -> None:
    table.pop(key, None)
    table[key] = value
    if len(table) > REMEMBERED:
        del table[next(iter(table))]
