"""python -m benchmarks.transparent: the transparent way in beside `ssh -J bastion`, which records nothing.

Round by round in turn, the best of each: what somebody else on the machine takes away is not ours. In one lab on
loopback, where both ends and the bastion share the CPUs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import accounting, machine
from tests.e2e.transparent import Through
from tests.lab import Lab, Laptop, parts

LIMIT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Way:
    """One way to root@web1. `options`: of ssh, scp and sftp."""

    name: str
    lab: Lab
    laptop: Laptop
    options: tuple[str, ...]

    def run(self, name: str, *words: str | Path) -> float:
        """Wall seconds of a program, which must succeed."""
        ssh = " ".join(("ssh", *self.options))
        env = {**self.laptop.env, "RSYNC_RSH": ssh}
        options = self.options if name in ("ssh", "scp", "sftp") else ()
        argv = [parts.program(name), *options, *map(str, words)]
        began = time.perf_counter()
        done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_SECONDS)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{self.name}: {name}: {done.stderr.decode()}\n{self.lab.logs()}")
        return seconds

    @contextlib.contextmanager
    def master(self) -> Iterator[Way]:
        """The same over one connection, which stands already."""
        control = (*self.options, "-o", f"ControlPath={self.lab.directory}/cm-{self.name}")
        with_master = (*control, "-o", "ControlMaster=yes", "-o", "ControlPersist=600")
        Way(self.name, self.lab, self.laptop, with_master).run("ssh", "root@web1", "true")
        shared = Way(self.name, self.lab, self.laptop, control)
        try:
            yield shared
        finally:
            shared.run("ssh", "-O", "exit", "root@web1")


Samples = dict[str, list[float]]
Row = tuple[str, str, Callable[[], Samples]]  # what it is, its unit, and how it is measured


def main() -> int:
    """The command: a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transparent")
    parser.add_argument("--rounds", type=int, default=20, help="of session start; the others take a part of it")
    parser.add_argument("--megabytes", type=int, default=1024, help="of the file")
    parser.add_argument("--only", help="what has this in its name")
    parser.add_argument("--files", type=int, default=10_000, help="that rsync carries")
    options = parser.parse_args()
    with Lab(several_uids=False) as lab:
        ways = _ways(lab)
        rows = [
            (what, unit, measure())
            for what, unit, measure in _measured(lab, ways, options.rounds, options.megabytes, options.files)
            if options.only is None or options.only in what
        ]
    print(f"{time.strftime('%Y-%m-%d')}. {'; '.join(f'{n}: {v}' for n, v in machine.describe().items())}.\n")
    print("| | jump | transparent | ratio | ratio of medians |")
    print("|---|---:|---:|---:|---:|")
    for what, unit, samples in rows:
        jump, ours = (min(samples[way.name]) for way in ways)
        middle = [statistics.median(samples[way.name]) for way in ways]
        figures = " | ".join(_shown(value, unit) for value in (jump, ours))
        print(f"| {what} | {figures} | {ours / jump:.2f} | {middle[1] / middle[0]:.2f} |")
    return 0


def _shown(seconds: float, unit: str) -> str:
    return f"{seconds * 1000:.0f} ms" if unit == "ms" else f"{seconds:.2f} {unit}"


def _ways(lab: Lab) -> tuple[Way, Way]:
    lab.start_bastion("jump", force_command="", extra=["AllowTcpForwarding yes", "PermitOpen any"])
    jumper = lab.open_laptop("joe", name="jumper", options=["permit-port-forwarding"])
    through = Through(lab)
    return (
        Way("jump", lab, jumper, ("-F", str(jumper.ssh_config), "-J", "jump")),
        Way("transparent", lab, through.laptop, tuple(through.options)),
    )


def _measured(lab: Lab, ways: Sequence[Way], rounds: int, megabytes: int, files: int) -> Iterator[Row]:
    def visit(way: Way) -> float:
        return way.run("ssh", "root@web1", "true")

    yield "connection and session, `true`", "ms", partial(_take, ways, rounds, visit)
    with contextlib.ExitStack() as stack:
        shared = [stack.enter_context(way.master()) for way in ways]
        yield "second session, `true`", "ms", partial(_take, shared, rounds, visit)
    large, copy = lab.directory / "large", lab.directory / "copy"
    with large.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1 << 20))
    few = max(1, rounds // 6)
    held: list[float] = []
    with _watched(lab, held):
        for what, words in (
            ("up", ("scp", "-q", large, f"root@web1:{copy}")),
            ("down", ("scp", "-q", f"root@web1:{large}", copy)),
            ("up, `-O`", ("scp", "-q", "-O", large, f"root@web1:{copy}")),
            ("down, `-O`", ("scp", "-q", "-O", f"root@web1:{large}", copy)),
        ):
            yield f"scp of {megabytes} MiB {what}", "s", partial(_take, ways, few, partial(_run, words))
    large.unlink()
    copy.unlink(missing_ok=True)
    tree = lab.directory / "tree"
    for number in range(files):
        (tree / str(number // 1000)).mkdir(parents=True, exist_ok=True)
        (tree / str(number // 1000) / str(number)).write_bytes(os.urandom(1000))

    def carry(way: Way) -> float:
        shutil.rmtree(lab.directory / "carried", ignore_errors=True)
        return way.run("rsync", "-a", f"{tree}/", f"root@web1:{lab.directory}/carried/")

    yield f"rsync of {files} files of 1000 bytes", "s", partial(_take, ways, few, carry)
    print(f"all workers together, at most: {held[0]:.1f} MiB (PSS)\n")


def _run(words: tuple[str | Path, ...], way: Way) -> float:
    name, *rest = words
    return way.run(str(name), *rest)


def _take(ways: Sequence[Way], rounds: int, measure: Callable[[Way], float]) -> Samples:
    samples: Samples = {way.name: [] for way in ways}
    for way in ways:
        measure(way)
    for _ in range(rounds):
        for way in ways:
            samples[way.name].append(measure(way))
    return samples


@contextlib.contextmanager
def _watched(lab: Lab, held: list[float]) -> Iterator[None]:
    """Note the most memory that workers have together, MiB (PSS)."""
    over = threading.Event()
    most = 0.0

    def look() -> None:
        nonlocal most
        while not over.wait(0.2):
            below = accounting.descendants([lab.sshrecd_pid])
            workers = [pid for pid in below if accounting.program(pid) == "sshrecd"]
            most = max(most, sum(map(accounting.proportional_bytes, workers)) / 2**20)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        held.append(most)


if __name__ == "__main__":
    sys.exit(main())
