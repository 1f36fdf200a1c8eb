"""Runs a life, and judges every state that a power cut may leave of it."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.powercut.disk import Crash, crashes, final
from tests.powercut.lives import Life
from tests.powercut.trace import read_tree, trace, write_tree


@contextmanager
def memory() -> Iterator[Path]:
    """A directory that costs no disk: what a sync is worth there is of no matter."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="sr-", dir=shared if shared.is_dir() else None) as place:
        yield Path(place)


def states(life: Life, most: int, seed: int = 1) -> list[Crash]:
    """Do it once, for real, and think of every power cut."""
    with memory() as root:
        write_tree(root, life.before)
        ops = trace(root, lambda mark: life.work(root, mark))
        assert final(life.before, ops) == read_tree(root), "the model of the disk is that of the kernel"
    return list(crashes(life.before, ops, most, seed))


def judge(life: Life, crashes: list[Crash]) -> Counter[int]:
    """Judge them all; how many there were after each operation. AssertionError names one that does not hold."""
    with memory() as place:
        for number, crash in enumerate(crashes):
            root = place / str(number)
            root.mkdir()
            write_tree(root, crash.tree)
            try:
                life.judge(root, crash, life.notes)
            except Exception as error:
                left = {name: data and (len(data), data[-80:]) for name, data in crash.tree.items()}
                raise AssertionError(
                    f"{life.name}: a power cut after operation {crash.at} left {number}, {crash.marks[-3:]}, "
                    f"{left}: {error!r}"
                ) from error
            shutil.rmtree(root)
    return Counter(crash.at for crash in crashes)
