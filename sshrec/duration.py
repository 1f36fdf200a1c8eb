"""Spans of time as people write them: 90s, 30m, 12h, 7d, 52w, 1y."""

from __future__ import annotations

import math
import re
from typing import Self

# A year as ssh-keygen(1) has none; 365 days, so that 1y is 52w and a day.
_UNITS = {"y": 365 * 86400, "w": 7 * 86400, "d": 86400, "h": 3600, "m": 60, "s": 1}
_PATTERN = re.compile(r"(?=.)" + "".join(rf"(?:([0-9]{{1,9}}){unit})?" for unit in _UNITS), re.ASCII)


class Duration(int):
    """Seconds, 1 or more; written with units, the largest first (`1d12h`)."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """ValueError where it is no duration: no unit, an unknown one, none at all, zero."""
        found = _PATTERN.fullmatch(text.strip())
        seconds = (
            sum(int(n or 0) * unit for n, unit in zip(found.groups(), _UNITS.values(), strict=True))
            if found
            else 0
        )
        if seconds < 1:
            raise ValueError(f"{text!r} is no duration such as 30m, 12h, 7d or 1y")
        return cls(seconds)

    def __str__(self) -> str:
        parts, rest = [], int(self)
        for name, unit in _UNITS.items():
            count, rest = divmod(rest, unit)
            if count:
                parts.append(f"{count}{name}")
        return "".join(parts) or "0s"

    __repr__ = __str__


def left(seconds: float) -> str:
    """The two largest units of a span, for people: `11h58m`."""
    parts = re.findall(r"[0-9]+[a-z]", str(Duration(max(math.ceil(seconds), 0))))
    return "".join(parts[:2])
