"""Whether the disk has room for one more recording. If not, the audit log hears of it, but not each time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from sshrec.audit.client import Journal
from sshrec.config import Config
from sshrec.errors import DataError, RecordingError, describe

TELL_SECONDS = 60.0  # between two events
_STAMP = "disk.problem"  # in run_dir: its time is that of the last event, of all workers


def check_floor(config: Config, journal: Journal) -> None:
    """RecordingError where the file system of the recordings has less free than `limits.disk_floor` percent.

    A worker asks, not sshrecd: a file system that hangs would hang it.
    """
    floor = config.limits.disk_floor
    if not floor:
        return
    try:
        room = _room(config)
    except OSError as error:
        raise RecordingError(f"cannot see how full {config.recordings_dir} is: {describe(error)}") from error
    free = percent_free(room.f_blocks, room.f_bfree, room.f_bavail)
    if free >= floor:
        return
    if _is_due(config.run_dir / _STAMP):
        fields = {"path": str(config.recordings_dir), "free_bytes": room.f_bavail * room.f_frsize}
        fields |= {"free_percent": int(free), "floor_percent": floor, "cluster_name": os.uname().nodename}
        with contextlib.suppress(DataError):
            journal.send("disk.problem", fields, code="SR302E")  # durable with the refusal that follows
    raise RecordingError(
        f"the disk of the recordings is nearly full: {free:.1f} % are free, and below {floor} % no session begins",
        hint="an administrator may have the break-glass way in: docs/install.md#break-glass",
    )


def has_room(config: Config) -> bool:
    """Whether so much is free that a session could begin. OSError."""
    room = _room(config)
    return percent_free(room.f_blocks, room.f_bfree, room.f_bavail) >= config.limits.disk_floor


def has_room_to_pack(plain: Path) -> bool:
    """Whether the disk has room for another form of a recording, which may be as large, and still is not full.

    What has the last of it is for sessions: what is packed later frees more than it takes. OSError.
    """
    room = os.statvfs(plain.parent)
    left = room.f_bavail * room.f_frsize - plain.stat().st_size
    return left >= room.f_blocks * room.f_frsize // 100


def _room(config: Config) -> os.statvfs_result:
    directory = next(path for path in (config.recordings_dir, *config.recordings_dir.parents) if path.exists())
    return os.statvfs(directory)


def percent_free(blocks: int, free: int, available: int) -> float:
    """As df(1) has it, of what others than root may use. The arguments are statvfs(3)'s; without blocks, 100."""
    usable = blocks - free + available
    return 100 * available / usable if usable > 0 else 100.0


def _is_due(stamp: Path) -> bool:
    """Whether nobody told of it lately; then the caller does."""
    try:
        fd = os.open(stamp, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(fd)
        if status.st_size and abs(time.time() - status.st_mtime) < TELL_SECONDS:
            return False
        os.pwrite(fd, b"told\n", 0)
        os.utime(fd)
    except BlockingIOError:
        return False  # another worker is at it
    except OSError:
        pass
    finally:
        os.close(fd)
    return True
