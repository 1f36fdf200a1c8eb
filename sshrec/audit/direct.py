"""A Journal without a writer: who has no sshrecd appends each event here and now, under the log's lock."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sshrec.audit.appender import Appender, LogFull
from sshrec.audit.event import LAST_WORDS, AuditError, Fields, packet

LOCK_SECONDS = 5.0  # that others may keep the lock
AGAIN_SECONDS = 1.0


class Direct:
    """A Journal: what is sent is durable, or pending with its reason, when `send` returns."""

    def __init__(self, directory: Path) -> None:
        self._appender = Appender(directory)
        self._unsaid: dict[str, dict[str, Any]] = {}
        self.refused: str | None = None
        self.pending: dict[str, bytes] = {}
        self.errors: dict[str, str] = {}

    def send(self, event: str, fields: Fields, *, uid: str | None = None, code: str | None = None) -> str:
        """Append an event. DataError where it is none; what the disk refuses stays pending."""
        said = packet(event, fields, uid=uid, code=code)
        uid = str(said["uid"])
        self._unsaid[uid] = said
        self.pending[uid] = b""
        self.tick()
        return uid

    def head(self, session: str, n: int, digest: str) -> None:
        """Nobody signs here."""

    def watch(self, opened: Callable[[int], None], closed: Callable[[int], None]) -> None:
        """Never anything to watch."""

    def receive(self) -> None:
        """Never anything to take."""

    def tick(self) -> float:
        """Try what is pending (again)."""
        if not self._unsaid:
            return math.inf
        try:
            try:
                self._append(list(self._unsaid))
            except LogFull:
                self._append([uid for uid, said in self._unsaid.items() if said["event"] in LAST_WORDS])
                raise
        except AuditError as error:
            self.errors.update(dict.fromkeys(self._unsaid, str(error)))
            return AGAIN_SECONDS
        return math.inf

    def wait(self, seconds: float) -> bool:  # noqa: ARG002 - it has waited
        """Whether all is durable."""
        self.tick()
        return not self.pending

    def _append(self, uids: list[str]) -> None:
        deadline = time.monotonic() + LOCK_SECONDS
        while not self._appender.lock():
            if time.monotonic() > deadline:
                raise AuditError(f"another process writes the audit log {self._appender.directory}")
            time.sleep(0.002)
        try:
            self._appender.append([{**self._unsaid[uid], "sender_uid": os.geteuid()} for uid in uids])
        finally:
            self._appender.unlock()
        for uid in uids:
            self.errors.pop(uid, None)
            del self._unsaid[uid], self.pending[uid]

    def close(self) -> None:
        """Let go of the files."""
        self._appender.close()
