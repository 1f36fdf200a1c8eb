"""The hop's agent socket: each connection to it is relayed to one that the gateway dials to the person's agent.

The socket is in the session's private run directory, so no two sessions ever see each other's agent. Knows
nothing of the agent's protocol.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from sshrec.gateway.handoff import Agent
from sshrec.gateway.relay import Loop, Pump

AT_ONCE = 16


class AgentRelay:
    """Serves `path`; `gateway` is asked for connections, and its answers come to `dialled`.

    `at_once`: connections at a time.
    """

    def __init__(self, loop: Loop, path: Path, gateway: socket.socket, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._loop, self._gateway = loop, gateway
        self._waiting: dict[int, socket.socket] = {}
        self._relayed: list[_Relayed] = []
        self._next = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen(at_once)
        self._socket.setblocking(False)
        loop.watch(self._socket.fileno(), self._accept)

    def dialled(self, answer: Agent) -> None:
        """The gateway's answer; without a connection, ours is closed too."""
        connection = self._waiting.pop(answer.tag, None)
        if connection is None or answer.descriptor is None:
            if connection is not None:
                connection.close()
            if answer.descriptor is not None:
                os.close(answer.descriptor)
            return
        agent = socket.socket(fileno=answer.descriptor)
        self._relayed.append(_Relayed(self._loop, connection, agent, self._relayed))

    def close(self) -> None:
        """Hang up on everybody."""
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        for connection in self._waiting.values():
            connection.close()
        for relayed in list(self._relayed):
            relayed.close()

    def _accept(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            connection, _ = self._socket.accept()
            if len(self._waiting) + len(self._relayed) >= self._at_once:
                connection.close()
                return
            while self._next in self._waiting:
                self._next = (self._next + 1) % 256
            try:
                self._gateway.send(b"A" + bytes([self._next]))
            except OSError:
                connection.close()
                return
            self._waiting[self._next] = connection
            self._next = (self._next + 1) % 256


class _Relayed:
    """One connection to the agent: two pumps, and the end of either is the end of both."""

    def __init__(self, loop: Loop, ours: socket.socket, agent: socket.socket, among: list[_Relayed]) -> None:
        self._among = among
        self._ends = (ours, agent, ours.dup(), agent.dup())  # a descriptor is watched for one direction only
        a, b, c, d = (end.fileno() for end in self._ends)
        self._pumps = [
            Pump(loop, source, sink, bytes, size=4096, on_end=self.close, on_lost=self.close)
            for source, sink in ((a, b), (d, c))
        ]

    def close(self) -> None:
        if self in self._among:
            self._among.remove(self)
            for pump in self._pumps:
                pump.stop()
            for end in self._ends:
                end.close()
