"""Certificate authorities, and people's laptops: a key, a certificate, a private agent, an ssh_config."""

from __future__ import annotations

import json
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.lab.parts import program, run, start, stop, wait

# What an agent holds: the certificate alone (as our own login will load it), what ssh-add makes of a
# key with a certificate beside it, or a key without one.
Holds = Literal["certificate", "both", "key"]


def make_key(path: Path, comment: str, env: Mapping[str, str]) -> None:
    """An ed25519 key pair: `path` and `path`.pub."""
    run([program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path], env)


class Authority:
    """Certificates by sshrec-ca; by ssh-keygen, with the same CA's key, those that sshrec-ca would not sign."""

    def __init__(
        self, sshrec_ca: Callable[..., subprocess.CompletedProcess[bytes]], keys: Path, env: Mapping[str, str]
    ) -> None:
        self._sshrec_ca = sshrec_ca
        self._keys = keys
        self._env = env

    def sign_user(
        self,
        key: Path,
        key_id: str,
        principals: Sequence[str],
        validity: str | None = None,
        options: Sequence[str] = (),
    ) -> int:
        """Write `key`-cert.pub; its serial. `options`: of ssh-keygen -O, beside a terminal and the agent."""
        own, *logins = principals
        if validity is None and not options and own == f"sshrec:{key_id}" and logins:
            names = ("--user", key_id, "--principals", ",".join(logins), "--ttl", "1h")
            said = self._sshrec_ca("sign", f"{key}.pub", *names, "--json").stdout
            serial: int = json.loads(said)["certificates"][0]["serial"]
            return serial
        return self.by_hand(self._keys / "user_ca", key, key_id, principals, validity or "-5m:+1h", options)

    def by_hand(
        self,
        ca: Path,
        key: Path,
        key_id: str,
        principals: Sequence[str],
        validity: str = "-5m:+1h",
        options: Sequence[str] = (),
        host: bool = False,
    ) -> int:
        """Write `key`-cert.pub as ssh-keygen makes it of anything; its serial."""
        serial = secrets.randbits(62) + 1
        argv = [program("ssh-keygen"), "-q", "-s", str(ca), "-I", key_id, "-n", ",".join(principals)]
        argv += ["-V", validity, "-z", str(serial), *(["-h"] if host else [])]
        for option in () if host else ("clear", "permit-pty", "permit-agent-forwarding", *options):
            argv += ["-O", option]
        run([*argv, f"{key}.pub"], self._env)
        return serial

    def sign_host(self, key: Path, name: str) -> None:
        """Write `key`-cert.pub, a host certificate for `name`."""
        self._sshrec_ca("sign-host", f"{key}.pub", "--hostname", name, "--ttl", "1d")


@dataclass
class Laptop:
    """Where a person sits. `user`: the account on the bastion; `env`: what ssh is started with."""

    user: str
    directory: Path
    env: Mapping[str, str]
    serial: int
    agent: subprocess.Popen[bytes]

    @property
    def key(self) -> Path:
        return self.directory / "key"

    @property
    def ssh_config(self) -> Path:
        return self.directory / "ssh_config"

    def close(self) -> None:
        """End the agent; its socket goes with it."""
        stop(self.agent)


def open_laptop(
    directory: Path,
    user: str,
    authority: Authority,
    env: Mapping[str, str],
    *,
    key_id: str,
    principals: Sequence[str],
    validity: str | None = None,
    options: Sequence[str] = (),
    holds: Holds = "certificate",
) -> Laptop:
    """A laptop in `directory`, its agent running and loaded."""
    directory.mkdir(mode=0o700, parents=True)
    key = directory / "key"
    make_key(key, user, env)
    serial = authority.sign_user(key, key_id, principals, validity, options)
    path = directory / "agent.sock"
    agent = start([program("ssh-agent"), "-D", "-a", path], env, directory / "agent.log")
    env = {**env, "HOME": str(directory), "SSH_AUTH_SOCK": str(path)}
    laptop = Laptop(user, directory, env, serial, agent)
    try:
        wait(lambda: agent.poll() is not None or _listens(path), f"ssh-agent of {user}")
        run([program("ssh-add"), "-q", *(["-k"] if holds == "key" else []), key], env)
        if holds == "certificate":
            run([program("ssh-add"), "-q", "-d", "-k", f"{key}.pub"], env)
    except BaseException:
        laptop.close()
        raise
    return laptop


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@dataclass(frozen=True, slots=True)
class Host:
    """A line of the laptops' ssh_config: what is typed, where it is."""

    name: str
    port: int
    login: str | None = None  # None: the person's own


def ssh_config(hosts: Iterable[Host], user: str, known_hosts: Path) -> str:
    """A client configuration that asks nothing and takes nothing from this machine."""
    lines = []
    for host in hosts:
        lines += [f"Host {host.name}", "    HostName 127.0.0.1", f"    Port {host.port}"]
        lines += [f"    HostKeyAlias {host.name}", f"    User {host.login or user}", ""]
    lines += [
        "Host *",
        f"    UserKnownHostsFile {known_hosts}",
        "    GlobalKnownHostsFile /dev/null",
        "    StrictHostKeyChecking yes",
        "    UpdateHostKeys no",
        "    IdentityFile none",
        "    BatchMode yes",
        "    ConnectTimeout 20",
    ]
    return "\n".join(lines) + "\n"
