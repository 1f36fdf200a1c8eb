"""Cuts the power at every moment of a recording's life and the audit log's, in as many ways as there is time for.

python -m tests.soak.powercut [--most 3000] [--nested 200] [--seed 1]

tests/unit/test_powercut.py does so in a few ways of each moment.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tests.powercut import lives, run
from tests.powercut.disk import Crash
from tests.powercut.lives import Life


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.powercut", description=__doc__.split("\n")[0])
    parser.add_argument("--most", type=int, default=3000, help="states after one operation")
    parser.add_argument("--nested", type=int, default=200, help="states whose mending is cut off in its turn")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    most, seed = options.most, options.seed
    recording, log = lives.recording(), lives.audit_log(lives.GROUPS)
    of_recording, of_log = _judge(recording, most, seed), _judge(log, most, seed)
    for life in (
        lives.torn_recovery(),
        lives.torn_recovery(hole=True),
        lives.unsynced_end(),
        lives.removal(),
        lives.encryption(),
    ):
        _judge(life, most, seed)
    _nested("recovery", lives.recoveries, of_recording, options.nested, most // 20, seed)
    _nested("repair", lives.repairs, of_log, options.nested, most // 20, seed)
    # A megabyte each: fewer of them.
    for life in (lives.packing_its_end(), lives.packing_ahead(), lives.audit_log(lives.LARGE)):
        _judge(life, most // 20, seed)
    return 0


def _judge(life: Life, most: int, seed: int) -> list[Crash]:
    began = time.monotonic()
    found = run.states(life, most, seed)
    judged = run.judge(life, found)
    print(
        f"{life.name}: {len(found)} states of {len(judged)} moments hold, {time.monotonic() - began:.0f} s",
        flush=True,
    )
    return found


def _nested(
    name: str,
    mending: Callable[[list[Crash]], Iterable[Life]],
    found: Sequence[Crash],
    number: int,
    most: int,
    seed: int,
) -> None:
    began, count = time.monotonic(), 0
    some = random.Random(seed).sample(found, min(number, len(found)))  # noqa: S311 - the same each time
    for life in mending(some):
        inner = run.states(life, most, seed)
        run.judge(life, inner)
        count += len(inner)
    print(f"{name} cut off: {count} states of {len(some)} hold, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[2])
    sys.exit(main())
