"""The key that signs the audit log, one after another, and who may check with which: allowed_signers.

Signs nothing itself. The file in public/ is what an auditor takes a copy of, and keeps where nobody here can
change it; a key that was replaced stays in it, good for the time that it signed. It is kept in keys/, too: of keys
that are gone, nothing else has a record.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from sshrec.atomic import replace_file
from sshrec.config import Config
from sshrec.errors import ConfigError, DataError, Denied, NotFound, SshrecError, describe
from sshrec.openssh import keygen, public_key
from sshrec.openssh.certificate import Certificate, read_certificate
from sshrec.openssh.signer import AgentKey, KeyFile

NAMESPACE = "sshrec-checkpoint-v1"  # what a signature is for; of use for nothing else
ALLOWED_SIGNERS = "allowed_signers"

_NAME = "audit"
_SINCE = re.compile('valid-after="([0-9]{14}Z)"')


class LogKey:
    """The key of one authority. `now`: Unix time in seconds."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._path = config.authority_dir / "keys" / _NAME
        self._allowed = config.public_dir / ALLOWED_SIGNERS
        self._kept = self._path.with_name(ALLOWED_SIGNERS)

    @property
    def identity(self) -> str:
        """Who signs, as allowed_signers has it."""
        return self._config.audit.identity or f"audit@{socket.gethostname().lower()}"

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self._path.exists() if self._config.audit.key is None else bool(self._lines())

    @property
    def unfinished(self) -> bool:
        """Whether `make` is at work, or was killed."""
        return any(path.exists() for path in self._following)

    @property
    def allowed_signers(self) -> str:
        """The lines to check its signatures with. NotFound where they are gone."""
        if lines := self._lines():
            return "".join(f"{line}\n" for line in lines)
        raise NotFound(
            f"{self._allowed} does not exist",
            hint="put an auditor's copy there; sshrec-ca audit-key --renew begins a new one",
        )

    def _lines(self) -> list[str]:
        kept = _read(self._kept)
        return ((_read(self._allowed) or "") if kept is None else kept).splitlines()

    @property
    def is_public(self) -> bool:
        """Whether both copies are there, and the same. SshrecError where one cannot be read."""
        return _read(self._kept) == _read(self._allowed)

    def restore(self) -> bool:
        """Have both copies, the public one as the one in keys/ says; whether it was another, or gone."""
        restored = False
        while (kept := _read(self._kept)) != (public := _read(self._allowed)):  # it may be renewed meanwhile
            if kept is None:
                self._write(self._kept, public or "")  # of an authority that had but one
            else:
                restored = True
                self._write(self._allowed, kept)
        return restored

    def settle(self) -> None:
        """Finish what a killed `make` began: a key that is allowed already takes its place, another goes."""
        private, public = self._following
        if public.exists() and any(public_key.read(public).blob in line.split() for line in self._lines()):
            self._replace()
        private.unlink(missing_ok=True)
        public.unlink(missing_ok=True)

    @property
    def _following(self) -> tuple[Path, Path]:
        """The next key while it is made, private and public."""
        return self._path.with_name(f"{_NAME}.new"), self._path.with_name(f"{_NAME}.new.pub")

    def _replace(self) -> None:
        self._certificate.unlink(missing_ok=True)
        for path, suffix in zip(self._following, ("", ".pub"), strict=True):
            if path.exists():
                os.replace(path, f"{self._path}{suffix}")

    def make(self, now: float) -> str:
        """The first key, or the next one: its fingerprint. The one before is destroyed, and good until now."""
        held = self._config.audit.key
        self.settle()
        lines = self._closed(now)
        if held is None:
            public = keygen.make_key(self._following[0], self.identity)
        else:
            public = public_key.read(held.public_key)
        if any(public.blob in line for line in lines):
            raise Denied(f"{public.fingerprint} signs, or did so before", hint="the next key must be a new one")
        valid = f'valid-after="{_stamp(now)}",' if lines else ""
        lines.append(f'{self.identity} {valid}namespaces="{NAMESPACE}" {public.algorithm} {public.blob}')
        self._publish(lines)
        if held is None:
            self._replace()
        return public.fingerprint

    def _closed(self, now: float) -> list[str]:
        """The lines so far, the last one good until now."""
        lines = self._lines()
        if lines and (since := _SINCE.search(lines[-1])) and since[1] >= _stamp(now):
            raise Denied(
                f"the key that signs is good from {since[1]} on, and it is {_stamp(now)}",
                hint="is the clock right? what the key signed until now could not be checked any more",
            )
        if lines and "valid-before=" not in lines[-1]:
            identity, options, key = lines[-1].split(" ", 2)
            lines[-1] = f'{identity} {options},valid-before="{_stamp(now)}" {key}'
        return lines

    def certify(self, certificate: Certificate, now: float) -> str:
        """Have signatures carry the key's certificate: the fingerprint of its CA. DataError where it is none."""
        if self._config.audit.key is not None:
            raise ConfigError("audit.key: signatures by an agent's key carry no certificate")
        public = public_key.read(f"{self._path}.pub")
        if certificate.key != public or self.identity not in certificate.principals:
            raise DataError(f"that is no certificate of {public.fingerprint} for {self.identity}")
        if not certificate.valid_after <= now < certificate.valid_before:
            raise DataError("that certificate is not valid now")
        self._write(self._certificate, f"{certificate.line}\n")
        return certificate.ca.fingerprint

    @property
    def _certificate(self) -> Path:
        return self._path.with_name(f"{_NAME}-cert.pub")

    def signer(self) -> tuple[KeyFile | AgentKey, Path | None]:
        """Who signs, and the certificate to sign with where there is one. ConfigError where nobody does."""
        held = self._config.audit.key
        if held is not None:
            agent = held.agent or Path(os.environ.get("SSH_AUTH_SOCK", ""))
            if held.signer != "agent" or not agent.is_absolute():
                raise ConfigError("audit.key: an ssh-agent must hold it, and agent name its socket")
            return AgentKey(public_key.read(held.public_key), agent), None
        if not self._path.exists():
            raise ConfigError("there is no key for the audit log", hint="sshrec-ca audit-key --renew makes one")
        certificate = self._certificate if self._certificate.exists() else None
        return KeyFile(self._path, public_key.read(f"{self._path}.pub")), certificate

    @contextlib.contextmanager
    def expected(self) -> Iterator[Path]:
        """The allowed_signers by which an auditor finds what is signed now good: the CA's where there is one."""
        if not self._certificate.exists():
            self.restore()
            yield self._allowed
            return
        ca = read_certificate(self._certificate.read_bytes(), str(self._certificate)).ca
        with tempfile.NamedTemporaryFile("w", prefix="sshrec-allowed-") as file:
            file.write(f'{self.identity} cert-authority,namespaces="{NAMESPACE}" {ca.algorithm} {ca.blob}\n')
            file.flush()
            yield Path(file.name)

    def _publish(self, lines: list[str]) -> None:
        for path in (self._kept, self._allowed):  # where a killed one got no further, `restore` goes by the first
            self._write(path, "".join(f"{line}\n" for line in lines))

    def _write(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(mode=0o755 if path == self._allowed else 0o700, exist_ok=True)
            replace_file(path, text.encode(), 0o644)
        except OSError as error:
            raise SshrecError(f"cannot write {path}: {describe(error)}") from error


def _read(path: Path) -> str | None:
    """A file's text, None where there is none. SshrecError where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SshrecError(f"cannot read {path}: {describe(error)}") from error


def _stamp(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y%m%d%H%M%SZ")
