"""python -m benchmarks.authority: what a signature costs, beside ssh-keygen by hand.

In one temporary directory, with CAs of its own; nothing of the machine's is touched.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import machine
from sshrec.authority import certificates
from sshrec.authority.certificates import Asker
from sshrec.authority.keys import Keys
from sshrec.authority.ledger import Ledger
from sshrec.config import Config
from sshrec.openssh import public_key
from sshrec.openssh.signer import unlocked
from sshrec.storage.database import Database

_ROUNDS, _BATCH = 50, 1000
_KEYGEN = "/usr/bin/ssh-keygen"


def main() -> int:
    """The command: a table in Markdown."""
    with tempfile.TemporaryDirectory(prefix="sshrec-bench-") as name:
        directory = Path(name)
        config = Config(data_dir=directory / "data", run_dir=directory / "run")
        config.authority_dir.mkdir()
        key = directory / "key"
        subprocess.run([_KEYGEN, "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        with Database.open(config.database_url, create=True) as database:
            rows = _warm(config, Ledger(database), key)
        rows.append(_command(directory, key))
    print(f"{time.strftime('%Y-%m-%d')}. {'; '.join(f'{n}: {v}' for n, v in machine.describe().items())}.\n")
    print("|                                                            |       median |        worst |")
    print("|------------------------------------------------------------|-------------:|-------------:|")
    for what, median, worst in rows:
        print(f"| {what:<58} | {median:>12} | {worst:>12} |")
    return 0


def _warm(config: Config, ledger: Ledger, key: Path) -> list[tuple[str, str, str]]:
    """In a process that has everything imported, as a service has."""
    keys = Keys(config, ledger, "nobody")
    keys.init(time.time(), None)
    public = public_key.read(f"{key}.pub")
    ca = config.authority_dir / "keys" / "user_ca"
    argv = [_KEYGEN, "-q", "-s", str(ca), "-I", "joe", "-n", "joe", "-V", "-5m:+1h", "-z", "1", f"{key}.pub"]
    asker, request = Asker("nobody", "local"), certificates.for_user(config.authority, public, "joe", ["root"])
    with unlocked(keys.signer("user"), lambda _: "") as ready:

        def issue(count: int, jobs: int) -> None:
            list(certificates.issue(ledger, ready, [request] * count, asker, time.time(), jobs))

        by_hand, ours = [], []
        for _ in range(_ROUNDS):  # one after the other, so that what the machine does hits both
            by_hand.append(_seconds(lambda: subprocess.run(argv, check=True)))
            ours.append(_seconds(lambda: issue(1, 1)))
        batch = _seconds(lambda: issue(_BATCH, 2))
    return [
        ("ssh-keygen -s, started by Python", *_milliseconds(by_hand)),
        ("the same with ledger, reading back and comparing", *_milliseconds(ours)),
        (f"{_BATCH} keys, two at once", f"{batch:.1f} s", ""),
    ]


def _command(directory: Path, key: Path) -> tuple[str, str, str]:
    """The program from its start to its end, on keys of their own."""
    file = directory / "sshrec.yaml"
    file.write_text(f"data_dir: {directory}/data\nrun_dir: {directory}/run\n")
    paths = [directory / f"k{n}.pub" for n in range(_BATCH)]
    for path in paths:
        path.write_text(Path(f"{key}.pub").read_text())
    program = [str(Path(sys.prefix) / "bin" / "sshrec-ca"), "--config", str(file), "sign"]
    argv = [*program, *map(str, paths), "--user", "joe", "--principals", "root"]
    whole = _seconds(lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL))
    return f"sshrec-ca sign with {_BATCH} keys, and its files", f"{whole:.1f} s", ""


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _milliseconds(samples: list[float]) -> tuple[str, str]:
    return f"{statistics.median(samples) * 1000:.1f} ms", f"{max(samples) * 1000:.1f} ms"


if __name__ == "__main__":
    sys.exit(main())
