"""The transparent way in: `ssh root@web1` through `ProxyCommand ssh -A bastion sshrec-proxy %r %h %p`.

One connection: an inner sshd on the person's descriptors, which is web1 to the client by a host certificate of the
gateway's own CA. Each of its channels comes to sshrecd as a visit of its own, and asks here whose it is.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from sshrec.config import Config
from sshrec.errors import SshrecError, UsageError, describe
from sshrec.gateway.admission import Passage
from sshrec.gateway.agents import AgentRelay
from sshrec.gateway.channel import Whose
from sshrec.gateway.channels import Channels
from sshrec.gateway.ending import FOREVER
from sshrec.gateway.inner import InnerSshd
from sshrec.gateway.master import Master
from sshrec.gateway.relay import Loop
from sshrec.gateway.request import parse_target
from sshrec.gateway.visit import Visit
from sshrec.openssh import keygen, server
from sshrec.openssh.public_key import PublicKey
from sshrec.openssh.server import Inner
from sshrec.session import Credential, Target, User

COMMAND = b"sshrec-proxy"
USAGE = "ProxyCommand ssh -A bastion sshrec-proxy %r %h %p"
_AGENTS = 128  # connections to the agent at once, of all channels together
_SSH_PORT = 22
END_SECONDS = 5.0  # for the inner sshd, to end by itself
TELL_SECONDS = 2.0  # for the person's ssh, to hear how its sessions ended
PART_SECONDS = 2.0  # for the sessions, to end before the way to the target does


def parse(words: list[bytes]) -> Target:
    """The target of `sshrec-proxy LOGIN HOST PORT`, by the grammar of all targets."""
    if len(words) != 3:
        raise UsageError("sshrec-proxy takes a login, a host and a port", hint=f"in ~/.ssh/config: {USAGE}")
    login, host, port = words
    if b":" in host:
        host = b"[" + host.strip(b"[]") + b"]"
    target = parse_target(login + b"@" + host + b":" + port, "")
    # What ssh sends where nobody named a port: then the node's own.
    return Target(target.login, target.host, None if target.port == _SSH_PORT else target.port)


class Connection:
    """One of them, in its worker.

    `until` turns the loop, and raises where the person leaves meanwhile; `turn` just turns it.
    `changed` tells the watchers how many sessions it has.
    """

    def __init__(
        self,
        config: Config,
        visit: Visit,
        *,
        connection: str,
        loop: Loop,
        until: Callable[[Callable[[], bool]], None],
        turn: Callable[[Callable[[], bool]], None],
        gateway: socket.socket,
        directory: Path,
        changed: Callable[..., None],
    ) -> None:
        self._config, self._visit, self._connection = config, visit, connection
        self._loop, self._until, self._turn = loop, until, turn
        self._gateway, self._directory, self._changed = gateway, directory, changed
        self._inner = Inner(directory / "sshd")
        self.agents = AgentRelay(loop, directory / "agent", gateway, _AGENTS) if visit.agent else None
        self._sshd: InnerSshd | None = None
        self._channels: Channels | None = None
        self._master: Master | None = None
        self._deadline = FOREVER  # for the next session
        self._killed = False

    def serve(self, user: User, credential: Credential, target: Target, admit: Callable[[], Passage]) -> int:
        """Until the inner sshd has ended; its exit status. `admit`: says what the person may, or raises."""
        whose = _whose(self._connection, user, credential, target, self._visit)
        try:
            with self._making() as key:
                passage = admit()
                self._changed(state="connection")
                self._channels = Channels(self._loop, self._directory, whose, self._counted, server.SESSIONS)
                self._go_ahead(passage)
                certificate = passage.certify(key().line)
            self._write(user, credential, target, certificate)
            return self._watch()
        finally:
            if self._killed:
                self._turn_for(TELL_SECONDS, self._told)

    def kill(self, who: str) -> None:
        """An administrator ends it, and its sessions."""
        self._killed = True
        if self._channels is not None:
            self._channels.close_door()
            self._channels.kill(who)

    def _told(self) -> bool:
        """Whether the person's ssh knows of each session's end, and has read what it was told."""
        return self._sshd is None or self._ended() or not self._sshd.log.sessions

    def _part(self) -> None:
        """Wait for the sessions, which see that the person is gone; then nobody needs the master."""
        if self._channels is not None:
            channels = self._channels
            channels.close_door()
            self._turn_for(PART_SECONDS, lambda: not channels)
            channels.close()
        if self._master is not None:
            self._master.close()

    def _turn_for(self, seconds: float, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        self._turn(lambda: condition() or time.monotonic() >= deadline)

    def close(self) -> None:
        """End what is left of it, once the gateway has been told to go."""
        if self._sshd is not None:
            self._turn_for(END_SECONDS, self._ended)
            self._sshd.close()
        self._part()
        if self.agents is not None:
            self.agents.close()
        shutil.rmtree(self._inner.directory, ignore_errors=True)

    def _making(self) -> AbstractContextManager[Callable[[], PublicKey]]:
        """The key by which the inner sshd will be the target, on its way."""
        try:
            self._inner.directory.mkdir(mode=0o700)
            return keygen.making(self._inner.key)
        except OSError as error:
            raise SshrecError(f"{error.filename}: {describe(error)}") from error

    def _go_ahead(self, passage: Passage) -> None:
        """To the target, while the person's ssh is busy with us."""
        if passage.ahead is None or self._channels is None:
            return
        self._master = Master(
            self._config,
            passage.ahead,
            directory=self._directory,
            loop=self._loop,
            gateway=self._gateway,
            known=self._channels.master_known,
        )
        self._channels.go_by(self._master)
        self._master.start()

    def _write(self, user: User, credential: Credential, target: Target, certificate: str) -> None:
        inner = self._inner
        try:
            passwd, group = server.accounts(inner, target.login)
            user_cas = (self._config.public_dir / "user_ca.pub").read_text() if credential.key_id else ""
            configuration = server.configuration(
                inner,
                self._config.transparent,
                login=target.login,
                socket=self._config.socket,
                connection=self._connection,
            )
            for path, text in (
                (inner.certificate, f"{certificate}\n"),
                (inner.authorized, server.authorized_keys(credential, user.name, user_cas)),
                (inner.passwd, passwd),
                (inner.group, group),
                (inner.config, configuration),
            ):
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
                    file.write(text)
        except OSError as error:
            raise SshrecError(f"{error.filename}: {describe(error)}") from error

    def _watch(self) -> int:
        self._sshd = InnerSshd(self._inner, self._visit, self._loop, self._heard)
        self._until(lambda: self._ended() or self._too_long())
        status = self._sshd.status
        # sshd ends with 255 when its client hangs up, too.
        if status is None or self._sshd.log.begun:
            return 0
        raise SshrecError(f"the inner sshd ended with {status}: {self._sshd.log.last or 'without a word'}")

    def _ended(self) -> bool:
        return self._sshd is not None and self._sshd.status is not None

    def _heard(self) -> None:
        """The inner sshd has logged something."""
        assert self._sshd is not None
        # Said once the keys are read; from 9.8 on by the second of two programs that read them.
        if self._sshd.log.begun and self._inner.key.exists():
            self._inner.key.unlink()
            self._inner.certificate.unlink()
        fresh = self._channels is not None and not self._channels.had
        if fresh and self._deadline is FOREVER and self._sshd.log.accepted:
            self._counted(0)

    def _counted(self, channels: int) -> None:
        """So many there are now; without one, another must come in time."""
        if channels:
            self._deadline = FOREVER
        else:
            limits = self._config.limits
            had = self._channels is not None and self._channels.had
            self._deadline = time.monotonic() + (limits.connection_idle if had else limits.first_session)
        self._changed(channels=channels)

    def _too_long(self) -> bool:
        """Whether nobody has wanted a session for too long; SshrecError where nobody ever has."""
        if time.monotonic() < self._deadline:
            return False
        if self._channels is None or not self._channels.had:
            seconds = self._config.limits.first_session
            raise SshrecError(
                f"no session was asked for within {seconds}", hint="without one (ssh -N) nothing is here"
            )
        return True


def _whose(connection: str, user: User, credential: Credential, target: Target, visit: Visit) -> Whose:
    return Whose(
        connection=connection,
        user=user.name,
        uid=user.uid,
        algorithm=credential.algorithm,
        blob=credential.blob,
        key_id=credential.key_id,
        serial=credential.serial,
        verify_required=credential.verify_required,
        login=target.login,
        host=target.host,
        port=target.port,
        client=visit.client,
        local=visit.local,
        agent=visit.agent,
    )
