"""Whose rights a command works with: root's command becomes the authority's account, and root for moments."""

from __future__ import annotations

import contextlib
import os
import pwd
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sshrec.errors import ConfigError, describe
from sshrec.trust import check_trust


@dataclass(frozen=True, slots=True)
class Privileges:
    """The ids that this process came with, and those that it works with."""

    came: tuple[int, int]
    works: tuple[int, int]
    groups: tuple[int, ...]

    @contextlib.contextmanager
    def as_caller(self) -> Iterator[None]:
        """With the caller's rights, for files and programs that are the caller's. Not while other threads run."""
        if self.works == self.came:
            yield
            return
        os.seteuid(0)
        os.setgroups(self.groups)
        os.setresgid(self.came[1], self.came[1], 0)
        os.setresuid(self.came[0], self.came[0], 0)
        tempfile.tempdir = None
        try:
            yield
        finally:
            _work_as(*self.works)

    def give_up(self) -> None:
        """Forget the caller's rights: there is no way back."""
        uid, gid = self.works
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


def become_owner(directory: Path, account: str, *, make: bool = False) -> Privileges:
    """As root: become the owner of a directory, or `account` where it is not there; else stay who we are.

    Programs that are started then have no way back to root: exec forgets the saved ids (credentials(7)).
    `make`: make the directory, 0755, for the one whom we become.
    """
    came = (os.geteuid(), os.getegid())
    if came[0] != 0:
        if make:
            _make(directory)
        return Privileges(came, came, ())
    works = _owner(directory, account)
    if make:
        # Or, before it is given away, somebody could have made it a link to another.
        check_trust(next(path for path in directory.absolute().parents if path.exists()), {works[0]})
        _make(directory)
        os.chown(directory, *works)
    privileges = Privileges(came, works, tuple(os.getgroups()))
    if works != came:
        _work_as(*works)
    return privileges


def _owner(directory: Path, account: str) -> tuple[int, int]:
    try:
        status = directory.stat()
    except (FileNotFoundError, NotADirectoryError):
        try:
            entry = pwd.getpwnam(account)
        except KeyError:
            return 0, 0  # no bastion: a machine of its own, where root is the one who signs
        return entry.pw_uid, entry.pw_gid
    return status.st_uid, status.st_gid


def _work_as(uid: int, gid: int) -> None:
    os.seteuid(0)
    os.setgroups([gid])
    os.setresgid(gid, gid, 0)
    os.setresuid(uid, uid, 0)
    tempfile.tempdir = None  # where root's temporary files go (pam_tmpdir), nobody else may


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        if os.geteuid() in (0, directory.stat().st_uid):  # somebody else's is not ours to open
            directory.chmod(0o755)
    except OSError as error:
        raise ConfigError(f"cannot make {directory}: {describe(error)}") from error


def caller() -> str:
    """Who runs this command; with sudo, the person behind it."""
    uid = os.getuid()
    behind = os.environ.get("SUDO_USER")
    try:
        own = pwd.getpwuid(uid).pw_name
    except KeyError:
        own = f"uid {uid}"
    return f"{own} ({behind})" if behind and uid == 0 else own


def whence() -> str:
    """From where it was run: the address of an ssh login, or the name of a terminal, or `local`."""
    client = os.environ.get("SSH_CONNECTION", "").split()
    if client:
        return client[0]
    with contextlib.suppress(OSError):
        return os.ttyname(0)
    return "local"
