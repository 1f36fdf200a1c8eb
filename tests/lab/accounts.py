"""Accounts that do not exist on this machine: passwd and group files for libnss_wrapper."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.parts import LabError

# Debian policy 9.2.2: 60000-64999 are allocated by the policy on demand, so hardly ever in use.
_FIRST, _LAST, _STEP = 60000, 64980, 20


@dataclass(frozen=True, slots=True)
class Account:
    """One line of passwd, and a group of the same name."""

    name: str
    uid: int
    gid: int
    home: Path
    shell: str = "/bin/sh"
    open_to_all: bool = False  # an empty password

    def make_home(self) -> None:
        """The home directory, with what OpenSSH 10.1 and later wants for its agent sockets."""
        for path in (self.home, self.home / ".ssh", self.home / ".ssh" / "agent"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.geteuid() == 0:
                os.chown(path, self.uid, self.gid)


def wrapped(directory: Path, accounts: Sequence[Account], hostname: str | None = None) -> dict[str, str]:
    """Write the files into `directory` and return the environment that makes a program see them.

    Our accounts come first, so that a uid they share with the machine's has our name; the machine's
    follow, for sshd wants the account it separates privileges with.
    """
    passwd = [f"{a.name}:x:{a.uid}:{a.gid}:{a.name}:{a.home}:{a.shell}" for a in accounts]
    group = [f"{a.name}:x:{a.gid}:" for a in accounts]
    if os.geteuid() != 0:
        group.append(f"tty:x:{_terminal_group()}:")
    (directory / "passwd").write_text("\n".join([*passwd, *_lines("/etc/passwd", 7)]) + "\n")
    (directory / "group").write_text("\n".join([*group, *_lines("/etc/group", 4)]) + "\n")
    # "*" is no password; "!" would lock the account, and root's may be so on this machine.
    passwords = {a.name: "" if a.open_to_all else "*" for a in accounts}
    (directory / "shadow").write_text("".join(f"{n}:{p}:19000:0:99999:7:::\n" for n, p in passwords.items()))
    environment = {
        "LD_PRELOAD": "libnss_wrapper.so",
        "NSS_WRAPPER_PASSWD": str(directory / "passwd"),
        "NSS_WRAPPER_GROUP": str(directory / "group"),
        "NSS_WRAPPER_SHADOW": str(directory / "shadow"),
    }
    return environment | ({"NSS_WRAPPER_HOSTNAME": hostname} if hostname else {})


def _terminal_group() -> int:
    """The group that new terminals have: sshd gives them to the group tty, and only root can change theirs.

    Elsewhere that is tty already; containers may mount devpts without its gid= option.
    """
    master, terminal = os.openpty()
    try:
        return os.fstat(terminal).st_gid
    finally:
        os.close(master)
        os.close(terminal)


def _lines(path: str, fields: int) -> list[str]:
    return [line for line in Path(path).read_text().splitlines() if line.count(":") == fields - 1]


def check_wrapper() -> None:
    """LabError if libnss_wrapper is not installed (the loader only grumbles)."""
    said = subprocess.run(["/bin/true"], env={"LD_PRELOAD": "libnss_wrapper.so"}, capture_output=True, timeout=20)
    if said.stderr:
        raise LabError("libnss_wrapper is not installed (Debian: libnss-wrapper)")


def check_caller() -> None:
    """LabError if the caller has no name: the ssh that sshrecd starts gets no wrapper, and would refuse to run."""
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        raise LabError(f"uid {os.geteuid()} has no name in passwd, and ssh runs for nobody without one") from None


class Claims:
    """Uids that this lab has for itself, for as long as it is there: no other lab gets them meanwhile."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def claim(self, uid: int) -> bool:
        """Whether nobody else has it."""
        held = socket.socket(socket.AF_UNIX)
        try:
            held.bind(f"\0sshrec-lab-uid-{uid}")  # an abstract name goes with whoever has it: unix(7)
        except OSError:
            held.close()
            return False
        self._held.append(held)
        return True

    def close(self) -> None:
        """Let others have them."""
        for held in self._held:
            held.close()


def free_uids(count: int, taken: Collection[int], claims: Claims) -> Sequence[int]:
    """Numeric uids that nobody here has, others for each lab: so a process' uid tells whose it is."""
    first = _FIRST + os.getpid() * _STEP % (_LAST - _FIRST)
    known = {int(line.split(":")[2]) for line in _lines("/etc/passwd", 7)} | set(taken)
    for start in (*range(first, _LAST, _STEP), *range(_FIRST, first, _STEP)):
        uids = range(start, start + count)
        if known.isdisjoint(uids) and claims.claim(start):
            return uids
    raise LabError("no free uids between 60000 and 65000")


def system_uid(taken: Collection[int], claims: Claims) -> tuple[int, int] | None:
    """Uid and gid of a system account of this machine that nobody uses; None if there is none now.

    For sshrecd and sshrec-authd: the ssh and ssh-keygen that they start get an environment without our wrapper,
    and refuse to run for a uid that has no name.
    """
    for line in _lines("/etc/passwd", 7):
        name, _, uid, gid, _, _, shell = line.split(":")
        usable = 0 < int(uid) < 1000 and int(uid) not in taken and shell.endswith("nologin") and name != "sshd"
        if usable and claims.claim(int(uid)):
            return int(uid), int(gid)
    return None


def by_name(accounts: Sequence[Account]) -> Mapping[str, Account]:
    """Accounts under their names."""
    return {account.name: account for account in accounts}
