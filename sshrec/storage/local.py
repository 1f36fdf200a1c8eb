"""Recordings in a directory: `<recordings>/<day>/<session id>.cast`, later `.cast.zst`.

Knows names, locks and durability; what is in a file is recording's business. A worker holds a lock on the
recording it writes, so whoever gets the lock of an unfinished one knows that its worker is dead.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import fcntl
import os
import re
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sshrec.errors import DataError, NotFound, RecordingError, describe
from sshrec.recording import packing
from sshrec.recording.recovery import Found, recover
from sshrec.session import SESSION_ID, started

SYNC_SECONDS = 1.0
ASK_SECONDS = 0.25
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Store:
    """The recordings of one bastion.

    `root`: a directory of sshrec's own; created when the first recording is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, session: str) -> Path:
        """Where the plain recording of a session is while it lives."""
        day = time.strftime("%Y-%m-%d", time.gmtime(started(session) / 1000))
        return self.root / day / f"{session}.cast"

    def packed(self, session: str) -> Path:
        """Where it is once it is packed."""
        return self.path(session).with_suffix(".cast.zst")

    def create(self, session: str, *, durable: bool) -> RecordingFile:
        """A new, locked, empty recording; RecordingError where that cannot be.

        `durable`: call `synced` what the disk has, not what the kernel has.
        """
        path = self.path(session)
        new = path.with_suffix(".new")
        try:
            if not path.parent.exists():
                path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
                sync_directory(self.root)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(new, flags, 0o640)
            # Locked before it has its name: whoever finds a recording finds it locked while its worker lives.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.rename(path)
            sync_directory(path.parent)
        except OSError as error:
            raise RecordingError(f"cannot create a recording in {self.root}: {describe(error)}") from error
        return RecordingFile(fd, path, durable=durable)

    def find(self, name: str) -> Path:
        """The file of a session, plain or packed, by its id or an unambiguous beginning of it."""
        matches = sorted({session for session, _ in self if session.startswith(name.upper())}) if name else []
        if not matches:
            raise NotFound(f"no recording {name!r} in {self.root}", hint="see: sshrec ls")
        if len(matches) > 1:
            raise NotFound(f"{name!r} begins the ids of {len(matches)} recordings", hint="give more of the id")
        return self.current(matches[0])

    def current(self, session: str) -> Path:
        """The file that holds a recording now: the plain one while there is one, then the packed one."""
        for path in (self.path(session), self.packed(session), self.path(session)):
            if path.exists():
                return path
        raise NotFound(f"no recording {session} in {self.root}", hint="see: sshrec ls")

    def __iter__(self) -> Iterator[tuple[str, Path]]:
        """Every recording, oldest first: session id and file."""
        for day in self._days():
            yield from self._on(day)

    def _days(self) -> list[Path]:
        try:
            return sorted(self.root / name for name in os.listdir(self.root) if _DAY.fullmatch(name))
        except FileNotFoundError:
            return []

    @staticmethod
    def _on(day: Path) -> Iterator[tuple[str, Path]]:
        found: dict[str, Path] = {}
        for name in sorted(os.listdir(day)):  # ID.cast comes before ID.cast.zst, and wins
            session, _, suffix = name.partition(".")
            if suffix in ("cast", "cast.zst") and SESSION_ID.fullmatch(session):
                found.setdefault(session, day / name)
        yield from found.items()

    def unfinished(self, days: int | None = None) -> Iterator[str]:
        """Sessions whose plain recording is still there: live, dead, or waiting to be packed.

        `days`: of how many of the newest days that have recordings; None means all.
        """
        for day in self._days()[-days if days else 0 :]:
            yield from (session for session, path in self._on(day) if path.suffix == ".cast")

    def recover(self, session: str, wall_ms: int, detail: str) -> Found:
        """Seal a recording whose worker died, and remove one that was never begun."""
        path = self.path(session)
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return Found.ABSENT
        with os.fdopen(fd, "r+b") as file:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return Found.ALIVE
            found = recover(file, session, path.with_suffix(".torn"), wall_ms, detail)
            if found is Found.EMPTY:
                path.unlink()
                sync_directory(path.parent)
            return found

    def alive(self, session: str) -> bool:
        """Whether a worker holds the lock of a recording."""
        try:
            fd = os.open(self.path(session), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def pack(self, session: str) -> bool:
        """Put the packed form of a finished recording in its place; False where somebody else has its lock.

        May die anywhere and be called again: the plain file goes only after the packed one is durable under
        its name and was unpacked and compared. NotFound where there is no plain file; DataError where it is
        not finished; RecordingError where the disk refuses.
        """
        path, packed = self.path(session), self.packed(session)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound(f"no plain recording {session} in {self.root}") from error
        with os.fdopen(fd, "rb") as plain:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if not os.fstat(fd).st_nlink:
                return False  # another packer was done with it between our opening and our lock
            try:
                _pack(plain, packed)
                path.unlink()
                sync_directory(path.parent)
            except DataError as error:
                raise DataError(f"{path}: {error}") from error
            except OSError as error:
                raise RecordingError(f"cannot pack {path}: {describe(error)}") from error
        return True


class RecordingFile:
    """The file of a live recording, and the thread that makes it durable: once a second, and when asked.

    Make one after the last fork: it starts a thread. A recorder's Sink.
    """

    def __init__(self, fd: int, path: Path, *, durable: bool) -> None:
        self.path = path
        self.written = 0  # bytes the kernel has
        self.notify = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # written after each sync
        self.failure: OSError | None = None  # of a sync; the next write raises it
        self._fd = fd
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

    def write(self, data: bytes) -> None:
        """Append all of `data`; on failure nothing of it stays, and RecordingError says why."""
        if self.failure:
            raise RecordingError(f"cannot write {self.path.name}: {describe(self.failure)}") from self.failure
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:] if done else data)
        except OSError as error:
            if done:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, self.written)  # else recovery sets the torn line aside
            raise RecordingError(
                f"cannot write {self.path.name}: {describe(error)}",
                hint="the disk of the recordings is full" if error.errno == errno.ENOSPC else None,
            ) from error
        self.written += done
        if self._idle:
            self._idle = False
            os.eventfd_write(self._dirty, 1)
        if self._durable:
            self.sync()

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
        for fd in (self._fd, self.notify, self._dirty, self._urgent):
            os.close(fd)
        if self.failure:
            raise RecordingError(f"cannot sync {self.path.name}: {describe(self.failure)}") from self.failure

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
                        os.fdatasync(self._fd)
                        self._on_disk = target
                except OSError as error:
                    self.failure = error
                os.eventfd_write(self.notify, 1)
        finally:
            self._ended.release()


def _pack(plain: BinaryIO, packed: Path) -> None:
    """The packed form beside the plain one: written, durable, compared, named, and the name durable."""
    beside = packed.with_suffix(".zst.new")
    beside.unlink(missing_ok=True)  # of a packer that died
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(beside, flags, 0o640), "w+b") as target:
            packing.pack(plain, target)
            target.flush()
            os.fsync(target.fileno())
            if not packing.same(plain, target):
                raise DataError("packing it did not keep every bit")
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    beside.rename(packed)
    sync_directory(packed.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, _DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
