"""Whose a process is, as /proc tells it."""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.parts import LabError, wait


@dataclass(frozen=True, slots=True)
class Process:
    """What one look at /proc/<pid> showed."""

    pid: int
    parent: int
    uid: int
    zombie: bool
    words: str

    def __str__(self) -> str:
        return f"process {self.pid} of uid {self.uid}{' (zombie)' if self.zombie else ''}: {self.words.strip()}"


def every() -> Iterator[Process]:
    """All processes of this machine."""
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            name, _, rest = (directory / "stat").read_text(errors="replace").rpartition(")")
            state, parent = rest.split()[:2]
            words = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            uid = directory.stat().st_uid
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
        yield Process(int(directory.name), int(parent), uid, state in "ZX", words or name.partition("(")[2])


def children(parent: int, name: str) -> list[int]:
    """The children of a process that have this name, as ps(1) shows it."""
    found = []
    for process in every():
        try:
            if process.parent == parent and Path(f"/proc/{process.pid}/comm").read_text() == f"{name}\n":
                found.append(process.pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended meanwhile
    return found


def belonging(lab: Path, roots: Collection[int], uids: Collection[int]) -> list[Process]:
    """Processes that come from `roots`, run as one of `uids`, or name the lab's directory; without the roots."""
    found = {process.pid: process for process in every()}
    ours = set(roots)

    def descends(process: Process) -> bool:
        while process.pid not in ours:
            if process.parent not in found:
                return False
            process = found[process.parent]
        return True

    def names(process: Process) -> bool:
        return process.uid in uids or str(lab) in process.words or os.fsencode(lab) in _environment(process.pid)

    # A zombie that init should have waited for is nobody's: containers have an init that never does.
    callers = {os.getpid(), os.getppid()}
    return [
        process
        for process in found.values()
        if process.pid not in ours | callers and (descends(process) or (not process.zombie and names(process)))
    ]


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""  # somebody else's, or ended


def descriptors(pid: int) -> dict[int, str]:
    """The open descriptors of a process, by number, and what they are."""
    opened = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            opened[int(link.name)] = str(link.readlink())
        except FileNotFoundError:
            continue
    return opened


def end(processes: Collection[Process], timeout: float = 5) -> None:
    """End these processes, by force those that do not hear."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            try:
                os.kill(process.pid, number)
            except ProcessLookupError:
                continue
        try:
            wait(lambda: not any(_alive(process.pid) for process in processes), "processes to end", timeout)
        except LabError:
            continue
        return


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
