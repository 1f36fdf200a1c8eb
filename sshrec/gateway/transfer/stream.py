"""A session's streams while they are a transfer: what goes on, what the recording keeps, what the log is told.

Which request is decoded, and as what; the decoders say the rest. Reads and writes nothing itself.
"""

from __future__ import annotations

from typing import Protocol

from sshrec.access.decision import Terms
from sshrec.gateway.record import Record
from sshrec.gateway.trail import Trail
from sshrec.gateway.transfer.content import HELD, Held
from sshrec.gateway.transfer.fact import Data, Direction, Fact, File, Passed
from sshrec.gateway.transfer.scp import Scp, which
from sshrec.gateway.transfer.sftp import Sftp
from sshrec.session import Request

SFTP = "sftp"


class Decoder(Protocol):
    """Sftp or Scp."""

    broken: str | None
    facts: list[Fact]
    held: Held

    @property
    def full(self) -> bool: ...

    @property
    def directory(self) -> bytes | None: ...

    def client(self, data: memoryview, /) -> Passed: ...

    def server(self, data: memoryview, /) -> Passed: ...

    def end(self) -> None: ...


def asked_for(request: Request, terms: Terms, record: Record, trail: Trail) -> Transfer | None:
    """The transfer that was asked for, if it is one. The command's text chooses the decoder and nothing else."""
    forbidden: list[Direction] = []
    if not terms.upload:
        forbidden.append("upload")
    if not terms.download:
        forbidden.append("download")
    # Where input is kept, so is the beginning of each file: what is said in the disguise of one.
    keep = (max(terms.file_bytes, HELD if terms.record_input else 0), terms.file_bytes)
    refusal = None
    decoder: Decoder
    if request.subsystem == SFTP:
        if request.terminal and forbidden:
            refusal = f"sftp has no terminal where {forbidden[0]}s are not allowed"
        elif request.terminal:
            return None
        decoder, protocol = Sftp(frozenset(forbidden), keep), "sftp"
    else:
        command = which(request.command or b"") if not request.terminal else None
        if command is None:
            return None
        decoder, protocol = Scp(command, keep), "scp"
        if command.direction in forbidden:
            refusal = f"permission denied: {command.direction}s are not allowed here"
            decoder.facts.append(
                File(direction=command.direction, path=command.path, outcome=refusal, denied=True)
            )
    keeps_input = terms.record_input or terms.file_bytes > 0
    return Transfer(decoder, protocol, record, trail, bool(forbidden), keeps_input, refusal)


class Transfer:
    """One session's. `refusal`: why it must not be, or not go on."""

    def __init__(
        self,
        decoder: Decoder,
        protocol: str,
        record: Record,
        trail: Trail,
        filters: bool,
        keeps_input: bool,
        refusal: str | None = None,
    ) -> None:
        self.refusal = refusal
        self._decoder, self._protocol = decoder, protocol
        self._record, self._trail = record, trail
        self._filters, self._keeps_input = filters, keeps_input
        self._decoding = True

    @property
    def full(self) -> bool:
        """Whether nothing more should be read from the person for now."""
        return self._decoding and (self._decoder.full or self._trail.busy)

    def output(self, data: memoryview) -> Data:
        """Record what the target sent; returns what the person may see once that is kept. Nothing: its end."""
        if not data:
            self.end()
        if not self._decoding:
            return self._record.output("stdout", data)
        passed = self._decoder.server(data)
        self._settle()
        self._record.passed("stdout", passed.forward, passed.kept)
        return passed.forward

    def input(self, data: memoryview) -> tuple[Data, Data]:
        """Record what the person sent; returns what goes on to the target, and what the person gets for it."""
        if not self._decoding or not data:
            self._record.input(data, keep=self._keeps_input)
            return data if self.refusal is None else b"", b""
        passed = self._decoder.client(data)
        self._record.input(data, keep=self._keeps_input, kept=passed.kept)
        if passed.reply:
            self._record.passed("stdout", passed.reply, passed.reply)
        self._settle()
        return passed.forward, passed.reply

    def end(self) -> None:
        """Nothing more of it comes: what is still open is recorded and told as it is."""
        if self._decoding:
            self._decoder.end()
            self._settle()
            self._decoding = False

    def _settle(self) -> None:
        """Record and tell what has come of it so far, and where it has turned out to be something else."""
        facts, self._decoder.facts = self._decoder.facts, []
        for fact in facts:
            self._record.transfer({"protocol": self._protocol, **fact.said()})
            self._trail.transferred(self._protocol, fact, self._decoder.directory)
        broken = self._decoder.broken
        if broken is None or not self._decoding:
            return
        self._decoding = False
        self._record.mark(
            f"sshrec: not {self._protocol}: {broken}; recorded from here on as any command's streams"
        )
        held, missing = self._decoder.held.take()
        if held:
            self._record.passed("stdout", b"", held)
        if missing:
            self._record.mark(f"sshrec: {missing} bytes more were taken for a file's content, and not kept")
        if self._filters:
            self.refusal = f"this is not {self._protocol}, which alone is allowed here: {broken}"
