"""What a robot did is one line of a list, and what a person did is another."""

from __future__ import annotations

import json

import pytest

from sshrec.cli.bursts import Burst, Span, grouped
from tests.unit.test_ls import Place


def shown(*items: tuple[str, float, float]) -> list[str | list[str]]:
    """Items by their names, newest first, and lists of them; the first letter is whose they are, `-` nobody's."""
    spans = {name: Span(name[0], start, end) for name, start, end in items}
    found = grouped([name for name, _, _ in items], lambda name: None if name[0] == "-" else spans[name])
    return [one.items if isinstance(one, Burst) else one for one in found]


def test_nothing() -> None:
    assert shown() == []


def test_two_are_no_burst() -> None:
    assert shown(("a2", 1, 2), ("a1", 0, 1)) == ["a2", "a1"]


def test_a_burst_stands_where_its_newest_is() -> None:
    items = [("a3", 5, 6), ("-b", 4, 4), ("a2", 3, 4), ("c1", 2, 9), ("a1", 0, 1)]
    assert shown(*items) == [["a3", "a2", "a1"], "-b", "c1"]


def test_a_pause_ends_one() -> None:
    items = [("a4", 300, 301), ("a3", 200, 201), ("a2", 100, 101), ("a1", 0, 1)]
    assert shown(*items) == ["a4", "a3", "a2", "a1"]


def test_a_long_one_holds_it_together() -> None:
    assert shown(("a3", 550, 551), ("a2", 1, 2), ("a1", 0, 500)) == [["a3", "a2", "a1"]]


def test_those_of_two_people_at_once() -> None:
    items = [("b3", 5, 6), ("a3", 5, 6), ("b2", 4, 4), ("a2", 3, 4), ("b1", 2, 3), ("a1", 0, 1)]
    assert shown(*items) == [["b3", "b2", "b1"], ["a3", "a2", "a1"]]


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


def test_in_the_list(place: Place) -> None:
    robots = [place.put(command=f"step {number}", terminal=False) for number in range(4)]
    person = place.put()
    lines = place.sshrec("ls").stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [person, robots[-1]]
    assert lines[1].endswith("4 sessions without a terminal")
    each = place.sshrec("ls", "--all").stdout.splitlines()[1:]
    assert [line.split()[0] for line in each] == [person, *reversed(robots)]
    assert len(json.loads(place.sshrec("ls", "--json").stdout)["recordings"]) == 5
