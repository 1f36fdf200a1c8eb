"""The person's terminal, through its descriptors alone: its size, its modes, and a line to type a target in."""

from __future__ import annotations

import contextlib
import fcntl
import struct
import termios
from collections.abc import Iterable
from typing import Any

from sshrec.session import Winsize

_WINSIZE = struct.Struct("HHHH")
_INPUT, _OUTPUT, _CONTROL, _LOCAL, _CHARACTERS = 0, 1, 2, 3, 6
SHOWN_NODES = 60

_RAW_INPUT = (
    termios.ISTRIP | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON | termios.IXANY | termios.IXOFF
)
_RAW_LOCAL = (
    termios.ISIG | termios.ICANON | termios.ECHO | termios.ECHOE | termios.ECHOK | termios.ECHONL | termios.IEXTEN
)


def winsize(fd: int) -> Winsize:
    """What the terminal says of itself; 0×0 where it says nothing."""
    with contextlib.suppress(OSError):
        rows, columns, _, _ = _WINSIZE.unpack(fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(_WINSIZE.size)))
        return Winsize(columns, rows)
    return Winsize(0, 0)


def copy_winsize(source: int, sink: int) -> Winsize:
    """Give one terminal the size of another, pixels too; its programs get SIGWINCH if that changes it."""
    size = fcntl.ioctl(source, termios.TIOCGWINSZ, bytes(_WINSIZE.size))
    fcntl.ioctl(sink, termios.TIOCSWINSZ, size)
    rows, columns, _, _ = _WINSIZE.unpack(size)
    return Winsize(columns, rows)


def is_raw(fd: int) -> bool:
    """Whether the terminal gives each character as it is typed (so ssh, below it, is in its session)."""
    local: int = termios.tcgetattr(fd)[_LOCAL]
    return not local & termios.ICANON


class Modes:
    """A terminal's modes as they were, to be put back whatever happens."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.original: list[Any] = termios.tcgetattr(fd)
        self._changed = False

    def raw(self) -> None:
        """As ssh(1) sets its own terminal while a session runs: every byte passes, nothing is interpreted."""
        modes: list[Any] = [part[:] if isinstance(part, list) else part for part in self.original]
        modes[_INPUT] = modes[_INPUT] & ~_RAW_INPUT | termios.IGNPAR
        modes[_OUTPUT] &= ~termios.OPOST
        modes[_LOCAL] &= ~_RAW_LOCAL
        modes[_CHARACTERS][termios.VMIN] = 1
        modes[_CHARACTERS][termios.VTIME] = 0
        self._changed = True
        # Not TCSADRAIN: it would wait, in the kernel, for a person who has stopped reading.
        termios.tcsetattr(self._fd, termios.TCSANOW, modes)

    def restore(self) -> None:
        """Put the modes back; no harm where the terminal is gone."""
        if self._changed:
            self._changed = False
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(self._fd, termios.TCSANOW, self.original)


class Line:
    """A line being typed: characters in, what to echo out. Completes names of nodes on Tab."""

    def __init__(self, prompt: str, names: Iterable[str]) -> None:
        self.text = ""
        self.done = False
        self.cancelled = False
        self._prompt = prompt
        self._names = sorted(names)

    def greeting(self) -> str:
        """What stands above the line, and the prompt."""
        return self._listing(self._names) + self._prompt

    def again(self) -> str:
        """Begin a new line."""
        self.text, self.done = "", False
        return self._prompt

    def feed(self, data: bytes) -> str:
        """Take typed bytes; returns what the terminal should show. Bytes after the end are dropped."""
        shown = ""
        for byte in data:
            if self.done or self.cancelled:
                break
            character = chr(byte)
            if character in "\r\n":
                self.done = True
                shown += "\r\n"
            elif character in "\x7f\b":
                shown += "\b \b" if self.text else ""
                self.text = self.text[:-1]
            elif character in "\x15\x17":  # Ctrl-U, Ctrl-W
                shown += "\b \b" * len(self.text)
                self.text = ""
            elif character in "\3\4":  # Ctrl-C, Ctrl-D
                self.cancelled = True
                shown += "\r\n"
            elif character == "\t":
                shown += self._complete()
            elif " " <= character < "\x7f" and len(self.text) < 300:
                self.text += character
                shown += character
        return shown

    def _complete(self) -> str:
        login, at, part = self.text.rpartition("@")
        matches = [name for name in self._names if name.startswith(part)]
        if not matches:
            return "\a"
        more = _common(matches)[len(part) :]
        self.text = login + at + part + more
        if len(matches) == 1:
            return more
        return "\r\n" + self._listing(matches) + self._prompt + self.text

    @staticmethod
    def _listing(names: list[str]) -> str:
        if not names:
            return ""
        more = f"  … and {len(names) - SHOWN_NODES} more\r\n" if len(names) > SHOWN_NODES else ""
        return "".join(f"  {name}\r\n" for name in names[:SHOWN_NODES]) + more


def _common(names: list[str]) -> str:
    """The longest beginning that all have."""
    first, last = min(names), max(names)
    return next((first[:n] for n in range(len(first)) if first[n : n + 1] != last[n : n + 1]), first)
