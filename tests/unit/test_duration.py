"""Spans of time, as people write and read them."""

from __future__ import annotations

import pytest

from sshrec.duration import Duration, left


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [("90s", 90, "1m30s"), ("12h", 43200, "12h"), ("1d12h", 129600, "1d12h"), ("52w", 31449600, "52w")],
)
def test_parse_and_show(text: str, seconds: int, shown: str) -> None:
    assert (Duration.parse(text), str(Duration.parse(text))) == (seconds, shown)


@pytest.mark.parametrize(
    "text", ["", "12", "h", "0h", "-5m", "+5m", "1.5h", "5 m", "1h1d", "12H", "9999999999w", "forever"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration such as"):
        Duration.parse(text)


def test_what_is_left_is_told_in_two_units() -> None:
    assert [left(43079.9), left(59), left(0), left(-5), left(366 * 86400)] == ["11h58m", "59s", "0s", "0s", "1y1d"]
