"""When things are shown, as plain transforms of events. Knows no clock and no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sshrec.recording.events import Event


def limit_idle(recorded: Iterable[Event], seconds: float) -> Iterator[Event]:
    """The events, no two further apart than `seconds`, nor the first from the start; 0: as they are."""
    if seconds <= 0:
        yield from recorded
        return
    last = cut = 0.0
    for event in recorded:
        cut += max(0.0, event.time - last - seconds)
        last = event.time
        yield event._replace(time=event.time - cut) if cut else event
