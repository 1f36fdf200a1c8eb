"""A file whose only use is its room: on a full disk it goes, so that what makes room can write what it must."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

SPARE_BYTES = 64 * 1024


def keep(path: Path) -> None:
    """Make it, where it is not there; no harm where that cannot be."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, SPARE_BYTES)
        except OSError:
            path.unlink()
        finally:
            os.close(fd)


def give(path: Path) -> bool:
    """Give its room back; False where there was none."""
    try:
        path.unlink()
    except OSError:
        return False
    return True
