"""The rule for signing the audit log: only a checkpoint that continues what was signed before.

A log that was changed behind a signature gets no further one, whoever asks. Remembers one line, its last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sshrec.atomic import replace_file
from sshrec.audit.event import canonical
from sshrec.audit.log import Head, continues, parse
from sshrec.errors import DataError, Denied, SshrecError, describe

_CHECKPOINT = "checkpoint"


class Last(msgspec.Struct, frozen=True):
    """The last checkpoint that was signed: the line without its end, and the signature; none at first."""

    line: str = ""
    signature: str = ""

    @property
    def head(self) -> Head:
        """Where the chain stands behind it."""
        if not self.line:
            return Head()
        raw = f"{self.line}\n".encode()
        return Head(int(parse(raw)["n"])).after(raw)


@dataclass(slots=True)
class Checkpoints:
    """What was signed, kept in a file of the authority's. `make`: signs the bytes of a line, and checks that."""

    path: Path
    make: Callable[[bytes], str]

    def last(self) -> Last:
        """The last one. DataError where the file is damaged: then nothing is signed."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=Last)
        except FileNotFoundError:
            return Last()
        except (OSError, msgspec.DecodeError) as error:
            words = describe(error) if isinstance(error, OSError) else "is damaged"
            raise DataError(f"{self.path}: {words}") from error

    def sign(self, shown: Head, line: str) -> str:
        """Sign a checkpoint that comes next after what was shown; the same one again gets the same signature.

        Denied for what does not continue, or is no checkpoint.
        """
        last = self.last()
        if line == last.line:
            return last.signature
        raw = f"{line}\n".encode()
        fields = parse(raw)
        if fields["event"] != _CHECKPOINT:
            raise Denied(f"line {fields['n']} is a {fields['event']}, and only checkpoints are signed")
        if shown.n < last.head.n or not continues(fields, shown):
            raise Denied(f"line {fields['n']} does not continue what was signed")
        signature = self.make(line.encode())
        try:
            replace_file(self.path, msgspec.json.encode(Last(line, signature)), 0o600)
        except OSError as error:
            raise SshrecError(f"cannot write {self.path}: {describe(error)}") from error
        return signature


def advance(head: Head, lines: bytes) -> Head:
    """The head of the chain after these whole lines, without what a repair among them set aside.

    Denied where they do not continue it, or are not in the form that is hashed.
    """
    for raw in lines.splitlines(keepends=True):
        fields = parse(raw)
        if not continues(fields, head) or canonical(fields) + b"\n" != raw:
            raise Denied(f"line {fields['n']} of the audit log is not the one that follows line {head.n - 1}")
        head = head.after(raw)
    return head
