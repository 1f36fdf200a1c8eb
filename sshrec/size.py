"""Sizes as people write them: 512MiB, 100GiB, 1.5TiB."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Self

_UNITS = {"TiB": 1 << 40, "GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}
_PATTERN = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?([KMGT]iB|B)", re.ASCII)


class Size(int):
    """Bytes, 1 or more; written with the largest unit that leaves a whole number."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """ValueError where it is no size: no unit, an unknown one, less than a byte."""
        found = _PATTERN.fullmatch(text.strip())
        size = int(Decimal(found[1]) * _UNITS[found[2]]) if found else 0
        if size < 1:
            raise ValueError(f"{text!r} is no size such as 512MiB, 100GiB or 1.5TiB")
        return cls(size)

    def __str__(self) -> str:
        number = int(self)
        return next(f"{number // unit}{name}" for name, unit in _UNITS.items() if number % unit == 0)

    __repr__ = __str__
