"""Has the auth service sign the audit log's checkpoints: shows it what was written since, and asks.

Runs in the writer's process and reads the files that it writes. Holds no key.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from sshrec.access.client import AuthService
from sshrec.access.protocol import At
from sshrec.audit.checkpoint import Signature
from sshrec.audit.log import Head, continues, files, parse
from sshrec.errors import DataError, Denied, SshrecError, Unreachable

_SHOWN_BYTES = 512 * 1024  # at once


class Notary:
    """What signs for sshrec.audit.writer: one log, one auth service."""

    def __init__(self, directory: Path, service: Path) -> None:
        self._directory = directory
        self._service = AuthService(service)
        self._at: At | None = None  # how far this connection has shown the log

    def sign(self, line: bytes, seconds: float) -> Signature:
        """Sign a checkpoint's line, which is in the log already. SshrecError where no signature comes in time.

        What was shown by then stays shown: after a long absence of the service, some tries may be needed.
        """
        deadline = time.monotonic() + seconds
        try:
            if self._at is None:
                self._at = self._service.position()
            for batch in self._batches(self._at, parse(line + b"\n")["n"]):
                self._at = self._service.advance(batch)
                if time.monotonic() > deadline:
                    raise TimeoutError
            signed = self._service.sign(line)
            self._at = self._service.position()
        except TimeoutError:
            raise Unreachable("the auth service is still reading what is new in the audit log") from None
        except SshrecError:
            self._service.close()
            self._at = None
            raise
        return Signature(signed.signature, signed.identity, signed.namespace)

    def _batches(self, at: At, end: int) -> Iterator[bytes]:
        batch, size = [], 0
        for raw in self._lines(at, end):
            batch.append(raw)
            size += len(raw)
            if size > _SHOWN_BYTES:
                yield b"".join(batch)
                batch, size = [], 0
        yield b"".join(batch)

    def _lines(self, at: At, end: int) -> Iterator[bytes]:
        """The lines from where the service stands to before line `end`, without what repairs set aside."""
        head = Head(at.n, at.prev)
        for path in self._since(at.n):
            with path.open("rb") as file:
                for raw in file:
                    if head.n >= end:
                        return
                    try:
                        fields = parse(raw)
                    except DataError:
                        continue  # torn; the repair behind it says so
                    if continues(fields, head):
                        yield raw
                        head = head.after(raw)
        if head.n < end:
            raise Denied(f"the audit log does not go on from line {at.n} as it was when that was signed")

    def _since(self, n: int) -> list[Path]:
        """The files from the one on that has line n, or would have it."""
        paths = files(self._directory)
        for index in range(len(paths) - 1, -1, -1):
            with paths[index].open("rb") as file, contextlib.suppress(DataError):
                if int(parse(file.readline())["n"]) <= n:
                    return paths[index:]
        return paths
