"""Moving bytes: a poll loop, and pumps that carry one direction each. Knows nothing of sessions.

Everything is non-blocking and bounded: a pump reads only when what it read before is gone, so a stalled
reader stops its writer and nothing else. (Blocking writes deadlock on a large paste with echo.)
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import socket
import stat
import time
from collections.abc import Callable

READ_BYTES = 64 * 1024
AT_ONCE = 32  # events a turn; the default has 12 KiB allocated for them each time

_GONE = {errno.EIO, errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN}
_BROKEN = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Loop:
    """epoll(7) with a callback for each descriptor, and one timer.

    epoll, for a session has a dozen descriptors that hardly ever do anything. It refuses regular files and
    /dev/null, which never make anybody wait: those are called each turn.
    """

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._always: dict[int, int] = {}  # descriptors that epoll refuses, and the events asked for
        self._due = 0  # nanoseconds, monotonic

    def watch(self, fd: int, callback: Callable[[int], None], events: int = select.POLLIN) -> None:
        """Call `callback(events)` when something happens; errors and hang-ups always count."""
        if fd in self._callbacks:
            if fd in self._always:
                self._always[fd] = events
            else:
                self._poll.modify(fd, events)
        else:
            try:
                self._poll.register(fd, events)
            except PermissionError:
                self._always[fd] = events
        self._callbacks[fd] = callback

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor; no harm where it was not watched."""
        if self._callbacks.pop(fd, None) is not None and self._always.pop(fd, None) is None:
            self._poll.unregister(fd)

    def within(self, seconds: float) -> None:
        """Have the timer run no later than that from now."""
        self._due = min(self._due, time.monotonic_ns() + int(seconds * 1e9))

    def run(self, until: Callable[[], bool], tick: Callable[[], float]) -> None:
        """Until `until()`; `tick` does what time asks for and returns seconds until its next turn."""
        poll, callbacks, clock = self._poll.poll, self._callbacks, time.monotonic_ns
        self._due = 0
        while not until():
            wait = self._due - clock()
            if wait <= 0:
                # `tick` may shorten its own answer by calling `within`.
                self._due = 1 << 62
                due = clock() + int(tick() * 1e9)
                self._due = min(self._due, due)
                if until():  # which may have a time of its own, and call `within`
                    return
                wait = max(0, self._due - clock())
            ready = [(fd, events) for fd, events in self._always.items() if events] if self._always else []
            for fd, events in poll(0 if ready else wait / 1e9, AT_ONCE) + ready:
                callback = callbacks.get(fd)
                if callback is not None:
                    callback(events)


class Pump:
    """One direction: reads `source`, gives what came to `take`, writes what that returns to `sink`.

    `take` may hold bytes back or raise, and is called with nothing at the end, for what it held. `on_end` is
    called once, when the source has ended and all is written; `on_lost` once, when the sink is gone. `kept`,
    where given, says whether what was taken may be shown already; `resume` is called when it may.
    """

    def __init__(
        self,
        loop: Loop,
        source: int,
        sink: int,
        take: Callable[[memoryview], bytes | memoryview],
        *,
        size: int = READ_BYTES,
        on_end: Callable[[], None] = lambda: None,
        on_lost: Callable[[], None] = lambda: None,
        kept: Callable[[], bool] | None = None,
    ) -> None:
        self.source, self.sink = source, sink
        self.ended = self.lost = False
        self.final = False  # the writer is dead: an empty source has ended
        self._held = False
        self._loop, self._take, self._kept = loop, take, kept
        self._on_end, self._on_lost = on_end, on_lost
        self._buffer = mmap.mmap(-1, size)  # costs memory only once it is used
        self._view = memoryview(self._buffer)
        self._pending: bytes | memoryview = b""
        self._eof = False
        os.set_blocking(source, False)
        os.set_blocking(sink, False)
        loop.watch(sink, self._sink_ready, 0)
        loop.watch(source, self._source_ready)

    @property
    def pending(self) -> int:
        """Bytes taken but not written yet."""
        return len(self._pending)

    def show(self, data: bytes | memoryview) -> None:
        """Write something that did not come from the source (or was held back), in its turn."""
        if self.ended or self.lost or not data:
            return
        if self._pending:
            self._pending = bytes(self._pending) + bytes(data)
        else:
            self._send(data)

    def resume(self) -> None:
        """What was taken may be shown now, as far as `kept` says so."""
        if self._pending and not self.ended:
            self._send(self._pending)
            if self._pending and self._kept is not None and self._kept():
                self._loop.watch(self.sink, self._sink_ready, select.POLLOUT)

    def hold(self, held: bool) -> None:
        """Read no more for now, or go on."""
        if held == self._held:
            return
        self._held = held
        if held and not self._eof:
            self._loop.unwatch(self.source)
        elif not (self._eof or self._pending):
            self._loop.watch(self.source, self._source_ready)

    def drain(self) -> None:
        """The writer of the source is dead: take what is left in it, then end."""
        self.final = True
        while not (self._pending or self._eof):
            self._source_ready(select.POLLIN)

    def cut(self) -> None:
        """Read no more; what was taken is still written. `on_end` is not called."""
        if not self.ended:
            self._eof = True
            self._loop.unwatch(self.source)

    def stop(self) -> None:
        """Let go of both ends at once; `on_end` is not called."""
        if not self.ended:
            self.ended = self._eof = True
            self._pending = b""
            self._loop.unwatch(self.source)
            self._loop.unwatch(self.sink)

    def _source_ready(self, _events: int) -> None:
        try:
            count = os.readv(self.source, [self._buffer])
        except BlockingIOError:
            if not self.final:
                return
            count = 0
        except OSError as error:
            if error.errno not in _GONE:
                raise
            count = 0  # the other side of a PTY is gone
        if count == 0:
            self._eof = True
            self._loop.unwatch(self.source)
            rest = self._take(self._view[:0])
            if rest and not self.lost:
                self._send(rest)
            self._end_if_done()
            return
        data = self._take(self._view[:count])
        if not self.lost and data:
            self._send(data)

    def _send(self, data: bytes | memoryview) -> None:
        if self._kept is not None and not self._kept():
            written = 0
        else:
            try:
                written = os.write(self.sink, data)
            except BlockingIOError:
                written = 0
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                self._lose()
                return
        had = bool(self._pending)
        self._pending = data[written:]
        if self._pending and not had:
            self._loop.unwatch(self.source)
            self._loop.watch(self.sink, self._sink_ready, select.POLLOUT)
        elif had and not self._pending:
            self._loop.watch(self.sink, self._sink_ready, 0)
            if not (self._eof or self._held):
                self._loop.watch(self.source, self._source_ready)
                if self.final:
                    self.drain()
            self._end_if_done()

    def _sink_ready(self, events: int) -> None:
        if events & select.POLLOUT and self._pending:
            if self._kept is not None and not self._kept():
                self._loop.watch(self.sink, self._sink_ready, 0)  # `resume` will come
            else:
                self._send(self._pending)
        elif events & _BROKEN:
            self._lose()

    def _lose(self) -> None:
        if self.lost:
            return
        self.lost = True
        self._pending = b""
        self._loop.unwatch(self.sink)
        if not (self._eof or self._held):
            self._loop.watch(self.source, self._source_ready)
        self._on_lost()
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._eof and not self._pending and not self.ended:
            self.ended = True
            self._loop.unwatch(self.sink)
            self._on_end()


def half_close(fd: int) -> None:
    """Tell the reader behind a descriptor that nothing more comes, and let go of it."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        with socket.socket(fileno=fd) as sock:
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
    else:
        os.close(fd)
