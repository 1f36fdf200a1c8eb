"""What is measured, and how. A measure takes a route and returns samples, by the name of the figure."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from benchmarks import accounting
from benchmarks.client import LIMIT_SECONDS, BenchmarkError
from benchmarks.contenders import Forced, Route
from benchmarks.machine import awake
from benchmarks.workload import DONE, READY, Output, Workload

Samples = Mapping[str, list[float]]

_SETTLED_SECONDS = 0.1  # from the first output until a clock is started: sshd still moves
_WARM_KEYS = 10
_KEY_SECONDS = 0.002  # between keys
_AT_ONCE = 6  # handshakes: more, and sshd's grow late


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything: rounds, keys a round, sessions at once, megabytes of terminal output."""

    rounds: int
    keys: int
    sessions: int
    megabytes: int


@dataclass(frozen=True, slots=True)
class Measure:
    """`share`: of the rounds that are asked for; `applies`: to which routes."""

    name: str
    take: Callable[[Route], Samples]
    share: float
    applies: Callable[[Route], bool] = lambda _route: True


def measures(workload: Workload, size: Size) -> tuple[Measure, ...]:
    """All of them, in the order in which they run."""

    def carries_commands(route: Route) -> bool:
        return route.commands

    return (
        Measure("faithful", lambda route: _faithful(route, workload), 0),
        Measure("start", _start, 1),
        Measure("echo", lambda route: _echo(route, workload, size.keys), 0.5),
        Measure("text", lambda route: _terminal(route, workload, "text", workload.text), 0.3),
        Measure("ansi", lambda route: _terminal(route, workload, "ansi", workload.ansi), 0.3),
        Measure("command", lambda route: _command(route, workload), 0.3, carries_commands),
        Measure("memory", lambda route: _memory(route, workload, size.sessions), 0, _on_bastion),
    )


def _on_bastion(route: Route) -> bool:
    return route.bastion is not None


def _faithful(route: Route, workload: Workload) -> Samples:
    """Whether the exit status arrives, and bytes do both ways: 1 or 0. And it warms everything up."""
    with route.open(workload.run("seven"), terminal=True) as client:
        samples = {"status_terminal": [float(client.end() == 7)]}
    if route.commands:
        with route.open(workload.run("seven"), terminal=False) as client:
            samples["status_command"] = [float(client.end() == 7)]
        with route.open(f"cat {workload.bytes_path}", terminal=False) as client:
            received = b"".join(iter(client.read, b""))
            samples["identical_down"] = [float(received == workload.bytes)]
            client.end()
        with route.open("sha256sum", terminal=False) as client:
            client.write(workload.bytes)
            client.half_close()
            received = b"".join(iter(client.read, b"")).split()[0]
            samples["identical_up"] = [float(received.decode() == hashlib.sha256(workload.bytes).hexdigest())]
            client.end()
    route.settle()
    route.forget()
    return samples


def _start(route: Route) -> Samples:
    """From the client's start to its end, with nothing to do between, in milliseconds."""
    samples: dict[str, list[float]] = {}
    for terminal in (True, False) if route.commands else (True,):
        with route.open("/bin/true", terminal=terminal) as client:
            status = client.end()
            seconds = time.perf_counter() - client.started
            if status:
                raise BenchmarkError(f"exit status {status}: {client.said()}")
        samples["start_terminal" if terminal else "start_command"] = [seconds * 1e3]
        route.settle()
    return samples


def _echo(route: Route, workload: Workload, keys: int) -> Samples:
    """From a key to its echo, in milliseconds."""
    keys += _WARM_KEYS
    with awake(), route.open(workload.run("echo", keys + 1), terminal=True) as client:
        client.expect(READY)
        time.sleep(_SETTLED_SECONDS)
        samples = []
        for number in range(keys):
            key = b"%c" % (ord("a") + number % 26)
            began = time.perf_counter()
            client.write(key)
            if (echo := client.read()) != key:
                raise BenchmarkError(f"{echo!r} came for {key!r}, key {number}")
            samples.append((time.perf_counter() - began) * 1e3)
            time.sleep(_KEY_SECONDS)
        client.write(b".")
        client.end()
    route.settle()
    return {"echo": samples[_WARM_KEYS:]}


def _terminal(route: Route, workload: Workload, kind: Literal["text", "ansi"], output: Output) -> Samples:
    """Output through a terminal: MB/s at the client, CPU seconds per 100 MB, bytes on disk per byte."""
    route.forget()
    samples = _show(route, workload, kind, output, terminal=True)
    if isinstance(route.contender, Forced) and route.contender.commands:
        return samples  # no recorder
    if kept := route.kept():
        samples[f"{kind}_disk"] = [kept / output.size]
    route.forget()
    return samples


def _show(
    route: Route, workload: Workload, kind: str, output: Output, *, terminal: bool
) -> dict[str, list[float]]:
    buffer = memoryview(bytearray(b"\1") * (output.size + (1 << 16)))  # every page is there before the clock runs
    with route.open(workload.show(output), terminal=terminal, piped=True) as client:
        client.expect(READY)
        time.sleep(_SETTLED_SECONDS)
        before = route.cpu()
        began = time.perf_counter()
        client.write(b"\n")
        size = client.receive(buffer, DONE)
        seconds = time.perf_counter() - began
        after = route.cpu()
        client.write(b"\n")
        client.end()
        rest = route.settle()
    if not output.matches(buffer[:size]):
        raise BenchmarkError(f"not the {output.size} bytes that were sent arrived, but {size}")
    hundred = output.size / 1e8
    samples = {f"{kind}_speed": [output.size / 1e6 / seconds], f"{kind}_after": [rest / hundred]}
    return samples | {f"{kind}_cpu_{role}": [(after[role] - before[role]) / hundred] for role in after}


def _command(route: Route, workload: Workload) -> Samples:
    """Random bytes through a command without a terminal, down and up: MB/s, and CPU seconds per 100 MB down."""
    output = workload.binary
    samples = _show(route, workload, "down", output, terminal=False)
    with route.open(workload.run("count"), terminal=False) as client:
        client.expect(READY)
        time.sleep(_SETTLED_SECONDS)
        began = time.perf_counter()
        for _ in range(output.times):
            client.write(output.block)
        client.half_close()
        buffer = memoryview(bytearray(100))
        counted = int(bytes(buffer[: client.receive(buffer, DONE)]))
        seconds = time.perf_counter() - began
        client.end()
    if counted != output.size:
        raise BenchmarkError(f"not the {output.size} bytes that were sent arrived, but {counted}")
    route.settle()
    route.forget()
    return samples | {"up_speed": [output.size / 1e6 / seconds]}


def _memory(route: Route, workload: Workload, sessions: int) -> Samples:
    """Proportional memory on the bastion of idle terminal sessions, MiB each; sshrecd's own is for all."""
    limit = LIMIT_SECONDS + sessions
    with ExitStack() as stack:
        clients = []
        for number in range(sessions):
            clients.append(stack.enter_context(route.open(workload.run("idle"), terminal=True, limit=limit)))
            if number >= _AT_ONCE:
                clients[number - _AT_ONCE].expect(READY)
        for client in clients[-_AT_ONCE:] if sessions > _AT_ONCE else clients:
            client.expect(READY)
        time.sleep(1)
        samples = {}
        for role, pids in route.processes().items():
            mebibytes = sum(map(accounting.proportional_bytes, pids)) / 2**20
            samples[f"memory_{role}"] = [mebibytes if role == "daemon" else mebibytes / sessions]
        for client in clients:
            client.write(b"\n")
        for client in clients:
            client.end()
    route.settle()
    route.forget()
    return samples
