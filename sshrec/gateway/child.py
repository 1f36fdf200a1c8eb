"""A process of sshrecd's that stays: started with it, again whenever it dies, gone when it is told to leave."""

from __future__ import annotations

import abc
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

AGAIN_SECONDS = 1.0  # between two starts

log = logging.getLogger("sshrecd")


class Child(abc.ABC):
    """`pidfd`: readable when the process has ended, None while there is none.

    `in_child` is called in it, to let go of what is the daemon's; then `work`, which its kinds have. `NAME` is
    what ps(1) calls it, `WHAT` what the log does.
    """

    NAME = ""
    WHAT = ""

    def __init__(self, in_child: Callable[[], None]) -> None:
        self.pidfd: int | None = None
        self._in_child = in_child
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
            log.exception("cannot start %s", self.WHAT)
            return False
        if pid == 0:
            self._run(parent)
        self._pid, self.pidfd = pid, os.pidfd_open(pid)
        return True

    def ended(self) -> bool:
        """After `pidfd` was readable: whether the process has really ended."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid == 0 or self.pidfd is None:
            return False  # the event was another's, who had the number before
        log.error("%s ended (%d)", self.WHAT, os.waitstatus_to_exitcode(status))
        os.close(self.pidfd)
        self.pidfd = None
        return True

    @abc.abstractmethod
    def work(self, leave: int, above: int) -> None:
        """What it is for. `leave` is readable once it was told to leave, `above` once its sshrecd is gone."""

    def _run(self, parent: int) -> None:
        status = 1
        try:
            wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
            signal.signal(signal.SIGTERM, lambda *_: None)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.setsid()
            self._in_child()
            with contextlib.suppress(OSError):
                Path("/proc/self/comm").write_text(self.NAME)
            self.work(wake, os.pidfd_open(parent))
            status = 0
        except BaseException:
            log.exception("%s failed", self.WHAT)
        finally:
            os._exit(status)  # whatever its threads are at
