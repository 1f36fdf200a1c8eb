"""Recordings in a directory: `<recordings>/<day>/<session id>.cast`, later `.cast.zst`, or `.cast.zst.age`.

Knows names, locks and durability; what is in a file is recording's business. A worker holds a lock on the
recording it writes, so whoever gets the lock of an unfinished one knows that its worker is dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from sshrec.atomic import sync_directory
from sshrec.errors import DataError, NotFound, RecordingError, describe
from sshrec.recording import packing
from sshrec.recording.recovery import Found, recover
from sshrec.session import SESSION_ID, started
from sshrec.storage.recording_file import RecordingFile

# How much text of a live recording is packed ahead at once. Less is packed in a third of a second at its end, and
# each time costs a process; more keeps whoever waits for the packer, which is nobody in a hurry.
AHEAD_BYTES = 64 * 1024 * 1024
AHEAD_MOST = 1024 * 1024 * 1024

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_UNDONE = ("cast", "new", "cast.zst.part")  # suffixes that ask for somebody to look after a session
_BEGUN_MS = 3600_000  # by then what was to be a recording is one, or never will be


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

    def part(self, session: str) -> Path:
        """Where its packed form grows, from while it lives."""
        return self.path(session).with_suffix(".cast.zst.part")

    def encrypted(self, session: str) -> Path:
        """Where it is once it is encrypted."""
        return self.path(session).with_suffix(".cast.zst.age")

    def finished(self, session: str) -> Path | None:
        """Where it is if nobody writes to it any more: the packed file while there is one, then the encrypted."""
        return next((path for path in (self.packed(session), self.encrypted(session)) if path.exists()), None)

    def create(self, session: str, *, durable: bool) -> RecordingFile:
        """A new, locked, empty recording; RecordingError where that cannot be.

        `durable`: call `synced` what the disk has, not what the kernel has.
        """
        path = self.path(session)
        new = path.with_suffix(".new")
        try:
            if not path.parent.exists():
                path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
                sync_directory(self.root.parent)
            with os.scandir(path.parent) as names:
                if next(names, None) is None:
                    # Whoever made the day may have died before it was durable. Once there is a file in it, it is.
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
        """The file that holds a recording now: the plain one while there is one, then as `finished` has it."""
        if (path := self.path(session)).exists():
            return path
        if (finished := self.finished(session)) is not None:
            return finished
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
        for name in sorted(os.listdir(day)):  # ID.cast comes before ID.cast.zst, and wins; so does that later
            session, _, suffix = name.partition(".")
            if suffix in ("cast", "cast.zst", "cast.zst.age") and SESSION_ID.fullmatch(session):
                found.setdefault(session, day / name)
        yield from found.items()

    def remnant(self, session: str) -> Path | None:
        """The torn bytes of a session where they are all there is: not even its header was whole."""
        torn = self.path(session).with_suffix(".torn")
        recorded = any(
            path.exists() for path in (self.path(session), self.packed(session), self.encrypted(session))
        )
        return torn if torn.exists() and not recorded else None

    def remnants(self) -> Iterator[tuple[str, Path]]:
        """All of them, oldest first."""
        for day in self._days():
            for name in sorted(os.listdir(day)):
                session, _, suffix = name.partition(".")
                if suffix == "torn" and SESSION_ID.fullmatch(session) and (path := self.remnant(session)):
                    yield session, path

    def unfinished(self, days: int | None = None) -> Iterator[str]:
        """Sessions that are live, dead, or waiting to be packed: those whose files are not all in their last form.

        `days`: of how many of the newest days that have recordings; None means all.
        """
        for day in self._days()[-days if days else 0 :]:
            names = (name.partition(".") for name in sorted(os.listdir(day)))
            yield from dict.fromkeys(
                session for session, _, suffix in names if suffix in _UNDONE and SESSION_ID.fullmatch(session)
            )

    def unencrypted(self, days: int | None = None) -> Iterator[str]:
        """Sessions whose packed recording is still there; `days` as above."""
        for day in self._days()[-days if days else 0 :]:
            yield from (session for session, path in self._on(day) if path.suffix == ".zst")

    def recover(self, session: str, wall_ms: int, detail: str) -> Found:
        """Seal a recording whose worker died, and remove one that was never begun, and a part of none."""
        path = self.path(session)
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            self.part(session).unlink(missing_ok=True)
            if started(session) < wall_ms - _BEGUN_MS:
                path.with_suffix(".new").unlink(missing_ok=True)
            return Found.ABSENT
        with os.fdopen(fd, "r+b") as file:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return Found.ALIVE
            found = recover(file, session, path.with_suffix(".torn"), wall_ms, detail)
            if found is Found.EMPTY:
                path.unlink()
                self.part(session).unlink(missing_ok=True)
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

    def pack(self, session: str, tell: Callable[[Path], None] | None = None) -> bool:
        """Put the packed form of a finished recording in its place; False where somebody else has its lock.

        `tell`: called with the packed file, before the plain one goes; what it raises passes through, and the
        plain one stays.

        May die anywhere and be called again, to go on from there: the plain file goes only after the packed one is
        durable under its name and was unpacked and compared. NotFound where there is no plain file; DataError
        where it is not finished; RecordingError where the disk refuses.
        """
        path, packed = self.path(session), self.packed(session)
        with self._open_plain(session) as plain:
            try:
                fcntl.flock(plain, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if not os.fstat(plain.fileno()).st_nlink:
                return False  # another packer was done with it between our opening and our lock
            try:
                if not _pack(plain, self.part(session), packed):
                    return False
                if tell is not None:
                    tell(packed)
                path.unlink()
                sync_directory(path.parent)
            except DataError as error:
                raise DataError(f"{path}: {error}") from error
            except OSError as error:
                raise RecordingError(f"cannot pack {path}: {describe(error)}") from error
        return True

    def pack_ahead(self, session: str) -> bool:
        """Bring the part of a live recording up to date, where it lacks AHEAD_BYTES of text; whether it grew.

        Takes no lock that the worker has, and syncs nothing: whatever a crash leaves of the part,
        `pack` finds out. NotFound where there is no plain file; RecordingError where the disk refuses.
        """
        part = self.part(session)
        with self._open_plain(session) as plain:
            size = os.fstat(plain.fileno()).st_size
            if size < AHEAD_BYTES:
                return False
            try:
                with _open_part(part) as target:
                    if target is None or size - packing.packed_ahead(target) < AHEAD_BYTES:
                        return False
                    grew = packing.pack_ahead(plain, target, AHEAD_MOST)
                    if not os.fstat(plain.fileno()).st_nlink:
                        part.unlink()  # it ended and was packed meanwhile
                    return grew
            except (OSError, DataError) as error:
                reason = describe(error) if isinstance(error, OSError) else error
                raise RecordingError(f"cannot pack {self.path(session)} ahead: {reason}") from error

    def _open_plain(self, session: str) -> BinaryIO:
        try:
            return os.fdopen(os.open(self.path(session), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
        except FileNotFoundError as error:
            raise NotFound(f"no plain recording {session} in {self.root}") from error


def _pack(plain: BinaryIO, part: Path, packed: Path) -> bool:
    """The packed form beside the plain one: written, durable, compared, named, and the name durable.

    False while somebody else is at it.
    """
    with _open_part(part) as target:
        if target is None:
            return False
        packing.pack(plain, target)
        target.flush()
        os.fsync(target.fileno())
        if not packing.same(plain, target):
            raise DataError("packing it did not keep every bit")
        part.rename(packed)
        sync_directory(packed.parent)
    return True


@contextlib.contextmanager
def _open_part(path: Path) -> Iterator[BinaryIO | None]:
    """The file that a packed form grows in, locked; None while another packer has it. Removed if packing fails."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if not _is_ours(path):
        path.unlink(missing_ok=True)
        flags |= os.O_EXCL
    with os.fdopen(os.open(path, flags, 0o640), "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = os.path.samestat(os.fstat(file.fileno()), path.lstat())
        except (BlockingIOError, FileNotFoundError):
            current = False
        if not current:  # it may be the packed form by now, and nobody's to write to
            yield None
            return
        try:
            yield file
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _is_ours(path: Path) -> bool:
    """Whether a part is a file as we make them, to go on with: what it becomes has its owner, links and mode."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    single = stat.S_ISREG(found.st_mode) and found.st_nlink == 1
    return single and found.st_uid == os.geteuid() and not found.st_mode & 0o137
