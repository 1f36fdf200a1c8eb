"""Removes a finished recording from the store: told first, gone then, whatever dies between the two.

What tells, and what knows whether something was told, is passed in. Which recording goes, retention says.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from sshrec.atomic import replace_file, sync_directory
from sshrec.errors import DataError, NotFound, SshrecError, Unreachable, describe
from sshrec.recording import packing
from sshrec.recording.seal import read_seal
from sshrec.reserve import is_full
from sshrec.session import SESSION_ID, started
from sshrec.storage import facts as facts_of
from sshrec.storage import spare
from sshrec.storage.facts import ENCRYPTED
from sshrec.storage.local import Store
from sshrec.storage.retention import Stored

SPARE = "removal.spare"  # beside the intent: its room, on a full disk
_HEADER_MAX = 1024 * 1024
_BESIDE = (".screens", ".torn", ".torn.age", ".cast.zst.part", ".json")  # of the same session
_SETTLED_SECONDS = 2 * 86400  # after which no session begins in a day's directory


@dataclass(frozen=True, slots=True)
class Facts:
    """What a finished recording says of itself, by its two ends. `bytes`: of its text."""

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
    """Of a packed recording, or of an encrypted one by its file of facts; DataError where that cannot be read."""
    if path.suffix == ENCRYPTED:
        return _of_encrypted(facts_of.path_of(path))
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
    last = packing.last_line(io.BytesIO(packing.unpack(file, frames[-1])))
    return _of_ends(first, last, frames[-1].start + frames[-1].size)


def _of_encrypted(path: Path) -> Facts:
    found, _ = facts_of.read(path)
    try:
        return _of_ends(found.header.encode(), found.last.encode(), found.recording_bytes)
    except (DataError, msgspec.MsgspecError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error


def _of_ends(first: bytes, last: bytes, size: int) -> Facts:
    user = msgspec.json.decode(first, type=_Header).sshrec.get("user")
    if packing.outcome(last) is None:
        raise DataError("it does not end with a seal")
    n = msgspec.convert(read_seal(last), _Seal).n
    return Facts(user if isinstance(user, str) else None, size, n, hashlib.sha256(last).hexdigest())


def stored(store: Store) -> list[Stored]:
    """Every recording of the store, with the bytes of all its files; and what is left of those that never were."""
    found = [Stored(session, _size(path), packed=True) for session, path in store.remnants()]
    for session, path in store:
        files = [store.path(session), store.packed(session), store.encrypted(session), *_beside(store, session)]
        found.append(Stored(session, sum(map(_size, files)), packed=path.suffix in (".zst", ENCRYPTED)))
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
        """Remove a finished recording, or what is left of one that never was.

        `tell`: returns when the event `uid`, of these fields and the caller's own, is durable; what it raises
        passes through, and nothing is removed.

        DataError where it is damaged, NotFound where it is gone, SshrecError where it cannot be removed.
        """
        with self._locked(session) as (path, file):
            known = self._known(session, path)
            if not os.access(path.parent, os.W_OK | os.X_OK):
                raise SshrecError(f"cannot remove anything in {path.parent}: permission denied")
            size, digest = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
            try:
                self._write_intent(msgspec.json.encode(_Intent(session, uid)))
            except OSError as error:
                raise SshrecError(f"cannot write {self._intent}: {describe(error)}") from error
            tell({"sid": session, **known, "file_bytes": size, "file_sha256": digest})
            self._unlink(session)

    def _known(self, session: str, path: Path) -> dict[str, Any]:
        """What the file that matters of those of a session says of itself."""
        if path == self._store.remnant(session):
            return {"torn": True}
        known = facts(path)
        return {"recording_bytes": known.bytes, "seal": known.seal, "seal_sha256": known.seal_sha256}

    @contextlib.contextmanager
    def _locked(self, session: str) -> Iterator[tuple[Path, io.BufferedReader]]:
        """The file that matters, open, while nobody encrypts it: what was removed must not come back as another.

        Unreachable where somebody does.
        """
        while path := self._store.remnant(session) or self._store.finished(session):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue  # it was encrypted just now
            with file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise Unreachable(f"{path} is being encrypted") from error
                if os.fstat(file.fileno()).st_nlink:
                    yield path, file
                    return
        raise NotFound(f"no finished recording {session} in {self._store.root}")

    def _write_intent(self, data: bytes) -> None:
        try:
            replace_file(self._intent, data, 0o600)
        except OSError as error:
            if not is_full(error) or not spare.give(self._intent.with_name(SPARE)):
                raise
            replace_file(self._intent, data, 0o600)

    def interrupted(self, told: Callable[[str], bool]) -> str | None:
        """The session whose removal was told, and not done to its end.

        `told`: whether an event of that uid is durable.
        """
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
        return intent.session if self.files(intent.session) and told(intent.uid) else None

    def files(self, session: str) -> list[Path]:
        """What there is of a session that a removal removes."""
        store = self._store
        paths = (*_beside(store, session), store.encrypted(session), store.packed(session))
        return [path for path in paths if os.path.lexists(path)]

    def finish(self, session: str) -> None:
        """Do what `interrupted` found."""
        # Where what mattered is gone already, nobody can be at it.
        matters = self._store.remnant(session) or self._store.finished(session)
        with self._locked(session) if matters else contextlib.nullcontext():
            self._unlink(session)

    def _unlink(self, session: str) -> None:
        packed = self._store.packed(session)
        try:
            for path in self.files(session):
                path.unlink(missing_ok=True)
            if packed.parent.exists():
                sync_directory(packed.parent)
            if started(session) / 1000 < time.time() - _SETTLED_SECONDS:
                with contextlib.suppress(OSError):  # there are others
                    packed.parent.rmdir()
            self._intent.unlink(missing_ok=True)
        except OSError as error:
            raise SshrecError(f"cannot remove {packed}: {describe(error)}") from error
