"""What a run found, as a value: measured once, written down, read again."""

from __future__ import annotations

import math
import statistics

import msgspec

# What a figure is held against.
NESTED, SCRIPT, SSHREC = "nested", "script", "sshrec"


class Report(msgspec.Struct, kw_only=True):
    """A run. `samples`: by contender, then by figure; `failures` likewise, by measure; `load`: before rounds."""

    date: str
    machine: dict[str, str]
    settings: dict[str, int]
    contenders: dict[str, str]
    left_out: dict[str, str]
    awake: bool
    load: list[float] = []
    seconds: float = 0
    samples: dict[str, dict[str, list[float]]] = {}
    failures: dict[str, dict[str, str]] = {}

    def add(self, name: str, samples: dict[str, list[float]]) -> None:
        """Samples of a contender, to those that are there."""
        mine = self.samples.setdefault(name, {})
        for figure, values in samples.items():
            mine.setdefault(figure, []).extend(values)

    def get(self, name: str, figure: str) -> list[float]:
        """The samples of a figure; none where it was not measured."""
        return self.samples.get(name, {}).get(figure, [])

    def median(self, name: str, figure: str) -> float | None:
        """Their median."""
        values = self.get(name, figure)
        return statistics.median(values) if values else None

    def percentile(self, name: str, figure: str, percent: float) -> float | None:
        """The smallest sample that so many percent do not exceed."""
        values = sorted(self.get(name, figure))
        return values[max(0, math.ceil(percent / 100 * len(values)) - 1)] if values else None

    def ratio(self, name: str, figure: str, to: str) -> float | None:
        """The median of a figure, as a multiple of another contender's."""
        mine, other = self.median(name, figure), self.median(to, figure)
        return mine / other if mine is not None and other else None
