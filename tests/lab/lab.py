"""The lab: everything of a recorded bastion, on loopback, in one temporary directory.

    with Lab() as lab:
        lab.ssh("-A", "bastion", "root@web1", "uname")

As root each account has a uid of its own (people, sshrec, the logins of the targets); otherwise, or with
`several_uids=False`, all are the caller's. Knows nothing of sshrec's code but where its programs are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

import pexpect
import yaml

from tests.lab import accounts, installation, parts, people, processes, sshd
from tests.lab.accounts import Account
from tests.lab.parts import LabError
from tests.lab.people import Holds, Host, Laptop

# What bash prints on a target when it waits for a command; its uid decides between # and $.
PROMPT = rb"(?:root|deploy|joe|alice)@web[12]:[^ ]*[#$] "

_TMP = Path("/tmp")
_CHILDREN = ("sshrec-audit", "sshrec-warden")  # of a sshrecd, for as long as it runs
_TARGETS = ("web1", "web2")
_LOGINS = ("root", "deploy")
_LISTENING = "00010000"  # __SO_ACCEPTCON among the flags of /proc/net/unix
_PROFILE = r"PS1='\u@\h:\w\$ '; unset HISTFILE" + "\n"

T = TypeVar("T")


def _sshd_files() -> Iterator[tuple[Path, int]]:
    """What sshd makes in /tmp for a session, and whose it is: the agent's socket and SSH_USER_AUTH."""
    for pattern in ("ssh-*/agent.*", "sshauth.*"):
        # Not pathlib's glob: it fails on a directory that goes while it looks.
        for path in map(Path, glob.glob(str(_TMP / pattern))):
            with contextlib.suppress(FileNotFoundError):
                yield path, path.stat().st_uid


def _taken() -> set[int]:
    """Uids that somebody uses, or has left something of."""
    return {process.uid for process in processes.every()} | {owner for _, owner in _sshd_files()}


def _deaf(path: Path) -> bool:
    """Whether this is a socket that nobody listens at."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED


def several_uids_reason() -> str | None:
    """Why this process cannot have a lab of several uids; None if it can."""
    return None if os.geteuid() == 0 else "needs several uids, so root"


class Lab:
    """Started on entry; ended and removed on exit, whatever happens."""

    def __init__(
        self,
        *,
        several_uids: bool | None = None,
        sshrecd: bool = True,
        settings: Mapping[str, Any] | None = None,
        force_command: str | None = None,
        copy_installation: bool = False,
    ) -> None:
        """`several_uids`: None means whether we are root. `settings`: added to sshrec.yaml.

        `force_command`: instead of sshrec-gateway. `copy_installation`: even if everybody can read the
        checkout.
        """
        if several_uids and (reason := several_uids_reason()):
            raise LabError(f"a lab of several uids {reason}")
        self.several_uids = os.geteuid() == 0 if several_uids is None else several_uids
        self.laptops: dict[str, Laptop] = {}
        self.sshds: dict[str, sshd.Sshd] = {}
        self._with_sshrecd = sshrecd
        self._settings = dict(settings or {})
        self._force_command = force_command
        self._copy = copy_installation
        self._uids: frozenset[int] = frozenset()  # of this lab alone
        self._credentials: set[bytes] = set()  # of all laptops there ever were
        self._undo = contextlib.ExitStack()
        self._sshrecd: subprocess.Popen[bytes] | None = None
        self._authd: subprocess.Popen[bytes] | None = None
        self._authd_knows = ""  # of the configuration
        self._spawned: list[pexpect.spawn[bytes]] = []

    # -- from nothing to a running bastion ---------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process and remove every file; safe to call twice."""
        self._undo.close()

    def _open(self) -> None:
        accounts.check_wrapper()
        if self._with_sshrecd:
            accounts.check_caller()
        self._catch_signals()
        self._undo.callback(os.umask, os.umask(0o022))
        # A short name: the sockets below it must fit into the 108 bytes of unix(7).
        self.directory = Path(tempfile.mkdtemp(prefix="sr-", dir=_TMP))
        self._undo.callback(shutil.rmtree, self.directory)
        self.directory.chmod(0o755)
        self._sshd_prefix: list[str] = []
        if os.geteuid() == 0:
            privsep = sshd.PrivsepDirectory()
            privsep.open()
            self._undo.callback(privsep.close)
            self._sshd_prefix = sshd.without_login_records(self.directory / "login-records")
        self._not_ours = {path for path, _ in _sshd_files()}
        self._undo.callback(self.remove_sshd_files)
        self._undo.callback(self._end_processes)

        self._name_accounts()
        self.installation = installation.find(
            tuple({self.account(name).uid for name in ("sshrec", "sshrec-auth", "joe")})
            if self.several_uids
            else (),
            self.directory / "venv",
            self._copy,
        )
        self.write_config()
        self.authority_dir.mkdir(mode=0o755)
        self._own(self.authority_dir, "sshrec-auth")
        self.sshrec_ca("init")
        self.authority = people.Authority(self.sshrec_ca, self.authority_dir / "keys", self._laptop_env)

        for name in _TARGETS:
            self._start_target(name)
        self.start_bastion("bastion")
        for user in self.people:
            self.open_laptop(user)
        if self._with_sshrecd:
            self.start_sshrecd()
        else:
            self.start_authd()

    @property
    def authority_dir(self) -> Path:
        """Where sshrec-ca keeps its keys, the ledger, and what everybody may read."""
        return self.directory / "data-auth"

    @property
    def user_ca(self) -> Path:
        """What sshds are to trust."""
        return self.authority_dir / "public" / "user_ca.pub"

    @property
    def known_hosts(self) -> Path:
        """What ssh is to trust."""
        return self.authority_dir / "public" / "known_hosts"

    def _catch_signals(self) -> None:
        """Let SIGTERM and SIGHUP unwind us as Ctrl-C does."""
        if threading.current_thread() is not threading.main_thread():
            return

        def leave(number: int, frame: FrameType | None) -> None:
            sys.exit(128 + number)

        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, leave)
                self._undo.callback(signal.signal, number, signal.SIG_DFL)

    def _name_accounts(self) -> None:
        services = ["sshrec", "sshrec-auth"]
        doors = ["login"] if self.several_uids else []  # one uid would be everybody's name
        self.people = ("joe", "alice") if self.several_uids else ("joe",)
        names = [*self.people, *doors, *services]
        logins = [*_LOGINS, *self.people]
        uids: Sequence[int] = [os.geteuid()] * (len(names) + len(logins))
        gids: Sequence[int] = [os.getegid()] * len(uids)
        if self.several_uids:
            claims = accounts.Claims()
            self._undo.callback(claims.close)
            uids = gids = accounts.free_uids(len(uids), _taken(), claims)
            self._uids = frozenset(uids)
            uids, gids = list(uids), list(gids)
            for service in services:
                system = parts.wait(
                    lambda: accounts.system_uid(_taken(), claims), "a system account that no other lab has", 100
                )
                assert system is not None
                uids[names.index(service)], gids[names.index(service)] = system
        numbers = iter(zip(uids, gids, strict=True))
        home = self.directory / "home"
        self._accounts = [Account(name, *next(numbers), home / name, open_to_all=name in doors) for name in names]
        self._logins = [(name, *next(numbers)) for name in logins]
        for account in self._accounts:
            account.make_home()

        self._laptop_env = {"PATH": parts.PATH, "HOME": str(self.directory), "LANG": "C.UTF-8", "TERM": "xterm"}
        if not parts.caller_has_an_account():
            caller = Account("somebody", os.getuid(), os.getgid(), self.directory)
            self._laptop_env |= accounts.wrapped(self._make("laptops"), [caller])

    def account(self, name: str) -> Account:
        """An account of the bastion: joe, alice and login (several uids only), sshrec, sshrec-auth."""
        return accounts.by_name(self._accounts)[name]

    def _make(self, name: str) -> Path:
        directory = self.directory / name
        directory.mkdir(mode=0o755, exist_ok=True)
        return directory

    def _make_host(self, name: str, ca: Path | None = None, names: Sequence[str] = ()) -> Path:
        directory = self._make(name)
        people.make_key(directory / "host_key", name, self._laptop_env)
        if ca:
            self.authority.by_hand(ca, directory / "host_key", name, names, host=True)
        else:
            self.authority.sign_host(directory / "host_key", name)
        return directory

    def start_target(self, name: str, ca: Path, names: Sequence[str]) -> None:
        """One more target, `ssh NAME`, whose host certificate a CA of the test's signs for these names."""
        self._start_target(name, ca, names)
        for laptop in self.laptops.values():
            self._write_ssh_config(laptop)

    def stop_target(self, name: str) -> None:
        """End a target of `start_target`."""
        self.stop_bastion(name)

    def _start_target(self, name: str, ca: Path | None = None, names: Sequence[str] = ()) -> None:
        directory = self._make_host(name, ca, names)
        logins = [Account(*login, directory / "home" / login[0], "/bin/bash") for login in self._logins]
        for account in logins:
            account.make_home()
            (account.home / ".profile").write_text(_PROFILE)
        # The target's sessions see these names too, and the host's: as if it were a machine of its own.
        environment = accounts.wrapped(directory, logins, hostname=name)
        lines = sshd.target(self.user_ca, environment)
        self._start_sshd(name, directory, lines, environment, parts.targets_openssh())

    def _start_sshd(
        self, name: str, directory: Path, lines: Sequence[str], env: Mapping[str, str], prefix: Sequence[str] = ()
    ) -> None:
        server = sshd.Sshd(name, directory, lines, {"PATH": parts.PATH, **env}, [*self._sshd_prefix, *prefix])
        self.sshds[name] = server
        server.start()

    # -- bastions ----------------------------------------------------------------------------------

    @property
    def gateway(self) -> str:
        """The gateway's command line; a bastion's ForceCommand is `exec` of it, as in the snippet."""
        return f"{shlex.quote(str(self.installation.gateway))} --socket {self.socket}"

    def start_bastion(
        self,
        name: str,
        *,
        force_command: str | None = None,
        login_shell: str = "/bin/sh",
        authorized_keys: bool = False,
        extra: Sequence[str] = (),
    ) -> None:
        """One more bastion, `ssh NAME`, with the same people and the same sshrecd.

        `force_command`: instead of the gateway; "" means none. `login_shell`: of its
        accounts (sshd runs a ForceCommand by it). `authorized_keys`: people's ~/.ssh/authorized_keys counts too
        (`authorize`). `extra`: lines that win over the usual ones; Match blocks last.
        """
        directory = self._make_host(name)
        if force_command is None:
            force_command = f"exec {self.gateway}" if self._force_command is None else self._force_command
        named = [dataclasses.replace(account, shell=login_shell) for account in self._accounts]
        lines = [*(line for line in extra if not line.startswith(("Match ", " ")))]
        lines += sshd.bastion(
            self.authority_dir / "public",
            force_command,
            "nobody" if os.geteuid() == 0 else "joe",
            authorized_keys,
        )
        lines += [line for line in extra if line.startswith(("Match ", " "))]
        self._start_sshd(name, directory, lines, accounts.wrapped(directory, named))
        for laptop in self.laptops.values():
            self._write_ssh_config(laptop)

    def stop_bastion(self, name: str) -> None:
        """End a bastion of `start_bastion`."""
        self.sshds.pop(name).stop()
        shutil.rmtree(self.directory / name)

    def authorize(self, laptop: Laptop) -> None:
        """Put a laptop's plain key into authorized_keys, of its account on the bastion and of every login."""
        homes = [(self.account(laptop.user).home, self.account(laptop.user).uid)]
        for target in _TARGETS:
            homes += [(self.directory / target / "home" / name, uid) for name, uid, _ in self._logins]
        line = laptop.key.with_suffix(".pub").read_text()
        for home, uid in homes:
            path = home / ".ssh" / "authorized_keys"
            if not path.exists() or line not in path.read_text():
                with path.open("a") as file:
                    file.write(line)
            if os.geteuid() == 0:
                os.chown(path, uid, -1)

    # -- people ------------------------------------------------------------------------------------

    def open_laptop(
        self,
        user: str,
        *,
        name: str | None = None,
        key_id: str | None = None,
        principals: Sequence[str] | None = None,
        validity: str | None = None,
        options: Sequence[str] = (),
        holds: Holds = "certificate",
    ) -> Laptop:
        """A laptop with a fresh key and certificate; `ssh(user=laptop)` sits down at it.

        `user`: the account on the bastion that it enters; `name`: what it is called (default: `user`);
        `key_id`, `principals`: of the certificate, default the user's own, who may be any login.
        """
        name = name or user
        laptop = people.open_laptop(
            self.directory / "laptops" / name,
            user,
            self.authority,
            self._laptop_env,
            key_id=key_id or user,
            principals=principals or [f"sshrec:{user}", user, *_LOGINS],
            validity=validity,
            options=options,
            holds=holds,
        )
        self.laptops[name] = laptop
        self._credentials |= {path.read_bytes().split()[1] for path in laptop.directory.glob("*.pub")}
        self._write_ssh_config(laptop)
        return laptop

    def close_laptop(self, laptop: Laptop) -> None:
        """End a laptop's agent and forget it."""
        laptop.close()
        shutil.rmtree(laptop.directory)
        self.laptops = {name: other for name, other in self.laptops.items() if other is not laptop}

    def _write_ssh_config(self, laptop: Laptop) -> None:
        hosts = [
            Host(name, server.port, "root" if name in _TARGETS else None) for name, server in self.sshds.items()
        ]
        laptop.ssh_config.write_text(people.ssh_config(hosts, laptop.user, self.known_hosts))

    def laptop(self, user: str | Laptop) -> Laptop:
        """A person's laptop by the person's name."""
        return user if isinstance(user, Laptop) else self.laptops[user]

    def ssh_argv(self, *args: str, user: str | Laptop = "joe") -> list[str]:
        """The client's argument list; its environment is `laptop(user).env`."""
        return [parts.program("ssh"), "-F", str(self.laptop(user).ssh_config), *args]

    def ssh(
        self,
        *args: str,
        user: str | Laptop = "joe",
        tty: bool = False,
        input: bytes | None = None,  # noqa: A002 - subprocess.run's word
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
        check: bool = False,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ssh to its end. `tty`: -tt; `env`: added; `check`: LabError with all logs unless it exits with 0."""
        argv = self.ssh_argv(*(["-tt"] if tty else []), *args, user=user)
        stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        try:
            done = subprocess.run(
                argv, env={**self.laptop(user).env, **(env or {})}, capture_output=True, timeout=timeout, **stdin
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"ssh {' '.join(args)}: still running after {timeout:g} s\n{self.logs()}") from error
        if check and done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise LabError(f"ssh {' '.join(args)}: exit code {done.returncode}: {said}\n{self.logs()}")
        return done

    def popen(
        self, *args: str, user: str | Laptop = "joe", env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start ssh with a pipe at each of its streams; the caller ends it."""
        return subprocess.Popen(
            self.ssh_argv(*args, user=user),
            env={**self.laptop(user).env, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def spawn(
        self,
        *args: str,
        user: str | Laptop = "joe",
        dimensions: tuple[int, int] = (24, 80),
        env: Mapping[str, str] | None = None,
        timeout: float = 20,
    ) -> pexpect.spawn[bytes]:
        """Start ssh on a terminal of its own, of (rows, columns); Lab ends it if the caller does not."""
        program, *arguments = self.ssh_argv(*args, user=user)
        child: pexpect.spawn[bytes] = pexpect.spawn(
            program,
            arguments,
            env={**self.laptop(user).env, **(env or {})},
            dimensions=dimensions,
            timeout=timeout,
        )
        child.delaybeforesend = None
        self._spawned.append(child)
        return child

    # -- sshrecd -----------------------------------------------------------------------------------

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def socket(self) -> Path:
        return self.run_dir / "sshrecd.sock"

    @property
    def config(self) -> Path:
        return self.directory / "sshrec.yaml"

    @property
    def sshrecd_pid(self) -> int:
        """The daemon's process id."""
        if self._sshrecd is None:
            raise LabError("sshrecd is not running")
        return self._sshrecd.pid

    @property
    def authd_pid(self) -> int:
        """The auth service's process id."""
        if self._authd is None:
            raise LabError("sshrec-authd is not running")
        return self._authd.pid

    def sshrec_env(self) -> dict[str, str]:
        """What sshrecd, and sshrec as its uid, are started with."""
        wrapper = accounts.wrapped(self._make("accounts"), self._accounts)
        home = str(self.account("sshrec").home)
        return {"PATH": parts.PATH, "LANG": "C.UTF-8", "HOME": home, **self._bytecode(), **wrapper}

    def write_config(self, settings: Mapping[str, Any] | None = None) -> None:
        """Write sshrec.yaml: the lab's own settings, those of Lab(settings=…), these."""
        nodes = [
            {"name": name, "address": "127.0.0.1", "port": self.sshds[name].port}
            for name in _TARGETS
            if name in self.sshds
        ]
        content: dict[str, Any] = {
            "data_dir": str(self.data_dir),
            "run_dir": str(self.run_dir),
            "known_hosts": [],
            "bastion": "bastion",
            "host_keys": [str(self.directory / "bastion" / "host_key.pub")],
            "nodes": nodes,
            **self._settings,
            **(settings or {}),
        }
        self.config.write_text(yaml.safe_dump(content, sort_keys=False))

    def start_sshrecd(self, settings: Mapping[str, Any] | None = None, prefix: Sequence[str] = ()) -> None:
        """Start the daemon and wait until it listens. `prefix`: a program to start it by, such as prlimit."""
        self.write_config(settings)
        if self._authd is None or self._authd_knows != self.config.read_text():
            self.stop_authd()
            self.start_authd()
        sshrec = self.account("sshrec")
        for directory, mode in ((self.data_dir, 0o750), (self.run_dir, 0o755)):
            if not directory.exists():
                directory.mkdir()
                directory.chmod(mode)
                self._own(directory, "sshrec")
        argv = [*prefix, str(self.installation.programs / "sshrecd"), "--config", str(self.config)]
        own = {"uid": sshrec.uid, "gid": sshrec.gid} if self.several_uids else {}
        process = parts.start(argv, self.sshrec_env(), self.directory / "sshrecd.log", **own)
        self._sshrecd = process
        self.wait(lambda: process.poll() is not None or self._sshrecd_is_up(process.pid), "sshrecd to listen")
        if process.poll() is not None:
            self._sshrecd = None
            raise LabError(f"sshrecd ended with exit code {process.returncode}\n{self.logs()}")
        self._descriptors = processes.descriptors(process.pid)
        self._changed = bool(settings or prefix)

    def _sshrecd_is_up(self, pid: int) -> bool:
        """Whether it listens and has all its descriptors, those of its children last."""
        # A child may have its name before its parent has the descriptor of it.
        watched = list(processes.descriptors(pid).values()).count("anon_inode:[pidfd]")
        return (
            watched >= len(_CHILDREN)
            and self._sshrecd_listens()
            and all(processes.children(pid, name) for name in _CHILDREN)
        )

    def _sshrecd_listens(self) -> bool:
        # Asked of the kernel: a connection would be a visit, which sshrecd refuses and logs.
        sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
        return any(part[3] == _LISTENING and part[7:] == [str(self.socket)] for part in sockets)

    def limit_files(self, pid: int, size: int | None) -> None:
        """Let a process of sshrecd's write files of `size` bytes at most; None: of any size."""
        account = self.account("sshrec")
        own: dict[str, Any] = {"user": account.uid, "group": account.gid} if self.several_uids else {}
        limit = "unlimited" if size is None else size
        subprocess.run(["prlimit", f"--pid={pid}", f"--fsize={limit}:"], check=True, timeout=20, **own)

    def start_authd(self) -> None:
        """Start the auth service and wait until it listens; as root, it becomes sshrec-auth by itself."""
        self._authd_knows = self.config.read_text()
        argv = [str(self.installation.programs / "sshrec-authd"), "--config", str(self.config)]
        self.run_dir.mkdir(exist_ok=True)
        self._own(self.run_dir, "sshrec")
        env = {**self._laptop_env, **self._bytecode()}
        self._authd = process = parts.start(argv, env, self.directory / "authd.log")
        path = self.directory / "run-auth" / "auth.sock"
        self.wait(lambda: process.poll() is not None or path.exists(), "sshrec-authd to listen")
        if process.poll() is not None:
            raise LabError(f"sshrec-authd ended with exit code {process.returncode}\n{self.logs()}")

    def stop_authd(self) -> None:
        """End the auth service."""
        if self._authd is not None:
            parts.stop(self._authd)
            self._authd = None

    def _own(self, path: Path, account: str) -> None:
        if self.several_uids:
            os.chown(path, self.account(account).uid, self.account(account).gid)

    def stop_sshrecd(self, signal_number: int = signal.SIGTERM) -> int | None:
        """End the daemon; its exit code, or None if it was not running. Live sessions are its own affair."""
        if self._sshrecd is None:
            return None
        process, self._sshrecd = self._sshrecd, None
        return parts.stop(process, signal_number)

    def sshrec(self, *args: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
        """Run the command `sshrec` as the uid of sshrecd, on this lab's configuration."""
        sshrec = self.account("sshrec")
        own: dict[str, Any] = {"user": sshrec.uid, "group": sshrec.gid, "extra_groups": []}
        done = subprocess.run(
            [self.installation.programs / "sshrec", "--config", self.config, *args],
            env=self.sshrec_env(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            **(own if self.several_uids else {}),
        )
        if check and done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise LabError(f"sshrec {' '.join(args)}: exit code {done.returncode}: {said}")
        return done

    def sshrec_ca(
        self,
        *args: str | Path,
        check: bool = True,
        input: bytes | None = None,  # noqa: A002
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the command `sshrec-ca` on this lab's configuration; as root, it becomes sshrec-auth by itself."""
        stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        done = subprocess.run(
            [self.installation.programs / "sshrec-ca", "--config", self.config, *args],
            env={**self._laptop_env, **self._bytecode()},
            cwd="/",
            capture_output=True,
            timeout=timeout,
            **stdin,
        )
        if check and done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise LabError(f"sshrec-ca {' '.join(map(str, args))}: exit code {done.returncode}: {said}")
        return done

    @staticmethod
    def _bytecode() -> dict[str, str]:
        """Where the caller has Python keep its bytecode."""
        return {name: os.environ[name] for name in ("PYTHONPYCACHEPREFIX",) if name in os.environ}

    def recordings(self) -> list[Path]:
        """The recordings, oldest first: live, plain, packed and encrypted."""
        found = {
            path.name.partition(".")[0]: path
            for path in sorted((self.data_dir / "recordings").rglob("*.cast*"), reverse=True)
            if path.name.endswith((".cast", ".cast.zst", ".cast.zst.age"))
        }
        return [found[name] for name in sorted(found)]

    # -- what is there -----------------------------------------------------------------------------

    def wait(self, condition: Callable[[], T], what: str, timeout: float = 20) -> T:
        """Ask until the answer is true, and return it; LabError with all logs when the time is over."""
        try:
            return parts.wait(condition, what, timeout)
        except LabError as error:
            raise LabError(f"{error}\n{self.logs()}") from None

    def logs(self, lines: int = 15) -> str:
        """The ends of all logs."""
        return "\n".join(filter(None, (parts.tail(path, lines) for path in sorted(self.directory.rglob("*.log")))))

    def _roots(self) -> set[int]:
        """The processes that stay for as long as the lab does."""
        roots = {laptop.agent.pid for laptop in self.laptops.values()}
        roots |= {server.pid for server in self.sshds.values()}
        if self._sshrecd:
            roots.add(self._sshrecd.pid)
            for name in _CHILDREN:
                roots |= set(processes.children(self._sshrecd.pid, name))
        return roots | ({self._authd.pid} if self._authd else set())

    def processes(self) -> list[processes.Process]:
        """Every process of a session: all that belong to the lab but its servers and agents."""
        return processes.belonging(self.directory, self._roots(), self._uids)

    def leftovers(self) -> list[str]:
        """What should not be there when no session is: processes, sockets, run directories, descriptors."""
        left = [str(process) for process in self.processes()]
        left += [f"run directory {path}" for path in self.run_dir.glob("*/")]
        left += [f"agent socket {path}" for path in self._agent_sockets()]
        left += [f"what an inner sshd left: {path}" for path in self._auth_files()]
        if self._sshrecd:
            for number, link in processes.descriptors(self._sshrecd.pid).items():
                if number not in self._descriptors:
                    left.append(f"descriptor {number} of sshrecd: {link}")
        return left

    def _agent_sockets(self) -> Iterator[Path]:
        """Sockets that sshd made for forwarded agents: OpenSSH 10.1 and later in the home, before in /tmp.

        Those in /tmp are told by their owner, so only with several uids.
        """
        for account in self._accounts:
            yield from (account.home / ".ssh" / "agent").iterdir()
        yield from (
            path for path, owner in _sshd_files() if owner in self._uids and path.name.startswith("agent.")
        )

    def _auth_files(self) -> Iterator[Path]:
        """SSH_USER_AUTH files of inner sshds; with several uids, for they are told by their owner."""
        if self.several_uids:
            owner = self.account("sshrec").uid
            yield from (path for path, uid in _sshd_files() if uid == owner and path.name.startswith("sshauth."))

    def remove_sshd_files(self) -> None:
        """Remove what an sshd that was killed left in /tmp."""
        for path, owner in _sshd_files():
            if path.name.startswith("agent."):
                if owner in self._uids or (path not in self._not_ours and owner == os.geteuid() and _deaf(path)):
                    shutil.rmtree(path.parent, ignore_errors=True)
            elif owner in self._uids | {os.geteuid()} | {account.uid for account in self._accounts}:
                with contextlib.suppress(FileNotFoundError):  # another lab's, which ends now
                    if not self._credentials.isdisjoint(path.read_bytes().split()):
                        path.unlink()

    def expect_nothing_left(self, timeout: float = 60) -> None:
        """Wait until no session has left anything; LabError names what stays."""
        left: list[str] = []

        def nothing() -> bool:
            left[:] = self.leftovers()
            return not left

        try:
            parts.wait(nothing, "nothing to be left", timeout)
        except LabError as error:
            raise LabError("\n".join([f"{error}; left are:", *left, self.logs()])) from None

    def reset(self) -> None:
        """Back to the lab as it was made: sshrecd running, with the lab's settings."""
        self.end_sessions()
        if self._with_sshrecd and (self._sshrecd is None or self._sshrecd.poll() is not None or self._changed):
            self.stop_sshrecd()
            self.start_sshrecd()

    def end_sessions(self) -> None:
        """End every process that is not a server or an agent of the lab, by force if need be."""
        for child in self._spawned:
            child.close(force=True)
        self._spawned.clear()
        processes.end(self.processes())

    def _end_processes(self) -> None:
        with contextlib.suppress(LabError):
            self.end_sessions()
        for server in self.sshds.values():
            server.stop()
        self.stop_sshrecd()
        self.stop_authd()
        for laptop in self.laptops.values():
            laptop.close()
        self.sshds.clear()
        self.laptops.clear()
        processes.end(self.processes())
