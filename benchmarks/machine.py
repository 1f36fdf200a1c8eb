"""The machine: what it is, whether others use it, and how it is kept awake."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

QUIET = 0.1  # of all CPUs: so much may others use before a round
_LOOK_SECONDS = 0.25


def describe() -> dict[str, str]:
    """What a reader of the figures wants to know, by name."""
    said = subprocess.run(["ssh", "-V"], capture_output=True, text=True, timeout=20).stderr
    kernel = re.match(r"[\d.]*\d", platform.release())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "CPU": f"{_field('/proc/cpuinfo', 'model name')}, {os.cpu_count()} cores"
        + (", virtual" if " hypervisor " in _field("/proc/cpuinfo", "flags") else ""),
        "memory": f"{memory / 2**30:.0f} GiB",
        "kernel": f"Linux {kernel[0] if kernel else platform.release()}",
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "OpenSSH": said.partition(",")[0].strip(),
        "Python": platform.python_version(),
    }


def _field(path: str, name: str) -> str:
    lines = Path(path).read_text().splitlines()
    return next((f"{line.partition(':')[2].strip()} " for line in lines if line.startswith(name)), "").strip()


def load() -> float:
    """The part of all CPUs that is in use, over a moment in which we use none."""

    def times() -> tuple[int, int]:
        user, nice, system, idle, iowait, *rest = map(
            int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        )
        return user + nice + system + idle + iowait + sum(rest), idle + iowait

    all_before, idle_before = times()
    time.sleep(_LOOK_SECONDS)
    all_after, idle_after = times()
    return 1 - (idle_after - idle_before) / max(1, all_after - all_before)


class Patience:
    """Waits for a quiet machine, no longer than `seconds` in all; `seen` is the load that each wait ended with."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self.seen: list[float] = []

    def wait(self) -> None:
        """Return when others leave the CPUs alone, or patience is at its end."""
        while (busy := load()) > QUIET and self._left > 0:
            self._left -= _LOOK_SECONDS
        self.seen.append(round(busy, 3))


@contextlib.contextmanager
def awake() -> Iterator[bool]:
    """Keep idle CPUs from halting: on a virtual machine, waking one costs more than a keystroke does.

    False where that is not permitted (/dev/cpu_dma_latency: Linux's pm_qos_interface).
    """
    try:
        held = os.open("/dev/cpu_dma_latency", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        os.write(held, struct.pack("i", 0))
        yield True
    finally:
        os.close(held)
