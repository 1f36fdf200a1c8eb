"""python -m benchmarks: measure sshrec and its peers in one run, and print what came out."""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks import machine, table
from benchmarks.client import BenchmarkError
from benchmarks.contenders import CONTENDERS, Contender, Route, laboratory, missing
from benchmarks.measures import Measure, Size, measures
from benchmarks.report import NESTED, SCRIPT, Report
from benchmarks.workload import Workload
from tests.lab import LabError

FULL = Size(rounds=10, keys=100, sessions=50, megabytes=64)
QUICK = Size(rounds=3, keys=100, sessions=8, megabytes=16)
FULL_PATIENCE, QUICK_PATIENCE = 60.0, 4.0  # seconds, for a quiet machine
FULL_SECONDS, QUICK_SECONDS = 900.0, 80.0  # after which nothing new is begun

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- measured: -->", "<!-- end of measured -->"


def main() -> int:
    """The command."""
    options = _options()
    if options.read:
        report = msgspec.json.decode(options.read.read_bytes(), type=Report)
    else:
        try:
            report = _run(options)
        except LabError as error:
            print(f"benchmarks: error: {error}", file=sys.stderr)
            return 69
    text = table.render(report)
    print(text, end="")
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    if options.readme:
        before, _, rest = README.read_text().partition(BEGIN)
        README.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition(": ")[2])
    parser.add_argument("--quick", action="store_true", help="less of everything, within 90 s")
    parser.add_argument("--only", metavar="NAME,…", help=f"these contenders, beside {NESTED} and {SCRIPT}")
    parser.add_argument("--measures", metavar="NAME,…", help="these measures")
    parser.add_argument("--rounds", type=int, help="of session start; the others take a part of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--read", type=Path, metavar="FILE", help="print an earlier run; measure nothing")
    parser.add_argument("--readme", action="store_true", help="put the tables into benchmarks/README.md")
    return parser.parse_args()


def _run(options: argparse.Namespace) -> Report:
    size = QUICK if options.quick else FULL
    if options.rounds:
        size = dataclasses.replace(size, rounds=max(1, options.rounds))
    wanted = set(options.only.split(",")) | {NESTED, SCRIPT} if options.only else None
    chosen = [one for one in CONTENDERS if wanted is None or one.name in wanted]
    left_out = {one.name: program for one in chosen if (program := missing(one))}
    present: tuple[Contender, ...] = tuple(one for one in chosen if one.name not in left_out)
    with machine.awake() as awake:
        pass
    report = Report(
        date=time.strftime("%Y-%m-%d"),
        machine=machine.describe(),
        settings={"rounds": size.rounds, "keys a round": size.keys}
        | {"sessions at once": size.sessions, "MB of terminal output": size.megabytes},
        contenders={one.name: one.what for one in present},
        left_out=left_out,
        awake=awake,
    )
    patience = machine.Patience(QUICK_PATIENCE if options.quick else FULL_PATIENCE)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sr-bench-", dir="/tmp") as directory, laboratory(present) as routes:
        Path(directory).chmod(0o755)
        workload = Workload(Path(directory, "work"), size.megabytes)
        every = measures(workload, size)
        todo = [one for one in every if not options.measures or one.name in options.measures.split(",")]
        for number, measure in enumerate(todo, 1):
            _say(f"{time.monotonic() - began:4.0f} s: {measure.name}")
            # What an early measure leaves of its time is the later ones'.
            until = began + (QUICK_SECONDS if options.quick else FULL_SECONDS) * number / len(todo)
            _rounds(measure, routes, max(1, round(size.rounds * measure.share)), until, patience, report)
    report.load = patience.seen
    report.seconds = round(time.monotonic() - began, 1)
    return report


def _rounds(
    measure: Measure,
    routes: Sequence[Route],
    rounds: int,
    until: float,
    patience: machine.Patience,
    report: Report,
) -> None:
    """Take a measure of every route, in another order in each round; what fails once is not tried again.

    `until`: monotonic time after which no second round is begun.
    """
    failed: set[str] = set()
    for number in range(rounds):
        if number and time.monotonic() > until:
            _say(f"{measure.name}: {number} of {rounds} rounds, for want of time")
            return
        patience.wait()
        for route in random.sample(routes, len(routes)):
            if route.name in failed or not measure.applies(route):
                continue
            try:
                report.add(route.name, dict(measure.take(route)))
            except (BenchmarkError, OSError) as error:
                failed.add(route.name)
                report.failures.setdefault(route.name, {})[measure.name] = str(error).replace("\n", " ")
                _say(f"{route.name}: {measure.name}: {error}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
