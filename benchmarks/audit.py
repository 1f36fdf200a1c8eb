"""python -m benchmarks.audit: durable events a second, from many senders that each wait for theirs.

Each sender is a process with a connection of its own and one event under way, a session's start of the usual size;
what is counted is what was acknowledged. Beside it, what the disk does: a write and a sync a line.
"""

from __future__ import annotations

import argparse
import os
import statistics
import struct
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine
from sshrec.audit.client import Sender, tell
from sshrec.audit.log import Line, read_log
from tests import auditing

FIELDS = {
    "sid": "01KARVVVZ0B9GPPM3T5V7PZW0Q",
    "user": "joe",
    "account_uid": 1000,
    "login": "root",
    "namespace": "default",
    "cluster_name": "bastion",
    "server_hostname": "web1",
    "addr.remote": "192.0.2.1:50000",
    "addr.local": "192.0.2.2:22",
    "size": "80:25",
    "key": "ssh-ed25519-cert-v01@openssh.com SHA256:Z0K3N+Es2B4AjLPoRW+tcTbj2bBMf7QVpGWxgJSMiA8",
    "key_id": "joe",
    "rule": "nodes",
    "target": "root@web1",
    "session_recording": "proxy",
    "interactive": True,
}
_FIGURES = struct.Struct("=Id")  # events, and the median of the milliseconds that each took


def main() -> int:
    """The command: a few lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__.partition(": ")[2])
    parser.add_argument("--senders", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--directory", type=Path, help="on another disk than /tmp")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sr-", dir=options.directory or "/tmp") as name:
        place = Path(name)
        with auditing.running(place / "audit", place / "audit.sock"):
            figures = _measure(place / "audit.sock", options.senders, options.seconds)
        lines = [item for item in read_log(place / "audit") if isinstance(item, Line)]
        syncs = _syncs(place / "file", lines[0].raw)
    count = sum(events for events, _ in figures)
    print(f"{time.strftime('%Y-%m-%d')}. {'; '.join(f'{n}: {v}' for n, v in machine.describe().items())}.")
    print(f"{options.senders} senders: {count / options.seconds:.0f} durable events a second")
    print(f"from sending one to its acknowledgement, median: {statistics.median(ms for _, ms in figures):.1f} ms")
    print(f"the disk alone, a write and a sync a line: {syncs:.0f} a second")
    return 0 if len(lines) >= count else 1


def _measure(path: Path, senders: int, seconds: float) -> list[tuple[int, float]]:
    go, start = os.pipe()
    back, tell_us = os.pipe()
    pids = []
    for _ in range(senders):
        pid = os.fork()
        if pid == 0:
            os.close(start)
            try:
                os.write(tell_us, _FIGURES.pack(*_send(path, go, seconds)))
            finally:
                os._exit(0)
        pids.append(pid)
    os.close(go)
    os.close(tell_us)
    time.sleep(1.0)  # until all are connected
    os.close(start)
    figures = []
    while data := os.read(back, _FIGURES.size):
        figures.append(_FIGURES.unpack(data))
    for pid in pids:
        os.waitpid(pid, 0)
    return figures


def _send(path: Path, go: int, seconds: float) -> tuple[int, float]:
    sender = Sender(path)
    tell(sender, "session.start", FIELDS)
    os.read(go, 1)
    times = []
    until = time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        tell(sender, "session.start", FIELDS, seconds=60)
        times.append((time.monotonic() - began) * 1e3)
    return len(times), statistics.median(times)


def _syncs(path: Path, line: bytes) -> float:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    began = time.monotonic()
    for _ in range(500):
        os.write(fd, line)
        os.fdatasync(fd)
    os.close(fd)
    return 500 / (time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
