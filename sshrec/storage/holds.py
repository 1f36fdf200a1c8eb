"""Legal holds: whose recordings nothing may remove, in `holds.json`; and the locks of who changes what is kept.

Knows no audit log: who changes a hold says so there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from sshrec.atomic import replace_file
from sshrec.errors import DataError, SshrecError, Unreachable, describe

LOCK_SECONDS = 30.0  # that somebody else may take

Kind = Literal["session", "user"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """One hold. `kind`: whether `name` is a session's id or a user; `by`: who placed it; `since`: Unix seconds."""

    kind: Kind
    name: str
    by: str
    since: int
    reason: str | None = None

    def __str__(self) -> str:
        whose = f" of user {self.name}" if self.kind == "user" else ""
        return f"on hold{whose}: {self.reason}" if self.reason else f"on hold{whose}"


@dataclass(frozen=True, slots=True)
class _File:
    schema: Literal[1]
    holds: tuple[Hold, ...]


class Holds:
    """The holds of one bastion. `directory`: data_dir."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "holds.json"
        self._lock = directory / "holds.lock"

    def read(self) -> tuple[Hold, ...]:
        """Those there are now; DataError where that cannot be known, and then nothing may be removed."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise DataError(f"{self._path}: {describe(error)}") from error
        try:
            return msgspec.json.decode(data, type=_File).holds
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{self._path} is no list of holds: {error}") from error

    def write(self, holds: tuple[Hold, ...]) -> None:
        """Put these in their place, durably. Only while `locked`."""
        data = msgspec.json.format(msgspec.json.encode(_File(1, holds))) + b"\n"
        try:
            replace_file(self._path, data, 0o640)
        except OSError as error:
            raise SshrecError(f"cannot write {self._path}: {describe(error)}") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """While nobody else places or releases one, or removes a recording."""
        with exclusive(self._lock, LOCK_SECONDS):
            yield


@contextlib.contextmanager
def exclusive(path: Path, seconds: float) -> Iterator[None]:
    """With the lock of a file, which is made; Unreachable where somebody else keeps it for longer than that."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SshrecError(f"cannot open {path}: {describe(error)}") from error
    try:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Unreachable(f"another process keeps {path} locked") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def over(holds: tuple[Hold, ...], session: str, user: str | None) -> Hold | None:
    """The hold that a recording is under, if any. `user`: whose it is."""
    wanted = {("session", session), ("user", user)}
    return next((hold for hold in holds if (hold.kind, hold.name) in wanted), None)
