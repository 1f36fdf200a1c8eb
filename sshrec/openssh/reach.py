"""Getting to a target as ssh would: where that is, and a login by certificate that proves both ends.

The proof takes nothing from anybody's configuration but, through a bastion, what leads to the bastion.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sshrec.errors import DataError, Denied, SshrecError
from sshrec.openssh import keygen
from sshrec.openssh.client import SSH
from sshrec.openssh.public_key import PublicKey
from sshrec.openssh.signer import ENVIRONMENT, SSH_ADD, own_agent, run, said
from sshrec.openssh.target import SshCommand
from sshrec.session import printable

_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Place:
    """What a destination stands for in the caller's ssh_config: login, host and port."""

    login: str
    host: str
    port: int


def place(ssh: SshCommand) -> Place:
    """Ask ssh where it would go (ssh -G); nobody is contacted. UsageError or DataError with ssh's words."""
    result = run([ssh.program, *ssh.options, "-G", "--", ssh.destination], ssh.env)
    if result.returncode:
        raise DataError(f"ssh -G {printable(ssh.destination)}: {said(result.stderr)}")
    lines = result.stdout.decode("utf-8", "replace").splitlines()
    values = dict(line.split(" ", 1) for line in lines if " " in line)
    try:
        return Place(values["user"], values["hostname"].lower(), int(values["port"]))
    except (KeyError, ValueError):
        raise DataError(f"ssh -G {printable(ssh.destination)} does not say where that is") from None


@dataclass(frozen=True, slots=True)
class Identity:
    """A key pair in a private directory, made for one purpose; its certificate goes beside it."""

    path: Path
    public: PublicKey

    def certify(self, line: str) -> None:
        """Put its certificate where ssh looks for it."""
        self.path.with_name(f"{self.path.name}-cert.pub").write_text(f"{line}\n")


@contextlib.contextmanager
def identity() -> Iterator[Identity]:
    """A fresh key pair, gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="sshrec-proof-") as name:
        path = Path(name) / "key"
        yield Identity(path, keygen.make_key(path, "sshrec-ca enroll-node"))


def prove(who: Identity, where: Place, name: str, known_hosts: Path) -> None:
    """Log in from here by certificate, the host proving itself by one for `name`. SshrecError where that fails."""
    options = [
        *("-F", "none", "-o", f"IdentityFile={who.path}", "-o", f"UserKnownHostsFile={known_hosts}"),
        *("-o", f"HostKeyAlias={name}", "-l", where.login, "-p", str(where.port), *_STRICT),
    ]
    _ssh([*options, "--", where.host, "true"], {}, name)


def prove_through(who: Identity, bastion: SshCommand, login: str, name: str) -> None:
    """Log in through the bastion, as a person would, with the certificate in an agent."""
    with own_agent() as socket:
        env = {**bastion.env, "SSH_AUTH_SOCK": str(socket)}
        added = run([SSH_ADD, "-q", str(who.path)], env)
        if added.returncode:
            raise SshrecError(f"ssh-add: {said(added.stderr)}")
        # The certificate alone: the hop is pinned to what opened the bastion.
        run([SSH_ADD, "-q", "-d", "-k", f"{who.path}.pub"], env)
        options = [
            "-o",
            "IdentityAgent=SSH_AUTH_SOCK",
            "-o",
            "IdentityFile=none",
            "-o",
            "BatchMode=yes",
            "-A",
            "-T",
        ]
        _ssh([*options, *bastion.options, "--", bastion.destination, f"{login}@{name}", "true"], env, name)


_STRICT = (
    *("-o", "GlobalKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=no"),
    *("-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-T"),
    *("-o", "PreferredAuthentications=publickey", "-o", "ClearAllForwardings=yes"),
    *("-o", "CheckHostIP=no", "-o", "ConnectTimeout=20"),
)


def _ssh(arguments: Sequence[str], env: Mapping[str, str], name: str) -> None:
    result = run([SSH, *arguments], {**ENVIRONMENT, **env}, seconds=_SECONDS)
    if result.returncode:
        raise Denied(f"no login on {name} by certificate: {said(result.stderr)}")
