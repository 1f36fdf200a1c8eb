"""Files that are there whole or not at all: what readers see is the old one or the new one, power cut or not."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_LINKS = 40  # on the way: path_resolution(7)


def replace_file(path: Path, data: bytes, mode: int) -> None:
    """Put `data` under a name, durably; a link of that name is replaced, never followed. OSError names `path`.

    Nor is a link followed on the way there that is neither root's nor ours: its owner could turn it elsewhere
    behind every check.
    """
    try:
        with writing(path, mode) as out:
            out.write(data)
    except OSError as error:  # what it has is the temporary file's name
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def writing(path: Path, mode: int, *, replace: bool = True) -> Iterator[BinaryIO]:
    """As replace_file, for what comes in pieces: it has its name once all is written, and never if that fails.

    FileExistsError where there is something of that name by then, unless `replace`.
    """
    directory = open_directory(path.parent)
    name = f".sshrec-{os.urandom(8).hex()}"
    try:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        try:
            with open(file, "wb") as out:
                yield out
                out.flush()
                os.fchmod(file, mode)
                os.fsync(file)
            if not replace:
                _claim(directory, path.name)
            os.rename(name, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)
            raise
        os.fsync(directory)
    finally:
        os.close(directory)


def _claim(directory: int, name: str) -> None:
    """Make an empty file of that name, or fail: what is renamed over it then is nobody's but ours."""
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory))


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable: a file that was synced has none by that. OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_directory(path: Path) -> int:
    """A descriptor of it, come to step by step: the kernel would follow anybody's links. OSError."""
    steps = deque(path.absolute().parts)
    links, at = 0, os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        while steps:
            name = steps.popleft()
            found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            status = os.fstat(found)
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink("", dir_fd=found)
                os.close(found)
                links += 1
                if links > _LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                if status.st_uid not in (0, os.geteuid()):
                    raise OSError(errno.ELOOP, "a link on the way there is somebody else's")
                steps.extendleft(reversed(Path(target).parts))
                continue
            os.close(at)
            at = found
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)


def stamp(path: Path | None) -> tuple[int, ...] | None:
    """What tells one state of a file from the next; None where there is no file."""
    try:
        status = os.stat(path or "")
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
