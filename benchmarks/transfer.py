"""python -m benchmarks.transfer: what decoding sftp and scp costs, in MB/s of a file's content per CPU second.

In one process, without a file and without a socket: the decoders alone, beside the SHA-256 that they cannot do
without. CPU time, for a machine is seldom quiet.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks import machine
from sshrec.gateway.transfer.scp import Command, Scp
from sshrec.gateway.transfer.sftp import Sftp

MEGABYTES = 256
CHUNK = 256 * 1024  # what a worker reads at once
ROUNDS = 3

Feed = Callable[[memoryview], object]
Turn = tuple[Feed, bytes]


def main() -> int:
    """The command: a table in Markdown."""
    print(f"{time.strftime('%Y-%m-%d')}. {'; '.join(f'{n}: {v}' for n, v in machine.describe().items())}.\n")
    print("| content of one file                |   MB/s | of SHA-256 alone |")
    print("|------------------------------------|-------:|-----------------:|")
    alone = _fastest(_hash)
    rows = [("SHA-256 alone", alone)]
    for size in (32, 255):
        for way in ("put", "get"):
            rows.append((f"sftp {way}, {size} KiB a request", _fastest(partial(_sftp, way, size * 1024))))
    rows.append(("sftp put, with downloads forbidden", _fastest(partial(_sftp, "put", 32 * 1024, forbid=True))))
    rows += [(f"scp {way}", _fastest(partial(_scp, way))) for way in ("up", "down")]
    for what, speed in rows:
        print(f"| {what:<34} | {speed:6.0f} | {speed / alone:16.2f} |")
    return 0


def _fastest(measure: Callable[[], float]) -> float:
    return max(MEGABYTES / measure() for _ in range(ROUNDS))


def _hash() -> float:
    data = memoryview(os.urandom(CHUNK))
    digest = hashlib.sha256()
    start = time.process_time()
    for _ in range(MEGABYTES * 1024 * 1024 // CHUNK):
        digest.update(data)
    return time.process_time() - start


def _sftp(way: str, size: int, *, forbid: bool = False) -> float:
    decoder = Sftp(frozenset({"download"}) if forbid else frozenset())
    turns = list(_turns(decoder, way, size))
    start = time.process_time()
    for feed, data in turns:
        feed(memoryview(data))
    spent = time.process_time() - start
    (fact,) = decoder.facts
    assert decoder.broken is None
    assert fact.said()["outcome"] == "ok"
    assert "sha256" in fact.said()
    return spent


def _turns(decoder: Sftp, way: str, size: int) -> Iterator[Turn]:
    """What both sides say, 64 requests ahead, in the chunks in which a worker reads it."""
    up, down = decoder.client, decoder.server
    yield up, _packet(1, 3)
    yield down, _packet(2, 3)
    yield up, _packet(3, 0, _string(b"/f"), 0x1A if way == "put" else 1, 0)
    yield down, _packet(102, 0, _string(b"\0\0\0\0"))
    payload = os.urandom(size)
    count = MEGABYTES * 1024 * 1024 // size
    for first in range(0, count, 64):
        asked, answered = b"", b""
        for number in range(first, min(count, first + 64)):
            place = _string(b"\0\0\0\0") + struct.pack(">Q", number * size)
            if way == "put":
                asked += _packet(6, number, place, _string(payload))
                answered += _packet(101, number, 0, _string(b"Success"), _string(b""))
            else:
                asked += _packet(5, number, place, size)
                answered += _packet(103, number, _string(payload))
        for feed, data in ((up, asked), (down, answered)):
            for at in range(0, len(data), CHUNK):
                yield feed, data[at : at + CHUNK]
    if way == "get":
        yield up, _packet(5, count, _string(b"\0\0\0\0") + struct.pack(">Q", count * size), size)
        yield down, _packet(101, count, 1, _string(b"End of file"), _string(b""))
    yield up, _packet(4, 0, _string(b"\0\0\0\0"))
    yield down, _packet(101, 0, 0, _string(b"Success"), _string(b""))


def _scp(way: str) -> float:
    decoder = Scp(Command("upload" if way == "up" else "download", b"/f"))
    sender, receiver = (decoder.client, decoder.server) if way == "up" else (decoder.server, decoder.client)
    data = memoryview(os.urandom(CHUNK))
    start = time.process_time()
    receiver(memoryview(b"\0"))
    sender(memoryview(b"C0644 %d f\n" % (MEGABYTES * 1024 * 1024)))
    receiver(memoryview(b"\0"))
    for _ in range(MEGABYTES * 1024 * 1024 // CHUNK):
        sender(data)
    sender(memoryview(b"\0"))
    receiver(memoryview(b"\0"))
    spent = time.process_time() - start
    assert decoder.broken is None
    assert len(decoder.facts) == 1
    return spent


def _packet(kind: int, *parts: bytes | int) -> bytes:
    body = b"".join(part if isinstance(part, bytes) else struct.pack(">I", part) for part in parts)
    return struct.pack(">IB", len(body) + 1, kind) + body


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


if __name__ == "__main__":
    sys.exit(main())
