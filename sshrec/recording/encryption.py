"""Encrypts a finished recording as standard age, and opens it again, in constant memory. Knows streams and keys.

`age -d -i KEY` gives back what went in. Names, order and durability are storage's.
https://age-encryption.org/v1
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from sshrec.errors import DataError, RecordingError, describe
from sshrec.recipients import Recipient

MAGIC = b"age-encryption.org/v1\n"
HINT = "--identity FILE opens it, or: age -d -i FILE"

# pyrage parses a header anew for each 8 KiB it has of it; one of twenty recipients has 4 KiB.
_HEADER_MAX = 16 * 1024
_BLOCK = 64 * 1024
_NONCE, _CHUNK, _TAG = 16, 64 * 1024, 16  # of the payload
_END_SECONDS = 1.0  # that a thread may take to see that nobody reads what it decrypts


class NoIdentity(DataError):
    """None of the identities that were given opens a file."""


@dataclass(frozen=True, slots=True)
class Encrypted:
    """What went in and what came out: bytes, and SHA-256 in hex."""

    plain_bytes: int
    plain_sha256: str
    bytes: int
    sha256: str


class Digesting:
    """A file that is read or written through once, with count and hash of what passed, and what went wrong.

    `progress` gets the bytes of each read.
    """

    def __init__(self, file: BinaryIO, progress: Callable[[int], object] | None = None) -> None:
        self._file = file
        self._progress = progress
        self._sha = hashlib.sha256()
        self.bytes = 0
        self.failure: OSError | None = None

    @property
    def sha256(self) -> str:
        """Of what passed."""
        return self._sha.hexdigest()

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most `size` of them."""
        try:
            data = self._passed(self._file.read(size))
        except OSError as error:
            self.failure = error
            raise
        if self._progress is not None:
            self._progress(len(data))
        return data

    def write(self, data: bytes) -> int:
        """Write all of it."""
        try:
            self._file.write(data)
        except OSError as error:
            self.failure = error
            raise
        return len(self._passed(data))

    def flush(self) -> None:
        """For pyrage."""
        self._file.flush()

    def close(self) -> None:
        """Whose file it is closes it."""

    def _passed(self, data: bytes) -> bytes:
        self._sha.update(data)
        self.bytes += len(data)
        return data


def encrypt(source: BinaryIO, target: BinaryIO, recipients: Sequence[Recipient]) -> Encrypted:
    """Write what is in `source`, from where it stands, encrypted to all recipients. `target`: buffered.

    OSError as reading or writing raised it; RecordingError where pyrage has another reason.
    """
    import pyrage

    keys = [
        (pyrage.x25519 if one.key.startswith("age1") else pyrage.ssh).Recipient.from_str(one.key)
        for one in recipients
    ]
    plain, sealed = Digesting(source), Digesting(target)
    try:
        pyrage.encrypt_io(plain, sealed, keys)
    except (pyrage.EncryptError, OSError) as error:
        failure = plain.failure or sealed.failure
        if failure is not None:
            raise failure from error
        raise RecordingError(f"cannot encrypt: {error}") from error
    return Encrypted(plain.bytes, plain.sha256, sealed.bytes, sealed.sha256)


def payload_bytes(plain: int) -> int:
    """How many bytes of an encrypted file follow its header, where so many went in."""
    return _NONCE + plain + _TAG * max(1, -(-plain // _CHUNK))


def header_bytes(head: bytes) -> int | None:
    """How long the header is that a file begins with; None where this much of it has none that is whole."""
    last = head.find(b"\n--- ")
    end = head.find(b"\n", last + 1) + 1
    return end if head.startswith(MAGIC) and 0 < last < end <= _HEADER_MAX else None


class _Ahead:
    """A file of which some bytes were read already."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head = io.BytesIO(head)
        self._file = file
        self.failure: OSError | None = None

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size` of them."""
        try:
            return self._head.read(size) or self._file.read(size)
        except OSError as error:
            self.failure = error
            raise


class Decrypted(io.RawIOBase):
    """What is in an encrypted file, as a stream; not seekable.

    Reading raises DataError where the file is damaged, NoIdentity where no identity opens it. What comes out
    before that is authentic as far as it goes. `keys`: of Identities.
    """

    def __init__(self, file: BinaryIO, keys: Sequence[Any]) -> None:
        head = b""
        while header_bytes(head) is None and len(head) < _HEADER_MAX and (block := file.read(_BLOCK)):
            head += block
        if header_bytes(head) is None:
            raise DataError("damaged: it has no header of age's")
        self._file = file
        self._failure: DataError | None = None
        self._end, write_end = os.pipe()
        # pyrage takes a whole file at once; the pipe holds it up while nobody reads.
        self._thread = threading.Thread(
            target=self._decrypt, args=(_Ahead(head, file), write_end, list(keys)), daemon=True
        )
        self._thread.start()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what BufferedReader passes
        size = os.readv(self._end, [buffer])
        if size == 0:
            self._thread.join()
            if self._failure is not None:
                raise self._failure
        return size

    def close(self) -> None:
        if not self.closed:
            os.close(self._end)  # so the thread's next write fails
            self._thread.join(_END_SECONDS)
            self._file.close()
        super().close()

    def _decrypt(self, source: _Ahead, write_end: int, keys: list[Any]) -> None:
        import pyrage

        try:
            with os.fdopen(write_end, "wb", _BLOCK) as target:
                pyrage.decrypt_io(source, target, keys)
        except BaseException as error:  # a panic of Rust's is no Exception
            if source.failure is not None:
                self._failure = DataError(f"cannot be read: {describe(source.failure)}")
            elif isinstance(error, pyrage.DecryptError) and "No matching keys" in str(error):
                self._failure = NoIdentity("no identity that was given opens it")
            else:
                self._failure = DataError(f"damaged: {error}")
