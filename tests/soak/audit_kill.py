"""Kills the audit log's writer at random moments under load, again and again: no acknowledged event may be lost.

python -m tests.soak.audit_kill [--rounds 1000] [--senders 20] [--directory DIR]

Each sender is a process that keeps a few events under way and notes what was acknowledged, with its number. In the
end the log is read: its chain must be whole, and have every event that was acknowledged at the number that was
given for it. An event may be there twice: the writer that was killed did not come to acknowledge it, and the next
ones did not hear of it until it was far back in the log.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from sshrec.audit.client import Sender
from sshrec.audit.log import Line, Problem, read_log
from tests import auditing

UNDER_WAY = 4  # events of a sender


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.audit_kill", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=1000, help="so often is the writer killed")
    parser.add_argument("--senders", type=int, default=20)
    parser.add_argument("--directory", type=Path, help="on another disk than /tmp")
    parser.add_argument("--send", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        return _send(Path(options.send[0]), Path(options.send[1]))
    with tempfile.TemporaryDirectory(prefix="sr-", dir=options.directory or "/tmp") as place:
        return _soak(Path(place), options.rounds, options.senders)


def _soak(place: Path, rounds: int, count: int) -> int:
    log, path = place / "audit", place / "audit.sock"
    writer = auditing.start(log, path)
    notes = [place / f"acked.{number}" for number in range(count)]
    senders = [_sender(path, note) for note in notes]
    began = time.monotonic()
    try:
        for number in range(1, rounds + 1):
            _until_answered(path)
            time.sleep(random.expovariate(20))  # 50 ms, some of them hardly any
            writer.kill()
            writer.wait()
            writer = auditing.start(log, path)
            if number % 50 == 0:
                print(f"{time.monotonic() - began:5.0f} s: killed {number} times", flush=True)
    finally:
        for sender in senders:
            sender.terminate()
        ended = [sender.wait(60) for sender in senders]
        writer.terminate()
        writer.wait(60)
    return _judge(log, notes, ended, rounds)


def _judge(log: Path, notes: list[Path], ended: list[int], rounds: int) -> int:
    acked: dict[str, int] = {}
    for note in notes:
        for line in note.read_text().splitlines():
            uid, n = line.split()
            acked[uid] = int(n)
    found: dict[str, set[int]] = {}
    problems: list[Problem] = []
    names: Counter[str] = Counter()
    for item in read_log(log):
        if not isinstance(item, Line):
            problems.append(item)
            continue
        names[item.event] += 1
        if item.event == "user.update":
            found.setdefault(item.fields["uid"], set()).add(item.n)
    lost = [uid for uid, n in acked.items() if n not in found.get(uid, ())]
    twice = sum(len(numbers) > 1 for numbers in found.values())
    print(
        f"{rounds} kills, {len(acked)} events acknowledged, {names['user.update']} in the log, "
        f"{twice} of them twice, {names['log.repair']} torn ends repaired: "
        f"{len(lost)} lost, {len(problems)} problems"
    )
    for problem in problems[:10]:
        print(problem)
    return 1 if lost or problems or any(ended) else 0


def _sender(path: Path, note: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.soak.audit_kill", "--send", path, note])


def _until_answered(path: Path) -> None:
    with contextlib.closing(Sender(path)) as sender:
        while sender.fileno() < 0:
            sender.tick()
            time.sleep(0.005)


def _send(path: Path, note: Path) -> int:
    """A sender: events of many sizes, and a line for each that was acknowledged."""
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    sender = _Noting(path, note)
    while not stop:
        while len(sender.pending) < UNDER_WAY:
            sender.send("user.update", {"name": "x" * random.randrange(1, 20_000)})  # noqa: S311
        before = len(sender.pending)
        while len(sender.pending) == before and not stop:
            sender.wait_a_moment()
    return 0 if sender.wait(30) else 1


class _Noting(Sender):
    def __init__(self, path: Path, note: Path) -> None:
        super().__init__(path)
        self._note = note.open("w", buffering=1)

    def wait_a_moment(self) -> None:
        """Until an answer comes, or some milliseconds have passed."""
        self.wait(0.01)

    def _answered(self, answer: dict[str, object]) -> None:
        if "n" in answer:
            self._note.write(f"{answer['uid']} {answer['n']}\n")
        super()._answered(answer)


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[2])
    sys.exit(main())
