"""From a name to a connection: resolve once, then dial the addresses that were allowed. Decides nothing."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable

from sshrec.errors import Unreachable, describe
from sshrec.gateway.relay import Loop
from sshrec.patterns import Address

Until = Callable[[Callable[[], bool]], None]  # turns the loop until a condition holds


def resolve(name: str, port: int, seconds: float, loop: Loop, until: Until) -> tuple[Address, ...]:
    """The addresses of a name, asked once; Unreachable where there are none in time."""
    with contextlib.suppress(ValueError):
        return (ipaddress.ip_address(name),)
    answers: list[tuple[Address, ...] | str] = []
    done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def look_up() -> None:  # in a thread: the resolver waits as long as resolv.conf says
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
            answers.append(tuple(dict.fromkeys(ipaddress.ip_address(address[0]) for *_, address in found)))
        except (OSError, ValueError) as error:
            answers.append(describe(error) if isinstance(error, OSError) else str(error))
        os.eventfd_write(done, 1)

    deadline = time.monotonic() + seconds
    threading.Thread(target=look_up, daemon=True).start()
    loop.watch(done, lambda _: None)
    until(lambda: bool(answers) or time.monotonic() > deadline)
    loop.unwatch(done)  # and stays open: the thread may still write to it
    answer = answers[0] if answers else "no answer in time"
    if isinstance(answer, str):
        raise Unreachable(f"the name {name} cannot be resolved: {answer}")
    return answer


def is_own(address: Address) -> bool:
    """Whether an address is this host's: then it is also the source that a datagram to it would have."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((str(address), 9))  # sends nothing
            source: str = sock.getsockname()[0]
        except OSError:
            return False
    return ipaddress.ip_address(source) == address


def endpoint(address: Address, port: int) -> str:
    """As people write it."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def begin(address: Address, port: int) -> socket.socket:
    """A connection that is being made, and will be writable. OSError where there cannot be one."""
    sock = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BlockingIOError):
            sock.connect((str(address), port))
    except OSError:
        sock.close()
        raise
    return sock


def dial_again(address: Address, port: int, seconds: float) -> socket.socket:
    """One more connection where there is one already, without turning a loop. OSError where there cannot be."""
    sock = socket.create_connection((str(address), port), seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(True)
    return sock


def dial(
    addresses: Iterable[Address], port: int, seconds: float, loop: Loop, until: Until
) -> tuple[socket.socket, str]:
    """A connection to the first address that takes one, and its host:port; Unreachable where none does.

    Without Nagle's delay: OpenSSH asks for that only once its session runs, and 80 ms of a handshake on a
    quick network are stalls of small writes against delayed acknowledgements.
    """
    deadline = time.monotonic() + seconds
    failures = []
    for address in addresses:
        shown = endpoint(address, port)
        sock = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _connect(sock, (str(address), port), deadline, loop, until)
        except OSError as error:
            sock.close()
            failures.append(f"{shown}: {describe(error)}")
        except BaseException:
            sock.close()
            raise
        else:
            sock.setblocking(True)
            return sock, shown
    raise Unreachable("; ".join(failures))


def _connect(sock: socket.socket, address: tuple[str, int], deadline: float, loop: Loop, until: Until) -> None:
    try:
        sock.connect(address)
    except BlockingIOError:
        ready: list[int] = []
        loop.watch(sock.fileno(), ready.append, select.POLLOUT)
        try:
            until(lambda: bool(ready) or time.monotonic() > deadline)
        finally:
            loop.unwatch(sock.fileno())
        if not ready:
            raise TimeoutError(0, "no answer in time") from None
        if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error)) from None
