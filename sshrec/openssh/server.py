"""The inner sshd of the transparent way in: its configuration, accounts, command line and environment.

It runs as our own uid on two descriptors, `sshd -i`, for one connection. What it lets in, and as whom, stands in
files that we write; what its sessions do, its ForceCommand: they end up at a worker each, like any other.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from sshrec.config import Transparent
from sshrec.openssh.client import LIBEXEC
from sshrec.session import Credential

SSHD = "/usr/sbin/sshd"
WRAPPER = "libnss_wrapper.so"
SFTP = "sshrec-sftp"  # what ForceCommand is told instead of the subsystem sftp
SESSIONS = 100  # at once on one connection

_LINE_BYTES = 16 * 1024  # of its log
_SESSION = re.compile(rb"(Starting|Close) session: .* id ([0-9]+)\s*$")


@dataclass(frozen=True, slots=True)
class Inner:
    """The files of one connection, in its private run directory."""

    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / "sshd_config"

    @property
    def key(self) -> Path:
        return self.directory / "host"

    @property
    def certificate(self) -> Path:
        return self.directory / "host-cert.pub"

    @property
    def authorized(self) -> Path:
        return self.directory / "authorized"

    @property
    def passwd(self) -> Path:
        return self.directory / "passwd"

    @property
    def group(self) -> Path:
        return self.directory / "group"


class Log:
    """What it has said, at LogLevel VERBOSE and by ld.so(8).

    `begun`: it has read its keys, and speaks; `accepted`: it knows its client; `sessions`: the numbers of those of
    whose end the client has not heard; `unwrapped`: without libnss_wrapper; `last`: its last line.
    """

    def __init__(self) -> None:
        self.begun = self.accepted = self.unwrapped = False
        self.sessions: set[int] = set()
        self.last = ""
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """More of it."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-_LINE_BYTES:]
        for line in lines:
            self._line(line)

    def _line(self, line: bytes) -> None:
        self.last = line.decode("utf-8", "replace").strip() or self.last
        self.begun |= b"Connection from " in line
        self.accepted |= b"Accepted publickey for " in line
        self.unwrapped |= b"cannot be preloaded" in line
        if found := _SESSION.match(line):
            number = int(found[2])
            self.sessions.add(number) if found[1] == b"Starting" else self.sessions.discard(number)


# See sshd_config(5) for each keyword. What is not here and would let something past has a safe default.
_CONFIGURATION = """\
HostKey {key}
HostCertificate {certificate}
HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com
KexAlgorithms {kex_algorithms}
Ciphers {ciphers}
PidFile none
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
StrictModes yes
# Only the key or certificate that opened the outer connection; the worker compares it, too.
AuthenticationMethods publickey
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile {authorized}
AuthorizedKeysCommand none
AuthorizedPrincipalsFile none
AuthorizedPrincipalsCommand none
TrustedUserCAKeys none
AllowUsers {login}
MaxAuthTries 20
# As long as anywhere: a FIDO key wants to be touched, an agent to be asked.
LoginGraceTime 120
ExposeAuthInfo yes
ForceCommand exec {gateway} --socket {socket} --channel {connection}
Subsystem sftp {sftp}
AllowTcpForwarding no
AllowStreamLocalForwarding no
PermitOpen none
PermitListen none
GatewayPorts no
X11Forwarding no
PermitTunnel no
PermitUserRC no
PermitUserEnvironment no
AllowAgentForwarding yes
PermitTTY yes
MaxSessions {sessions}
AcceptEnv LANG
ClientAliveInterval 0
LogLevel VERBOSE
"""


def configuration(inner: Inner, settings: Transparent, *, login: str, socket: Path, connection: str) -> str:
    """The sshd_config of one connection. `socket`: sshrecd's; `connection`: its id."""
    return _CONFIGURATION.format(
        key=inner.key,
        certificate=inner.certificate,
        kex_algorithms=settings.kex_algorithms,
        ciphers=settings.ciphers,
        authorized=inner.authorized,
        login=login,
        gateway=shlex.quote(str(LIBEXEC / "sshrec-gateway")),
        socket=shlex.quote(str(socket)),
        connection=connection,
        sftp=SFTP,
        sessions=SESSIONS,
    )


def authorized_keys(credential: Credential, user: str, user_cas: str) -> str:
    """Who may come in: the key that opened the outer connection, or certificates of that user's.

    `user_cas`: lines of public keys. Which of the user's certificates it is, ForceCommand's worker sees.
    """
    if credential.key_id is None:
        return f"restrict,pty,agent-forwarding {credential.line}"
    options = f'restrict,pty,agent-forwarding,cert-authority,principals="sshrec:{user}"'
    return "".join(f"{options} {line}\n" for line in user_cas.splitlines() if line.strip())


def accounts(inner: Inner, login: str) -> tuple[str, str]:
    """passwd(5) and group(5) for libnss_wrapper: whatever login the person types is our own uid."""
    uid, gid = os.geteuid(), os.getegid()
    # The first line of a uid is its name. sshd wants an account to separate privileges with, even where it cannot.
    passwd = (
        f"{login}:*:{uid}:{gid}::{inner.directory}:/bin/sh\nsshd:*:65533:65534::/nonexistent:/usr/sbin/nologin\n"
    )
    return passwd, f"{login}:*:{gid}:\n"


def arguments(inner: Inner) -> list[str]:
    """The argv: it speaks on descriptors 0 and 1, and logs on 2."""
    return [SSHD, "-i", "-e", "-f", str(inner.config)]


def environment(inner: Inner) -> dict[str, str]:
    """The environment, made from nothing. sshd passes none of it on."""
    return {
        "PATH": "/usr/bin:/bin",
        "LD_PRELOAD": WRAPPER,
        "NSS_WRAPPER_PASSWD": str(inner.passwd),
        "NSS_WRAPPER_GROUP": str(inner.group),
    }
