"""sshrecd's low-priority child: seals and packs what ended sessions left, and packs long live ones ahead.

One at a time, so nobody waits.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable

from sshrec.audit.client import Sender
from sshrec.config import Config
from sshrec.errors import NotFound
from sshrec.gateway.floor import has_room
from sshrec.gateway.worker import look_after, unfinished
from sshrec.recording.recovery import Found
from sshrec.storage import spare
from sshrec.storage.local import Store
from sshrec.storage.removal import SPARE

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
        self._live: set[str] = set()
        self._scan: tuple[int | None, frozenset[str]] | None = None

    def scan(self, days: int | None, known: frozenset[str]) -> None:
        """At the next `add`, have all looked after that was left, but for these.

        `days`: of the newest that have recordings; None: of all. The child looks: a file system that hangs would
        hang sshrecd.
        """
        self._scan = days, known

    def add(self, sessions: Iterable[str], live: Iterable[str] = ()) -> None:
        """Have these looked after, too, and start with it if nobody is at it. Those that live come last."""
        self._todo |= set(sessions)
        self._live |= set(live)
        if self.pidfd is None and (self._todo or self._live or self._scan):
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
        live, self._live = sorted(self._live), set()
        scan, self._scan = self._scan, None
        if pid == 0:
            self._work(todo, live, scan)
        self._pid, self.pidfd = pid, os.pidfd_open(pid)

    def _work(self, sessions: list[str], live: list[str], scan: tuple[int | None, frozenset[str]] | None) -> None:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.nice(19)
            self._in_child()
            spare.keep(self._config.data_dir / SPARE)
            journal = Sender(self._config.audit_socket)
            left = self._left(*scan) if scan is not None else set()
            for session in sorted({*sessions, *left}):
                self._look_after(session, journal)
            for session in live:
                self._pack_ahead(session)
            status = 0
        finally:
            os._exit(status)

    def _left(self, days: int | None, known: frozenset[str]) -> set[str]:
        try:
            return unfinished(self._config, days) - known
        except OSError:
            log.exception("cannot look for recordings that were left")
            return set()

    def _look_after(self, session: str, journal: Sender) -> None:
        try:
            found = look_after(self._config, session, journal)
        except Exception:
            log.exception("%s: cannot be looked after", session)
        else:
            if found is Found.SEALED:
                log.warning("%s: sealed as aborted", session)

    def _pack_ahead(self, session: str) -> None:
        """Not where the disk is nearly full: there is no need of it, and it takes room that sessions want."""
        try:
            if has_room(self._config):
                Store(self._config.recordings_dir).pack_ahead(session)
        except NotFound:
            pass  # it has not begun, or has ended meanwhile
        except Exception:
            log.exception("%s: cannot be packed ahead", session)
