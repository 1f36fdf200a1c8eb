"""What a laptop remembers of its logins: a directory for each bastion, in the person's state directory.

Knows no bastion and no agent. The private key is here only where no agent holds it.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Literal

import msgspec

from sshrec.atomic import replace_file
from sshrec.errors import DataError, SshrecError, UsageError, describe
from sshrec.openssh.certificate import Certificate, read_certificate
from sshrec.openssh.public_key import read_file
from sshrec.session import printable

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,252}")
_LIMIT = 1024 * 1024
_FILES = ("profile.json", "cert.pub", "known_hosts", "key")

Where = Literal["agent", "files"]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A login at a bastion.

    `certificate`: its line. `constraints`, `known_hosts`: for the agent (`sshrec.openssh.destinations`);
    `bound`: what they come to, for people; None where there are none, and `unbound` says why.
    """

    bastion: str
    user: str
    certificate: str
    where: Where
    constraints: list[str] = []
    known_hosts: str = ""
    bound: str | None = None
    unbound: str = ""

    @property
    def directory(self) -> Path:
        return state() / self.bastion

    @property
    def identity(self) -> Path:
        """The certificate as a file, for ssh's IdentityFile where an agent holds the key."""
        return self.directory / "cert.pub"

    @property
    def key(self) -> Path:
        """The private key, where no agent holds it."""
        return self.directory / "key"

    def credential(self) -> Certificate:
        """The certificate; DataError where it is none."""
        return read_certificate(self.certificate.encode(), str(self.directory / "profile.json"))


def state() -> Path:
    """Where all of them are (XDG Base Directory Specification)."""
    home = os.environ.get("XDG_STATE_HOME", "")
    return (Path(home) if home.startswith("/") else Path.home() / ".local" / "state") / "sshrec"


def checked(bastion: str) -> str:
    """The name of a bastion, as ssh takes it, and as a directory's; UsageError for any other."""
    if not _NAME.fullmatch(bastion):
        hint = "a host name, or a Host of your ssh_config, which may say its port"
        raise UsageError(f"'{printable(bastion, 60)}' cannot be a bastion's name", hint=hint)
    return bastion


def load(bastion: str) -> Profile | None:
    """What is known of the login there; None for nothing. DataError where it cannot be read."""
    path = state() / checked(bastion) / "profile.json"
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(read_file(path, _LIMIT), type=Profile)
    except msgspec.MsgspecError as error:
        raise DataError(f"{printable(str(path))}: {error}", hint="sshrec login makes a new one") from error


def every() -> list[Profile]:
    """All of them, by the bastion's name."""
    names = sorted(path.parent.name for path in state().glob("*/profile.json"))
    return [found for name in names if _NAME.fullmatch(name) and (found := load(name))]


def save(profile: Profile, gateway: str, key: bytes | None) -> None:
    """Write one, with the private key where it is to be kept. `gateway`: the text of its file known_hosts.

    SshrecError names the file that cannot be written.
    """
    directory = profile.directory
    try:
        state().parent.mkdir(parents=True, exist_ok=True)
        state().mkdir(mode=0o700, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        if key is None:
            profile.key.unlink(missing_ok=True)
        else:
            replace_file(profile.key, key, 0o600)
        replace_file(directory / "known_hosts", gateway.encode(), 0o600)
        replace_file(profile.identity, f"{profile.certificate}\n".encode(), 0o600)
        replace_file(directory / "profile.json", msgspec.json.encode(profile) + b"\n", 0o600)
    except OSError as error:
        raise SshrecError(f"{printable(str(error.filename or directory))}: {describe(error)}") from error


def forget(bastion: str) -> None:
    """Remove one, the key first. SshrecError where it stays."""
    directory = state() / checked(bastion)
    try:
        for name in reversed(_FILES):
            (directory / name).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            directory.rmdir()
    except OSError as error:
        raise SshrecError(f"{printable(str(error.filename or directory))}: {describe(error)}") from error
