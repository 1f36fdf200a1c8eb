"""How long a session may last, how long be idle, and how large its recording may become.

The monotonic clock, what happens and the size are passed in; what comes out is a line for people. Ends nothing,
shows nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sshrec.access.decision import Terms
from sshrec.duration import left
from sshrec.size import Size

WARN_SECONDS = (300.0, 60.0)  # before the longest session is over; of a short one, once: a tenth of it
WARN_IDLE_SECONDS = 60.0  # before an idle one is; of a short limit, a tenth of it


@dataclass(frozen=True, slots=True)
class Warn:
    """The person should know."""

    text: str


@dataclass(frozen=True, slots=True)
class Over:
    """The session must end."""

    detail: str


class Limits:
    """Those of one session, which begins at `now`.

    `terminal`: whether there is one: then somebody is idle who types nothing, else where not a byte passes, either
    way.
    """

    def __init__(self, terms: Terms, now: float, *, terminal: bool) -> None:
        self._longest, self._idle, self._size = terms.longest, terms.idle, terms.size
        self._silence = "nothing was typed for" if terminal else "not a byte has passed for"
        self._terminal = terminal
        self._ends = now + self._longest if self._longest is not None else math.inf
        self._warn_at = _moments(self._longest, self._ends)
        self._active = now
        self._lead = min(WARN_IDLE_SECONDS, self._idle / 10) if self._idle is not None else 0.0
        self._warned = False  # of this silence

    def typed(self, now: float) -> None:
        """Something came from the person."""
        self._active, self._warned = now, False

    def shown(self, now: float) -> None:
        """Something came from the target."""
        if not self._terminal:
            self._active, self._warned = now, False

    def excess(self, size: int) -> str | None:
        """What is wrong with a recording of so many bytes, if anything is."""
        if self._size is None or size <= self._size:
            return None
        return f"its recording has {Size(self._size)}, and may have no more"

    def due(self) -> float:
        """When `turn` has something to say; infinity where it never has."""
        moments = [self._ends, *self._warn_at[:1]]
        if self._idle is not None:
            moments.append(self._active + self._idle - (0.0 if self._warned else self._lead))
        return min(moments)

    def turn(self, now: float) -> Warn | Over | None:
        """What is due."""
        if now >= self._ends:
            return Over(f"it has lasted {left(self._longest or 0)}, and may last no longer")
        idle_ends = self._active + self._idle if self._idle is not None else math.inf
        if now >= idle_ends:
            return Over(f"{self._silence} {left(self._idle or 0)}")
        if self._warn_at and now >= self._warn_at[0]:
            self._warn_at = [moment for moment in self._warn_at if moment > now]
            return Warn(f"this session ends in {left(self._ends - now)}: it may last {left(self._longest or 0)}")
        if not self._warned and now >= idle_ends - self._lead:
            self._warned = True
            return Warn(
                f"this session ends in {left(idle_ends - now)}: {self._silence} {left(now - self._active)}"
            )
        return None


def _moments(longest: float | None, ends: float) -> list[float]:
    """When to warn of the end, the earliest first."""
    if longest is None:
        return []
    return [ends - lead for lead in WARN_SECONDS if lead <= longest / 2] or [ends - longest / 10]
