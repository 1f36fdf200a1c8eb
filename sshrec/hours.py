"""Hours of the week as people write them: mon-fri 08:00-18:00, fri 22:00-06:00, sat,sun. Knows no clock."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Self

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY, _WEEK = 24 * 60, 7 * 24 * 60  # minutes
_DAY_NAME = "(?:" + "|".join(DAYS) + ")"
_PART = rf"{_DAY_NAME}(?:-{_DAY_NAME})?"
_PATTERN = re.compile(
    rf"(?=.)(?P<days>{_PART}(?:,{_PART})*)?"
    r"(?:(?:^| +)(?P<from>[0-2][0-9]:[0-5][0-9])-(?P<to>[0-2][0-9]:[0-5][0-9]))?",
    re.ASCII,
)


class Hours(str):
    """Days, or times of day, or both. Times that end before they begin go on into the next day."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """ValueError where it is none: an unknown day, a time past 24:00, one that ends when it begins."""
        hours = cls(" ".join(text.lower().split()))
        if not hours.spans():
            raise ValueError(f"{text!r} are no hours such as mon-fri 08:00-18:00, 22:00-06:00 or sat,sun")
        return hours

    def spans(self) -> tuple[range, ...]:
        """The minutes of the week, from Monday 00:00, that they are; none where they are no hours."""
        found = _PATTERN.fullmatch(self)
        begin, end = (_minute(found[name], at) for name, at in (("from", 0), ("to", _DAY))) if found else (0, 0)
        if found is None or begin == end or not 0 <= begin < _DAY or not 0 <= end <= _DAY:
            return ()
        length = (end - begin) % _DAY or _DAY
        spans = []
        for day in sorted(_days(found["days"] or "mon-sun")):
            start = day * _DAY + begin
            spans.append(range(start, min(start + length, _WEEK)))
            if start + length > _WEEK:  # sunday's night is monday's morning
                spans.append(range(start + length - _WEEK))
        return tuple(spans)


def minute_of_week(when: datetime) -> int:
    """How many minutes after Monday 00:00 a time is, by its own clock."""
    return when.weekday() * _DAY + when.hour * 60 + when.minute


def _minute(text: str | None, missing: int) -> int:
    return missing if text is None else int(text[:2]) * 60 + int(text[3:])


def _days(text: str) -> set[int]:
    days = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        days |= {day % 7 for day in range(begin, (end if end >= begin else end + 7) + 1)}
    return days
