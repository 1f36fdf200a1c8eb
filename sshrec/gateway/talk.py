"""A dialogue with the person, line by line, in a process that does nothing else meanwhile. Knows no question."""

from __future__ import annotations

import os
import select
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from sshrec.duration import left
from sshrec.gateway.terminal import Line, Modes, winsize
from sshrec.session import Winsize

PATIENCE = 300.0  # seconds that an answer may take
_HIDDEN = 4096  # characters of an answer: more than any password has, so that a longer one is told


class Cancelled(Exception):
    """The person cancelled or hung up; or did not answer in time, and then it says so."""


class Talk:
    """On the descriptors of a terminal, which are blocking; used through them alone. A context manager.

    What is typed before it was asked for is not shown, and is the next answer. `term`: as the client has it;
    `patience`: seconds that an answer may take, however much of it is there.
    """

    def __init__(self, stdin: int, stdout: int, *, term: str, patience: float = PATIENCE) -> None:
        self._stdin, self._stdout, self._patience = stdin, stdout, patience
        self.styled = term not in ("", "dumb")
        with _there():
            self._modes = Modes(stdin)
        self._ahead = ""
        self._lines: int | None = None  # since `mark`

    def __enter__(self) -> Self:
        with _there():
            self._modes.quiet()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._modes.restore()

    @property
    def size(self) -> Winsize:
        """Of the terminal; 80×24 where it does not say."""
        size = winsize(self._stdin)
        return size if size.columns and size.rows else Winsize(80, 24)

    def bold(self, text: str) -> str:
        """The same, set off where the terminal can."""
        return f"\x1b[1m{text}\x1b[m" if self.styled else text

    def say(self, text: str = "") -> None:
        """A line, or more of them."""
        self._show(f"{text}\n")

    def ask(self, prompt: str, *, hidden: bool = False) -> str:
        """What the person types. Cancelled where they press Ctrl-C or Ctrl-D, hang up or fall asleep."""
        line = Line(prompt, hidden=True, longest=_HIDDEN) if hidden else Line(prompt)
        deadline = time.monotonic() + self._patience
        with _there():
            self._modes.raw()
        try:
            self._show(line.greeting())
            self._show(line.feed(self._ahead.encode()))
            while not (line.done or line.cancelled):
                if not select.select([self._stdin], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    self._show("\r\n")
                    raise Cancelled(f"nobody has answered for {left(self._patience)}")
                with _there():
                    self._show(line.feed(os.read(self._stdin, 4096) or b"\4"))
        finally:
            with _there():
                self._modes.quiet()
        if line.cancelled:
            raise Cancelled
        self._ahead = line.rest
        return line.text

    def mark(self) -> None:
        """What is shown from here on may be erased."""
        self._lines = 0

    def erase(self) -> None:
        """Take from the screen what was shown since the mark, as far as it is there still."""
        lines, self._lines = self._lines, None
        if lines and self.styled:
            self._show(f"\x1b[{min(lines, self.size.rows - 1)}F\x1b[J")

    def _show(self, text: str) -> None:
        if self._lines is not None:
            self._lines += text.count("\n")
        data = text.encode()
        with _there():
            while data:
                data = data[os.write(self._stdout, data) :]


@contextmanager
def _there() -> Iterator[None]:
    """Cancelled where the terminal is gone."""
    try:
        yield
    except (OSError, termios.error):
        raise Cancelled from None
