"""The one ssh to the target that the sessions of a transparent connection go by: a ControlMaster of ssh's own.

It is on its way while the person's ssh still shakes hands with the inner sshd, and has no session itself.
Where there is none, each session's ssh goes to the target for itself.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from sshrec.config import Config
from sshrec.gateway import network
from sshrec.gateway.channel import End, Shared
from sshrec.gateway.grant import Grant
from sshrec.gateway.hop import Hop, without_streams
from sshrec.gateway.relay import Loop
from sshrec.gateway.surroundings import Surroundings
from sshrec.openssh import client

SESSIONS = 10  # sshd's own MaxSessions: with more, each asks in vain before it goes for itself
_SUN_PATH = 107  # unix(7)
_SUFFIX = 17  # of the name that ssh gives the socket until it listens


class Master:
    """At first it is coming; then `shared` has it, or it is None: then nothing comes any more.

    `grant`: how ssh may go there; `directory`: of the connection; `known` is called when it has come, or will not.
    """

    def __init__(
        self,
        config: Config,
        grant: Grant,
        *,
        directory: Path,
        loop: Loop,
        gateway: socket.socket,
        known: Callable[[], None],
    ) -> None:
        self._config, self._grant, self._loop, self._gateway, self._known = config, grant, loop, gateway, known
        self._run = client.Run(directory / "hop", grant.agent)
        self._control = self._run.directory / "mux"
        self._around: Surroundings | None = None
        self._hop: Hop | None = None
        self._connection: socket.socket | None = None
        self.coming = True
        self.shared: Shared | None = None

    def start(self) -> None:
        """Dial, and start ssh once that is done; it has come when `known` is called."""
        if len(str(self._control)) + _SUFFIX > _SUN_PATH:
            return self._settle(None)
        grant = self._grant
        port = grant.place.port
        for address in grant.decision.addresses:
            try:
                self._connection = network.begin(address, port)
            except OSError:
                continue
            self._address = network.endpoint(address, port)
            self._loop.watch(self._connection.fileno(), self._dialled, select.POLLOUT)
            return None
        return self._settle(None)

    def _dialled(self, _events: int) -> None:
        assert self._connection is not None
        connection, grant = self._connection, self._grant
        self._loop.unwatch(connection.fileno())
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return self._settle(None)  # a session tries the other addresses, too
        connection.setblocking(True)
        try:
            self._run.directory.mkdir(mode=0o700)
            self._around = Surroundings(
                self._config,
                self._run,
                grant,
                b"",
                loop=self._loop,
                gateway=self._gateway,
                connection=lambda: connection,
                log_came=self._log_came,
                control=self._control,
                master=True,
            )
            argv = client.arguments(self._run, grant.place.name, None)
            self._hop = without_streams(argv, client.environment("dumb"))
        except OSError:  # the first session will say why
            return self._settle(None)
        self._loop.watch(self._hop.pidfd, self._ended)
        return None

    def end(self, number: int) -> End:
        """How one of its sessions ended, of which ssh tells no more than 255. `number`: ssh's, of the session."""
        if self._around is None:
            return End()
        self._around.read_rest()
        log = self._around.log
        said = log.ends.pop(number, None)
        lost = (log.messages[-1] if log.messages else "ssh gave up without a word") if said is None else None
        return End(signalled=said == "exit-signal", lost=lost)

    def close(self) -> None:
        """End it."""
        self._settle(None)
        if self._hop is not None:
            if self._hop.status is None:
                self._loop.unwatch(self._hop.pidfd)
                self._hop.send_signal(signal.SIGKILL)
                self._hop.reap()
            self._hop.close()
        if self._around is not None:
            self._around.close()
        if self._connection is not None:
            self._loop.unwatch(self._connection.fileno())
            self._connection.close()

    def _log_came(self) -> None:
        assert self._around is not None
        if self.coming and self._around.log.established:
            self._settle(Shared(str(self._control), self._address, self._around.host_key))

    def _ended(self, _events: int) -> None:
        assert self._hop is not None
        self._loop.unwatch(self._hop.pidfd)
        self._hop.reap()
        with contextlib.suppress(OSError):
            self._control.unlink()
        self._settle(None)

    def _settle(self, shared: Shared | None) -> None:
        was, self.coming, self.shared = self.coming, False, shared
        if was:
            self._known()
