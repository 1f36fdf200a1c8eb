"""The limits of a session: what is said when, by a clock that the test holds."""

from __future__ import annotations

import math

import pytest

from sshrec.access.decision import Terms
from sshrec.gateway.limits import Limits, Over, Warn

START = 1000.0


def said(limits: Limits, until: float, typed: tuple[float, ...] = (), shown: tuple[float, ...] = ()) -> list[str]:
    """What a session is told in so many seconds: at each moment that is due, and when something happens."""
    lines: list[str] = []
    happens = sorted([(moment, limits.typed) for moment in typed] + [(moment, limits.shown) for moment in shown])
    while True:
        due = limits.due() - START
        if happens and happens[0][0] < due:
            moment, what = happens.pop(0)
            what(START + moment)
            continue
        if due > until:
            return lines
        match limits.turn(START + due):
            case Warn(text):
                lines.append(f"{due:g}: {text}")
            case Over(detail):
                return [*lines, f"{due:g}! {detail}"]
            case None:
                pytest.fail(f"nothing was due at {due}")


@pytest.mark.parametrize(
    ("longest", "lines"),
    [
        (None, []),
        (
            3600,
            [
                "3300: this session ends in 5m: it may last 1h",
                "3540: this session ends in 1m: it may last 1h",
                "3600! it has lasted 1h, and may last no longer",
            ],
        ),
        (120, ["60: this session ends in 1m: it may last 2m", "120! it has lasted 2m, and may last no longer"]),
        (60, ["54: this session ends in 6s: it may last 1m", "60! it has lasted 1m, and may last no longer"]),
    ],
)
def test_the_longest_session(longest: float | None, lines: list[str]) -> None:
    assert said(Limits(Terms(longest=longest), START, terminal=True), 10_000) == lines


def test_whoever_types_nothing_is_idle() -> None:
    limits = Limits(Terms(idle=600), START, terminal=True)
    assert said(limits, 10_000, typed=(100, 650, 1100), shown=(700, 1650)) == [
        "640: this session ends in 1m: nothing was typed for 9m",
        "1640: this session ends in 1m: nothing was typed for 9m",
        "1700! nothing was typed for 10m",
    ]


def test_a_command_is_idle_where_nothing_passes() -> None:
    limits = Limits(Terms(idle=10), START, terminal=False)
    assert said(limits, 10_000, typed=(3,), shown=(9, 15)) == [
        "24: this session ends in 1s: not a byte has passed for 9s",
        "25! not a byte has passed for 10s",
    ]


def test_both() -> None:
    limits = Limits(Terms(idle=30, longest=60), START, terminal=True)
    assert said(limits, 10_000, typed=(20, 45)) == [
        "54: this session ends in 6s: it may last 1m",
        "60! it has lasted 1m, and may last no longer",
    ]
    assert Limits(Terms(), START, terminal=True).due() == math.inf


def test_the_size() -> None:
    limits = Limits(Terms(size=1 << 20), START, terminal=True)
    assert limits.excess(1 << 20) is None
    assert limits.excess((1 << 20) + 1) == "its recording has 1MiB, and may have no more"
    assert Limits(Terms(), START, terminal=True).excess(1 << 60) is None


def test_a_machine_that_slept_is_told_once() -> None:
    limits = Limits(Terms(longest=3600), START, terminal=True)
    assert limits.turn(START + 3590) == Warn("this session ends in 10s: it may last 1h")
    assert limits.turn(START + 3591) is None
    assert limits.due() == START + 3600
