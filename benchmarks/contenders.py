"""Who is measured: ways from a laptop to a target, with and without a recorder between."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks import accounting
from benchmarks.client import LIMIT_SECONDS, BenchmarkError, Client
from tests.lab import Lab, parts

Role = Literal["recorder", "ssh", "sshd", "daemon"]
ROLES: tuple[Role, ...] = ("recorder", "ssh", "sshd", "daemon")

TARGET = "web1"
_UTMP = Path("/run/utmp")


@dataclass(frozen=True, slots=True)
class Direct:
    """No bastion."""

    name: str = "direct"
    what: str = "`ssh target`: no bastion"


@dataclass(frozen=True, slots=True)
class Jump:
    """A bastion that only passes the connection on."""

    name: str = "jump"
    what: str = "`ssh -J bastion target`: nothing can be recorded"


@dataclass(frozen=True, slots=True)
class Forced:
    """A bastion whose ForceCommand is `terminal`, {hop} in it the onward ssh and {file} the recording."""

    name: str
    what: str
    terminal: str
    program: str = "ssh"
    commands: bool = False  # it carries commands without a terminal, too


@dataclass(frozen=True, slots=True)
class Sshrec:
    """A bastion with sshrec. `settings`: of sshrec.yaml, beside the lab's."""

    name: str
    what: str
    settings: Mapping[str, Any] = field(default_factory=dict)


Contender = Direct | Jump | Forced | Sshrec

CONTENDERS: tuple[Contender, ...] = (
    Direct(),
    Jump(),
    Forced("nested", "ForceCommand `ssh target`: no recorder", "{hop}", commands=True),
    Forced("script", "`script -qef`", "{program} -qef -c '{hop}' -T {file}.timing -O {file}", "script"),
    Forced("ttyrec", "`ttyrec`", "{program} -e '{hop}' {file}", "ttyrec"),
    Forced("tlog-rec", "`tlog-rec`", "{program} --writer=file --file-path={file} -- {hop}", "tlog-rec"),
    Forced("asciinema", "`asciinema rec`", "{program} rec -q --overwrite -c '{hop}' {file}", "asciinema"),
    Sshrec("sshrec", "sshrec with its defaults"),
    Sshrec(
        "sshrec+curve25519",
        "the same with `hop: {kex_algorithms: ^curve25519-sha256}`",
        {"hop": {"kex_algorithms": "^curve25519-sha256"}},
    ),
)


def missing(contender: Contender) -> str | None:
    """The program that a contender lacks on this machine."""
    if isinstance(contender, Forced) and shutil.which(contender.program, path=parts.PATH) is None:
        return contender.program
    return None


def _stays(pid: int) -> bool:
    """Whether a process is sshrecd's for as long as that runs: the audit log's writer, the warden of locks."""
    return accounting.program(pid) in ("sshrec-audit", "sshrec-warden")


@dataclass(frozen=True, slots=True)
class Route:
    """A contender that is ready. `words`: the client's, before the command.

    `bastion` and `daemon`: process ids of the sshd and the sshrecd whose descendants serve it.
    """

    contender: Contender
    lab: Lab
    words: tuple[str, ...]
    bastion: int | None = None
    daemon: int | None = None
    recordings: Path | None = None
    user: str = "joe"

    @property
    def name(self) -> str:
        return self.contender.name

    @property
    def commands(self) -> bool:
        """Whether it carries commands without a terminal."""
        return not isinstance(self.contender, Forced) or self.contender.commands

    def open(self, command: str, *, terminal: bool, piped: bool = False, limit: float = LIMIT_SECONDS) -> Client:
        """The client, running `command` on the target."""
        argv = self.lab.ssh_argv("-tt" if terminal else "-T", *self.words, command, user=self.user)
        log = self.lab.directory / f"client-{self.name}.log"
        log.write_bytes(b"")
        return Client(argv, self.lab.laptop(self.user).env, log, terminal=terminal, piped=piped, limit=limit)

    def processes(self) -> dict[Role, list[int]]:
        """Who is at work on the bastion for it: what is no sshd, ssh or sshrecd is recorder."""
        found: dict[Role, list[int]] = {role: [] for role in ROLES}
        if self.daemon is not None:
            found["daemon"] += [self.daemon, *filter(_stays, accounting.children(self.daemon))]
        for pid in self._sessions():
            program = accounting.program(pid)
            role: Role = "ssh" if program == "ssh" else "sshd" if program.startswith("sshd") else "recorder"
            found[role].append(pid)
        return found

    def _sessions(self) -> list[int]:
        found = accounting.descendants(pid for pid in (self.bastion, self.daemon) if pid is not None)
        return [pid for pid in found if not _stays(pid)]

    def cpu(self) -> dict[Role, float]:
        """CPU seconds of them so far, by role."""
        return {role: sum(map(accounting.cpu_seconds, pids)) for role, pids in self.processes().items()}

    def settle(self) -> float:
        """Wait until the bastion has nothing left to do; CPU seconds that sshrecd's children took meanwhile."""
        deadline = time.monotonic() + LIMIT_SECONDS
        first: dict[int, float] = {}
        last: dict[int, float] = {}
        if self.daemon is not None:
            first = {pid: accounting.cpu_seconds(pid) for pid in accounting.children(self.daemon)}
        # Between the worker's end and the packer's start there is nobody; then the plain recording still is.
        while (sessions := self._sessions()) or self._unpacked():
            if self.daemon is not None:
                for pid in accounting.children(self.daemon):
                    last[pid] = accounting.cpu_seconds(pid) or last.get(pid, 0.0)
            if time.monotonic() > deadline:
                names = ", ".join(sorted({accounting.program(pid) for pid in sessions}))
                raise BenchmarkError(f"the bastion did not come to rest; there still are: {names}")
            time.sleep(0.002)
        return sum(seconds - first.get(pid, 0.0) for pid, seconds in last.items())

    def _unpacked(self) -> bool:
        return isinstance(self.contender, Sshrec) and any(self.lab.data_dir.rglob("*.cast"))

    def kept(self) -> int:
        """Bytes that the recordings take on disk."""
        files = self.recordings.rglob("*") if self.recordings else ()
        return sum(path.stat().st_size for path in files if path.is_file())

    def forget(self) -> None:
        """Remove the recordings."""
        for path in list(self.recordings.rglob("*")) if self.recordings else ():
            if path.is_file():
                path.unlink()


@contextlib.contextmanager
def laboratory(contenders: tuple[Contender, ...]) -> Iterator[list[Route]]:
    """The contenders, all of them ready. One lab serves all but those with settings of their own."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_login_records())
        lab = stack.enter_context(Lab(several_uids=False))
        routes = []
        for contender in contenders:
            if isinstance(contender, Sshrec) and contender.settings:
                own = stack.enter_context(Lab(several_uids=False, settings=contender.settings))
                routes.append(_route(contender, own))
            else:
                routes.append(_route(contender, lab))
        yield routes


def _route(contender: Contender, lab: Lab) -> Route:
    match contender:
        case Direct():
            return Route(contender, lab, (TARGET,))
        case Jump():
            bastion = _bastion(lab, contender.name, "", "AllowTcpForwarding yes", "PermitOpen any")
            lab.open_laptop("joe", name="jumper", options=["permit-port-forwarding"])
            return Route(contender, lab, ("-J", contender.name, TARGET), bastion, user="jumper")
        case Forced():
            recordings = lab.directory / "recordings" / contender.name
            recordings.mkdir(parents=True)
            bastion = _bastion(lab, contender.name, _force_command(contender, lab, recordings))
            return Route(contender, lab, ("-A", contender.name), bastion, recordings=recordings)
        case Sshrec():
            words = ("-A", "bastion", f"root@{TARGET}")
            return Route(contender, lab, words, lab.sshds["bastion"].pid, lab.sshrecd_pid, lab.data_dir)


def _bastion(lab: Lab, name: str, force_command: str, *extra: str) -> int:
    lab.start_bastion(name, force_command=force_command, extra=extra)
    return lab.sshds[name].pid


def _force_command(contender: Forced, lab: Lab, recordings: Path) -> str:
    """What such bastions look like in the wild. The onward ssh reads the laptop's configuration: it fits."""
    hop = '{} -F {} {{}} {} "$SSH_ORIGINAL_COMMAND"'.format(
        parts.program("ssh"), lab.laptop("joe").ssh_config, TARGET
    )
    terminal = contender.terminal.format(
        program=parts.program(contender.program), hop=hop.format("-tt"), file=f"{recordings}/$$"
    )
    other = f"exec {hop.format('-T')}" if contender.commands else "exit 69"
    return f'if [ -n "$SSH_TTY" ]; then exec {terminal}; else {other}; fi'


@contextlib.contextmanager
def _login_records() -> Iterator[None]:
    """utmp(5), without which tlog-rec does nothing; containers have none, so root lends one."""
    if os.geteuid() != 0 or _UTMP.exists():
        yield
        return
    _UTMP.touch()
    try:
        yield
    finally:
        _UTMP.unlink(missing_ok=True)
