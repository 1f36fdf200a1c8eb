"""Identities: the private keys that open encrypted recordings, from age's files and OpenSSH's.

A passphrase comes from whoever is passed in to ask for it. Nothing is written anywhere, nor said in an error.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sshrec.errors import DataError, Denied, NotFound, describe

Ask = Callable[[str], str]  # a prompt in, a passphrase out

_FILE_MAX = 1024 * 1024
_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"
_PROTECTED = (b"age-encryption.org/v1\n", b"-----BEGIN AGE ENCRYPTED FILE-----")


def _ask_nobody(prompt: str) -> str:
    raise Denied(f"{prompt.rstrip(': ')}: there is nobody to ask")


class Identities:
    """The keys of some files, read when they are first needed.

    `files`: age identity files, passphrase-protected or not, and OpenSSH private keys (ed25519), protected or not.
    """

    def __init__(self, files: Sequence[Path] = (), ask: Ask = _ask_nobody) -> None:
        self.files = tuple(files)
        self._ask = ask

    def __bool__(self) -> bool:
        return bool(self.files)

    @functools.cached_property
    def keys(self) -> tuple[Any, ...]:
        """All keys, as pyrage has them. NotFound or DataError for a file without any; what `ask` raises."""
        return tuple(key for path in self.files for key in read(path, self._ask))


def read(path: Path, ask: Ask = _ask_nobody) -> list[Any]:
    """The keys of one file; errors as `Identities.keys`."""
    data = _content(path)
    if data.startswith(_OPENSSH):
        return [_from_openssh(path, data, ask)]
    if data.startswith(_PROTECTED):
        data = _unprotected(path, data, ask)
    keys = _from_age(path, data)
    if not keys:
        raise DataError(f"{path}: no identity in it", hint="age-keygen -o FILE makes one")
    return keys


def _content(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)  # may be a pipe: <(pass show key)
        with open(fd, "rb") as file:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise DataError(f"{path}: a directory")
            data = file.read(_FILE_MAX + 1)
    except FileNotFoundError as error:
        raise NotFound(f"{path}: {describe(error)}") from error
    except OSError as error:
        raise DataError(f"{path}: {describe(error)}") from error
    if len(data) > _FILE_MAX:
        raise DataError(f"{path}: too long to be an identity file")
    return data


def _from_openssh(path: Path, data: bytes, ask: Ask) -> Any:
    import pyrage
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_ssh_private_key,
    )

    try:
        try:
            key = load_ssh_private_key(data, None)
        except TypeError:  # it has a passphrase
            key = load_ssh_private_key(data, ask(f"Passphrase of {path}: ").encode())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DataError(f"{path}: damaged, or not its passphrase") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise DataError(f"{path}: of SSH's keys only ed25519 ones open recordings")
    return pyrage.ssh.Identity.from_buffer(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))


def _unprotected(path: Path, data: bytes, ask: Ask) -> bytes:
    import pyrage

    try:
        return bytes(pyrage.passphrase.decrypt(data, ask(f"Passphrase of {path}: ")))
    except pyrage.DecryptError as error:
        raise DataError(f"{path}: damaged, or not its passphrase") from error


def _from_age(path: Path, data: bytes) -> list[Any]:
    import pyrage

    keys = []
    for n, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if text.startswith("AGE-PLUGIN-"):
            raise DataError(f"{path}: line {n}: a plugin's identity; plugins are not run")
        try:
            keys.append(pyrage.x25519.Identity.from_str(text))
        except pyrage.IdentityError:
            raise DataError(
                f"{path}: line {n}: no identity of age's, nor is the file an OpenSSH private key"
            ) from None
    return keys
