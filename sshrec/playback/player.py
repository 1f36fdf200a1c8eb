"""Plays a recording to a terminal or into a pipe, in its own time, under the keys of whoever watches.

The one module here with a clock, descriptors and signals. What is safe to show is filter's business, and when
the idle time is cut, timeline's.

Keys: space or p pauses; . shows the next output while paused; + } > faster; - { < slower; = or Backspace normal
speed; Enter skips the wait; q quits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import termios
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from sshrec.playback.filter import Filter
from sshrec.recording import events, reader
from sshrec.recording.events import Event

SPEED_MIN, SPEED_MAX = 1 / 16, 64.0

_BATCH = 64 * 1024
_KEY_SEQUENCE = re.compile(rb"\x1b(?:\[[ -?]*[@-~]|O.|.)?", re.DOTALL)  # arrows, and what terminals answer
_STOP = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_LFLAG, _OFLAG, _CC = 3, 1, 6  # in what tcgetattr returns


class Pace:
    """Where in a recording the playing is, by speed, pauses and keys. Takes the time; has no clock."""

    def __init__(self, speed: float, now: float) -> None:
        self.speed = speed
        self.paused = False
        self._position = 0.0
        self._since = now

    def wait(self, until: float, now: float) -> float | None:
        """Seconds until that time of the recording is due, 0 or less once it is; None while paused before it."""
        left = until - self._position_at(now)
        return left / self.speed if left <= 0 or not self.paused else None

    def press(self, key: str, following: float, now: float) -> bool:
        """Obey a key; `following` is the time of the output that comes next. False where it says to quit."""
        position = self._position_at(now)
        if key in " p":
            self.paused = not self.paused
        elif (key == "." and self.paused) or key in "\r\n":
            position = max(position, following)
        elif key in "+}>":
            self.speed = min(self.speed * 2, SPEED_MAX)
        elif key in "-{<":
            self.speed = max(self.speed / 2, SPEED_MIN)
        elif key in "=\x7f\x08":
            self.speed = 1.0
        self._position, self._since = position, now
        return key != "q"

    def stood_still(self, seconds: float) -> None:
        """The clock went on without us (Ctrl-Z)."""
        self._since += seconds

    def _position_at(self, now: float) -> float:
        return self._position if self.paused else self._position + (now - self._since) * self.speed


def texts(recorded: Iterable[Event], filtered: Filter, *, dim: bool, resize: bool) -> Iterator[tuple[float, str]]:
    """What a terminal is to show, and when: output through the filter, binary streams as a note of their size.

    `resize`: ask the terminal to take the sizes that the recording's had.
    """
    binary = 0
    silent = False  # the event before was output without text, whose bytes may follow
    for event in recorded:
        if event.code == events.OUTPUT:
            silent = not event.data
            if silent:
                continue
            if binary:
                yield event.time, _note(binary, dim=dim)
                binary = 0
            yield event.time, filtered.feed(event.data)
        elif event.code == events.BYTES and silent:
            binary += len(event.data) // 4 * 3 - event.data[-2:].count("=")
        elif event.code == events.RESIZE and resize and (size := reader.winsize(event.data)):
            yield event.time, f"\x1b[8;{size.rows};{size.columns}t"
        silent = False
    if binary:
        yield event.time, _note(binary, dim=dim)


def _note(binary: int, *, dim: bool) -> str:
    note = f"[{binary} bytes that are not text]"
    return f"\x1b[2m{note}\x1b[22m\r\n" if dim else f"{note}\n"


def copy(shown: Iterable[tuple[float, str]], out: int, *, speed: float | None) -> bool:
    """Write what is to be shown into a pipe or file; `speed` None: all at once. False where its reader went."""
    pace = Pace(speed or 1.0, time.monotonic())
    batch: list[str] = []
    size = 0
    try:
        for when, text in shown:
            wait = pace.wait(when, time.monotonic()) if speed else None
            if size > _BATCH or (wait is not None and wait > 0):
                _write(out, "".join(batch))
                batch, size = [], 0
            if wait is not None and wait > 0:
                time.sleep(wait)
            batch.append(text)
            size += len(text)
        _write(out, "".join(batch))
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        return False
    return True


class _Stopped(BaseException):
    """A signal told us to end."""

    def __init__(self, number: int) -> None:
        self.number = number


class Terminal:
    """The watcher's terminal while a recording plays on it; given back as it was, whatever ends the playing.

    `out`: the terminal; `keys`: where keys are read, None for nowhere; `cooked`: leave it to the terminal to
    return the carriage at a line feed, as a command without a terminal of its own expects.
    """

    def __init__(self, out: int, keys: int | None, filtered: Filter, *, cooked: bool) -> None:
        self._out = out
        self._keys = keys
        self._filter = filtered
        self._cooked = cooked
        self._saved: list[tuple[int, list[Any]]] = []
        self._handlers: dict[int, Any] = {}
        self._fresh_line = True
        self._slept = 0.0
        # A signal that comes in the moment before select() would otherwise wait as long as select does.
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_fd = -1

    def __enter__(self) -> Self:
        self._wakeup_fd = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in _STOP:
            self._handlers[number] = signal.signal(number, self._stop)
        self._handlers[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._suspend)
        try:
            self._take()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number in (signal.SIGINT, *self._handlers):  # nothing may come between here and a terminal in order
            handler = signal.signal(number, signal.SIG_IGN)
            self._handlers.setdefault(number, handler)
        self._give_back()
        signal.set_wakeup_fd(self._wakeup_fd)
        os.close(self._woken)
        os.close(self._wake)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if isinstance(error, _Stopped):
            signal.signal(error.number, signal.SIG_DFL)
            os.kill(os.getpid(), error.number)  # so that whoever waits for us sees what happened

    def show(self, text: str) -> None:
        """Write to the terminal."""
        if text:
            self._fresh_line = text.endswith("\n")
            _write(self._out, text)

    def keys(self, seconds: float | None) -> str:
        """The keys that were pressed, waiting up to so many seconds for one; None: for as long as it takes."""
        watched = [self._woken] if self._keys is None else [self._woken, self._keys]
        ready, _, _ = select.select(watched, [], [], seconds)
        if self._woken in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 1024)
        if self._keys is None or self._keys not in ready:
            return ""
        try:
            pressed = os.read(self._keys, 1024)
        except OSError:
            pressed = b""
        if not pressed:  # the terminal is gone
            return "q"
        return _KEY_SEQUENCE.sub(b"", pressed).decode("ascii", "replace")

    def slept(self) -> float:
        """Seconds that we were suspended since the last call."""
        seconds, self._slept = self._slept, 0.0
        return seconds

    def _take(self) -> None:
        if self._keys is not None:
            self._set(self._keys, _LFLAG, ~(termios.ECHO | termios.ICANON | termios.IEXTEN))
            termios.tcflush(self._keys, termios.TCIFLUSH)
        if not self._cooked:
            self._set(self._out, _OFLAG, ~termios.OPOST)

    def _set(self, fd: int, field: int, mask: int) -> None:
        mode = termios.tcgetattr(fd)
        self._saved.append((fd, [*mode[:_CC], list(mode[_CC])]))
        mode[field] &= mask
        if field == _LFLAG:
            mode[_CC][termios.VMIN], mode[_CC][termios.VTIME] = 1, 0
        termios.tcsetattr(fd, termios.TCSANOW, mode)

    def _give_back(self) -> None:
        with contextlib.suppress(OSError):  # it may be gone
            _write(self._out, self._filter.undo() + ("" if self._fresh_line else "\r\n"))
        with contextlib.suppress(termios.error):
            if self._keys is not None:
                termios.tcflush(self._keys, termios.TCIFLUSH)
        while self._saved:
            with contextlib.suppress(termios.error):
                fd, mode = self._saved.pop()
                termios.tcsetattr(fd, termios.TCSANOW, mode)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        raise _Stopped(number)

    def _suspend(self, number: int, _frame: FrameType | None) -> None:
        before = time.monotonic()
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # stops here, until SIGCONT
        signal.signal(number, self._suspend)
        self._take()
        _write(self._out, self._filter.redo())
        self._slept += time.monotonic() - before


def play(shown: Iterable[tuple[float, str]], terminal: Terminal, *, speed: float) -> bool:
    """Show everything in its time; False where the person quit before the end."""
    pace = Pace(speed, time.monotonic())
    batch: list[str] = []
    size = 0
    for when, text in shown:
        if size > _BATCH:  # however much is due at once, keys are obeyed
            terminal.show("".join(batch))
            batch, size = [], 0
            if not _obey(terminal, pace, when, 0.0):
                return False
        while (wait := pace.wait(when, time.monotonic())) is None or wait > 0:
            terminal.show("".join(batch))
            batch, size = [], 0
            if not _obey(terminal, pace, when, wait):
                return False
        batch.append(text)
        size += len(text)
    terminal.show("".join(batch))
    return True


def _obey(terminal: Terminal, pace: Pace, following: float, wait: float | None) -> bool:
    pressed = terminal.keys(wait)
    pace.stood_still(terminal.slept())
    return all(pace.press(key, following, time.monotonic()) for key in pressed)


def _write(fd: int, text: str) -> None:
    data = memoryview(text.encode("utf-8", "replace"))
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # somebody else made the terminal non-blocking
            select.select([], [fd], [])
