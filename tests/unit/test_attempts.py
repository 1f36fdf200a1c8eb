"""Who fails too often waits: five in a quarter of an hour, longer each time, whatever the clock does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshrec.access.attempts import DAY_MS, LONGEST_MS, MINUTE_MS, QUARTER_MS, Tries, Wait, charge, refund

NOW = 1_700_000_000_000


def _fail(tries: Tries, now: int, *, account: bool = True) -> Tries:
    charged = charge(tries, now, account=account)
    assert isinstance(charged, Tries), f"has to wait {charged.ms} ms"
    return charged


def _wait(tries: Tries, now: int, *, account: bool = True) -> int:
    """Milliseconds, 0 where none."""
    charged = charge(tries, now, account=account)
    return charged.ms if isinstance(charged, Wait) else 0


def _five(tries: Tries, now: int, *, account: bool = True) -> Tries:
    for n in range(5):
        tries = _fail(tries, now + n, account=account)
    return tries


def test_five_and_then_a_quarter_of_an_hour() -> None:
    tries = _five(Tries(), NOW)
    assert _wait(tries, NOW + 5) == QUARTER_MS - 1
    assert _wait(tries, NOW + 4 + QUARTER_MS - 1) == 1
    assert _wait(tries, NOW + 4 + QUARTER_MS) == 0


def test_the_wait_grows_to_an_hour_and_no_more() -> None:
    tries, now, waits = Tries(), NOW, []
    for _ in range(4):
        tries = _five(tries, now)
        waits.append(_wait(tries, now + 4) // MINUTE_MS)
        now = tries.until_ms
    assert waits == [15, 30, 60, 60]


def test_waiting_does_not_make_it_longer() -> None:
    tries = _five(Tries(), NOW)
    assert [_wait(tries, NOW + 4 + n * MINUTE_MS) // MINUTE_MS for n in range(4)] == [15, 14, 13, 12]


def test_who_succeeds_was_never_charged() -> None:
    tries = Tries()
    for n in range(100):
        tries = refund(_fail(tries, NOW + n), NOW + n, NOW + n + 1, account=True)
    assert tries.failures == ()


def test_the_fifth_at_the_same_time_succeeds() -> None:
    """Five are on their way, and the last one was right."""
    tries = _five(Tries(), NOW)
    assert _wait(tries, NOW + 5)
    tries = refund(tries, NOW + 4, NOW + 5, account=True)
    tries = _fail(tries, NOW + 6)
    assert _wait(tries, NOW + 7)


def test_the_owners_login_gives_the_guesser_no_more_tries_now_but_no_longer_wait_later() -> None:
    tries = _five(Tries(), NOW)
    now = tries.until_ms + QUARTER_MS
    for n in range(4):
        tries = _fail(tries, now + n)
    tries = refund(_fail(tries, now + 4), now + 4, now + 5, account=True)
    tries = _fail(tries, now + 6)
    assert _wait(tries, now + 7) // MINUTE_MS == 14


def test_logging_in_as_oneself_frees_no_source() -> None:
    """One's own password in between must not reset what one fails at others'."""
    tries = _five(Tries(), NOW, account=False)
    now = tries.until_ms
    for n in range(4):
        tries = _fail(tries, now + n, account=False)
    tries = refund(_fail(tries, now + 4, account=False), now + 4, now + 5, account=False)
    tries = _fail(tries, now + 6, account=False)
    assert _wait(tries, now + 7, account=False) // MINUTE_MS == 29


def test_a_patient_guesser_of_one_account() -> None:
    tries, now, failed = Tries(), NOW, 0
    while now < NOW + 10 * DAY_MS:
        if not _wait(tries, now):
            tries, failed = _fail(tries, now), failed + 1
        now += QUARTER_MS // 4
    assert failed < 10 * 30


def test_a_day_later_all_is_forgotten() -> None:
    tries = Tries()
    for _ in range(4):
        tries = _five(tries, max(tries.until_ms, NOW))
    now = tries.seen_ms + DAY_MS
    assert _wait(_five(tries, now), now + 4) == QUARTER_MS


@pytest.mark.parametrize("back", [1, MINUTE_MS, DAY_MS, 365 * DAY_MS, NOW])
def test_a_clock_that_went_back(back: int) -> None:
    tries = _five(Tries(), NOW)
    waited = tries.until_ms - (NOW + 4)
    assert _wait(tries, NOW + 4 - back) == waited
    # Seen there, it runs from there on.
    four = Tries()
    for n in range(4):
        four = _fail(four, NOW + n)
    fifth = _fail(four, NOW - back)
    assert fifth.until_ms == NOW - back + QUARTER_MS
    assert _wait(fifth, fifth.until_ms) == 0


def test_a_clock_that_was_ahead_for_a_while() -> None:
    tries = _five(Tries(), NOW + 10 * 365 * DAY_MS)
    assert 0 < _wait(tries, NOW) <= QUARTER_MS
    assert refund(tries, NOW + 10 * 365 * DAY_MS + 2, NOW, account=True).failures == (
        NOW - 4,
        NOW - 3,
        NOW - 1,
        NOW,
    )


_STEPS = st.lists(
    st.tuples(st.integers(-2 * DAY_MS, 2 * DAY_MS) | st.integers(0, 20 * MINUTE_MS), st.booleans()), max_size=120
)


@given(steps=_STEPS, account=st.booleans())
def test_never_six_failures_in_a_quarter_and_never_longer_than_an_hour(
    steps: list[tuple[int, bool]], account: bool
) -> None:
    """Real time only goes on; the wall clock jumps by `steps`, back as well, and each jump back is seen."""
    tries, wall, real, failed = Tries(), NOW, 0, []
    for jump, succeeds in steps:
        wall = max(0, wall + jump)
        real += max(0, jump)
        charged = charge(tries, wall, account=account)
        if isinstance(charged, Wait):
            assert 0 < charged.ms <= LONGEST_MS
            continue
        tries = charged
        if succeeds:
            tries = refund(tries, wall, wall, account=account)
        else:
            failed.append(real)
    for at in failed:
        assert sum(at - QUARTER_MS < other <= at for other in failed) <= 5
