"""The disks that a power cut may leave, by the operations that went before it. Knows no file of ours.

What POSIX allows, and nothing kinder: of what was not synced, any part may be there. Of names: each change or
not, in whatever order, but a rename is one change. Of data: all of the writes, or the first ones, the last of them
to any byte; and of what a file has by its size, each page or not: then there is what was there before, or zeros.
"""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.powercut.trace import ROOT, Create, Mark, Op, Rename, Sync, Tree, Truncate, Unlink, Write, inodes

_Directories = dict[int, dict[str, int]]  # of each, what its names are

PAGE = 512  # a disk's; a file system's are larger, and so make fewer states

Names = Create | Rename | Unlink
Data = Write | Truncate


@dataclass(frozen=True, slots=True)
class Crash:
    """A disk after a power cut: what is there, and what was marked before. `at`: after so many operations."""

    at: int
    tree: Tree
    marks: tuple[str, ...]


def crashes(before: Tree, ops: Sequence[Op], most: int, seed: int = 1) -> Iterator[Crash]:
    """Every state after every operation, each once; where there are more than `most` of one, so many at random.

    `before`: what was durable at the beginning.
    """
    seen: set[int] = set()
    for at in range(len(ops) + 1):
        if isinstance(ops[at] if at < len(ops) else None, Mark):
            continue  # it changes nothing, and the state after it asks for more
        marks = tuple(op.text for op in ops[:at] if isinstance(op, Mark))
        disk = _Disk(before, ops[:at])
        rng = random.Random(f"{seed} {at}")  # noqa: S311 - the same each time
        for tree in disk.states(most, rng):
            key = hash((tuple(sorted(tree.items())), marks))
            if key not in seen:
                seen.add(key)
                yield Crash(at, tree, marks)


def final(before: Tree, ops: Sequence[Op]) -> Tree:
    """What is there in the end, without any crash."""
    disk = _Disk(before, ops)
    return disk.tree(disk.pending_names, {inode: parts[-1] for inode, parts in disk.contents().items()})


class _Disk:
    """What is durable after some operations, and what is pending."""

    def __init__(self, before: Tree, ops: Sequence[Op]) -> None:
        self._numbers = inodes(before)
        self._content = {self._numbers[name]: data for name, data in before.items() if data is not None}
        self._before = before
        self._ops = ops
        self._where = self._directories()
        synced: dict[int, int] = {}
        for op in ops:
            if isinstance(op, Sync):
                synced[op.inode] = max(op.before, synced.get(op.inode, 0))
        self.durable_names: list[int] = []
        self.pending_names: list[int] = []
        self._pending: dict[int, list[Data]] = {}
        for number, op in enumerate(ops):
            if isinstance(op, Names):
                durable = all(number < synced.get(inode, 0) for inode in self._where[number])
                (self.durable_names if durable else self.pending_names).append(number)
                if isinstance(op, Create) and not op.directory:
                    self._content.setdefault(op.inode, b"")
            elif isinstance(op, Data):
                if number < synced.get(op.inode, 0):
                    self._content[op.inode] = _apply(self._content[op.inode], op)
                else:
                    self._pending.setdefault(op.inode, []).append(op)

    def _directories(self) -> dict[int, set[int]]:
        """For each change of names, the directories that it was made in."""
        names = dict(self._numbers)
        found: dict[int, set[int]] = {}
        for number, op in enumerate(self._ops):
            if isinstance(op, Create):
                found[number] = {names[os.path.dirname(op.path)]}
                names[op.path] = op.inode
            elif isinstance(op, Unlink):
                found[number] = {names[os.path.dirname(op.path)]}
            elif isinstance(op, Rename):
                found[number] = {names[os.path.dirname(path)] for path in (op.source, op.target)}
                names[op.target] = op.inode
        return found

    def contents(self, fine: bool = False) -> dict[int, list[bytes]]:
        """What each file with pending data may hold; the last of them: all of it."""
        return {inode: _contents(self._content[inode], ops, fine) for inode, ops in self._pending.items()}

    def states(self, most: int, rng: random.Random) -> Iterator[Tree]:
        fine = most > 1000
        contents = self.contents(fine)
        files = list(contents)
        number = 2 ** len(self.pending_names) * math.prod(len(contents[inode]) for inode in files)
        if number <= most:
            for chosen in itertools.product((False, True), repeat=len(self.pending_names)):
                names = [number for number, there in zip(self.pending_names, chosen, strict=True) if there]
                for parts in itertools.product(*(contents[inode] for inode in files)):
                    yield self.tree(names, dict(zip(files, parts, strict=True)))
            return
        yield self.tree((), {inode: parts[0] for inode, parts in contents.items()})
        yield self.tree(self.pending_names, {inode: parts[-1] for inode, parts in contents.items()})
        for turn in range(most - 2):
            odds = (0.0, 1.0, 0.5)[turn % 3]
            names = [number for number in self.pending_names if rng.random() < odds]
            yield self.tree(names, {inode: rng.choice(contents[inode]) for inode in files})

    def tree(self, names: Sequence[int], contents: dict[int, bytes]) -> Tree:
        """The tree with the durable changes of names, and these pending ones; and these contents."""
        directories: _Directories = {ROOT: {}}
        for name, inode in self._numbers.items():
            if name:
                directories[self._numbers[os.path.dirname(name)]][os.path.basename(name)] = inode
                if self._before[name] is None:
                    directories[inode] = {}
        made = dict(self._numbers)
        for number in sorted({*self.durable_names, *names}):
            op = self._ops[number]
            if isinstance(op, Create):
                made[op.path] = op.inode
                if op.directory:
                    directories.setdefault(op.inode, {})
                _link(directories, self._parent(op.path), op.path, op.inode)
            elif isinstance(op, Unlink):
                _unlink(directories, self._parent(op.path), op.path, op.inode)
            elif isinstance(op, Rename):
                _unlink(directories, self._parent(op.source), op.source, op.inode)
                _link(directories, self._parent(op.target), op.target, op.inode)
        return self._walk(directories, contents, ROOT, "")

    def _parent(self, path: str) -> int:
        """The inode of the directory that a path was made in. No directory of a traced life is ever another's."""
        parent = os.path.dirname(path)
        made = [op.inode for op in self._ops if isinstance(op, Create) and op.directory and op.path == parent]
        return made[-1] if made else self._numbers[parent]

    def _walk(self, directories: _Directories, contents: dict[int, bytes], at: int, path: str) -> Tree:
        tree: Tree = {}
        for name, inode in sorted(directories[at].items()):
            below = f"{path}/{name}" if path else name
            if inode in directories:
                tree[below] = None
                tree |= self._walk(directories, contents, inode, below)
            else:
                tree[below] = contents.get(inode, self._content.get(inode, b""))
        return tree


def _link(directories: _Directories, parent: int, path: str, inode: int) -> None:
    directories.setdefault(parent, {})[os.path.basename(path)] = inode  # of an orphan nobody sees anything


def _unlink(directories: _Directories, parent: int, path: str, inode: int) -> None:
    names = directories.setdefault(parent, {})
    if names.get(os.path.basename(path)) == inode:
        del names[os.path.basename(path)]


def _apply(content: bytes, op: Data) -> bytes:
    if isinstance(op, Truncate):
        return content[: op.size] + bytes(max(0, op.size - len(content)))
    gap = bytes(max(0, op.offset - len(content)))
    return content[: op.offset] + gap + op.data + content[op.offset + len(op.data) :]


def _contents(durable: bytes, ops: Sequence[Data], fine: bool) -> list[bytes]:
    """What a file may hold; the last of them: what it should."""
    found: dict[bytes, None] = {}
    content = durable
    for op in ops:
        if isinstance(op, Write):
            for length in _cuts(len(op.data), fine):
                torn = _apply(content, Write(op.inode, op.offset, op.data[:length]))
                found.update(dict.fromkeys(_pages(durable, torn)))
                found[torn] = None
        whole = _apply(content, op)
        found.update(dict.fromkeys(_pages(durable, whole)))
        found[content] = None
        content = whole
    found.pop(content, None)
    return [durable, *(one for one in found if one != durable), content]


def _cuts(size: int, fine: bool) -> list[int]:
    """Where a write may be torn: at any byte, or at those near its ends and its middle."""
    if fine and size < 5000:
        return list(range(1, size))
    return sorted({cut for cut in (1, size // 2, size - 2, size - 1) if 0 < cut < size})


def _pages(old: bytes, new: bytes) -> list[bytes]:
    """The new content with some of the pages that differ as they were before: zeros, where there was nothing."""
    before = old[: len(new)] + bytes(max(0, len(new) - len(old)))
    differ = [at for at in range(0, len(new), PAGE) if before[at : at + PAGE] != new[at : at + PAGE]]
    kept: list[list[int]] = [[], differ[1:], differ[:-1], differ[::2], differ[1::2]]
    some = [_mixed(before, new, pages) for pages in kept if pages != differ]
    return [*some, new + old[len(new) :]]  # the last: all data, and its size as it was


def _mixed(before: bytes, new: bytes, pages: Sequence[int]) -> bytes:
    mixed = bytearray(before)
    for at in pages:
        mixed[at : at + PAGE] = new[at : at + PAGE]
    return bytes(mixed)
