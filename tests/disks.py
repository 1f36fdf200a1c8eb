"""Small file systems for tests: full in a moment, frozen if need be. Where none can be had, a test is skipped."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

Kind = Literal["tmpfs", "ext4"]


@contextlib.contextmanager
def disk(directory: Path, size: int, kind: Kind = "tmpfs", owner: tuple[int, int] | None = None) -> Iterator[Path]:
    """A file system of `size` bytes at a directory, which is made; `owner`: uid and gid, default the caller's."""
    directory.mkdir(parents=True, exist_ok=True)
    image = directory.with_name(f"{directory.name}.img")
    if kind == "tmpfs":
        argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "sshrec-test", str(directory)]
    else:
        image.touch()
        os.truncate(image, size)
        _run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal" if size < 2 << 20 else "has_journal", str(image)])
        argv = ["mount", "-o", "loop", str(image), str(directory)]
    try:
        _run(argv)
        try:
            directory.chmod(0o750)
            os.chown(directory, *(owner or (os.geteuid(), os.getegid())))
            yield directory
        finally:
            subprocess.run(["umount", "-l", directory], check=True, timeout=60)
    finally:
        image.unlink(missing_ok=True)


@contextlib.contextmanager
def frozen(directory: Path) -> Iterator[None]:
    """Whatever writes to that file system hangs, and cannot even be killed."""
    _run(["fsfreeze", "--freeze", str(directory)])
    try:
        yield
    finally:
        thaw(directory)


def thaw(directory: Path) -> None:
    """Let it go on; no harm where it does already."""
    subprocess.run(["fsfreeze", "--unfreeze", directory], capture_output=True, timeout=60)


def fill(directory: Path, leave: int = 0, name: str = "filler") -> Path:
    """Take all of it but so many bytes; to have them back, remove the file that is returned."""
    filler = directory / name
    with filler.open("wb", buffering=0) as file:
        room = os.statvfs(directory)
        with contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, room.f_bavail * room.f_frsize - leave - 65536))
        file.seek(0, os.SEEK_END)
        with contextlib.suppress(OSError):
            while os.statvfs(directory).f_bavail * room.f_frsize > leave and file.write(bytes(4096)):
                pass
    return filler


def _run(argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip(f"there is no {argv[0]} here")
    if done.returncode:
        pytest.skip(f"no {argv[0]} here: {done.stderr.decode(errors='replace').strip()}")
