"""The key that signs the audit log, one after another, and who may check with which: allowed_signers.

Signs nothing itself. The file in public/ is what an auditor takes a copy of, and keeps where nobody here can
change it; a key that was replaced stays in it, good for the time that it signed.
"""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from sshrec.atomic import replace_file
from sshrec.config import Config
from sshrec.errors import ConfigError, DataError, Denied, SshrecError, describe
from sshrec.openssh import keygen, public_key
from sshrec.openssh.certificate import read_certificate
from sshrec.openssh.public_key import read_file
from sshrec.openssh.signer import AgentKey, KeyFile

NAMESPACE = "sshrec-checkpoint-v1"  # what a signature is for; of use for nothing else
ALLOWED_SIGNERS = "allowed_signers"

_NAME = "audit"


class LogKey:
    """The key of one authority. `now`: Unix time in seconds."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._path = config.authority_dir / "keys" / _NAME
        self._allowed = config.public_dir / ALLOWED_SIGNERS

    @property
    def identity(self) -> str:
        """Who signs, as allowed_signers has it."""
        return self._config.audit.identity or f"audit@{socket.gethostname().lower()}"

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self._config.audit.key is not None or self._path.exists()

    def make(self, now: float) -> str:
        """The first key, or the next one: its fingerprint. The one before is destroyed, and good until now."""
        held = self._config.audit.key
        if held is None:
            following = self._path.with_name(f"{_NAME}.new")
            for path in (following, following.with_suffix(".new.pub")):
                path.unlink(missing_ok=True)
            public = keygen.make_key(following, self.identity)
        else:
            public = public_key.read(held.public_key)
        lines = self._closed(now)
        if any(public.blob in line for line in lines):
            raise Denied(f"{public.fingerprint} signs, or did so before", hint="the next key must be a new one")
        valid = f'valid-after="{_stamp(now)}",' if lines else ""
        lines.append(f'{self.identity} {valid}namespaces="{NAMESPACE}" {public.algorithm} {public.blob}')
        self._publish(lines)
        if held is None:
            self._certificate.unlink(missing_ok=True)
            for suffix in (".pub", ""):
                os.replace(f"{following}{suffix}", f"{self._path}{suffix}")
        return public.fingerprint

    def _closed(self, now: float) -> list[str]:
        """The lines so far, the last one good until now."""
        if not self._allowed.exists():
            return []
        lines = self._allowed.read_text().splitlines()
        if lines and "valid-before=" not in lines[-1]:
            identity, options, key = lines[-1].split(" ", 2)
            lines[-1] = f'{identity} {options},valid-before="{_stamp(now)}" {key}'
        return lines

    def certify(self, source: str | Path, now: float) -> str:
        """Have signatures carry the key's certificate: the fingerprint of its CA. DataError where it is none."""
        certificate = read_certificate(read_file(source, 1 << 16), str(source))
        public = public_key.read(f"{self._path}.pub")
        if certificate.key != public or self.identity not in certificate.principals:
            raise DataError(f"{source} is no certificate of {public.fingerprint} for {self.identity}")
        if not certificate.valid_after <= now < certificate.valid_before:
            raise DataError(f"{source} is not valid now")
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

    def _publish(self, lines: list[str]) -> None:
        self._write(self._allowed, "".join(f"{line}\n" for line in lines))

    def _write(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(mode=0o755, exist_ok=True)
            replace_file(path, text.encode(), 0o644)
        except OSError as error:
            raise SshrecError(f"cannot write {path}: {describe(error)}") from error


def _stamp(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y%m%d%H%M%SZ")
