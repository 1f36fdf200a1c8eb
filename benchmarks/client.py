"""One ssh as a person runs it, timed: on a terminal of its own or between pipes, and never for ever."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

LIMIT_SECONDS = 30.0
_READ_BYTES = 1 << 20
_ROWS, _COLUMNS = 40, 120


class BenchmarkError(Exception):
    """A contender did not do what was asked."""


class Client:
    """A running ssh. All reads and writes block; after `limit` seconds it is killed, and they end.

    `terminal`: its stdin is a terminal in the modes that terminals have, because ssh passes them to the
    target, where onlcr makes two bytes of every line feed; `piped`: its stdout is a pipe even then.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        *,
        terminal: bool,
        piped: bool = False,
        limit: float = LIMIT_SECONDS,
    ) -> None:
        self._log = log
        self._ours: set[int] = set()
        theirs = []
        if terminal:
            self.stdin, slave = os.openpty()
            termios.tcsetwinsize(slave, (_ROWS, _COLUMNS))
            self.stdout, stdin, stdout = self.stdin, slave, slave
            theirs.append(slave)
        else:
            stdin, self.stdin = os.pipe()
            theirs.append(stdin)
        if piped or not terminal:
            self.stdout, stdout = os.pipe()
            theirs.append(stdout)
            with contextlib.suppress(OSError):  # past the user's share of pipe memory the default must do
                fcntl.fcntl(self.stdout, fcntl.F_SETPIPE_SZ, _READ_BYTES)
        self._ours = {self.stdin, self.stdout}
        with log.open("ab") as errors:
            self.started = time.perf_counter()
            self._process = subprocess.Popen(
                argv, env=env, stdin=stdin, stdout=stdout, stderr=errors, start_new_session=True
            )
        for descriptor in theirs:
            os.close(descriptor)
        self._late = False
        self._watchdog = threading.Timer(limit, self._kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _kill(self) -> None:
        self._late = True
        self._process.kill()

    def read(self, size: int = _READ_BYTES) -> bytes:
        """What there is, as soon as there is something; nothing at the end."""
        try:
            return os.read(self.stdout, size)
        except OSError as error:
            if error.errno != errno.EIO:  # the end, of a terminal
                raise
            return b""

    def expect(self, marker: bytes) -> None:
        """Read until `marker` is the last thing that came."""
        self.receive(memoryview(bytearray(1 << 16)), marker)

    def receive(self, buffer: memoryview, marker: bytes) -> int:
        """Read into `buffer` until `marker` is the last thing that came; the number of bytes before it."""
        size = 0
        while size < len(marker) or buffer[size - len(marker) : size] != marker:
            try:
                count = os.readv(self.stdout, [buffer[size : size + _READ_BYTES]])
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                count = 0
            if count == 0:
                self._process.wait()
                late = "in time" if self._late else "before its end"
                raise BenchmarkError(f"{marker.decode()} did not come {late}, but {size} bytes: {self.said()}")
            size += count
        return size - len(marker)

    def said(self) -> str:
        """The end of what it wrote on its standard error, where that is no terminal."""
        return self._log.read_text(errors="replace").strip()[-300:]

    def write(self, data: bytes | memoryview) -> None:
        """Write all of it."""
        while data:
            data = data[os.write(self.stdin, data) :]

    def half_close(self) -> None:
        """Nothing more will be written."""
        self._ours.discard(self.stdin)
        os.close(self.stdin)

    def end(self) -> int:
        """Read to the end, and wait; the exit status."""
        while self.read():
            pass
        status = self._process.wait()
        if self._late:
            raise BenchmarkError("it had to be ended")
        return status

    def close(self) -> None:
        """End it if it still runs, and let go of everything."""
        self._watchdog.cancel()
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        while self._ours:
            os.close(self._ours.pop())
