"""How often somebody may fail: five times in a quarter of an hour, then they wait, longer each time. Values only.

A try is charged before it is checked, so tries at the same moment count each for one; who succeeds has it back.
Times are Unix milliseconds of a clock that may jump.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MINUTE_MS = 60_000
QUARTER_MS, DAY_MS = 15 * MINUTE_MS, 24 * 60 * MINUTE_MS
QUARTER_LIMIT = 5  # failures
DAY_LIMIT = 20  # of one account: after these, one failure an hour, however slowly somebody guesses
LONGEST_MS = 60 * MINUTE_MS  # of a wait: whoever fails in another's name locks them out for no longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """What is kept of one account, or one source. `failures`: within the last day, or not known yet, in order."""

    failures: tuple[int, ...] = ()
    until_ms: int = 0  # nothing is tried before
    seen_ms: int = 0  # when the clock was looked at last


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now, but in so many milliseconds."""

    ms: int


def charge(tries: Tries, now_ms: int, *, account: bool) -> Tries | Wait:
    """Try once more: what is to be kept from then on; or Wait, and nothing changes. The charge is `now_ms`.

    `account`: the limit of a day, too. A source may be an office with many people.
    """
    tries = settled(tries, now_ms)
    if tries.until_ms > now_ms:
        return Wait(tries.until_ms - now_ms)
    failures = (*tries.failures, now_ms)
    recent = sum(at > now_ms - QUARTER_MS for at in failures)
    slow = account and len(failures) >= DAY_LIMIT
    until_ms = 0
    if recent >= QUARTER_LIMIT or slow:
        delay = LONGEST_MS if slow else min(QUARTER_MS << (len(failures) // QUARTER_LIMIT - 1), LONGEST_MS)
        until_ms = now_ms + delay
    return Tries(failures=failures, until_ms=until_ms, seen_ms=now_ms)


def refund(tries: Tries, charged_ms: int, now_ms: int, *, account: bool) -> Tries:
    """It was no failure. An `account`'s failures of before do not make the next wait longer any more.

    Those of the quarter still count: who guesses must not gain by the owner's logging in. Nor does a source gain
    anything: one of its people could be the one who guesses the others' passwords.
    """
    charged_ms -= max(0, tries.seen_ms - now_ms)
    tries = settled(tries, now_ms)
    failures = list(tries.failures)
    if failures:
        failures.remove(min(failures, key=lambda at: abs(at - charged_ms)))  # the clock may have moved it before
    if account:
        failures = [at for at in failures if at > now_ms - QUARTER_MS]
    recent = sum(at > now_ms - QUARTER_MS for at in failures)
    until_ms = tries.until_ms if recent >= QUARTER_LIMIT else 0
    return replace(tries, failures=tuple(failures), until_ms=until_ms)


def settled(tries: Tries, now_ms: int) -> Tries:
    """The same, seen now: what is over is forgotten, and a clock that went back took all times with it.

    So a wait is neither longer than it was nor over before its time.
    """
    back = max(0, tries.seen_ms - now_ms)
    failures = tuple(at - back for at in tries.failures if at - back > now_ms - DAY_MS)
    until_ms = min(tries.until_ms - back, now_ms + LONGEST_MS) if tries.until_ms else 0
    return Tries(failures=failures, until_ms=until_ms, seen_ms=now_ms)
