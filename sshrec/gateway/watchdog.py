"""Has a person's pipes let go of when the worker's loop is stuck: their client waits for whoever holds them.

A thread, for the loop is in the kernel then, where not even SIGKILL finds it until the disk answers. Who has a
terminal needs none: that ends with the gateway.
"""

from __future__ import annotations

import _thread
import os
import select
from collections.abc import Callable

TURNS = 12  # seconds without a beat: the gateway, which counts to ten, is gone by then


class Watchdog:
    """Calls `drop`, from a thread of its own, when `beat` was not called for so long."""

    def __init__(self, drop: Callable[[], None], turns: int = TURNS) -> None:
        self._drop, self._turns = drop, turns
        self._beats = 0
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        _thread.start_new_thread(self._watch, ())

    def beat(self) -> None:
        """The loop turns."""
        self._beats += 1

    def close(self) -> None:
        """No more."""
        os.eventfd_write(self._wake, 1)

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        seen = silent = 0
        while silent < self._turns:  # turns, not the clock: a suspended machine is not a silent one
            if poll.poll(1000):
                os.close(self._wake)
                return
            silent = silent + 1 if self._beats == seen else 0
            seen = self._beats
        self._drop()
