"""Whatever a power cut leaves of a recording, its packing and removal, and the audit log: nothing kept is lost.

The operations are the real ones, by strace(1); the disks that may be left are those of tests/powercut. Here some
of each moment; `make soak` has many more.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest

from sshrec.audit import appender
from sshrec.recording import recovery
from sshrec.storage import local
from tests.powercut import lives, run
from tests.powercut.disk import Crash, crashes
from tests.powercut.lives import Life
from tests.powercut.trace import Create, Mark, Op, Rename, Sync, Unlink, Write

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="no strace: apt-get install strace")


def some(found: Sequence[Crash], number: int) -> list[Crash]:
    """The same few of them each time."""
    return random.Random(1).sample(found, min(number, len(found)))  # noqa: S311


@pytest.mark.parametrize(
    ("life", "most"),
    [
        (lives.recording(), 300),
        (lives.recording_in_a_new_day(), 100),
        (lives.torn_recovery(), 300),
        (lives.torn_recovery(hole=True), 300),
        (lives.unsynced_end(), 300),
        (lives.packing_its_end(), 14),
        (lives.packing_ahead(), 4),
        (lives.encryption(), 40),
        (lives.removal(), 300),
        (lives.audit_log(lives.GROUPS), 300),
        (lives.audit_log(lives.LARGE), 8),
    ],
    ids=lambda value: value.name if isinstance(value, Life) else "",
)
def test_a_power_cut_at_any_moment(life: Life, most: int) -> None:
    judged = run.judge(life, run.states(life, most))
    assert sum(judged.values()) >= 10
    assert len(judged) >= 7


def test_a_power_cut_in_the_midst_of_a_recovery() -> None:
    for life in lives.recoveries(some(run.states(lives.recording(), 300), 15)):
        run.judge(life, run.states(life, 20))


def test_a_power_cut_in_the_midst_of_a_repair() -> None:
    for life in lives.repairs(some(run.states(lives.audit_log(lives.GROUPS), 300), 15)):
        run.judge(life, run.states(life, 100))


# The simulation itself


def test_of_what_is_not_synced_anything_may_be_there() -> None:
    ops: list[Op] = [
        Create("a.new", 1),
        Write(1, 0, b"x" * 600),
        Rename("a.new", "a", 1),
        Sync(0, 3),
        Mark("named"),
        Sync(1, 5),
        Mark("synced"),
        Unlink("a", 1),
    ]
    left: dict[tuple[str, ...], set[tuple[str, bytes | None]]] = {}
    for crash in crashes({}, ops, 1000):
        left.setdefault(crash.marks, set()).update(crash.tree.items() or {("", None)})
    names = {name for name, _ in left[()]}
    assert names == {"", "a.new", "a"}
    whole, zeros = b"x" * 600, bytes(600)
    contents = {data for _, data in left[("named",)]}
    assert {b"", b"x", b"x" * 300, whole, zeros, whole[:512] + bytes(88), bytes(512) + whole[512:]} <= contents
    assert left[("named", "synced")] == {("a", whole), ("", None)}


@pytest.mark.parametrize(
    ("life", "where", "what"),
    [
        (lives.recording(), local, "sync_directory"),
        (lives.torn_recovery(), recovery, "sync_directory"),
        (lives.packing_its_end(), local, "sync_directory"),
        (lives.audit_log(lives.GROUPS), appender, "_sync"),
    ],
    ids=["recording", "recovery", "packing", "audit log"],
)
def test_it_finds_what_is_not_synced(life: Life, where: object, what: str) -> None:
    """A simulation that finds nothing proves nothing."""
    with mock.patch.object(where, what, lambda _path: None):
        found = run.states(life, 50)
    with pytest.raises(AssertionError, match="a power cut after operation"):
        run.judge(life, found)


def test_it_follows_the_kernel(tmp_path: Path) -> None:
    """Positions, truncation and names are as they are: what it thinks was left in the end is what there is."""

    def work(root: Path, mark: lives.MarkIt) -> None:
        with (root / "a").open("w+b") as file:
            file.write(b"0123456789")
            file.seek(2)
            assert file.read(3) == b"234"
            file.write(b"abc")
            file.truncate(9)
            file.seek(0, 2)
            file.write(b"end")
        (root / "b").mkdir()
        (root / "a").rename(root / "b" / "c")
        (root / "d").write_bytes(b"d")
        (root / "d").unlink()
        mark("done")

    found = run.states(Life("anything", {}, work, lambda *_: None), 1000)
    assert found[-1].marks == ("done",)
    assert {"b": None, "b/c": b"01234abc8end"} in [crash.tree for crash in found if crash.marks]
