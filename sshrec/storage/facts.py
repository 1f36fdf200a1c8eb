"""What stays readable of an encrypted recording: `<session id>.json`, its first and its last line, and its sizes.

`sshrec ls`, retention and holds need a recording's header and outcome, and nobody here can decrypt. The audit log
has them too, but only whoever may read the log, and only by reading all of it; so they lie beside the recording,
and the event that told of its encryption has the hash of this file.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from sshrec.errors import DataError, describe
from sshrec.recording import reader
from sshrec.recording.reader import Summary

ENCRYPTED = ".age"  # suffix
_FILE_MAX = 4 * 1024 * 1024  # a header has 1 MiB, and JSON in JSON is longer

_encode = msgspec.json.Encoder(order="sorted").encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Of one encrypted recording.

    `header`, `last`: its first line and its last seal, as they stand in it, newlines included; `recording_bytes`:
    of its text; the sizes and SHA-256 of the packed file that went in and of the encrypted one that came out.
    """

    header: str
    last: str
    recording_bytes: int
    packed_bytes: int
    packed_sha256: str
    file_bytes: int
    file_sha256: str
    schema: Literal[1] = 1

    @property
    def seal_sha256(self) -> str:
        """Of the last seal, as the audit log has it."""
        return hashlib.sha256(self.last.encode()).hexdigest()


def path_of(encrypted: Path) -> Path:
    """Where the facts of an encrypted recording are."""
    return encrypted.with_name(f"{encrypted.name.partition('.')[0]}.json")


def encode(facts: Facts) -> bytes:
    """The file's content."""
    return _encode(facts) + b"\n"


def read(path: Path) -> tuple[Facts, bytes]:
    """The facts of a file, and its content; DataError where it has none, or there is no such file."""
    try:
        data = _content(path)
        return msgspec.json.decode(data, type=Facts), data
    except OSError as error:
        raise DataError(f"{path}: {describe(error)}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error


def digest(path: Path) -> str:
    """SHA-256 of a file of facts, as the audit log has it; "" where none can be read."""
    try:
        return hashlib.sha256(_content(path)).hexdigest()
    except OSError:
        return ""


def _content(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        return file.read(_FILE_MAX)


def summary(path: Path) -> Summary:
    """Header, duration and outcome of a recording, by its ends or its facts; DataError as of reader.summary."""
    if path.suffix != ENCRYPTED:
        return reader.summary(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: {describe(error)}") from error
    facts, _ = read(path_of(path))
    try:
        return replace(reader.of_ends(facts.header.encode(), facts.last.encode()), bytes=size)
    except (DataError, ValueError) as error:
        raise DataError(f"{path_of(path)}: {error}") from error
