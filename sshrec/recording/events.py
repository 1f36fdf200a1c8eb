"""The events of a recording and their one-letter codes. Knows nothing of files or of what wrote them."""

from __future__ import annotations

from typing import Final, NamedTuple

OUTPUT: Final = "o"
INPUT: Final = "i"
RESIZE: Final = "r"
MARKER: Final = "m"
EXIT: Final = "x"
# Ours: one upper-case letter with string data, which every asciicast player passes over.
SEAL: Final = "S"  # closes a chunk: canonical JSON, see seal.py
BYTES: Final = "B"  # base64: the exact bytes of the event before, where they were no valid UTF-8
STDERR: Final = "E"  # the next output event was on stderr
FILE: Final = "F"  # canonical JSON: a file that was transferred, or changed by a transfer
COUNT: Final = "C"  # canonical JSON: bytes and SHA-256 of a stream
WALL: Final = "W"  # the wall clock, RFC 3339 in UTC


class Event(NamedTuple):
    """One thing that happened, `time` seconds after the start of its recording."""

    time: float
    code: str
    data: str
