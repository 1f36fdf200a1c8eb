"""Room for the last words: blocks past the end of a file that is appended to, taken while the disk has them.

fallocate(2) with FALLOC_FL_KEEP_SIZE, so nobody who reads the file sees any of it, and the next process that
appends finds it still there. Knows nothing of what is written, or of who may write when the disk is full.
"""

from __future__ import annotations

import ctypes
import errno
import os

AHEAD_MOST = 4 * 1024 * 1024  # bytes asked for at once, so that bulk output asks seldom

_KEEP_SIZE = 0x01  # FALLOC_FL_KEEP_SIZE: linux/falloc.h
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_full(error: BaseException | None) -> bool:
    """Whether an error says that there is no room: on the disk, or for this user."""
    return isinstance(error, OSError) and error.errno in _FULL


class Reserve:
    """Keeps `size` bytes set aside past the end of a file.

    `fd`: of the file, open for writing; the caller keeps it open. `ahead`: bytes asked for besides, at least.
    """

    def __init__(self, fd: int, size: int, ahead: int) -> None:
        self._fd, self._size, self._ahead = fd, size, ahead
        self._until = 0  # what is below that is set aside
        self._able = True

    def keep(self, end: int, more: int) -> None:
        """Have room for `more` bytes after `end`, and still the reserve after them.

        OSError, ENOSPC or EDQUOT, where there is none: then what was set aside before still is. Does nothing where
        the file system knows no such thing (NFS before 4.2): then a full disk is met by the write itself.
        """
        need = end + more + self._size
        if need <= self._until or not self._able:
            return
        ahead = max(self._ahead, min(end // 8, AHEAD_MOST))
        start = max(end, self._until)
        try:
            try:
                _allocate(self._fd, start, need + ahead - start)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                _allocate(self._fd, start, need - start)
            else:
                need += ahead
        except OSError as error:
            if error.errno in _FULL:
                raise
            self._able = False
        else:
            self._until = need

    def release(self) -> None:
        """Give back what is not used. OSError."""
        if self._until:
            os.ftruncate(self._fd, os.fstat(self._fd).st_size)
            self._until = 0


def _allocate(fd: int, start: int, size: int) -> None:
    """Not os.posix_fallocate: that makes the file longer, and writes zeros where the file system cannot do it."""
    libc = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(libc, "fallocate64", None) or libc.fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while fallocate(fd, _KEEP_SIZE, start, size):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
