"""The operations on files below a directory that a piece of code really makes, by strace(1). Judges nothing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_SET_PTRACER, _ANY = 0x59616D61, ctypes.c_ulong(-1)  # prctl(2)
_CALLS = (
    "open,creat,openat,close,read,pread64,write,pwrite64,writev,pwritev,lseek,truncate,ftruncate,fallocate,fsync,"
    "fdatasync,sync_file_range,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,symlink,"
    "symlinkat,copy_file_range,sendfile,splice,mmap,dup,dup2,dup3"
)
_CALL = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)(?:<(.*)>)?(?: \(deleted\))?(?: .*)?")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FD = re.compile(r"(-?\d+|AT_FDCWD)(?:<((?:\\x[0-9a-f]{2})*)(?:\(deleted\))?.*>)?")


@dataclass(frozen=True, slots=True)
class Create:
    """A new name: of a file, or a directory."""

    path: str
    inode: int
    directory: bool = False


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes in a file."""

    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A file's size."""

    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Rename:
    """A name for another one."""

    source: str
    target: str
    inode: int


@dataclass(frozen=True, slots=True)
class Unlink:
    """A name that goes, of a file or an empty directory."""

    path: str
    inode: int


@dataclass(frozen=True, slots=True)
class Sync:
    """What was done to a file or in a directory before the operation of that number is durable from now on."""

    inode: int
    before: int


@dataclass(frozen=True, slots=True)
class Mark:
    """What the code said it had reached by now."""

    text: str


Op = Create | Write | Truncate | Rename | Unlink | Sync | Mark
Tree = dict[str, bytes | None]  # path below the root: a file's content, None for a directory
ROOT = 0  # the root's own inode


def read_tree(root: Path) -> Tree:
    """What is below a directory."""
    found: Tree = {}
    for path in sorted(root.rglob("*")):
        found[str(path.relative_to(root))] = None if path.is_dir() else path.read_bytes()
    return found


def write_tree(root: Path, tree: Tree) -> None:
    """The same, the other way."""
    for name, content in sorted(tree.items()):
        if content is None:
            (root / name).mkdir(mode=0o750, parents=True)
        else:
            (root / name).touch(mode=0o640)
            (root / name).write_bytes(content)


def inodes(tree: Tree) -> dict[str, int]:
    """A number for all that is in a tree, and the same each time."""
    return {"": ROOT, **{name: number for number, name in enumerate(sorted(tree), start=1)}}


def trace(root: Path, work: Callable[[Callable[[str], None]], None]) -> list[Op]:
    """Do the work in a process of its own, and say what it did below `root`. It is given what to mark with."""
    before = read_tree(root)
    with tempfile.TemporaryDirectory(prefix="sr-") as place:
        out, marks = Path(place, "strace"), Path(place, "marks")
        go, starter = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with contextlib.suppress(AttributeError):
                    ctypes.CDLL(None).prctl(_SET_PTRACER, _ANY, 0, 0, 0)
                os.close(starter)
                os.read(go, 1)
                fd = os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                work(lambda text: _say(fd, text))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        calls = ",".join(f"?{name}" for name in _CALLS.split(","))
        command = ["strace", "-f", "-y", "-xx", "-s", "1000000000", "-e", f"trace={calls}", "-o", out, "-p", child]
        strace = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
        with strace:
            assert strace.stderr is not None
            said = strace.stderr.readline()
            assert "attached" in said, said
            os.write(starter, b"!")
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            strace.communicate(timeout=60)
        os.close(go)
        os.close(starter)
        assert status == 0
        return _Reading(str(root), str(marks), before).read(out.read_text("ascii"))


def _say(fd: int, text: str) -> None:
    os.write(fd, text.encode())


class _Reading:
    """Follows descriptors, positions and names through strace's lines."""

    def __init__(self, root: str, marks: str, before: Tree) -> None:
        self._root, self._marks = root, marks
        self._names = inodes(before)
        self._sizes = {self._names[name]: len(content) for name, content in before.items() if content is not None}
        self._next = len(self._names)
        self._files: dict[int, tuple[int, bool]] = {}  # descriptor to inode, and whether it appends
        self._at: dict[int, int] = {}
        self._ops: list[Op] = []

    def read(self, text: str) -> list[Op]:
        begun: dict[str, tuple[str, int]] = {}
        for line in text.splitlines():
            process, _, rest = line.partition(" ")
            rest = rest.lstrip()
            start = len(self._ops)
            if rest.endswith("<unfinished ...>"):
                begun[process] = (rest.removesuffix("<unfinished ...>").rstrip(), start)
                continue
            if rest.startswith("<... "):
                first, start = begun.pop(process)
                rest = first + rest.partition(" resumed>")[2]
            if match := _CALL.fullmatch(rest):
                self._call(match[1], _split(match[2]), int(match[3]), start)
        return self._ops

    def _call(self, name: str, words: list[str], result: int, start: int) -> None:
        if result < 0:
            return
        method = getattr(self, f"_do_{name}", None)
        if method is not None:
            method(words, result, start)
        elif any(self._inside(word) for word in words):
            assert name in ("read", "pread64", "lseek", "close") or "PROT_WRITE" not in "".join(words), (
                name,
                words,
            )

    def _inside(self, word: str) -> bool:
        match = _FD.fullmatch(word)
        return bool(match and match[1].isdigit() and int(match[1]) in self._files)

    def _path(self, directory: str, word: str) -> str | None:
        """Below the root, or None."""
        match, at = _TEXT.fullmatch(word), _FD.fullmatch(directory)
        assert match, word
        assert at, directory
        path = os.path.normpath(os.path.join(_text(at[2] or ""), _text(match[1])))
        if path == self._root:
            return ""
        return path.removeprefix(self._root + "/") if path.startswith(self._root + "/") else None

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _do_openat(self, words: list[str], result: int, _start: int) -> None:
        path = self._path(words[0], words[1])
        self._files.pop(result, None)
        if path is None or "O_PATH" in words[2]:
            return
        if path not in self._names:
            assert "O_CREAT" in words[2], words
            self._names[path] = self._number()
            self._sizes[self._names[path]] = 0
            self._ops.append(Create(path, self._names[path]))
        inode = self._names[path]
        self._files[result] = inode, "O_APPEND" in words[2]
        self._at[result] = 0
        if "O_TRUNC" in words[2] and self._sizes.get(inode):
            self._truncate(inode, 0)

    def _do_close(self, words: list[str], _result: int, _start: int) -> None:
        self._files.pop(_descriptor(words[0]), None)

    def _do_dup(self, words: list[str], _result: int, _start: int) -> None:
        assert not self._inside(words[0])

    _do_dup2 = _do_dup3 = _do_dup

    def _do_read(self, words: list[str], result: int, _start: int) -> None:
        fd = _descriptor(words[0])
        if fd in self._files:
            self._at[fd] += result

    def _do_lseek(self, words: list[str], result: int, _start: int) -> None:
        self._at[_descriptor(words[0])] = result

    def _do_write(self, words: list[str], result: int, _start: int) -> None:
        match = _FD.fullmatch(words[0])
        assert match
        data = _bytes(words[1])[:result]
        if _text(match[2] or "") == self._marks:
            self._ops.append(Mark(data.decode()))
        elif (fd := int(match[1])) in self._files:
            inode, appends = self._files[fd]
            at = self._sizes[inode] if appends else self._at[fd]
            self._at[fd] = at + result
            self._write(inode, at, data)

    def _do_pwrite64(self, words: list[str], result: int, _start: int) -> None:
        if (fd := _descriptor(words[0])) in self._files:
            self._write(self._files[fd][0], int(words[3]), _bytes(words[1])[:result])

    def _write(self, inode: int, at: int, data: bytes) -> None:
        self._ops.append(Write(inode, at, data))
        self._sizes[inode] = max(self._sizes[inode], at + len(data))

    def _do_ftruncate(self, words: list[str], _result: int, _start: int) -> None:
        if (fd := _descriptor(words[0])) in self._files:
            self._truncate(self._files[fd][0], int(words[1]))

    def _truncate(self, inode: int, size: int) -> None:
        if self._sizes[inode] != size:
            self._ops.append(Truncate(inode, size))
            self._sizes[inode] = size

    def _do_fallocate(self, words: list[str], _result: int, _start: int) -> None:
        fd = _descriptor(words[0])
        if fd in self._files and "KEEP_SIZE" not in words[1]:
            inode = self._files[fd][0]
            self._truncate(inode, max(self._sizes[inode], int(words[2]) + int(words[3])))

    def _do_fsync(self, words: list[str], _result: int, start: int) -> None:
        if (fd := _descriptor(words[0])) in self._files:
            self._ops.append(Sync(self._files[fd][0], start))

    _do_fdatasync = _do_fsync

    def _do_mkdir(self, words: list[str], _result: int, _start: int) -> None:
        self._mkdir(self._path("AT_FDCWD", words[0]))

    def _do_mkdirat(self, words: list[str], _result: int, _start: int) -> None:
        self._mkdir(self._path(words[0], words[1]))

    def _mkdir(self, path: str | None) -> None:
        if path is not None:
            self._names[path] = self._number()
            self._ops.append(Create(path, self._names[path], directory=True))

    def _do_unlink(self, words: list[str], _result: int, _start: int) -> None:
        self._unlink(self._path("AT_FDCWD", words[0]))

    _do_rmdir = _do_unlink

    def _do_unlinkat(self, words: list[str], _result: int, _start: int) -> None:
        self._unlink(self._path(words[0], words[1]))

    def _unlink(self, path: str | None) -> None:
        if path is not None:
            self._ops.append(Unlink(path, self._names.pop(path)))

    def _do_rename(self, words: list[str], _result: int, _start: int) -> None:
        self._rename(self._path("AT_FDCWD", words[0]), self._path("AT_FDCWD", words[1]))

    def _do_renameat(self, words: list[str], _result: int, _start: int) -> None:
        self._rename(self._path(words[0], words[1]), self._path(words[2], words[3]))

    _do_renameat2 = _do_renameat

    def _rename(self, source: str | None, target: str | None) -> None:
        if source is None and target is None:
            return
        assert source, "nothing comes from elsewhere"
        assert target, "nothing goes elsewhere"
        inode = self._names.pop(source)
        self._names[target] = inode
        self._ops.append(Rename(source, target, inode))


def _split(words: str) -> list[str]:
    return re.split(r", (?![^{\[]*[}\]])", words)


def _text(word: str) -> str:
    return bytes.fromhex(word.replace("\\x", "")).decode()


def _bytes(word: str) -> bytes:
    match = _TEXT.fullmatch(word)
    assert match, word[:100]
    return bytes.fromhex(match[1].replace("\\x", ""))


def _descriptor(word: str) -> int:
    match = _FD.fullmatch(word)
    return int(match[1]) if match and match[1].isdigit() else -1
