"""sshrecd's low-priority child: seals and packs what ended sessions left. One at a time, so nobody waits."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable

from sshrec.audit.client import Sender
from sshrec.config import Config
from sshrec.gateway.worker import look_after
from sshrec.recording.recovery import Found

log = logging.getLogger("sshrecd")


class Housekeeper:
    """`pidfd`: readable when the child has ended, None while there is none.

    `in_child` is called in it, to let go of what is the daemon's.
    """

    def __init__(self, config: Config, in_child: Callable[[], None]) -> None:
        self.pidfd: int | None = None
        self._config, self._in_child = config, in_child
        self._pid = 0
        self._todo: set[str] = set()

    def add(self, sessions: Iterable[str]) -> None:
        """Have these looked after, too, and start with it if nobody is at it."""
        self._todo |= set(sessions)
        if self.pidfd is None and self._todo:
            self._start()

    def ended(self) -> bool:
        """After `pidfd` was readable: whether the child has really ended. Then what has come since is due."""
        pid, status = os.waitpid(self._pid, os.WNOHANG)
        if pid == 0 or self.pidfd is None:
            return False  # the event was another's, who had the number before
        if status:
            log.error("housekeeping died (%d); what is left is tried again", os.waitstatus_to_exitcode(status))
        os.close(self.pidfd)
        self.pidfd = None
        return True

    def _start(self) -> None:
        try:
            pid = os.fork()
        except OSError:
            log.exception("cannot look after %d sessions now", len(self._todo))
            return
        todo, self._todo = sorted(self._todo), set()
        if pid == 0:
            self._work(todo)
        self._pid, self.pidfd = pid, os.pidfd_open(pid)

    def _work(self, sessions: list[str]) -> None:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.nice(19)
            self._in_child()
            journal = Sender(self._config.audit_socket)
            for session in sessions:
                self._look_after(session, journal)
            status = 0
        finally:
            os._exit(status)

    def _look_after(self, session: str, journal: Sender) -> None:
        try:
            found = look_after(self._config, session, journal)
        except Exception:
            log.exception("%s: cannot be looked after", session)
        else:
            if found is Found.SEALED:
                log.warning("%s: sealed as aborted", session)
