"""An sshd of the lab: its configuration, its process, its log."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.parts import LabError, program, sshd_version, start, stop, tail, wait

_SNIPPET = Path(__file__).parents[2] / "contrib" / "sshd_config.snippet"

QUICK = "SSHREC_LAB_KEX"  # names sshd's key exchanges; with OpenSSH's own, each connection costs 74 ms of CPU more

_LISTENS = "Server listening on "

# Where an sshd of root keeps who was logged in; utmp(5), lastlog(8).
_LOGIN_RECORDS = ("/var/log/lastlog", "/var/log/wtmp", "/var/log/btmp", "/run/utmp")
_MOUNT = 'scratch=$1; shift; for file in {}; do [ -e $file ] && mount --bind "$scratch" $file; done; exec "$@"'


def common(directory: Path, port: int, version: tuple[int, int]) -> list[str]:
    """What both kinds have: one port on loopback, a host key with a certificate, no PAM."""
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {directory}/host_key",
        f"HostCertificate {directory}/host_key-cert.pub",
        f"PidFile {directory}/sshd.pid",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitUserEnvironment no",
        "UseDNS no",
        "PrintMotd no",
        "PrintLastLog no",
        "AcceptEnv LANG LC_*",
        "LogLevel VERBOSE",
        "LoginGraceTime 30",
        "MaxStartups 1000",
    ]
    if version >= (9, 8):
        lines.append("PerSourcePenalties no")  # everybody comes from 127.0.0.1
    if quick := os.environ.get(QUICK):
        lines.append(f"KexAlgorithms {quick}")
    return lines


def bastion(public: Path, force_command: str, command_user: str, authorized_keys: bool) -> list[str]:
    """What makes it a bastion: the shipped snippet, for everybody, with the lab's paths.

    `public`: where the authority publishes; `force_command`: "" is none; `command_user`: who runs
    AuthorizedPrincipalsCommand, which an sshd of an ordinary user cannot switch.
    """
    ours = {
        "ForceCommand": force_command,
        "TrustedUserCAKeys": str(public / "user_ca.pub"),
        "RevokedKeys": str(public / "krl"),
        "AuthorizedPrincipalsCommandUser": command_user,
        "AuthorizedKeysFile": ".ssh/authorized_keys" if authorized_keys else "none",
    }
    lines = ["Subsystem sftp /usr/lib/openssh/sftp-server", "PermitRootLogin yes"]
    for line in _settings("Match Group sshrec-users"):
        keyword, _, value = line.partition(" ")
        if value := ours.get(keyword, value):
            lines.append(f"{keyword} {value}")
    lines.append("Match User login")
    for line in _settings("Match User login"):
        keyword, _, value = line.partition(" ")
        if value := force_command if keyword == "ForceCommand" else value:
            lines.append(f"    {keyword} {value}")
    return lines


def _settings(match: str) -> list[str]:
    """The lines of one of the snippet's blocks, without comments."""
    _, _, block = _SNIPPET.read_text().partition(f"\n{match}\n")
    block, _, _ = block.partition("\nMatch ")
    return [line.strip() for line in block.splitlines() if line.strip() and not line.strip().startswith("#")]


def target(user_ca: Path, environment: Mapping[str, str]) -> list[str]:
    """A stock target that trusts the user CA. `environment`: what its sessions get besides."""
    # Debian's bash sources ~/.bashrc when SHLVL is unset: nobody's dotfiles are to run here.
    variables = {"SHLVL": "1", **environment}
    return [
        "Subsystem sftp internal-sftp",
        f"TrustedUserCAKeys {user_ca}",
        "PermitRootLogin yes",
        "SetEnv " + " ".join(f"{name}={value}" for name, value in variables.items()),
    ]


class Sshd:
    """One running sshd. `port` is chosen when it starts."""

    def __init__(
        self, name: str, directory: Path, lines: Sequence[str], env: Mapping[str, str], prefix: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.port = 0
        self.log = directory / "sshd.log"
        self._directory = directory
        self._lines = lines
        self._env = env
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise LabError(f"{self.name} is not running")
        return self._process.pid

    def start(self) -> None:
        """Listen on a free port; LabError has the log's end."""
        for _ in range(10):
            self.port = _free_port()
            config = self._directory / "sshd_config"
            # The first value of a keyword wins, so what the caller wants comes first, a Match block last.
            at = next((n for n, line in enumerate(self._lines) if line.startswith("Match ")), len(self._lines))
            lines = [*self._lines[:at], *self._common(), *self._lines[at:]]
            config.write_text("\n".join(lines) + "\n")
            self.log.write_bytes(b"")
            self._process = start([*self._prefix, program("sshd"), "-D", "-e", "-f", config], self._env, self.log)
            try:
                wait(self._settled, f"sshd of {self.name}")
            except LabError as error:
                raise LabError(f"{error}\n{tail(self.log)}") from error
            if self._process.poll() is None:
                return
            if "Address already in use" not in self.log_text():
                raise LabError(f"sshd of {self.name} does not start\n{tail(self.log)}")
        raise LabError(f"sshd of {self.name} finds no free port")

    def _common(self) -> list[str]:
        return common(self._directory, self.port, sshd_version(self._prefix))

    def _settled(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            return True
        return f"Server listening on 127.0.0.1 port {self.port}." in self.log_text() and self._hears()

    def _hears(self) -> bool:
        """Whether it handles its signals, as it does from a moment after it listens; proc_pid_status(5)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        return all(caught >> (number - 1) & 1 for number in (signal.SIGHUP, signal.SIGCHLD))

    def log_text(self) -> str:
        """All that sshd logged."""
        return self.log.read_text(errors="replace")

    def reload(self) -> None:
        """Have it read its configuration and keys again."""
        said = self.log_text().count(_LISTENS)
        os.kill(self.pid, signal.SIGHUP)
        wait(lambda: self.log_text().count(_LISTENS) > said and self._hears(), f"sshd of {self.name} to come back")
        # Children that ended while it restarted stay zombies until it is told of the next one.
        os.kill(self.pid, signal.SIGCHLD)

    def stop(self) -> None:
        """End the listener; sessions end with their clients or by Lab."""
        if self._process:
            stop(self._process)
            self._process = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PrivsepDirectory:
    """/run/sshd, which an sshd of root cannot do without: made if absent, and the last lab removes it."""

    def __init__(self, path: Path = Path("/run/sshd")) -> None:
        self._path = path
        self._mark = path / ".sshrec-lab"
        self._descriptor: int | None = None

    def open(self) -> None:
        """Make the directory, or join the labs that use it."""
        while self._descriptor is None:
            with contextlib.suppress(FileExistsError):
                self._path.mkdir(mode=0o755)
                self._mark.touch()
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self._path.stat(), os.fstat(descriptor)):
                    self._descriptor = descriptor
                    return
            os.close(descriptor)  # another lab removed it before we had the lock

    def close(self) -> None:
        """Remove what a lab made, unless another one still uses it."""
        if self._descriptor is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._mark.exists():
                self._mark.unlink()
                self._path.rmdir()
        except BlockingIOError:
            pass
        finally:
            os.close(self._descriptor)
            self._descriptor = None


def without_login_records(scratch: Path) -> list[str]:
    """A prefix that keeps a root sshd from writing into this machine's records of logins.

    Needs a mount namespace. Where a container has none to give, the prefix is empty and they are written.
    """
    scratch.touch()
    prefix = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", _MOUNT.format(" ".join(_LOGIN_RECORDS))]
    prefix += ["sh", str(scratch)]
    tried = subprocess.run([*prefix, "true"], capture_output=True, timeout=20)
    return [] if tried.returncode or tried.stderr else prefix
