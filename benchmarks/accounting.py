"""What processes cost, as /proc and their clocks tell it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

_PROCESS_CLOCK = 2  # CPUCLOCK_SCHED of all threads: linux/posix-timers_types.h


def children(pid: int) -> list[int]:
    """The children of a process; none if it has ended."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants(roots: Iterable[int]) -> list[int]:
    """The children of processes, and theirs."""
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        below = children(waiting.pop())
        found += below
        waiting += below
    return found


def program(pid: int) -> str:
    """What a process runs; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def cpu_seconds(pid: int) -> float:
    """CPU time of a process with all its threads, those that have ended too; 0 once it is reaped."""
    try:
        return time.clock_gettime(~pid << 3 | _PROCESS_CLOCK)
    except OSError:
        return 0.0


def proportional_bytes(pid: int) -> int:
    """Memory of a process, what it shares divided among those that share it: Pss of proc_pid_smaps(5)."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0)
