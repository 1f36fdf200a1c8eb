"""One file's content in one direction while it passes: counted, and hashed while it is in order; hardly stored."""

from __future__ import annotations

import hashlib

RANGES = 64  # told of a file; what lies beyond them is only counted
HELD = 64 * 1024


class Held:
    """The first bytes of what was taken for contents and is not recorded, in case it turns out to be none."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._missing = 0

    def add(self, data: memoryview) -> None:
        """More of it."""
        room = HELD - len(self._data)
        if room > 0:
            self._data += data[:room]
        self._missing += max(0, len(data) - max(0, room))

    def mark(self) -> tuple[int, int]:
        """A place to go `back` to."""
        return len(self._data), self._missing

    def back(self, mark: tuple[int, int]) -> None:
        """Forget what was added since: it is recorded after all."""
        del self._data[mark[0] :]
        self._missing = mark[1]

    def clear(self) -> None:
        """It was a file's."""
        self._data.clear()
        self._missing = 0

    def take(self) -> tuple[bytes, int]:
        """What is held, and how many bytes followed it."""
        taken = bytes(self._data), self._missing
        self.clear()
        return taken


class Content:
    """`size`: bytes that passed; `end`: where the next byte in order belongs; `spans`: what passed, [from, to).

    `keep`: how many bytes the recording has, the first that pass; `held`: who gets the others.
    """

    __slots__ = ("_at", "_hash", "_held", "_keep", "end", "size", "spans")

    def __init__(self, keep: int = 0, held: Held | None = None) -> None:
        self.size = self.end = self._at = 0
        self.spans: list[list[int]] = []
        self._hash: hashlib._Hash | None = hashlib.sha256()
        self._keep, self._held = keep, held

    @property
    def in_order(self) -> bool:
        """Whether all that passed is the beginning of the file, each byte once."""
        return self._hash is not None

    @property
    def sha256(self) -> str | None:
        """Of what passed, if it was in order."""
        return self._hash.hexdigest() if self._hash is not None else None

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """What passed, the first of them."""
        return tuple((start, end) for start, end in self.spans)

    def at(self, offset: int) -> None:
        """What comes now belongs there."""
        self._at = offset
        if offset != self.end:
            self._hash = None

    def add(self, data: memoryview) -> int:
        """More of it; returns how many of these bytes, the first, the recording is to have."""
        size = len(data)
        if self._hash is not None:
            self._hash.update(data)
            self.end += size
        if self.spans and self.spans[-1][1] == self._at:
            self.spans[-1][1] += size
        elif len(self.spans) < RANGES:
            self.spans.append([self._at, self._at + size])
        self._at += size
        self.size += size
        kept = min(self._keep, size)
        self._keep -= kept
        if self._held is not None and kept < size:
            self._held.add(data[kept:])
        return kept

    def spoil(self) -> None:
        """Something else has become part of it, which did not pass here."""
        self._hash = None
