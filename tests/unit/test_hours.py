"""Hours of the week: what is understood, what is not, and when they are."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshrec.hours import DAYS, Hours, minute_of_week

MONDAY = datetime(2026, 11, 23)


def within(text: str, when: str) -> bool:
    """`when`: day and time, as `fri 23:30`."""
    day, time = when.split()
    hour, minute = map(int, time.split(":"))
    at = minute_of_week(MONDAY + timedelta(days=DAYS.index(day), hours=hour, minutes=minute))
    return any(at in span for span in Hours.parse(text).spans())


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("mon-fri 08:00-18:00", "mon 08:00, fri 17:59, wed 12:00", "mon 07:59, fri 18:00, sat 12:00"),
        ("08:00-18:00", "sun 08:00, mon 12:00", "sun 18:00, mon 00:00"),
        ("sat,sun", "sat 00:00, sun 23:59", "fri 23:59, mon 00:00"),
        ("fri-mon", "fri 00:00, sun 12:00, mon 23:59", "tue 00:00, thu 12:00"),
        ("22:00-06:00", "mon 00:00, mon 05:59, sun 22:00", "mon 06:00, sun 21:59"),
        ("fri 22:00-06:00", "fri 22:00, sat 05:59", "fri 05:00, sat 06:00, sat 22:00"),
        ("sun 22:00-06:00", "sun 23:00, mon 05:59", "sun 05:00, mon 06:00, mon 22:00"),
        ("mon 00:00-24:00", "mon 00:00, mon 23:59", "tue 00:00, sun 23:59"),
        ("mon,wed-thu 12:00-13:00", "mon 12:30, wed 12:30, thu 12:30", "tue 12:30, fri 12:30"),
        ("Mon-Fri  08:00-18:00", "mon 08:00", "sun 08:00"),
    ],
)
def test_when_they_are(text: str, inside: str, outside: str) -> None:
    assert [when for when in inside.split(", ") if not within(text, when)] == []
    assert [when for when in outside.split(", ") if within(text, when)] == []


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "always", "mon-", "mo", "monday", "8:00-18:00", "08:00", "08:00-08:00", "24:00-06:00",
        "08:00-24:01", "25:00-26:00", "08:60-09:00", "08:00-18:00 mon", "mon 08:00-", "mon08:00-18:00",
        "mon,, 08:00-18:00", "mon 08:00-18:00 UTC", "mon 08:00-12:00 13:00-18:00", "٠٨:00-18:00",
    ],
)  # fmt: skip
def test_what_are_no_hours(text: str) -> None:
    with pytest.raises(ValueError, match="are no hours such as"):
        Hours.parse(text)


times = st.builds("{:02}:{:02}".format, st.integers(0, 23), st.integers(0, 59))


@given(st.sampled_from(DAYS), times, times)
def test_a_night_is_as_long_as_its_times_say(day: str, begin: str, end: str) -> None:
    if begin != end:
        minutes = [int(text[:2]) * 60 + int(text[3:]) for text in (begin, end)]
        spans = Hours.parse(f"{day} {begin}-{end}").spans()
        assert sum(map(len, spans)) == (minutes[1] - minutes[0]) % 1440
        assert all(0 <= span.start < span.stop <= 7 * 1440 for span in spans)
