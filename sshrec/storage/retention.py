"""Which recordings have been kept for long enough. Only rules: values in and out; removes nothing, no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from sshrec.duration import Duration
from sshrec.session import started
from sshrec.size import Size

UNPACKED = "live, unfinished or not packed yet"


@dataclass(frozen=True, slots=True)
class Policy:
    """How long recordings are kept, and how much of them. None: without a limit.

    `age`: since a session's start; `size`: bytes on disk of all recordings together.
    """

    age: Duration | None = None
    size: Size | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """A recording in the store. `bytes`: on disk; `packed`: so it is finished, and nobody writes to it, as nobody
    does to what is left of one that never was."""

    session: str
    bytes: int
    packed: bool


@dataclass(frozen=True, slots=True)
class Remove:
    """A recording that goes, and the policy's words for why."""

    stored: Stored
    reason: str


@dataclass(frozen=True, slots=True)
class Keep:
    """A recording that would go, and why it stays all the same."""

    stored: Stored
    reason: str


def due(
    recordings: Iterable[Stored], policy: Policy, now_ms: int, kept: Callable[[str], str | None]
) -> Iterator[Remove | Keep]:
    """What the policy says of those it would remove, oldest first; of the others, nothing.

    `now_ms`: Unix milliseconds; `kept`: why a session's recording must stay, None where nothing says so.
    """
    oldest_first = sorted(recordings, key=lambda stored: stored.session)
    total = sum(stored.bytes for stored in oldest_first)
    for stored in oldest_first:
        old = policy.age is not None and started(stored.session) < now_ms - policy.age * 1000
        over = policy.size is not None and total > policy.size
        if not (old or over):
            return  # what follows is younger, and there is no more of it
        why = kept(stored.session) if stored.packed else UNPACKED
        if why is not None:
            yield Keep(stored, why)
            continue
        total -= stored.bytes
        yield Remove(stored, _words(policy, old=old))


def _words(policy: Policy, *, old: bool) -> str:
    if not old or policy.age is None:
        return f"all recordings take more than {policy.size}"
    days, rest = divmod(policy.age, 86400)
    return f"older than {policy.age if rest else f'{days}d'}"  # as people write it: 90d, not 12w6d
