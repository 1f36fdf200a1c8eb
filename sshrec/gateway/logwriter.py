"""sshrecd's child that writes the audit log: started with it, and again whenever it dies."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from sshrec.audit.writer import Writer
from sshrec.config import Config
from sshrec.gateway.notary import Notary

AGAIN_SECONDS = 1.0  # between two starts
COMM = "sshrec-audit"  # what ps(1) calls it

log = logging.getLogger("sshrecd")


class LogWriter:
    """`pidfd`: readable when the child has ended, None while there is none.

    `in_child` is called in it, to let go of what is the daemon's. A child whose sshrecd is gone goes on for the
    sessions that go on; that of the next sshrecd asks it to leave.
    """

    def __init__(self, config: Config, in_child: Callable[[], None]) -> None:
        self.pidfd: int | None = None
        self._config, self._in_child = config, in_child
        self._pid = 0
        self._started = 0.0

    def check(self) -> bool:
        """Start it if there is none, but not again and again; whether it was started now."""
        now = time.monotonic()
        if self.pidfd is not None or now - self._started < AGAIN_SECONDS:
            return False
        self._started = now
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            log.exception("cannot start the writer of the audit log")
            return False
        if pid == 0:
            self._work(parent)
        self._pid, self.pidfd = pid, os.pidfd_open(pid)
        return True

    def ended(self) -> bool:
        """After `pidfd` was readable: whether the child has really ended."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid == 0 or self.pidfd is None:
            return False  # the event was another's, who had the number before
        log.error("the writer of the audit log ended (%d)", os.waitstatus_to_exitcode(status))
        os.close(self.pidfd)
        self.pidfd = None
        return True

    def _work(self, parent: int) -> None:
        status = 1
        try:
            wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
            signal.signal(signal.SIGTERM, lambda *_: None)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.setsid()
            self._in_child()
            with contextlib.suppress(OSError):
                Path("/proc/self/comm").write_text(COMM)
            above = os.pidfd_open(parent)
            config = self._config
            # Without an authority there is nobody who signs, and the chain is all there is.
            signer = Notary(config.audit_dir, config.auth_socket) if config.authority_dir.is_dir() else None
            Writer(
                config.audit_dir,
                config.audit_socket,
                senders=self._senders,
                leave=wake,
                parent=above,
                signer=signer,
                grown_seconds=config.audit.checkpoint_interval,
            ).serve()
            status = 0
        except BaseException:
            log.exception("the writer of the audit log failed")
        finally:
            os._exit(status)

    def _senders(self) -> frozenset[int]:
        """Who may send: root, our own user, and the authority's, once it is there."""
        uids = {0, os.geteuid()}
        with contextlib.suppress(OSError):
            uids.add(self._config.authority_dir.stat().st_uid)
        return frozenset(uids)
