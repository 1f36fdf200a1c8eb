"""The recording of one live session: its file, its clock, and what it means for the session when it fails.

Says what may be shown. Whether a session may go on without a recording, and who is told of it, is passed in.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sshrec import __version__
from sshrec.config import Config
from sshrec.errors import RecordingError
from sshrec.gateway.ending import FOREVER
from sshrec.gateway.grant import Grant
from sshrec.gateway.visit import Visit
from sshrec.recording import asciicast
from sshrec.recording.recorder import Data, Recorder, Stream
from sshrec.recording.seal import Outcome
from sshrec.session import Winsize
from sshrec.storage.local import Store

FREEZE_SECONDS = 2.0  # that the disk may owe an answer, until nothing more is shown
HUNG_SECONDS = 10.0  # until the session is over

Held = list[tuple[Stream, bytes]]


class Record:
    """`facts`: what the header says of the session; `unrecorded`: since when it goes on without, RFC 3339.

    Made with its header written, but not durable yet; RecordingError where that cannot be, with nothing left.
    `lost`: called with why and since when, once nothing can be kept any more, if the session may go on all the
    same; what it raises passes through.
    """

    def __init__(
        self,
        config: Config,
        session: str,
        visit: Visit,
        grant: Grant,
        size: Winsize,
        lost: Callable[[RecordingError, str], None],
    ) -> None:
        self.unrecorded: str | None = None
        self._sync = config.session_recording == "proxy-sync"
        self._frozen = False
        self._lost = lost
        wall_ms = self._wall()
        self._file = Store(config.recordings_dir).create(session, durable=self._sync)
        self._start_ns = time.monotonic_ns()
        self.facts = {"session": session, **grant.facts()}
        self.facts |= {"client": visit.client, "start": asciicast.rfc3339(wall_ms)}
        if visit.tty:
            self.facts["tty"] = visit.tty
        self.facts |= {"recording": config.session_recording, "version": __version__}
        terms = grant.decision.terms
        try:
            self._recorder = Recorder(
                self._file,
                session,
                asciicast.header_line(
                    width=size.columns,
                    height=size.rows,
                    timestamp=wall_ms // 1000,
                    title=f"{grant.user.name} → {self.facts['target']}",
                    command=self.facts.get("command"),
                    env={"TERM": visit.term},
                    facts=self.facts,
                ),
                wall_ms=wall_ms,
                terminal=grant.request.terminal,
                stream_limit=terms.stream_bytes,
                without=self._without if terms.recording == "best_effort" else None,
            )
        except RecordingError:
            with contextlib.suppress(RecordingError):
                self._file.finish()
            self.path.unlink(missing_ok=True)
            raise

    # ---- what is in it ---------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """Where it is while it lives."""
        return self._file.path

    @property
    def notify(self) -> int:
        """A descriptor to call `synced` for."""
        return self._file.notify

    @property
    def size(self) -> int:
        """Bytes."""
        return self._file.written

    @property
    def counts(self) -> dict[Stream, int]:
        """Bytes of each stream."""
        return self._recorder.counts

    @property
    def head(self) -> tuple[int, str]:
        """As Recorder has it."""
        return self._recorder.head

    @property
    def durable(self) -> int:
        """Bytes that a power cut cannot take."""
        return self._file.on_disk

    def report(self) -> dict[str, Any]:
        """Figures for `who` and for the signing of the log."""
        n, previous = self.head
        return {"bytes": self.size, "durable": self.durable, "seal": n - 1, "head": previous}

    # ---- what happens ----------------------------------------------------------------------------------

    def begun(self) -> bool:
        """Whether the header is durable; RecordingError where it never will be."""
        self._file.check()
        return self._file.on_disk > 0

    def output(self, stream: Stream, data: memoryview) -> Data:
        """Record what the target sent (nothing at its end); returns what may be shown once `kept` says so."""
        if not data:
            return b"".join(held for _, held in self._recorder.release(self._us(), stream))
        return self._recorder.output(self._us(), data, stream)

    def input(self, data: memoryview, *, keep: bool, kept: Data | None = None) -> None:
        """Record what the person sent; `kept`: what of it may be in the recording at all."""
        self._recorder.input(self._us(), data, keep=keep, kept=kept)

    def passed(self, stream: Stream, data: Data, kept: Data) -> None:
        """Record of a command's stream only that; the rest is counted and hashed."""
        self._recorder.passed(self._us(), data, kept, stream)

    def transfer(self, fact: Mapping[str, Any]) -> None:
        """What has come of a file."""
        self._recorder.transfer(self._us(), fact)

    def resize(self, size: Winsize) -> None:
        """The terminal has this size from now on."""
        self._recorder.resize(self._us(), size.columns, size.rows)

    def mark(self, text: str) -> None:
        """Something that we, and not the target, told the person."""
        self._recorder.mark(self._us(), text)

    def kept(self) -> bool:
        """Whether what was recorded may be shown."""
        if self.unrecorded is not None:
            return True
        return not self._frozen and (not self._sync or self._file.synced >= self._file.written)

    def tick(self) -> Held:
        """Do what time asks for; returns held bytes, to be shown. RecordingError where the disk hangs too long."""
        owed = self._file.hangs
        self._frozen = owed >= FREEZE_SECONDS
        if owed >= HUNG_SECONDS and self.unrecorded is None:
            raise RecordingError(f"the disk of the recordings has not answered for {HUNG_SECONDS:.0f} s")
        return self._recorder.tick(self._us(), self._wall())

    def due(self) -> float:
        """Seconds until `tick` has something to do; infinity while there is nothing to wait for."""
        due = self._recorder.due(self._us())
        return due / 1e6 if due is not None else FOREVER

    def synced(self) -> None:
        """After `notify` was readable: more is durable, or never will be."""
        os.eventfd_read(self._file.notify)
        self._frozen = False
        if self.unrecorded is None:
            try:
                self._file.check()
            except RecordingError as error:
                self._recorder.lapse(self._us(), error)

    def _without(self, error: RecordingError) -> str:
        """Go on without, if whoever must know of it does."""
        self._file.use_reserve()
        since = asciicast.rfc3339(self._wall())
        self._lost(error, since)
        self.unrecorded = since
        return f"sshrec: from here on not recorded: {error}"

    # ---- the end ---------------------------------------------------------------------------------------

    def close(self, outcome: Outcome) -> Held:
        """Seal it, with the room that was kept for that; returns held bytes, to be shown.

        Durable with `proxy-sync`. RecordingError where it cannot be: then recovery gives it an end.
        """
        self._file.use_reserve()
        held = self._recorder.close(self._us(), self._wall(), outcome)
        if self._sync:
            self._file.finish()
        return held

    def finish(self) -> None:
        """Make it durable and let go of it; waits. RecordingError where that cannot be."""
        self._file.finish()

    # ---- clocks ----------------------------------------------------------------------------------------

    def _us(self) -> int:
        return (time.monotonic_ns() - self._start_ns) // 1000

    @staticmethod
    def _wall() -> int:
        return time.time_ns() // 1_000_000
