"""Pumps and the loop: bounded, in order, and done when they are done; over real pipes and sockets."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sshrec.gateway.relay import Loop, Pump, half_close


class Bench:
    """A pump between two pipes, and what it took."""

    def __init__(
        self, *, take: Callable[[memoryview], bytes] = bytes, kept: Callable[[], bool] | None = None
    ) -> None:
        self.loop = Loop()
        source, self.feed = os.pipe()
        self.drain, sink = os.pipe()
        self.events: list[str] = []
        self.pump = Pump(
            self.loop,
            source,
            sink,
            take,
            kept=kept,
            on_end=lambda: self.events.append("end"),
            on_lost=lambda: self.events.append("lost"),
        )
        os.set_blocking(self.drain, False)
        os.set_blocking(self.feed, False)

    def turn(self, times: int = 5) -> None:
        turns = iter(range(times))
        self.loop.run(lambda: next(turns, None) is None, lambda: 0.0)

    def read(self) -> bytes:
        try:
            return os.read(self.drain, 1 << 20)
        except BlockingIOError:
            return b""


def test_bytes_and_the_end_pass() -> None:
    bench = Bench()
    os.write(bench.feed, b"hello")
    bench.turn()
    assert bench.read() == b"hello"
    os.close(bench.feed)
    bench.turn()
    assert bench.events == ["end"]
    assert bench.pump.ended


def test_a_stalled_reader_stops_the_reading() -> None:
    bench = Bench()
    written = 0
    for _ in range(100):
        with contextlib.suppress(BlockingIOError):
            written += os.write(bench.feed, b"x" * 65536)
        bench.turn()
    assert written < 4 * 65536  # two pipes and one read, and no more
    got = 0
    while part := bench.read():
        got += len(part)
        bench.turn()
    assert got == written


def test_what_take_holds_back_comes_at_the_end() -> None:
    held: list[bytes] = []

    def take(data: memoryview) -> bytes:
        if not data:
            return b"".join(held)
        held.append(bytes(data[-1:]))
        return bytes(data[:-1])

    bench = Bench(take=take)
    os.write(bench.feed, b"hello")
    bench.turn()
    assert bench.read() == b"hell"
    os.close(bench.feed)
    bench.turn()
    assert bench.read() == b"o"
    assert bench.events == ["end"]


def test_nothing_is_shown_before_it_is_kept() -> None:
    kept = False
    bench = Bench(kept=lambda: kept)
    os.write(bench.feed, b"x" * 65536)
    bench.turn()
    assert bench.read() == b""
    kept = True
    bench.pump.resume()
    bench.turn()
    assert bench.read() == b"x" * 65536


def test_what_is_kept_is_shown_in_pieces_too() -> None:
    """One write does not take it all: the rest follows as the reader reads, without another word of `kept`."""
    kept = False
    bench = Bench(kept=lambda: kept)
    os.write(bench.pump.sink, b"y" * 40000)  # the sink is half full already
    os.write(bench.feed, b"x" * 65536)
    bench.turn()
    kept = True
    bench.pump.resume()
    got = b""
    for _ in range(10):
        got += bench.read()
        bench.turn()
    assert got == b"y" * 40000 + b"x" * 65536


def test_a_reader_that_is_gone() -> None:
    bench = Bench()
    os.close(bench.drain)
    bench.turn()
    assert bench.events == ["lost"]


def test_a_pump_that_was_stopped_touches_nothing() -> None:
    """Its descriptors may be somebody else's by then."""
    bench = Bench()
    os.write(bench.feed, b"x" * 65536)
    bench.turn()
    source, sink = bench.pump.source, bench.pump.sink
    bench.pump.stop()
    os.close(source)
    os.close(sink)
    bench.pump.drain()
    bench.pump.resume()
    bench.pump.show(b"late")
    bench.pump.cut()
    bench.turn()
    assert bench.events == []


@pytest.mark.parametrize("path", ["/dev/null", "file"])
def test_a_source_that_never_waits(tmp_path: Path, path: str) -> None:
    """epoll refuses these."""
    name = path if path.startswith("/") else str(tmp_path / path)
    if not path.startswith("/"):
        Path(name).write_bytes(b"content")
    loop, done = Loop(), [False]
    got: list[bytes] = []

    def take(data: memoryview) -> bytes:
        got.append(bytes(data))
        return bytes(data)

    read, write = os.pipe()
    Pump(loop, os.open(name, os.O_RDONLY), write, take, on_end=lambda: done.__setitem__(0, True))
    loop.run(lambda: done[0], lambda: 1.0)
    assert b"".join(got) == (b"" if path == "/dev/null" else b"content")
    os.close(write)
    assert os.read(read, 100) == b"".join(got)


def test_half_a_socket_is_closed() -> None:
    ours, theirs = socket.socketpair()
    half_close(ours.detach())
    assert theirs.recv(10) == b""
