"""What one ssh is pointed at, in the session's run directory: its configuration and credential, the log it
writes, and the sockets that it has its connection and its agent from."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from sshrec.config import Config
from sshrec.gateway.agents import AgentRelay
from sshrec.gateway.grant import Grant
from sshrec.gateway.relay import Loop
from sshrec.openssh import client

_LOG_BYTES = 64 * 1024


class Surroundings:
    """Made before ssh starts, closed after it has ended.

    `connection`: gives what was dialled; ssh fetches it with sshrec-dial. `gateway`: dials the agent. `log_came`
    is called when there is more in `log`. `control`: the socket of a master, which it is (`master`) or goes by.
    """

    def __init__(
        self,
        config: Config,
        run: client.Run,
        grant: Grant,
        lang: bytes,
        *,
        loop: Loop,
        gateway: socket.socket,
        connection: Callable[[], socket.socket],
        log_came: Callable[[], None],
        control: Path | None = None,
        master: bool = False,
    ) -> None:
        self.log = client.Log()
        self._config, self._run, self._loop = config, run, loop
        self._connection, self._log_came = connection, log_came
        request = grant.request
        configuration = client.configuration(
            config,
            run,
            login=request.target.login,
            name=grant.place.name,
            port=grant.place.port,
            terminal=request.terminal,
            lang=lang,
            control=control,
            master=master,
        )
        _write(run.identity, grant.credential.line)
        _write(run.config, configuration)
        os.mkfifo(run.log, 0o600)
        self._log_fd = os.open(run.log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        loop.watch(self._log_fd, self._log_ready)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(run.dial))
        self._listener.listen(1)
        loop.watch(self._listener.fileno(), lambda _: self._hand_over())
        self.agents = AgentRelay(loop, run.agent, gateway) if run.outer_agent is None else None

    @property
    def host_key(self) -> str | None:
        """Type and fingerprint of the key that the target showed; None where that is not certain."""
        return self.log.host_key if self._config.proxy_checks_host_keys else client.seen_host_key(self._run)

    def read_rest(self) -> None:
        """Take what is left in the log of an ssh that has ended."""
        while self._read_log():
            pass

    def close(self) -> None:
        """Let go of everything; the files go with the run directory."""
        if self.agents is not None:
            self.agents.close()
        for fd in (self._log_fd, self._listener.fileno()):
            self._loop.unwatch(fd)
        os.close(self._log_fd)
        self._listener.close()

    def _log_ready(self, _events: int) -> None:
        self._read_log()

    def _read_log(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._log_fd, _LOG_BYTES)
            self.log.feed(data)
            self._log_came()
            if not data:  # no writer (any more): that would be said without end
                self._loop.unwatch(self._log_fd)
            return bool(data)
        return False

    def _hand_over(self) -> None:
        with contextlib.suppress(OSError), self._listener.accept()[0] as helper:  # dead with its ssh, if it is
            socket.send_fds(helper, [b"\0"], [self._connection().fileno()])


def _write(path: Path, text: str) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
