"""TOTP seeds at rest: sealed with a key that is in a file, not in the database. Knows no codes.

AES-256-GCM, with the user's name as associated data: a row that was copied to another user opens to nobody.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sshrec.errors import ConfigError, DataError, NotFound, describe
from sshrec.trust import check_trust

NAME = "factors"  # in the authority's keys/

_VERSION, _KEY, _NONCE = "1", 32, 12


class Seeds:
    """Seals and opens with the key in a directory."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / NAME

    def ensure(self) -> None:
        """Make the key where there is none: one, however many do so at once. Not where any seed is sealed."""
        if not self.path.exists():
            try:
                _make(self.path)
            except OSError as error:
                raise ConfigError(f"cannot make {self.path}: {describe(error)}") from error

    @property
    def exists(self) -> bool:
        """Whether there is a key."""
        return self.path.exists()

    def seal(self, user: str, seed: bytes) -> str:
        """What the database keeps of a user's seed."""
        key, nonce = self._key(), os.urandom(_NONCE)
        sealed = nonce + AESGCM(key).encrypt(nonce, seed, user.encode())
        return f"{_VERSION}:{_which(key)}:{base64.b64encode(sealed).decode()}"

    def open(self, user: str, sealed: str) -> bytes:
        """The seed. ConfigError where another key sealed it, DataError where it is damaged, or another user's."""
        key = self._key()
        version, _, rest = sealed.partition(":")
        which, _, data = rest.partition(":")
        if version == _VERSION and which != _which(key):
            raise ConfigError(
                f"{self.path} is not the key that sealed the second factors in the database",
                hint="restore it from a backup; without it, people need: sshrec users reset NAME",
            )
        try:
            whole = base64.b64decode(data, validate=True)
            return AESGCM(key).decrypt(whole[:_NONCE], whole[_NONCE:], user.encode())
        except (InvalidTag, ValueError) as error:
            raise DataError(
                f"the second factor of {user} in the database is damaged", hint=f"sshrec users reset {user}"
            ) from error

    def tag(self, name: str) -> str:
        """A name for a name, of use to nobody without the key: people type passwords where a name is asked for."""
        key = hashlib.sha256(b"sshrec tags\0" + self._key()).digest()
        return hmac.digest(key, name.encode("utf-8", "surrogatepass"), "sha256").hex()[:32]

    def _key(self) -> bytes:
        try:
            check_trust(self.path)
            key = self.path.read_bytes()
        except FileNotFoundError as error:
            raise _gone(self.path) from error
        except ConfigError as error:
            if not self.path.exists():
                raise _gone(self.path) from error
            raise
        except OSError as error:
            raise ConfigError(f"{self.path}: {describe(error)}") from error
        if len(key) != _KEY:
            raise ConfigError(f"{self.path} is not a key of {_KEY} bytes", hint="restore it from a backup")
        return key


def _gone(path: Path) -> NotFound:
    return NotFound(f"{path} does not exist", hint="restore it from a backup: it seals the second factors")


def _which(key: bytes) -> str:
    """A name for the key that gives nothing of it away."""
    return hashlib.sha256(b"sshrec factors key\0" + key).hexdigest()[:16]


def _make(path: Path) -> None:
    """Whole or not at all, and never over another's: a link to a finished file fails where one is."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(os.urandom(_KEY))
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
