"""sshrecd's child that takes the audit log off the host: follows its files, and delivers each line to each sink.

Apart from the writer, so that no receiver ever slows or stops it. A sink that is behind delays no other.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import select
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sshrec.audit import follow
from sshrec.config import Config, Sink
from sshrec.duration import left
from sshrec.errors import DataError, SshrecError, Unreachable
from sshrec.gateway.child import Child

if TYPE_CHECKING:
    from sshrec.audit.sinks import Destination

LOOK_SECONDS = 0.5  # between two looks at a log that does not grow
RETRY_SECONDS = (0.2, 10.0)  # after a failure: the first time, and at most
BATCH_LINES = 500
LOST_SECONDS = 1.0  # from a lost connection to the next
KEPT_SECONDS = 5.0  # what was delivered so lately is delivered again when the connection is lost

log = logging.getLogger("sshrecd")


class Progress:
    """How far each sink is, for two processes: memory that a fork shares. The monotonic clock, in seconds.

    A sink that has got everything is up to date, again and again. So one whose shipper is dead or stuck is not.
    """

    def __init__(self, sinks: int) -> None:
        self._shared = mmap.mmap(-1, max(8 * sinks, 1))

    def up_to_date(self, sink: int, since: float) -> None:
        """Whatever the log had at that time, this sink has got."""
        struct.pack_into("d", self._shared, 8 * sink, since)

    def lag(self, sink: int) -> float:
        """For how many seconds it has not been up to date."""
        since: float = struct.unpack_from("d", self._shared, 8 * sink)[0]
        return time.monotonic() - since


class Shipper(Child):
    """Without sinks there never is one."""

    NAME = "sshrec-shipper"
    WHAT = "the shipper of the audit log"

    def __init__(self, config: Config, in_child: Callable[[], None]) -> None:
        super().__init__(in_child)
        self._config = config
        self._sinks = config.audit.sinks
        self._progress = Progress(len(self._sinks))
        for number, sink in enumerate(self._sinks):
            self._progress.up_to_date(number, time.monotonic() - self._waiting(sink))

    def _waiting(self, sink: Sink) -> float:
        """For how many seconds the sink has been behind, by the files: an earlier sshrecd left them so."""
        try:
            cursor = follow.load_cursor(cursor_path(self._config, sink))
            since = follow.waiting_since(self._config.audit_dir, cursor)
        except SshrecError:
            return 0.0  # the child will say so, and is not up to date until that is over
        return 0.0 if since is None else max(0.0, time.time() - since)

    def check(self) -> bool:
        """As any child's, where there is a sink."""
        return bool(self._sinks) and super().check()

    def expect_required(self) -> None:
        """Unreachable where a sink that is required has been behind for too long: then no session may begin."""
        for number, sink in enumerate(self._sinks):
            if sink.required and (lag := self._progress.lag(number)) > sink.max_lag:
                raise Unreachable(
                    f"the audit log's sink {sink.name} is required here, and has been behind for {left(lag)}",
                    hint="sessions begin again once it has caught up; sshrecd's log has the reason",
                )

    def work(self, leave: int, above: int) -> None:
        poll = select.poll()
        poll.register(leave, select.POLLIN)
        poll.register(above, select.POLLIN)
        if self._succeed(poll):
            self._follow()
            poll.poll()  # then the threads end as they are: the next one goes on from the cursors

    def _succeed(self, poll: select.poll) -> bool:
        """Wait until no other shipper is at these cursors; False where we are told to leave first."""
        directory = self._config.cursors_dir
        directory.mkdir(mode=0o750, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if poll.poll(50):
                    return False
            else:
                return True

    def _follow(self) -> None:
        from sshrec.audit.sinks import destination  # TLS and HTTP, which no session should carry

        for number, sink in enumerate(self._sinks):
            lane = Lane(
                destination(sink),
                self._config.audit_dir,
                cursor_path(self._config, sink),
                partial(self._progress.up_to_date, number),
            )
            threading.Thread(target=lane.run, daemon=True).start()


class Lane:
    """One sink's way: reads on, delivers, moves the cursor. `run` never returns."""

    def __init__(
        self, sink: Destination, directory: Path, path: Path, up_to_date: Callable[[float], None]
    ) -> None:
        self._sink, self._directory, self._path, self._up_to_date = sink, directory, path, up_to_date
        self._recent: deque[tuple[float, follow.Cursor]] = deque()  # when was begun where
        self._lines = BATCH_LINES
        self._failing, self._kept = False, True
        self._retry = RETRY_SECONDS[0]

    def run(self) -> None:
        """Deliver for ever; what is no SshrecError ends the process, and sshrecd starts another."""
        try:
            cursor = self._begin()
            while True:
                cursor, pause = self.turn(cursor)
                time.sleep(pause)
        except BaseException:
            log.exception("the shipper of the audit log failed")
            os._exit(1)

    def _begin(self) -> follow.Cursor:
        try:
            return follow.load_cursor(self._path)
        except DataError as error:
            log.warning("audit sink %s: %s; it gets the whole log again", self._sink.name, error)
            return follow.Cursor()

    def turn(self, cursor: follow.Cursor) -> tuple[follow.Cursor, float]:
        """Deliver what stands after the cursor, if anything; the new cursor, and seconds until the next turn."""
        from sshrec.audit.sinks import Lost

        looked = time.monotonic()
        try:
            items, after = follow.read_on(self._directory, cursor, self._lines)
            self._sink.deliver(items)
        except Lost as error:
            return self._again(cursor, error), LOST_SECONDS
        except DataError as error:
            log.warning("audit sink %s: %s; it gets the whole log again", self._sink.name, error)
            return follow.Cursor(), 0.0
        except SshrecError as error:
            return cursor, self._failed(error)
        if after != cursor:
            self._keep(after)
        self._remember(looked, cursor, items)
        if items:  # under load there are always more: as far as these go
            self._up_to_date(looked - max(0.0, time.time() - follow.written(items[-1])))
        elif after == cursor:
            self._up_to_date(looked)
            return cursor, LOOK_SECONDS
        return after, 0.0

    def _remember(self, now: float, cursor: follow.Cursor, items: Sequence[follow.Item]) -> None:
        if items:
            self._recent.append((now, cursor))
            self._lines = min(2 * self._lines, BATCH_LINES)
            self._retry = RETRY_SECONDS[0]
            if self._failing:
                self._failing = False
                log.warning("audit sink %s: delivers again", self._sink.name)
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._recent and now - self._recent[0][0] > KEPT_SECONDS:
            self._recent.popleft()

    def _again(self, cursor: follow.Cursor, error: SshrecError) -> follow.Cursor:
        """Go back to what may not have come."""
        self._complain(error)
        self._forget(time.monotonic())
        back = self._recent[0][1] if self._recent else cursor
        self._recent.clear()
        self._keep(back)
        return back

    def _keep(self, cursor: follow.Cursor) -> None:
        """Keep the cursor; where the disk does not take it, what follows is delivered all the same."""
        try:
            follow.save_cursor(self._path, cursor)
        except SshrecError as error:
            if self._kept:
                log.warning("%s; another shipper would deliver from an older place", error)
            self._kept = False
        else:
            self._kept = True

    def _failed(self, error: SshrecError) -> float:
        """Seconds until the next try, with fewer lines: a slow receiver takes some where it cannot take all."""
        self._complain(error)
        self._lines = max(1, self._lines // 4)
        pause, self._retry = self._retry, min(2 * self._retry, RETRY_SECONDS[1])
        return pause

    def _complain(self, error: SshrecError) -> None:
        if not self._failing:
            self._failing = True
            log.warning("%s; what it has not got waits in the log", error)


def cursor_path(config: Config, sink: Sink) -> Path:
    """Where it is kept what a sink has got."""
    return config.cursors_dir / f"{sink.name}.json"
