"""What an SFTP client's request is about: from a packet's body to what is remembered until it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sshrec.gateway.transfer import wire
from sshrec.gateway.transfer.content import Content
from sshrec.gateway.transfer.fact import Action, Change
from sshrec.gateway.transfer.known import Known, short
from sshrec.gateway.transfer.openfile import OpenFile
from sshrec.gateway.transfer.wire import Attributes, Body, NotSftp

# Extensions whose requests change nothing that we tell of.
_WITHOUT_EFFECT = frozenset(
    {
        b"statvfs@openssh.com",
        b"fstatvfs@openssh.com",
        b"fsync@openssh.com",
        b"limits@openssh.com",
        b"home-directory",
        b"users-groups-by-id@openssh.com",
    }
)
_ONE_PATH: Final[Mapping[int, Action]] = {wire.REMOVE: "remove", wire.RMDIR: "rmdir"}


@dataclass(frozen=True, slots=True)
class Plain:
    """Nothing that is told of."""


@dataclass(frozen=True, slots=True)
class Open:
    """A file is to be opened."""

    file: OpenFile


@dataclass(frozen=True, slots=True)
class OpenDirectory:
    """A directory is to be opened."""


@dataclass(frozen=True, slots=True)
class Close:
    """A handle is to be closed."""

    handle: bytes


@dataclass(frozen=True, slots=True)
class Read:
    """`size` bytes are to be read from `offset` on; of no file that we know where `file` is None."""

    file: OpenFile | None
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Write:
    """A file is to be written to; likewise."""

    file: OpenFile | None


@dataclass(frozen=True, slots=True)
class Stat:
    """Attributes are asked for: of a path, or of an open file."""

    of: bytes | OpenFile | None


@dataclass(frozen=True, slots=True)
class Resolve:
    """A path is to be resolved."""

    path: bytes


@dataclass(frozen=True, slots=True)
class Reset:
    """An open file is to get other attributes, which comes to this change."""

    file: OpenFile | None
    attributes: Attributes
    change: Change


@dataclass(frozen=True, slots=True)
class Do:
    """Files are to be changed so. `unknown`: by an extension of which only the name is known."""

    change: Change
    unknown: bool = False


Asked = Plain | Open | OpenDirectory | Close | Read | Write | Stat | Resolve | Reset | Do

_PLAIN = Plain()


def understood(kind: int, body: Body, known: Known) -> Asked:
    """What a packet of this kind asks; all of its body is read. NotSftp where it is none."""
    match kind:
        case wire.READ:
            read = Read(known.open(body.handle()), body.u64(), body.u32())
            if read.offset + read.size > wire.OFFSET_MAX:
                raise NotSftp("a read past the end of all files")
            return read
        case wire.OPEN:
            return _open(known.path(body.string()), body.u32(), body.attributes(), known)
        case wire.CLOSE:
            handle = body.handle()
            file = known.open(handle)
            if file is not None:
                file.closing = True
            return Close(handle)
        case wire.LSTAT | wire.STAT:
            return Stat(known.path(body.string()))
        case wire.FSTAT:
            return Stat(known.open(body.handle()))
        case wire.SETSTAT:
            return _setstat(known.path(body.string()), body.attributes(), known)
        case wire.FSETSTAT:
            file, attributes = known.open(body.handle()), body.attributes()
            path = file.path if file is not None else b""
            return Reset(file, attributes, Change(action="setstat", path=path, more=attributes.said()))
        case wire.OPENDIR:
            body.string()
            return OpenDirectory()
        case wire.READDIR:
            body.handle()
            return _PLAIN
        case wire.READLINK:
            body.string()
            return _PLAIN
        case wire.REMOVE | wire.RMDIR:
            path = known.path(body.string())
            known.recall(path)
            return Do(Change(action=_ONE_PATH[kind], path=path))
        case wire.MKDIR:
            path, attributes = known.path(body.string()), body.attributes()
            return Do(Change(action="mkdir", path=path, more=attributes.said()))
        case wire.REALPATH:
            return Resolve(short(body.string()))
        case wire.RENAME:
            return _two("rename", body, known)
        case wire.SYMLINK:
            # What it points to is no path of ours to resolve.
            return Do(Change(action="symlink", path=short(body.string()), to=known.path(body.string())))
        case wire.EXTENDED:
            return _extended(body, known)
    raise NotSftp(f"a packet {kind} from the client")


def _open(path: bytes, flags: int, attributes: Attributes, known: Known) -> Open:
    before = known.recall(path)
    file = OpenFile(path, flags, attributes.mode, before.size)
    if not file.writes:
        file.mode = before.mode
    return Open(file)


def _setstat(path: bytes, attributes: Attributes, known: Known) -> Do:
    known.recall(path)
    return Do(Change(action="setstat", path=path, more=attributes.said()))


def _two(action: Action, body: Body, known: Known) -> Do:
    path, to = known.path(body.string()), known.path(body.string())
    known.recall(path, to)
    return Do(Change(action=action, path=path, to=to))


def _extended(body: Body, known: Known) -> Asked:
    name = body.string()
    match name:
        case b"posix-rename@openssh.com":
            return _two("rename", body, known)
        case b"hardlink@openssh.com":
            return _two("link", body, known)
        case b"lsetstat@openssh.com":
            return _setstat(known.path(body.string()), body.attributes(), known)
        case b"expand-path@openssh.com":
            return Resolve(short(body.string()))
        case b"copy-data":
            return _copy(body, known)
    body.rest()
    if name in _WITHOUT_EFFECT:
        return _PLAIN
    return Do(Change(action="extended", path=short(name)), unknown=True)


def _copy(body: Body, known: Known) -> Do:
    """copy-data: on the target, from one open file into another; a length of 0 is all of it."""
    source, _, length = known.open(body.handle()), body.u64(), body.u64()
    target, _ = known.open(body.handle()), body.u64()
    if target is not None:
        target.up = target.up or Content()
        target.up.spoil()
    more = {"size": min(length, wire.OFFSET_MAX)} if length else {}
    path, to = (file.path if file is not None else b"" for file in (source, target))
    return Do(Change(action="copy", path=path, to=to, more=more))
