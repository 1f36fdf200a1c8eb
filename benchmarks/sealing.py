"""python -m benchmarks.sealing: what the chain of seals costs of bulk output.

Two bastions at the same time, one whose recorder keeps no chain (unsealed.py); the same output comes through one
and the other in turn, and what is compared is the best and the median of each.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.lab import Lab

UNSEALED = Path(__file__).with_name("unsealed.py")


def _seconds(lab: Lab, path: Path, *, terminal: bool) -> float:
    """From ssh's start to its end, less that of a session with no output."""
    began = time.monotonic()
    argv = lab.ssh_argv(*(["-tt"] if terminal else []), "-A", "bastion", "root@web1", f"cat {path}")
    subprocess.run(
        argv,
        env=lab.laptop("joe").env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=300,
    )
    return time.monotonic() - began


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    settings = {"limits": {"stream_bytes": 1 << 40}}  # all of it is kept
    with Lab(settings=settings) as sealed, Lab(settings=settings) as unsealed:
        unsealed.stop_sshrecd()
        unsealed.start_sshrecd(prefix=[sys.executable, str(UNSEALED)])
        text = sealed.directory / "text"
        text.write_bytes(b"".join(b"%079d\n" % n for n in range(options.megabytes * 12_500)))
        sealed.directory.joinpath("nothing").touch()
        print("| output | sealed MB/s, median (best) | without seals | cost |\n|---|---|---|---|")
        for terminal in (True, False):
            found: dict[str, list[float]] = {"sealed": [], "unsealed": []}
            for number in range(options.rounds + 1):
                for name, lab in (("sealed", sealed), ("unsealed", unsealed)):
                    start = _seconds(lab, sealed.directory / "nothing", terminal=terminal)
                    taken = _seconds(lab, text, terminal=terminal) - start
                    if number:  # the first is to warm up
                        found[name].append(options.megabytes / taken)
            median = {name: statistics.median(rates) for name, rates in found.items()}
            best = {name: max(rates) for name, rates in found.items()}
            kind = "a terminal's" if terminal else "a command's"
            print(
                f"| {kind} | {median['sealed']:.0f} ({best['sealed']:.0f}) | {median['unsealed']:.0f} "
                f"({best['unsealed']:.0f}) | {100 * (1 - median['sealed'] / median['unsealed']):.1f} % |"
            )


if __name__ == "__main__":
    main()
