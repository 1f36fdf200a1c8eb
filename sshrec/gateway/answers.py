"""What the bastion answers itself: the login dialogue, and `sshrec login|logout|status|ls|help` for who is in.

Each answer is given in a child of the worker's, which is simple and may wait; the worker turns its loop meanwhile
and relays the person's agent. No answer is a session: nothing of a target's is in it, so nothing is recorded.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from sshrec.access.client import AuthService
from sshrec.access.protocol import Authenticated
from sshrec.access.wire import REQUEST_MAX, Bastion, LoginAnswer, LoginRequest
from sshrec.config import Config
from sshrec.errors import DataError, SshrecError, UsageError, describe
from sshrec.gateway.agents import AgentRelay
from sshrec.gateway.dialogue import Dialogue, door, moment, rest, told, way
from sshrec.gateway.ending import complaint
from sshrec.gateway.hop import confine
from sshrec.gateway.relay import Loop
from sshrec.gateway.talk import PATIENCE, Cancelled, Talk
from sshrec.gateway.visit import Visit
from sshrec.openssh.agent import Agent
from sshrec.openssh.certificate import FOREVER, Certificate
from sshrec.openssh.destinations import GATEWAY
from sshrec.openssh.known_hosts import GATEWAY_KNOWN_HOSTS
from sshrec.openssh.ssh_config import block
from sshrec.session import printable

LOGIN_COMMAND = b"sshrec-login"  # of `sshrec login` on a laptop
HELP = """\
{way} [LOGIN@]SERVER [COMMAND]
    go on to a server; what happens there is recorded
{way} sshrec status
    who you are, and for how long
{way} sshrec ls
    what was recorded of you
{way} sshrec config
    what to put into ~/.ssh/config, so that ssh SERVER will do
{way_to_type} sshrec login
    a new certificate into your agent
{way} sshrec logout
    and out of it again
"""
_SECONDS = 30.0  # for the auth service: it makes a few hashes at once, however many people wait
_UTF8 = (b"utf-8", b"utf8")


class Answers:
    """To one visit. `until` turns the worker's loop, and raises where the person leaves meanwhile."""

    def __init__(
        self,
        config: Config,
        visit: Visit,
        *,
        loop: Loop,
        until: Callable[[Callable[[], bool]], None],
        gateway: socket.socket,
        directory: Path,
    ) -> None:
        self._config, self._visit, self._loop, self._until = config, visit, loop, until
        self._socket = directory / "agent"
        self.agents = AgentRelay(loop, self._socket, gateway) if visit.agent else None

    def login(self) -> int:
        """The login account's: the dialogue, or the one line of `sshrec login`. The exit status."""
        if self._visit.command == LOGIN_COMMAND:
            return self._in_child(self._certify)
        if self._visit.command:
            raise UsageError("nothing but the login dialogue is here", hint=door(self._config))
        return self._in_child(self._dialogue)

    def answer(self, user: str, words: list[bytes]) -> int:
        """What somebody asks who is in: the words behind `sshrec`. The exit status."""
        known: dict[tuple[bytes, ...], Callable[[], int]] = {
            (b"login",): lambda: self._dialogue(user),
            (b"logout",): lambda: self._logout(user),
            (b"status",): lambda: self._status(user),
            (b"ls",): lambda: self._ls(user),
            (b"config",): lambda: self._config_block(user),
            (b"help",): lambda: self._help(user),
            (): lambda: self._help(user),
        }
        if (run := known.get(tuple(words))) is None:
            raise UsageError("the bastion answers: sshrec login, logout, status, ls, config, help")
        return self._in_child(run)

    def close(self) -> None:
        """Let go of the agent."""
        if self.agents is not None:
            self.agents.close()

    def _in_child(self, run: Callable[[], int]) -> int:
        worker = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._be_child(run, worker)
        pidfd = os.pidfd_open(pid)
        ended = False

        def over(_events: int) -> None:
            nonlocal ended
            ended = True

        self._loop.watch(pidfd, over)
        try:
            self._until(lambda: ended)
        finally:
            self._loop.unwatch(pidfd)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            os.close(pidfd)
        return os.waitstatus_to_exitcode(status) & 255

    def _be_child(self, run: Callable[[], int], worker: int) -> None:
        status = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            confine(worker)
            for fd in (self._visit.stdin, self._visit.stdout, self._visit.stderr):
                os.set_blocking(fd, True)
            status = run()
        except Cancelled as cancelled:
            status = 130
            if str(cancelled):
                self._say(2, complaint(SshrecError(str(cancelled))))
        except SshrecError as error:
            self._say(2, complaint(error))
            status = error.exit_code
        except Exception as error:
            self._say(2, complaint(SshrecError(f"sshrec itself failed: {type(error).__name__}")))
        finally:
            os._exit(status)

    # ---- in the child ----------------------------------------------------------------------------------

    def _dialogue(self, user: str | None = None) -> int:
        if not self._visit.terminal:
            command = (
                door(self._config) if user is None else f"{way(self._config, user, terminal=True)} sshrec login"
            )
            raise UsageError("this is a dialogue, and needs a terminal", hint=command)
        with Talk(self._visit.stdin, self._visit.stdout, term=self._visit.term) as talk:
            return Dialogue(
                self._config,
                self._service(),
                talk,
                self._agent(),
                source=self._source,
                unicode=not self._visit.lang or self._visit.lang.lower().endswith(_UTF8),
            ).run(user)

    def _certify(self) -> int:
        """One line of JSON in, one out: wire.py."""
        try:
            answer = self._certified(_line(self._visit.stdin))
        except SshrecError as error:
            answer = LoginAnswer(error=str(error), hint=error.hint)
        self._say(1, msgspec.json.encode(answer).decode() + "\n")
        return 1 if answer.error else 0

    def _certified(self, line: bytes) -> LoginAnswer:
        try:
            asked = msgspec.json.decode(line, type=LoginRequest)
        except msgspec.MsgspecError as error:
            raise DataError("what came is no login of this version") from error
        service = self._service()
        who = service.authenticate(asked.user, asked.password, asked.code or None, self._source)
        if not isinstance(who, Authenticated):
            return LoginAnswer(error=told(who))
        issued = service.sign_key(asked.public_key, asked.ttl)
        return LoginAnswer(
            certificate=issued.certificate,
            logins=list(issued.logins),
            known_hosts=list(issued.known_hosts),
            gateway_ca=issued.gateway_cas[0] if issued.gateway_cas else "",
            bastion=Bastion(names=[issued.bastion], keys=list(issued.bastion_keys)),
            destinations=list(issued.nodes) if issued.nodes is not None and asked.nodes else None,
            node_keys={name: list(keys) for name, keys in issued.node_keys.items()},
            valid_before=issued.valid_before,
        )

    def _logout(self, user: str) -> int:
        count = self._agent_needed(user).remove(f"sshrec:{user}")
        self._say(1, "logged out\n" if count else f"your agent has no certificate of {user}'s\n")
        return 0

    def _status(self, user: str) -> int:
        held = self._agent_needed(user).identities()
        own = [one for one in held if isinstance(one, Certificate) and one.key_id == user]
        if not own:
            self._say(1, f"your agent has no certificate of {user}'s\n")
        self._say(1, "\n".join(_described(user, one) for one in own))
        return 0 if own else 1

    def _ls(self, user: str) -> int:
        source = ["--config", str(self._config.source)] if self._config.source else []
        for fd, name in enumerate((self._visit.stdin, self._visit.stdout, self._visit.stderr)):
            os.dup2(name, fd)
        os.closerange(3, 65536)
        program = "from sshrec.cli.main import main; main()"
        argv = [sys.executable, "-I", "-c", program, *source, "ls", "--user", user]
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TERM": self._visit.term}
        os.execve(argv[0], argv, environment)  # noqa: S606 - no shell is what is wanted

    def _config_block(self, user: str) -> int:
        config = self._config
        names = " ".join(config.node_names) or "*.example.com  # your servers' names"
        lines = block(config.bastion_host, user, None, None, port=config.bastion_port, nodes=names)
        path = config.public_dir / GATEWAY_KNOWN_HOSTS
        try:
            trusted = [line.split(" ", 2)[2] for line in path.read_text().splitlines()]
        except OSError as error:
            raise SshrecError(f"{path}: {describe(error)}") from error
        self._say(
            1, f"# ~/.ssh/config: ssh, scp, sftp, rsync, git and ansible then reach the servers by name\n{lines}"
        )
        self._say(1, "\n# ~/.ssh/known_hosts: by this, the bastion proves that it stands for them\n")
        self._say(1, "".join(f"@cert-authority *.{GATEWAY} {key}\n" for key in trusted))
        return 0

    def _help(self, user: str) -> int:
        self._say(1, HELP.format(way=way(self._config, user), way_to_type=way(self._config, user, terminal=True)))
        return 0

    def _service(self) -> AuthService:
        return AuthService(self._config.auth_socket, _SECONDS)

    def _agent(self) -> Agent | None:
        if self.agents is None:
            return None
        # Our directory goes with the visit, whatever becomes of this process; so does what is short-lived in it.
        return Agent(self._socket, called="your agent", scratch=self._socket.parent)

    def _agent_needed(self, user: str) -> Agent:
        if (agent := self._agent()) is None:
            raise UsageError("no agent came with you", hint=f"connect with -A: {way(self._config, user)}")
        return agent

    @property
    def _source(self) -> str | None:
        return self._visit.client.partition(" ")[0] or None

    def _say(self, stream: int, text: str) -> None:
        fd = self._visit.stdout if stream == 1 else self._visit.stderr
        data = text.encode()
        with contextlib.suppress(OSError):  # whoever is gone does not read it
            while data:
                data = data[os.write(fd, data) :]


def _line(fd: int) -> bytes:
    """The first line; DataError where none comes in time, or it is too long."""
    data, deadline = b"", time.monotonic() + PATIENCE
    while b"\n" not in data:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        more = os.read(fd, 65536) if ready else b""
        data += more
        if not more or len(data) > REQUEST_MAX:
            raise DataError("no line of a login came")
    return data.partition(b"\n")[0]


def _described(user: str, one: Certificate) -> str:
    # Perhaps another CA's, and as it was signed.
    logins = [printable(name, 64) for name in one.principals if ":" not in name]
    if one.valid_before == FOREVER:
        valid = "for ever"
    else:
        valid = f"until {moment(one.valid_before)} ({rest(one.valid_before)} left)"
    facts = {
        "user": user,
        "logins": ", ".join(logins) or "none",
        "valid": valid if one.valid_before > time.time() else f"no more, since {moment(one.valid_before)}",
        "serial": one.serial,
    }
    return "".join(f"{label:<8} {value}\n" for label, value in facts.items())
