"""Files that are there whole or not at all: what readers see is the old one or the new one."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def replace_file(path: Path, data: bytes, mode: int) -> None:
    """Put `data` under a name, durably; a link of that name is replaced, never followed. OSError names `path`."""
    try:
        _replace(path, data, mode)
    except OSError as error:  # what it has is the temporary file's name
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, data: bytes, mode: int) -> None:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    name = f".sshrec-{secrets.token_hex(8)}"
    try:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        try:
            with open(file, "wb") as out:
                out.write(data)
                out.flush()
                os.fchmod(file, mode)
                os.fsync(file)
            os.rename(name, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=directory)
            raise
        os.fsync(directory)
    finally:
        os.close(directory)
