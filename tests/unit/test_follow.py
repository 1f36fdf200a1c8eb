"""Following the audit log: every line once, in order, over days, repairs and damage; and where it was left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sshrec.audit.appender import Appender
from sshrec.audit.event import canonical, packet
from sshrec.audit.follow import Anchor, Cursor, load_cursor, read_on, save_cursor, waiting_since
from sshrec.audit.log import Line, read_log
from sshrec.audit.verify import read_anchors
from sshrec.errors import DataError

NOON = 1_795_435_200_000  # 2026-11-23T12:00:00Z
DAY = 86_400_000


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def appender(directory: Path, clock: Clock) -> Iterator[Appender]:
    appender = Appender(directory, clock=clock)
    assert appender.lock()
    yield appender
    appender.close()


def event(name: str = "resize", **fields: Any) -> dict[str, Any]:
    return {**packet("resize", {"size": "80:25", **fields}), "event": name, "sender_uid": 0}


def checkpoint() -> dict[str, Any]:
    return event("checkpoint", host="bastion")


def lines(directory: Path, cursor: Cursor, at_once: int = 500) -> tuple[list[int], Cursor]:
    """The numbers of all lines from there to the end."""
    found = []
    while True:
        items, after = read_on(directory, cursor, at_once)
        found += [item.n for item in items if isinstance(item, Line)]
        if after == cursor:
            return found, cursor
        cursor = after


def anchors(directory: Path) -> list[Anchor]:
    return [item for item in read_on(directory, Cursor(), 500)[0] if isinstance(item, Anchor)]


def test_no_log_yet(directory: Path) -> None:
    assert read_on(directory, Cursor(), 10) == ([], Cursor())
    assert waiting_since(directory, Cursor()) is None


@pytest.mark.parametrize("at_once", [1, 3, 500])
def test_every_line_once_over_days(directory: Path, appender: Appender, clock: Clock, at_once: int) -> None:
    for _ in range(3):
        appender.append([event() for _ in range(4)])
        clock.now += DAY
    assert len(list(directory.iterdir())) == 3
    found, cursor = lines(directory, Cursor(), at_once)
    assert found == list(range(12))
    appender.append([event()])
    assert lines(directory, cursor, at_once)[0] == [12]


def test_half_a_line_is_waited_for(directory: Path, appender: Appender) -> None:
    appender.append([event(), event()])
    (path,) = directory.iterdir()
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        found, cursor = lines(directory, Cursor())
        assert found == [0]
        path.write_bytes(whole)
        assert lines(directory, cursor)[0] == [1]


def test_a_repair_is_followed_over(directory: Path, appender: Appender) -> None:
    appender.append([event(), checkpoint()])
    found, cursor = lines(directory, Cursor())
    (path,) = directory.iterdir()
    with path.open("ab") as file:
        file.write(b'{"code":"T2002I","event":"resi')
    assert lines(directory, cursor) == ([], cursor)
    appender.append([checkpoint()])
    after, _ = lines(directory, cursor)
    assert [*found, *after] == [0, 1, 2, 3]
    assert [item.event for item in read_log(directory) if isinstance(item, Line)][2] == "log.repair"
    assert [anchor.n for anchor in anchors(directory)] == [1, 3]


def test_an_unfinished_end_of_yesterday_is_passed_over(directory: Path, appender: Appender, clock: Clock) -> None:
    appender.append([event()])
    (path,) = directory.iterdir()
    _, cursor = lines(directory, Cursor())
    clock.now += DAY
    appender.append([event()])
    with path.open("ab") as file:
        file.write(b"half a li")
    assert lines(directory, cursor)[0] == [1]


def test_what_is_no_line_is_passed_over(directory: Path, appender: Appender) -> None:
    appender.append([event()])
    (path,) = directory.iterdir()
    with path.open("ab") as file:
        file.write(b"\x00\xff\n\n" + b"x" * 3_000_000 + b"\n")
    appender.append([event()])
    assert lines(directory, Cursor())[0][-1] == max(
        item.n for item in read_log(directory) if isinstance(item, Line)
    )


def test_an_anchor_is_what_verify_reads(directory: Path, appender: Appender, tmp_path: Path) -> None:
    appender.append([event(), checkpoint(), event()])
    (anchor,) = anchors(directory)
    (line,) = [item for item in read_log(directory) if isinstance(item, Line) and item.event == "checkpoint"]
    assert (anchor.n, anchor.sha256, anchor.host) == (line.n, line.digest, "bastion")
    (tmp_path / "syslog").write_text(f"Nov 23 12:00:00 bastion sshrec: {anchor.text}\n")
    (read,) = read_anchors(tmp_path / "syslog")
    assert (read.n, read.sha256) == (line.n, line.digest)


def test_a_checkpoint_out_of_the_chain_is_no_anchor(directory: Path, appender: Appender) -> None:
    appender.append([event()])
    (path,) = directory.iterdir()
    forged = {**checkpoint(), "n": 1, "prev": "0" * 64, "time": "2026-11-23T12:00:00.000Z"}
    with path.open("ab") as file:
        file.write(canonical(forged) + b"\n")
    assert lines(directory, Cursor())[0] == [0, 1]
    assert anchors(directory) == []


def test_a_log_that_was_cut_or_removed_is_told(directory: Path, appender: Appender, clock: Clock) -> None:
    appender.append([event(), event()])
    clock.now += DAY
    appender.append([event()])
    old, new = sorted(directory.iterdir())
    _, cursor = lines(directory, Cursor())
    with new.open("r+b") as file:
        file.truncate(10)
    with pytest.raises(DataError, match="it was cut"):
        read_on(directory, cursor, 1)
    new.unlink()
    with pytest.raises(DataError, match="is gone"):
        read_on(directory, cursor, 1)
    # The older ones may be stored elsewhere; what comes after them is still there.
    appender.append([event()])
    old.unlink()
    assert lines(directory, Cursor(old.name, 1))[0] != []


def test_since_when_a_line_waits(directory: Path, appender: Appender) -> None:
    appender.append([event(), event()])
    since = waiting_since(directory, Cursor())
    assert since == pytest.approx(NOON / 1000, abs=1)
    assert waiting_since(directory, lines(directory, Cursor())[1]) is None


def test_a_cursor_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "sink.json"
    assert load_cursor(path) == Cursor()
    cursor = Cursor("2026-11-23.jsonl", 12, 3, "0" * 64)
    save_cursor(path, cursor)
    assert load_cursor(path) == cursor


@pytest.mark.parametrize("text", ["", "{", "[]", '{"offset":"x"}', '{"file":"../../x"}', '{"offset":-1}'])
def test_a_file_that_is_no_cursor(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sink.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"sink\.json"):
        load_cursor(path)
