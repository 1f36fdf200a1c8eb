"""People's Unix accounts on the bastion: nothing runs for them but the gateway. Root's work, and useradd's.

Knows no user of ours; an account is ours where its group and its login shell are.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from sshrec.errors import ConfigError, Denied, SshrecError, describe
from sshrec.session import printable

GROUP = "sshrec-users"
SHELL = Path("/usr/lib/sshrec/sshrec-gateway")

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_SECONDS = 60
_BUSY, _BUSY_SECONDS = 8, 5.0  # userdel(8): the user is logged in
_WITHOUT = "--no-unix-account leaves it to somebody else"


def exists(name: str) -> bool:
    """Whether there is an account of that name, and it is ours. Denied where it is another's."""
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return False
    if Path(entry.pw_shell) != SHELL or not _is_member(entry):
        raise Denied(
            f"the Unix account {name} is not ours: it is not in {GROUP}, or its shell is not {SHELL}",
            hint=_WITHOUT,
        )
    return True


def make(name: str) -> None:
    """Make the account: in our group, with the gateway for a shell, and no password.

    Its home belongs to root, or what is in it could run beside the gateway; but for ~/.ssh/agent, where sshd from
    OpenSSH 10.1 on puts the agent's socket. Whatever fails, nothing of it stays.
    """
    try:
        grp.getgrnam(GROUP)
    except KeyError:
        raise ConfigError(
            f"there is no group {GROUP}", hint=f"groupadd --system {GROUP}; or: {_WITHOUT}"
        ) from None
    if not SHELL.exists():
        raise ConfigError(f"{SHELL} does not exist", hint=f"see the installation guide; or: {_WITHOUT}")
    home = _homes() / name
    if os.path.lexists(home):
        raise Denied(f"{home} exists: what it holds could run at a login", hint="move it away first")
    words = ["--no-create-home", "--home-dir", str(home), "--no-user-group", "--gid", GROUP, "--shell", str(SHELL)]
    _run("useradd", [*words, "--password", "*", "--comment", "sshrec user", name])
    try:
        entry = pwd.getpwnam(name)
        for directory in (home, home / ".ssh", home / ".ssh/agent"):
            directory.mkdir(mode=0o755)
            directory.chmod(0o755)  # whatever the umask
        directory.chmod(0o700)
        os.chown(directory, entry.pw_uid, entry.pw_gid)
    except (OSError, KeyError) as error:
        with contextlib.suppress(SshrecError, OSError):
            remove(name)
        why = describe(error) if isinstance(error, OSError) else "useradd has not made it"
        raise SshrecError(f"cannot make the Unix account {name}: {home}: {why}") from error


def remove(name: str) -> bool:
    """Remove an account that is ours, with the home that we made; False where there is none. Denied: as above."""
    if not exists(name):
        return False
    home = Path(pwd.getpwnam(name).pw_dir)
    deadline = time.monotonic() + _BUSY_SECONDS
    while (status := _run("userdel", [name], (0, _BUSY))) == _BUSY:
        if time.monotonic() > deadline:
            raise SshrecError(f"the Unix account {name} is in use", hint="end its sessions, and do this again")
        time.sleep(0.1)
    assert status == 0
    # Only a home like those that we make; the agent's directory is the only place where its owner could write.
    if home.is_dir() and not home.is_symlink() and home.stat().st_uid == 0 and home.parent == _homes():
        shutil.rmtree(home)
    return True


def _is_member(entry: pwd.struct_passwd) -> bool:
    try:
        group = grp.getgrnam(GROUP)
    except KeyError:
        return False
    return entry.pw_gid == group.gr_gid or entry.pw_name in group.gr_mem


def _homes() -> Path:
    """Where useradd puts homes."""
    for line in _output("useradd", ["-D"]).splitlines():
        if line.startswith("HOME="):
            return Path(line.removeprefix("HOME="))
    return Path("/home")


def _run(program: str, words: Sequence[str], fine: Sequence[int] = (0,)) -> int:
    done = _start(program, words)
    if done.returncode not in fine:
        said = printable((done.stderr.strip().splitlines() or [b"it failed"])[-1], 300)
        raise SshrecError(said if said.startswith(f"{program}:") else f"{program}: {said}")
    return done.returncode


def _output(program: str, words: Sequence[str]) -> str:
    return _start(program, words).stdout.decode(errors="replace")


def _start(program: str, words: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            [program, *words],
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
            timeout=_SECONDS,
        )
    except FileNotFoundError as error:
        raise SshrecError(f"{program} is not installed", hint=_WITHOUT) from error
    except subprocess.TimeoutExpired as error:
        raise SshrecError(f"{program} does not come to an end") from error
