"""What a robot did in one go, for a list of sessions: an ansible run is a line, not hundreds.

Knows no recordings: whose something is and when it was, is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

GAP_SECONDS = 60.0  # at most, from the last end to the next start
FEWEST = 3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Span:
    """Whose it is, and when it was, in seconds."""

    whose: Hashable
    start: float
    end: float


@dataclass(slots=True)
class Burst(Generic[T]):
    """Some of a list, newest first."""

    items: list[T]


def grouped(items: Sequence[T], span: Callable[[T], Span | None]) -> list[T | Burst[T]]:
    """The list, newest first, each burst at the place of its newest. `span`: None for what is in no burst."""
    bursts: dict[int, Burst[T]] = {}  # by the place of each of its items
    last: dict[Hashable, tuple[Burst[T], float]] = {}  # with its end
    for place in reversed(range(len(items))):
        if (when := span(items[place])) is None:
            continue
        burst, end = last.get(when.whose, (None, 0.0))
        if burst is None or when.start > end + GAP_SECONDS:
            burst, end = Burst([]), when.end
        burst.items.insert(0, items[place])
        bursts[place] = burst
        last[when.whose] = burst, max(end, when.end)
    shown: list[T | Burst[T]] = []
    seen: set[int] = set()
    for place, item in enumerate(items):
        found = bursts.get(place)
        if found is None or len(found.items) < FEWEST:
            shown.append(item)
        elif id(found) not in seen:
            seen.add(id(found))
            shown.append(found)
    return shown
