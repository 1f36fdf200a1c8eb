"""Removes a recording from the store: told first, gone then, whatever dies between the two.

What tells, and what knows whether something was told, is passed in. Which recording goes, retention says.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from sshrec.atomic import replace_file
from sshrec.errors import DataError, SshrecError, describe
from sshrec.recording import packing
from sshrec.recording.seal import read_seal
from sshrec.session import SESSION_ID, started
from sshrec.storage.local import Store, sync_directory
from sshrec.storage.retention import Stored

_HEADER_MAX = 1024 * 1024
_BESIDE = (".screens", ".torn")  # of the same session
_SETTLED_SECONDS = 2 * 86400  # after which no session begins in a day's directory


@dataclass(frozen=True, slots=True)
class Facts:
    """What a packed recording says of itself, by its two ends. `bytes`: of its text."""

    user: str | None
    bytes: int
    seal: int
    seal_sha256: str


class _Header(msgspec.Struct):
    sshrec: dict[str, Any]


class _Seal(msgspec.Struct):
    n: int


class _Intent(msgspec.Struct):
    session: str
    uid: str  # of the event that tells of it


def facts(path: Path) -> Facts:
    """Of a packed recording; DataError where it is damaged, or cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            return _facts(file)
    except OSError as error:
        raise DataError(f"{path}: {describe(error)}") from error
    except (DataError, msgspec.MsgspecError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error


def _facts(file: BinaryIO) -> Facts:
    frames = packing.frames(file)
    if not frames:
        raise DataError("empty, not a recording")
    first = packing.head(file, frames[0], _HEADER_MAX).partition(b"\n")[0]
    user = msgspec.json.decode(first, type=_Header).sshrec.get("user")
    last = packing.last_line(io.BytesIO(packing.unpack(file, frames[-1])))
    if packing.outcome(last) is None:
        raise DataError("it does not end with a seal")
    n = msgspec.convert(read_seal(last), _Seal).n
    size = frames[-1].start + frames[-1].size
    return Facts(user if isinstance(user, str) else None, size, n, hashlib.sha256(last).hexdigest())


def stored(store: Store) -> list[Stored]:
    """Every recording of the store, with the bytes of all its files."""
    found = []
    for session, path in store:
        files = [store.path(session), store.packed(session), *_beside(store, session)]
        found.append(Stored(session, sum(map(_size, files)), packed=path.suffix == ".zst"))
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def _beside(store: Store, session: str) -> list[Path]:
    return [store.path(session).with_suffix(suffix) for suffix in _BESIDE]


class Removal:
    """Removals in one store, one at a time: the caller has the lock of the holds.

    `intent`: the file that says which recording was being removed when its remover died.
    """

    def __init__(self, store: Store, intent: Path) -> None:
        self._store, self._intent = store, intent

    def remove(self, session: str, uid: str, tell: Callable[[dict[str, Any]], None]) -> None:
        """Remove a packed recording. `tell`: returns when the event `uid`, of these fields and the caller's own,
        is durable; what it raises passes through, and nothing is removed.

        DataError where it is damaged, SshrecError where it cannot be removed.
        """
        path = self._store.packed(session)
        known = facts(path)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise SshrecError(f"cannot remove anything in {path.parent}: permission denied")
        with path.open("rb") as file:
            size, digest = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
        try:
            replace_file(self._intent, msgspec.json.encode(_Intent(session, uid)), 0o600)
        except OSError as error:
            raise SshrecError(f"cannot write {self._intent}: {describe(error)}") from error
        said = {"sid": session, "recording_bytes": known.bytes, "file_bytes": size, "file_sha256": digest}
        tell({**said, "seal": known.seal, "seal_sha256": known.seal_sha256})
        self._unlink(session)

    def interrupted(self, told: Callable[[str], bool]) -> str | None:
        """The session whose removal was told, and not done. `told`: whether an event of that uid is durable."""
        try:
            intent = msgspec.json.decode(self._intent.read_bytes(), type=_Intent)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{self._intent}: {describe(error)}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DataError(f"{self._intent}: {error}") from error
        if not SESSION_ID.fullmatch(intent.session):
            raise DataError(f"{self._intent} names no session")
        return intent.session if told(intent.uid) else None

    def finish(self, session: str) -> None:
        """Do what `interrupted` found."""
        self._unlink(session)

    def _unlink(self, session: str) -> None:
        packed = self._store.packed(session)
        try:
            for path in (*_beside(self._store, session), packed):
                path.unlink(missing_ok=True)
            if packed.parent.exists():
                sync_directory(packed.parent)
            if started(session) / 1000 < time.time() - _SETTLED_SECONDS:
                with contextlib.suppress(OSError):  # there are others
                    packed.parent.rmdir()
            self._intent.unlink(missing_ok=True)
        except OSError as error:
            raise SshrecError(f"cannot remove {packed}: {describe(error)}") from error
