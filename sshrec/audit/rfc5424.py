"""Syslog messages as RFC 5424 has them, and how a stream tells one from the next. Values only, no socket."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sshrec.session import printable

AUDIT = 13  # the facility "log audit"
SEVERITIES: Mapping[str, int] = {"E": 3, "W": 4, "I": 6}  # by the last letter of an event's code
SD_ID = "sshrec@32473"  # the enterprise number for examples: we have none of our own (RFC 5612)
PARAM_MAX = 256  # characters of a parameter's value

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)", re.ASCII)
_NOT_GRAPHIC = re.compile(r"[^!-~]")


def encode(
    message: bytes, *, severity: int, time: str, host: str, name: str, parameters: Mapping[str, str]
) -> bytes:
    """One message of `sshrec`, whatever its parts have in them; it has no newline where `message` has none.

    `time`: RFC 3339; `name`: the MSGID; `parameters`: of the structured data, values of any text. `message` is
    ASCII, so it has no byte order mark, which JSON readers stumble over.
    """
    stamp = time if _TIME.fullmatch(time) else "-"
    head = f"<{AUDIT * 8 + severity}>1 {stamp} {_token(host, 255)} sshrec - {_token(name, 32)} "
    data = "".join(f' {key}="{_value(value)}"' for key, value in parameters.items())
    return f"{head}[{SD_ID}{data}] ".encode() + message


def octet_counted(message: bytes) -> bytes:
    """A message on a stream, with its length before it: RFC 5425 §4.3, RFC 6587 §3.4.1."""
    return b"%d %s" % (len(message), message)


def _token(text: str, limit: int) -> str:
    """A header field: printable ASCII without spaces, or - where nothing is left."""
    return _NOT_GRAPHIC.sub("", text)[:limit] or "-"


def _value(text: str) -> str:
    """§6.3.3: a backslash before a quote, a backslash and a closing bracket."""
    return re.sub(r'(["\\\]])', r"\\\1", printable(text, PARAM_MAX))
