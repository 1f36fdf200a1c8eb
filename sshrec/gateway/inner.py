"""The inner sshd of a transparent connection as a process: started on the person's descriptors, heard, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable

from sshrec.errors import SshrecError, describe
from sshrec.gateway.hop import confine
from sshrec.gateway.relay import Loop
from sshrec.gateway.visit import Visit
from sshrec.openssh import server
from sshrec.openssh.server import Inner

_READ_BYTES = 16 * 1024


class InnerSshd:
    """It runs from now on, and has the visit's standard input and output. `heard`: called when it has logged.

    `log`: what it said so far. Once the gateway has gone, it sees the end of its input: it ends, and removes its
    SSH_USER_AUTH in /tmp. (A signal would kill it without that, once it knows its client.)
    """

    def __init__(self, inner: Inner, visit: Visit, loop: Loop, heard: Callable[[], None]) -> None:
        parent = os.getpid()
        for fd in (visit.stdin, visit.stdout):
            os.set_blocking(fd, True)
        try:
            self._process = subprocess.Popen(
                server.arguments(inner),
                stdin=visit.stdin,
                stdout=visit.stdout,
                stderr=subprocess.PIPE,
                env=server.environment(inner),
                cwd="/",
                start_new_session=True,
                preexec_fn=lambda: confine(parent),
            )
        except OSError as error:
            raise SshrecError(f"{server.SSHD}: {describe(error)}", hint="Debian: openssh-server") from error
        for fd in (visit.stdin, visit.stdout):
            visit.give_up(fd)  # ours would keep a client waiting
        assert self._process.stderr is not None
        self.log = server.Log()
        self._loop, self._heard, self._stderr = loop, heard, self._process.stderr
        os.set_blocking(self._stderr.fileno(), False)
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.watch(self._stderr.fileno(), lambda _: self._read())
        loop.watch(self._pidfd, lambda _: loop.unwatch(self._pidfd))  # `status` has it

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs. Then `log` has its last words."""
        status = self._process.poll()
        if status is not None and not self._stderr.closed:
            self._read()
        return status

    def close(self) -> None:
        """Let go of it, by force if it still runs, and with what it has forked but for its sessions."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for fd in (self._stderr.fileno(), self._pidfd):
            self._loop.unwatch(fd)
        self._stderr.close()
        os.close(self._pidfd)

    def _read(self) -> None:
        try:
            data = os.read(self._stderr.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._loop.unwatch(self._stderr.fileno())
        self.log.feed(data)
        if self.log.unwrapped:
            raise SshrecError(f"{server.WRAPPER} cannot be loaded", hint="Debian: libnss-wrapper")
        self._heard()
