"""The file of a live recording: appended to, made durable by a thread, with room kept for its end.

Knows no lines and no names. A full disk, a failing one and one that hangs are told apart.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import select
import time
from pathlib import Path

from sshrec.errors import DiskFull, RecordingError, describe
from sshrec.reserve import Reserve, is_full

SYNC_SECONDS = 1.0
ASK_SECONDS = 0.25
RESERVE_BYTES = 16 * 1024  # for the counts, a marker and the last seal, which take a tenth of it
AHEAD_BYTES = 48 * 1024  # so that an idle session has 64 KiB


class RecordingFile:
    """The file of a live recording, and the thread that makes it durable: once a second, and when asked.

    Make one after the last fork: it starts a thread. A recorder's Sink.
    """

    def __init__(self, fd: int, path: Path, *, durable: bool) -> None:
        self.path = path
        self.written = 0  # bytes the kernel has
        self.notify = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # written after each sync
        self.failure: OSError | None = None  # the file is not what was written: the next write raises it
        self._fd = fd
        self._reserve: Reserve | None = Reserve(fd, RESERVE_BYTES, AHEAD_BYTES)
        self._syncing_since: float | None = None
        self._on_disk = 0
        self._durable = durable
        self._closing = False
        self._asked = 0.0
        self._idle = True  # the thread waits for `_dirty`
        self._dirty = os.eventfd(0, os.EFD_CLOEXEC)
        self._urgent = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ended = _thread.allocate_lock()
        self._ended.acquire()
        # Not `threading`: its objects would cost each session 270 KiB of the pages it shares with sshrecd.
        _thread.start_new_thread(self._sync_loop, ())

    @property
    def synced(self) -> int:
        """Bytes that count as kept, so that they may be shown."""
        return self._on_disk if self._durable else self.written

    @property
    def on_disk(self) -> int:
        """Bytes that a power cut cannot take."""
        return self._on_disk

    @property
    def hangs(self) -> float:
        """Seconds for which the disk has owed an answer."""
        since = self._syncing_since
        return time.monotonic() - since if since is not None else 0.0

    def write(self, data: bytes) -> None:
        """Append all of `data`; on failure nothing of it stays, and RecordingError says why.

        DiskFull while there is still room for the recording's end: see `use_reserve`.
        """
        self.check()
        done = 0
        try:
            if self._reserve is not None:
                self._reserve.keep(self.written, len(data))
            while done < len(data):
                done += os.write(self._fd, data[done:] if done else data)
        except OSError as error:
            if done:
                self._undo()
            raise self._told("write", error) from error
        self.written += done
        if self._idle:
            self._idle = False
            os.eventfd_write(self._dirty, 1)
        if self._durable:
            self.sync()

    def check(self) -> None:
        """RecordingError where what was written is not safe."""
        if self.failure is not None:
            raise self._told("write", self.failure) from self.failure

    def use_reserve(self) -> None:
        """From here on what is written may take the room that was kept for the end."""
        self._reserve = None

    def _undo(self) -> None:
        """Take back the part of a line that the disk had room for."""
        try:
            os.ftruncate(self._fd, self.written)
        except OSError as error:
            self.failure = error  # nothing may follow half a line: recovery sets it aside

    def _told(self, what: str, error: OSError) -> RecordingError:
        text = f"cannot {what} {self.path.name}: {describe(error)}"
        if is_full(error):
            return DiskFull(text, hint="the disk of the recordings is full")
        return RecordingError(text)

    def sync(self) -> None:
        """Ask for durability now instead of within the second; does not wait.

        Bulk output seals a chunk every few milliseconds: past four times a second, the second must do.
        """
        now = time.monotonic()
        if self._durable or now - self._asked >= ASK_SECONDS:
            self._asked = now
            os.eventfd_write(self._urgent, 1)

    def finish(self) -> None:
        """Make everything durable, then let go of the file; waits. Once is enough.

        RecordingError where the disk refuses.
        """
        if self._closing:
            return
        self._closing = True
        os.eventfd_write(self._urgent, 1)
        os.eventfd_write(self._dirty, 1)
        self._ended.acquire()
        if self.failure is None:
            with contextlib.suppress(OSError):  # what is not given back here goes with the plain file
                os.ftruncate(self._fd, self.written)
        for fd in (self._fd, self.notify, self._dirty, self._urgent):
            os.close(fd)
        if self.failure:
            raise self._told("sync", self.failure) from self.failure

    def _sync_loop(self) -> None:
        """The thread. A write that finds it busy is covered by the next turn: `_idle` is set before looking."""
        urgent = select.poll()
        urgent.register(self._urgent, select.POLLIN)
        try:
            while not (self._closing and self._on_disk == self.written) and self.failure is None:
                os.eventfd_read(self._dirty)
                urgent.poll(SYNC_SECONDS * 1000)
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._urgent)
                self._idle = True
                target = self.written
                try:
                    if target > self._on_disk:
                        self._syncing_since = time.monotonic()
                        os.fdatasync(self._fd)
                        self._on_disk = target
                except OSError as error:
                    self.failure = error
                self._syncing_since = None
                os.eventfd_write(self.notify, 1)
        finally:
            self._ended.release()
