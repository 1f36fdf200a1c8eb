"""Encrypts packed recordings of a store: first the encrypted file is durable, then the event, then the rest goes.

May die anywhere and be called again. While the packed file is there it is the truth, and an encrypted one beside
it is made anew: whether the event that told of it is durable need not be known. Who tells it is passed in.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from sshrec.atomic import sync_directory
from sshrec.errors import DataError, NotFound, RecordingError, describe
from sshrec.recipients import Recipient
from sshrec.recording import encryption, packing, reader
from sshrec.recording.encryption import Digesting, Encrypted
from sshrec.recording.seal import read_seal
from sshrec.recording.verification import State, Verdict, verify
from sshrec.storage import facts as facts_of
from sshrec.storage.facts import Facts
from sshrec.storage.local import Store

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PLAIN_BESIDE = (".screens", ".torn", ".cast.zst.part")


@dataclass(frozen=True, slots=True)
class Made:
    """A recording that is encrypted, and durable so.

    `header`: what its header says under `sshrec`; `end`: what its last seal does; `fields`: of the audit event,
    what is known of the files and of the chain.
    """

    header: Mapping[str, Any]
    end: Mapping[str, Any]
    fields: Mapping[str, Any]


def encrypt(store: Store, session: str, recipients: Sequence[Recipient], tell: Callable[[Made], None]) -> bool:
    """Put the encrypted form of a packed recording in its place; False where somebody else has its lock.

    `tell`: returns when the event is durable; what it raises passes through, and the packed file stays. NotFound
    where there is none; DataError where it does not verify: then it stays as it is, for people to look at.
    RecordingError where the disk refuses.
    """
    path = store.packed(session)
    try:
        packed = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    except FileNotFoundError as error:
        raise NotFound(f"no packed recording {session} in {store.root}") from error
    with packed:
        try:
            fcntl.flock(packed, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not os.fstat(packed.fileno()).st_nlink or store.path(session).exists():
            return False  # gone between our opening and our lock; or not packed to the end
        try:
            made = _encrypt(store, session, packed, recipients)
            tell(made)
            _remove_plain(path, session)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        except OSError as error:
            raise RecordingError(f"cannot encrypt {path}: {describe(error)}") from error
    return True


def _encrypt(store: Store, session: str, packed: BinaryIO, recipients: Sequence[Recipient]) -> Made:
    """The encrypted form and its facts beside the packed one: written, durable, compared, named."""
    read = Digesting(packed)
    verdict = verify(cast(BinaryIO, read), session, packed=True)
    if verdict.problem is not None:
        raise DataError(f"{State.BAD}, so it is not encrypted: {verdict.problem}")
    header, last = _ends(packed)
    packed.seek(0)
    target = store.encrypted(session)
    made = _write(packed, target, recipients, read)
    facts = Facts(
        header=header.decode(),
        last=last.decode(),
        recording_bytes=verdict.sealed,
        packed_bytes=made.plain_bytes,
        packed_sha256=made.plain_sha256,
        file_bytes=made.bytes,
        file_sha256=made.sha256,
    )
    content = facts_of.encode(facts)
    _write_facts(facts_of.path_of(target), content)
    torn = store.path(session).with_suffix(".torn")
    if torn.exists():
        _encrypt_torn(torn, recipients)
    _rename(target)
    return Made(
        header=msgspec.json.decode(header, type=dict[str, Any])["sshrec"],
        end=cast(dict[str, Any], packing.outcome(last) or {}),
        fields=_fields(facts, content, verdict, recipients),
    )


def _fields(facts: Facts, content: bytes, verdict: Verdict, recipients: Sequence[Recipient]) -> dict[str, Any]:
    fields = {
        "recipients": [one.key for one in recipients],
        "file_bytes": facts.file_bytes,
        "file_sha256": facts.file_sha256,
        "facts_sha256": hashlib.sha256(content).hexdigest(),
        "packed_bytes": facts.packed_bytes,
        "packed_sha256": facts.packed_sha256,
        "recording_bytes": facts.recording_bytes,
        "seals": verdict.seals,
        "seal": read_seal(facts.last.encode())["n"],
        "seal_sha256": facts.seal_sha256,
        "verdict": verdict.state.value,
    }
    if verdict.gap is not None:
        fields |= {"incomplete": verdict.gap.why, "incomplete_detail": verdict.gap.detail}
    return fields


def _ends(packed: BinaryIO) -> tuple[bytes, bytes]:
    """First and last line."""
    frames = packing.frames(packed)
    return reader.first_line(packed, frames[0]), packing.last_line(io.BytesIO(packing.unpack(packed, frames[-1])))


def _write(
    source: BinaryIO, target: Path, recipients: Sequence[Recipient], expected: Digesting | None
) -> Encrypted:
    """The encrypted form under a name of its own: durable, and read back. `expected`: what `source` had before."""
    beside = _new(target)
    beside.unlink(missing_ok=True)  # of one that died
    try:
        with os.fdopen(os.open(beside, _CREATE, 0o640), "w+b") as file:
            made = encryption.encrypt(source, file, recipients)
            file.flush()
            os.fsync(file.fileno())
            if expected is not None and (made.plain_bytes, made.plain_sha256) != (expected.bytes, expected.sha256):
                raise DataError("it changed while it was encrypted")
            file.seek(0)
            head = encryption.header_bytes(file.read(64 * 1024)) or 0
            file.seek(0)
            size, digest = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
            whole = head + encryption.payload_bytes(made.plain_bytes) == size == made.bytes
            if not whole or digest != made.sha256:
                raise RecordingError(f"{beside} is not what was written to it")
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return made


def _write_facts(path: Path, content: bytes) -> None:
    beside = _new(path)
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, _CREATE, 0o640), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    _rename(path)


def _encrypt_torn(torn: Path, recipients: Sequence[Recipient]) -> None:
    """What was cut off a recording was on somebody's screen, too."""
    target = torn.with_suffix(".torn.age")
    with torn.open("rb") as source:
        _write(source, target, recipients, None)
    _rename(target)


def _new(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _rename(path: Path) -> None:
    _new(path).rename(path)
    sync_directory(path.parent)


def _remove_plain(packed: Path, session: str) -> None:
    """Whatever can be read without a key; the packed file last, for it says that there is something to do."""
    for suffix in _PLAIN_BESIDE:
        packed.with_name(session + suffix).unlink(missing_ok=True)
    sync_directory(packed.parent)
    packed.unlink()
    sync_directory(packed.parent)
