"""Asciicast v2 lines as we write them. Knows the format alone; reading is reader.py's.

The format: https://docs.asciinema.org/manual/asciicast/v2/. Players differ in what they forgive, so:
integers where integers are due, three elements an event, string data, times that never go back.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode
_canonical = msgspec.json.Encoder(order="deterministic").encode

FALLBACK = (80, 24)  # where a terminal calls itself zero columns wide, or there is none


def header_line(
    *,
    width: int,
    height: int,
    timestamp: int,
    title: str,
    command: str | None,
    env: Mapping[str, str],
    facts: Mapping[str, Any],
) -> bytes:
    """The first line of a recording; `timestamp` in Unix seconds, `facts` go under the key `sshrec`."""
    header: dict[str, Any] = {
        "version": 2,
        "width": width or FALLBACK[0],
        "height": height or FALLBACK[1],
        "timestamp": timestamp,
        "title": title,
    }
    if command is not None:
        header["command"] = command
    header["env"] = dict(env)
    header["sshrec"] = dict(facts)
    return _encode(header) + b"\n"


def event_line(us: int, code: str, data: str) -> bytes:
    """One event; `us`: microseconds since the start; `data` without lone surrogates."""
    return b'[%d.%06d,"%b",%b]\n' % (us // 1_000_000, us % 1_000_000, code.encode(), _encode(data))


def canonical(value: Mapping[str, Any]) -> str:
    """JSON with sorted keys and no spaces: the form that is hashed and compared."""
    return _canonical(value).decode()


def rfc3339(wall_ms: int) -> str:
    """A wall clock time in UTC, to the millisecond."""
    return datetime.fromtimestamp(wall_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
