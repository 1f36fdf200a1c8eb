"""The person's terminal, through its descriptors alone: its size, its modes, and a line to type a target in."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import struct
import termios
from collections.abc import Iterable
from typing import Any

from sshrec.session import Winsize

_WINSIZE = struct.Struct("HHHH")
_LONGEST = 300  # characters of a line
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

    def quiet(self) -> None:
        """Between questions: what is typed meanwhile waits, byte by byte and unseen, but Ctrl-C interrupts."""
        modes: list[Any] = [part[:] if isinstance(part, list) else part for part in self.original]
        modes[_INPUT] = modes[_INPUT] & ~_RAW_INPUT | termios.IGNPAR
        modes[_LOCAL] = modes[_LOCAL] & ~_RAW_LOCAL | termios.ISIG
        modes[_CHARACTERS][termios.VMIN] = 1
        modes[_CHARACTERS][termios.VTIME] = 0
        self._changed = True
        termios.tcsetattr(self._fd, termios.TCSANOW, modes)

    def restore(self) -> None:
        """Put the modes back; no harm where the terminal is gone."""
        if self._changed:
            self._changed = False
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(self._fd, termios.TCSANOW, self.original)


class Line:
    """A line being typed: characters in, what to echo out. Completes names of nodes on Tab.

    `hidden`: what is typed is not shown, and may be of any alphabet. `longest`: in characters; more is not taken.
    """

    def __init__(
        self, prompt: str, names: Iterable[str] = (), *, hidden: bool = False, longest: int = _LONGEST
    ) -> None:
        self.text = ""
        self.rest = ""  # what was typed behind the end
        self._hidden, self._longest = hidden, longest
        self.done = False
        self.cancelled = False
        self._prompt = prompt
        self._names = sorted(names)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._escape = ""  # of a key such as an arrow, so far

    def greeting(self) -> str:
        """What stands above the line, and the prompt."""
        return self._listing(self._names) + self._prompt

    def again(self) -> str:
        """Begin a new line."""
        self.text, self.rest, self.done = "", "", False
        return self._prompt

    def feed(self, data: bytes) -> str:
        """Take typed bytes; returns what the terminal should show: a bell for what is not taken."""
        shown = ""
        typed = self._decoder.decode(data)
        for at, character in enumerate(typed):
            if self.done or self.cancelled:
                self.rest += typed[at:].removeprefix("\n" if typed[at - 1 : at] == "\r" else "")
                break
            shown += self._take(character)
        return shown

    def _take(self, character: str) -> str:
        if self._is_escape(character):
            return ""
        if character in "\r\n":
            self.done = True
            return "\r\n"
        if character in "\x7f\b":
            erased = "\b \b" if self.text and not self._hidden else ""
            self.text = self.text[:-1]
            return erased
        if character in "\x15\x17":  # Ctrl-U, Ctrl-W
            erased = "" if self._hidden else "\b \b" * len(self.text)
            self.text = ""
            return erased
        if character in "\3\4":  # Ctrl-C, Ctrl-D
            self.cancelled = True
            return "\r\n"
        if character == "\t":
            return self._complete()
        typed = " " <= character < "\x7f" or (self._hidden and character > "\x9f")
        if not typed or len(self.text) >= self._longest:
            return "\a"
        self.text += character
        return "" if self._hidden else character

    def _is_escape(self, character: str) -> bool:
        """Whether it belongs to what a key such as an arrow sends (ECMA-48: ESC [ … final, and ESC O final)."""
        if not self._escape:
            self._escape = character if character == "\x1b" else ""
            return bool(self._escape)
        if self._escape == "\x1b" or character < " ":
            self._escape = character if character in "[O" else ""
            return bool(self._escape)
        if self._escape == "O" or not character <= "?":
            self._escape = ""
        return True

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
