"""Asks the person for a line, on their terminal, while the loop turns. Knows no question."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator

from sshrec.gateway.relay import Loop
from sshrec.gateway.terminal import Line
from sshrec.gateway.visit import Visit


class Gone(Exception):
    """The person left, or was made to, before there was a session."""


class Questioner:
    """`until` turns the loop, and raises Gone where the person leaves meanwhile."""

    def __init__(self, visit: Visit, loop: Loop, until: Callable[[Callable[[], bool]], None]) -> None:
        self._visit, self._loop, self._until = visit, loop, until

    def show(self, text: str) -> None:
        """Write to the person's terminal, which is raw for now."""
        with contextlib.suppress(OSError):  # a terminal that is gone says so when it is read
            os.write(self._visit.stdout, text.encode())

    def lines(self, line: Line, tries: int) -> Generator[str, None, None]:
        """What the person types, line by line, up to so many; Gone where they cancel. Close it when content."""
        visit = self._visit
        assert visit.modes is not None

        def typed(_events: int) -> None:
            try:
                data = os.read(visit.stdin, 4096)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            with contextlib.suppress(OSError):
                os.write(visit.stdout, line.feed(data or b"\4").encode())

        visit.modes.raw()
        os.set_blocking(visit.stdin, False)
        self._loop.watch(visit.stdin, typed)
        try:
            for turn in range(tries):
                self.show(line.again() if turn else line.greeting())
                self._until(lambda: line.done or line.cancelled)
                if line.cancelled:
                    raise Gone
                yield line.text
        finally:
            self._loop.unwatch(visit.stdin)
            visit.modes.restore()
