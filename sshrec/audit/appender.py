"""Appends to the audit log: one at a time by a lock, whole groups made durable, what a crash tore set aside.

Never overwrites, never truncates. Knows no socket and no sender.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sshrec.audit.event import LAST_WORDS, LINE_MAX, AuditError, Fields, canonical, new_uid
from sshrec.audit.log import Head, Line, Reader, files
from sshrec.errors import describe
from sshrec.reserve import Reserve, is_full

GROUP_BYTES = 1024 * 1024  # that are written at once: so much, and one line, may a power cut tear
REMEMBERED = 65536  # uids by which an event that is sent again is known
RESERVE_BYTES = 4 * 1024 * 1024  # kept for LAST_WORDS on a full disk: the ends of 2000 sessions
AHEAD_BYTES = 1024 * 1024
WINDOW_BYTES = 4 * 1024 * 1024  # of the end, read when the log is opened
_BREAKS = ("line", "number", "chain", "torn")

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class LogFull(AuditError):
    """There is no room but what is kept for those events that must be told all the same."""


def wall_ms() -> int:
    """The wall clock, in Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Appender:
    """The log's one writer, while it has the lock.

    `lock`, then `append` as often as needed, then `close`. Any failure of the disk is an AuditError, with nothing
    acknowledged; the next `append` looks at the files anew, and repairs what the failure tore. `reserve`: bytes
    kept for the last words of a full disk.
    """

    def __init__(
        self, directory: Path, *, clock: Callable[[], int] = wall_ms, reserve: int = RESERVE_BYTES
    ) -> None:
        self.directory = directory
        self.head = Head()
        self.last = b""  # the newest line of our own
        self._clock = clock
        self._lock = -1
        self._fd = -1  # of the newest file, while it is known to be whole
        self._path = Path()
        self._size = 0
        self._reserve_bytes = reserve
        self._reserve = Reserve(-1, 0, 0)  # past the end of the file
        self._last_words = False  # what is written now may take it
        self._numbers: OrderedDict[str, int] = OrderedDict()  # of the newest events, by uid

    # ---- the lock ---------------------------------------------------------------------------------------

    def lock(self) -> bool:
        """Take the lock, without waiting; False where somebody else has it."""
        try:
            self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise AuditError(f"cannot open the audit log {self.directory}: {describe(error)}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                return False
            raise AuditError(f"cannot lock the audit log {self.directory}: {describe(error)}") from error
        self._lock = fd
        return True

    def unlock(self) -> None:
        """Let others append; what is remembered is checked at the next `append`."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def close(self) -> None:
        """Let go of everything."""
        self._forget()
        self.unlock()

    def _forget(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # ---- appending --------------------------------------------------------------------------------------

    def number(self, uid: str) -> int | None:
        """The number of an event that is in the log already, where it is one of the newest."""
        return self._numbers.get(uid)

    def append(self, events: Sequence[Fields]) -> list[int]:
        """Stamp these events, append them, return their numbers once all are durable.

        Each has at least event, code and uid. Of one that is in the log already, the old number is returned.
        Of the list, no more than GROUP_BYTES are written at once. LogFull, and nothing is written, where the disk
        has room for LAST_WORDS alone, and there are others among these.
        """
        assert self._lock >= 0
        self._last_words = all(event["event"] in LAST_WORDS for event in events)
        try:
            if not self._is_current():
                self._open()
            if events:
                self._change_day()
            return self._append(events)
        except OSError as error:
            self._forget()
            raise self._refusal(AuditError, error) from error

    def _refusal(self, kind: type[AuditError], error: OSError) -> AuditError:
        return kind(
            f"cannot write the audit log {self.directory}: {describe(error)}",
            hint="sessions need it: make room, or let sshrec's user write there",
        )

    def ready(self) -> None:
        """Open and repair the log now; AuditError where that cannot be."""
        self.append(())

    def _append(self, events: Sequence[Fields]) -> list[int]:
        numbers: list[int] = []
        group: list[bytes] = []
        size, head = 0, self.head
        taken: dict[str, int] = {}
        for event in events:
            uid = event["uid"]
            known = self._numbers.get(uid, taken.get(uid))
            if known is not None:
                numbers.append(known)
                continue
            raw = self._line(event, head)
            if size + len(raw) > GROUP_BYTES:
                self._write(group, head, taken)
                group, size, taken = [], 0, {}
            numbers.append(head.n)
            taken[uid] = head.n
            group.append(raw)
            size += len(raw)
            head = head.after(raw)
        self._write(group, head, taken)
        return numbers

    def _line(self, event: Fields, head: Head) -> bytes:
        stamped = {**event, "n": head.n, "prev": head.prev, "time": self._now()}
        return canonical(stamped) + b"\n"

    def _now(self) -> str:
        moment = datetime.fromtimestamp(self._clock() / 1000, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _write(self, group: list[bytes], head: Head, taken: dict[str, int]) -> None:
        """One write, one sync. On failure nothing of it counts."""
        if not group:
            return
        data = b"".join(group)
        try:
            self._reserve.keep(self._size, len(data))
        except OSError as error:
            if not (is_full(error) and self._last_words):
                raise self._refusal(LogFull if is_full(error) else AuditError, error) from error
        self._put(data)
        self.head, self.last = head, group[-1]
        self._numbers.update(taken)
        while len(self._numbers) > REMEMBERED:
            self._numbers.popitem(last=False)

    # ---- files ------------------------------------------------------------------------------------------

    def _is_current(self) -> bool:
        """Whether the file is as we left it, and still the newest."""
        if self._fd < 0 or os.fstat(self._fd).st_size != self._size:
            return False
        return files(self.directory)[-1:] == [self._path]

    def _change_day(self) -> None:
        """Begin a new file for a new day. A clock that goes back changes nothing: files have an order."""
        name = f"{self._now()[:10]}.jsonl"
        if self._fd >= 0 and name <= self._path.name:
            return
        new = self.directory / f".{name}.new"
        new.unlink(missing_ok=True)
        fd = os.open(new, _FLAGS | os.O_CREAT | os.O_EXCL, 0o640)
        reserve = Reserve(fd, self._reserve_bytes, AHEAD_BYTES)
        try:
            os.fchmod(fd, 0o640)
            reserve.keep(0, 0)
            new.rename(self.directory / name)
        except OSError as error:
            os.close(fd)
            new.unlink(missing_ok=True)
            if self._fd >= 0 and is_full(error):
                return  # the old file has its reserve, which is worth more than its name
            raise
        if self._fd >= 0:
            self._reserve.release()
        self._forget()
        self._path, self._fd, self._reserve, self._size = self.directory / name, fd, reserve, 0
        os.fsync(self._lock)  # its name; the lock is on the directory
        # What it holds is there already; that its directory is in its own is not said by that.
        _sync(self.directory.parent)

    def _open(self) -> None:
        """Find where the chain stands, and set aside what is torn."""
        self._forget()
        self.head = Head()
        self._numbers.clear()
        paths = files(self.directory)
        if not paths:
            return
        self._path = paths[-1]
        self._fd = os.open(self._path, _FLAGS)
        self._reserve = Reserve(self._fd, self._reserve_bytes, AHEAD_BYTES)
        self._end_line()
        before = None
        if self._size < WINDOW_BYTES:
            # The one before that has lines, too: for the head, and for the uids.
            older = [path for path in paths[:-1] if path.stat().st_size]
            before = _End(older[-1]) if older else None
        end = _End(self._path, before.head if before is not None else None)
        for one in (before, end) if before is not None else (end,):
            self._numbers.update(one.numbers)
            self.head = one.head or self.head
        if end.torn:
            self._set_aside(end.torn)
        # What is in the file counts from now on, and whoever wrote it may not have come to say so.
        os.fdatasync(self._fd)
        os.fsync(self._lock)

    def _end_line(self) -> None:
        """Give the last line its newline: it may be whole but for that, and counts as torn with it if not."""
        self._size = os.fstat(self._fd).st_size
        if self._size and os.pread(self._fd, 1, self._size - 1) != b"\n":
            self._put(b"\n")

    def _set_aside(self, torn: bytes) -> None:
        """Append the line by which readers know these bytes, the file's last, for what they are."""
        repair = {
            "event": "log.repair",
            "code": "SR001W",
            "uid": new_uid(),
            "sender_uid": os.geteuid(),
            "torn_bytes": len(torn),
            "torn_sha256": hashlib.sha256(torn).hexdigest(),
        }
        raw = self._line(repair, self.head)
        self._put(raw)
        self.head = self.head.after(raw)

    def _put(self, data: bytes) -> None:
        """Append, durably."""
        done = 0
        while done < len(data):
            done += os.write(self._fd, data[done:] if done else data)
        os.fdatasync(self._fd)
        self._size += done


class _End:
    """The end of a file: where the chain stands (None where it has no line), its uids, the bytes that are torn.

    Torn is what a write that never counted may have left: from the first break in the chain on, but no more than
    one write has. A break further back is damage, which no writer mends: the chain goes on from what is there.
    `before`: where the chain stands before the file's first line; None where it is the log's first, or not known.
    """

    def __init__(self, path: Path, before: Head | None = None) -> None:
        self.head: Head | None = None
        self.numbers: dict[str, int] = {}
        self.torn = b""
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = file.seek(max(0, size - WINDOW_BYTES))
            if start:
                start += len(file.readline())
            reader = Reader(None if start else before)
            for item in reader.read(path, file, start):
                if isinstance(item, Line):
                    self.numbers[item.fields["uid"]] = item.n
                    self.head = reader.head
                elif item.kind in _BREAKS and item.offset >= size - GROUP_BYTES - LINE_MAX:
                    file.seek(item.offset)
                    self.torn = file.read()
                    return


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
