"""python -m benchmarks.verify: how fast recordings are verified, plain and packed, by one process and by all CPUs.

The recordings are the real recorder's; what is counted is their text. Each figure is the best of some rounds, on
files that the page cache has: MB a second of the whole command's life, and of the CPU that it took, which other
programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from sshrec.recording import packing
from sshrec.session import session_id
from tests.recordings import WALL_MS, Step, record

READ = 4096  # bytes of output an event: what a terminal gives at a time


def _lines(size: int) -> bytes:
    return b"".join(b"%d\r\n" % n for n in range(size // 8))


def _ansi(size: int) -> bytes:
    return b"".join(
        b"\x1b[%d;%dH\x1b[38;5;%dm%d\x1b[0m\x1b[K" % (n % 24, n * 7 % 80, n % 256, n * 31 % 1000)
        + "│├──┤┌─┐".encode()
        for n in range(size // 55)
    )


def _keys(size: int) -> bytes:
    return b"ls -l /etc; "[: max(1, size)] * (size // 90)


# Output, and how much of it an event has: full screens, and a person who types.
KINDS: tuple[tuple[str, Callable[[int], bytes], int], ...] = (
    ("short lines", _lines, READ),
    ("ANSI and UTF-8", _ansi, READ),
    ("keystrokes", _keys, 1),
)


def _write(root: Path, output: bytes, read: int, files: int) -> int:
    """So many recordings of that output, plain and packed, each in a store of its own; bytes of text in one."""
    size = 0
    for number in range(files):
        session = session_id(WALL_MS, b"%010d" % number)
        steps: Iterable[Step] = ((0.001, output[at : at + read]) for at in range(0, len(output), read))
        text = record(steps, session=session).text
        packed = io.BytesIO()
        packing.pack(io.BytesIO(text), packed)
        for form, name, content in (("plain", "cast", text), ("packed", "cast.zst", packed.getvalue())):
            day = root / form / "recordings" / "2025-11-23"
            day.mkdir(parents=True, exist_ok=True)
            (day / f"{session}.{name}").write_bytes(content)
            (root / form / "sshrec.yaml").write_text(f"data_dir: {root / form}\n")
        size = len(text)
    return size


def _seconds(root: Path, jobs: int) -> tuple[float, float]:
    """By the clock, and of the CPU."""
    program = str(Path(sys.executable).with_name("sshrec"))
    command = [program, "--config", str(root / "sshrec.yaml"), "verify", "--all", "--jobs", str(jobs)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    taken = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verify")
    parser.add_argument("--megabytes", type=int, default=64, help="of text in a recording, about")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cpus = len(os.sched_getaffinity(0))
    print(f"{options.files} recordings; MB of text a second (a second of CPU), by 1 process and by {cpus}\n")
    print(f"| {'':<14} |    plain, 1 |    plain, {cpus} |   packed, 1 |   packed, {cpus} |")
    print("|----------------|" + "------------:|" * 4)
    for name, make, read in KINDS:
        with tempfile.TemporaryDirectory(prefix="sr-bench-", dir="/tmp") as directory:
            root = Path(directory)
            size = _write(root, make(options.megabytes * 1_000_000), read, options.files) * options.files
            cells = []
            for form, jobs in ((form, jobs) for form in ("plain", "packed") for jobs in (1, cpus)):
                samples = [_seconds(root / form, jobs) for _ in range(options.rounds)]
                wall, cpu = (size / min(sample) / 1e6 for sample in zip(*samples, strict=True))
                cells.append(f"{wall:5.0f} ({cpu:.0f})")
        print(f"| {name:<14} | " + " | ".join(f"{cell:>11}" for cell in cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
