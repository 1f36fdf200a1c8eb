"""What the targets are asked to do: a few small programs, and the bytes that they show."""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass
from pathlib import Path

READY, DONE = b"<ready>", b"<done>"
BLOCK_BYTES = 1 << 22

_PROGRAMS = {
    # Shows files between two line feeds from the client, so that a clock can be held against it.
    "show": "[ -t 0 ] && stty -echo\nprintf '<ready>'\nread -r go\ncat \"$@\"\nprintf '<done>'\nread -r go\n",
    "count": "printf '<ready>'\nwc -c\nprintf '<done>'\n",
    "echo": "stty raw -echo\nprintf '<ready>'\nexec dd bs=64 count=\"$1\" status=none\n",
    "idle": "printf '<ready>'\nread -r go\n",
    "seven": "exit 7\n",
}


@dataclass(frozen=True, slots=True)
class Output:
    """A file that `show` shows `times` times. `block`: what then arrives, each time."""

    path: Path
    block: bytes
    times: int

    @property
    def size(self) -> int:
        return len(self.block) * self.times

    def matches(self, received: memoryview) -> bool:
        """Whether that arrived, bit for bit."""
        width = len(self.block)
        return len(received) == self.size and all(
            received[start : start + width] == self.block for start in range(0, self.size, width)
        )


class Workload:
    """The programs and files, in a directory. `megabytes`: of terminal output, and twice that of a command's."""

    def __init__(self, directory: Path, megabytes: int) -> None:
        self._directory = directory
        directory.mkdir()
        for name, text in _PROGRAMS.items():
            self._path(name).write_text(f"#!/bin/sh\n{text}")
            self._path(name).chmod(0o755)
        rng = random.Random(1)  # noqa: S311 - the same bytes in every run
        self.text = self._output("text", _text(rng), megabytes, terminal=True)
        self.ansi = self._output("ansi", _ansi(rng), megabytes, terminal=True)
        self.binary = self._output("binary", rng.randbytes(BLOCK_BYTES), 2 * megabytes, terminal=False)
        self.bytes = bytes(range(256)) * 16 + rng.randbytes(1 << 20)
        self._path("bytes").write_bytes(self.bytes)

    def _path(self, name: str) -> Path:
        return self._directory / name

    def _output(self, name: str, data: bytes, megabytes: int, *, terminal: bool) -> Output:
        path = self._path(f"{name}.out")
        path.write_bytes(data)
        times = max(1, round(megabytes * 1e6 / len(data)))
        return Output(path, data.replace(b"\n", b"\r\n") if terminal else data, times)

    def show(self, output: Output) -> str:
        """The command that shows it."""
        return " ".join([str(self._path("show")), *[str(output.path)] * output.times])

    def run(self, name: str, *arguments: object) -> str:
        """The command that runs one of the programs."""
        return " ".join([str(self._path(name)), *map(str, arguments)])

    @property
    def bytes_path(self) -> Path:
        """A file of about 1 MiB in which every byte occurs."""
        return self._path("bytes")


def _text(rng: random.Random) -> bytes:
    """Short lines: numbers, then base64."""
    numbers = b"".join(b"%d\n" % n for n in range(100_000, 100_000 + BLOCK_BYTES // 14))
    return numbers + base64.encodebytes(rng.randbytes((BLOCK_BYTES - len(numbers)) * 3 // 4))


def _ansi(rng: random.Random) -> bytes:
    """What full-screen programs send: cursor moves, colours, box drawing and other UTF-8, few line feeds."""
    words = (
        "total",
        "sda1",
        "%CPU",
        "naïve",
        "東京",
        "├──",
        "│",
        "▁▂▃▄",
        "✓",
        "root",
        "python3",
        "4.2G",
        "17:03",
        "…",
    )

    def piece() -> str:
        word, row, column = rng.choice(words), rng.randrange(1, 41), rng.randrange(1, 121)
        match rng.randrange(20):
            case 0:
                return f"\x1b[?25l\x1b[H\x1b[2J{word}\x1b[?25h"
            case 1 | 2:
                return f"{word} {rng.randrange(100_000)}\n"
            case 3 | 4 | 5:
                return (
                    f"\x1b[{row}d\x1b[48;2;{rng.randrange(256)};{rng.randrange(256)};0m{'█' * (column % 10)}\x1b[m"
                )
            case 6 | 7 | 8 | 9 | 10 | 11:
                return f"\x1b[1;3{rng.randrange(8)}m{word}\x1b[m {rng.random():.3f}\x1b[K"
            case _:
                return f"\x1b[{row};{column}H\x1b[38;5;{rng.randrange(256)}m{word}\x1b[m"

    pieces: list[bytes] = []
    size = 0
    while size < BLOCK_BYTES:
        pieces.append(piece().encode())
        size += len(pieces[-1])
    return b"".join(pieces)
