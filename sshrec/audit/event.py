"""Audit events: which there are, what a sender may say in one, and the line that it becomes. Values only.

Names, codes and fields are Teleport's where it has them, so that dashboards keep working; ours begin with SR.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping
from typing import Any

from sshrec.errors import DataError, SshrecError

LINE_MAX = 64 * 1024  # bytes of a line, its newline included
FIELDS_MAX = 64
LIST_BYTES = 4096  # of a list, encoded
HEADROOM = 1024  # of a line: what the writer adds to what a sender says

Fields = Mapping[str, Any]

# Name → the codes it may bear; the first is the one where nothing went wrong.
CATALOGUE: Mapping[str, tuple[str, ...]] = {
    "auth": ("T3007W",),
    "cert.create": ("TC000I",),
    "client.disconnect": ("T3006I",),
    "exec": ("T3002I", "T3002E"),
    "lock.created": ("TLK00I",),
    "lock.deleted": ("TLK01I",),
    "mfa.add": ("T1006I",),
    "mfa.delete": ("T1007I",),
    "mfa_auth_challenge.validate": ("T1016I", "T1016W"),
    "recovery_code.generated": ("T1008I",),
    "recovery_code.used": ("T1009I",),
    "reset_password_token.create": ("T6000I",),
    "resize": ("T2002I",),
    "scp": ("T3004I", "T3004E", "T3005I", "T3005E", "SR501I", "SR501E"),  # ours: a directory that is made
    "session.data": ("T2006I",),
    "session.end": ("T2004I",),
    "session.join": ("T2001I",),
    "session.leave": ("T2003I",),
    "session.recording.access": ("T2012I",),
    "session.recording.failed": ("SR400W",),
    "session.rejected": ("T1006W",),
    "session.start": ("T2000I",),
    "session.upload": ("T2005I",),
    # A code for each of what SFTP does, and Teleport's for what is denied; ours: what it has none for.
    "sftp": (
        *(f"TS{action:03}{grade}" for action in (1, 7, 11, 12, 13, 16, 18, 19) for grade in "IE"),
        "TS020E",
        "SR500I",
        "SR500E",
    ),
    "subsystem": ("T3001I", "T3001E"),
    "user.create": ("T1002I",),
    "user.delete": ("T1004I",),
    "user.login": ("T1000I", "T1000W"),
    "user.password_change": ("T1005I",),
    "user.update": ("T1003I",),
    # Ours: the log itself (the writer's own), the authority, what becomes of recordings, the configuration.
    "log.repair": ("SR001W",),
    "checkpoint": ("SR002I",),
    "checkpoint.signature": ("SR003I",),
    "cert.revoke": ("SR100I",),
    "ca.rotate": ("SR101I",),
    "node.enroll": ("SR102I",),
    "cert.withdraw": ("SR103W",),
    "cert.unrevoke": ("SR104I",),
    "ca.init": ("SR105I",),
    "recording.pack": ("SR200I",),
    "recording.encrypt": ("SR201I",),
    "recording.move": ("SR202I",),
    "recording.delete": ("SR203I",),
    "recording.hold": ("SR204I",),
    "config.change": ("SR300I",),
    "config.problem": ("SR301W", "SR301E"),
    "disk.problem": ("SR302W", "SR302E"),
}

# What must be told on a full disk, too: how sessions end, and what makes room. Nobody can send many of them.
LAST_WORDS = frozenset(
    {
        "client.disconnect",
        "exec",
        "recording.delete",
        "recording.hold",
        "recording.pack",
        "session.data",
        "session.end",
        "session.recording.failed",
    }
)

WRITERS_OWN = frozenset({"log.repair", "checkpoint", "checkpoint.signature"})
STAMPED = frozenset({"n", "prev", "time", "sender_uid"})  # fields that only the writer fills

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,63}")
_UID = re.compile(r"[0-9A-Za-z-]{16,64}")
_OURS = uuid.UUID("7d1c9f5e-0c3b-5a52-9a53-2f1ad4f6c0de")
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


class AuditError(SshrecError):
    """An event cannot be put into the audit log."""

    exit_code = os.EX_IOERR


def new_uid() -> str:
    """A uid for an event that happens once: a random UUID."""
    return str(uuid.uuid4())


def uid_of(session: str, event: str) -> str:
    """The uid of what a session does once (start, end): whoever tells of it, it is known as the same event."""
    return str(uuid.uuid5(_OURS, f"{session}/{event}"))


def canonical(fields: Fields) -> bytes:
    """JSON with sorted keys, no spaces, only printable ASCII: the form of a line, without its newline."""
    return _encode(fields).replace("\x7f", "\\u007f").encode("ascii")


def packet(event: str, fields: Fields, *, uid: str | None = None, code: str | None = None) -> dict[str, Any]:
    """What a sender sends for an event: checked, and short enough for a line.

    Strings that make it too long are cut, the longest first; `cut` says of which how many characters are
    missing. DataError where the event is not in the catalogue, or a field is not what may stand in one.
    """
    said = {**fields, "event": event, "code": code or CATALOGUE.get(event, ("",))[0], "uid": uid or new_uid()}
    return check(said)


def check(said: Fields) -> dict[str, Any]:
    """An event as a sender may send it, cut to what a line holds; DataError says what is wrong with it."""
    event, code, uid = said.get("event"), said.get("code"), said.get("uid")
    if not isinstance(event, str) or event not in CATALOGUE:
        raise DataError("no event of that name is known")
    if event in WRITERS_OWN:
        raise DataError(f"{event} is the log's own event")
    if code not in CATALOGUE[event]:
        raise DataError(f"{event} has no such code")
    if not isinstance(uid, str) or not _UID.fullmatch(uid):
        raise DataError(f"{event}: the uid is none")
    if len(said) > FIELDS_MAX:
        raise DataError(f"{event} has {len(said)} fields, and {FIELDS_MAX} is the most")
    for name, value in said.items():
        if not _NAME.fullmatch(name) or name in STAMPED:
            raise DataError(f"{event} may not have a field of that name")
        _check_value(event, name, value)
    return _fit(dict(said))


def _check_value(event: str, name: str, value: Any) -> None:
    """Strings, integers, booleans, null, and short lists of them. No floats: they have no one canonical form."""
    if name == "cut":
        if isinstance(value, dict) and all(
            isinstance(key, str) and _NAME.fullmatch(key) and type(count) is int for key, count in value.items()
        ):
            return
    elif isinstance(value, list | tuple):
        if all(_is_scalar(item) for item in value) and len(canonical({"": list(value)})) <= LIST_BYTES:
            return
    elif _is_scalar(value):
        return
    raise DataError(f"{event}: {name} is not text, a whole number, a boolean, null, or a short list of these")


def _is_scalar(value: Any) -> bool:
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value) if not value.isascii() else True
    return value is None or isinstance(value, bool) or (type(value) is int and -(2**63) <= value < 2**64)


def _fit(said: dict[str, Any]) -> dict[str, Any]:
    """The same, with the longest strings cut until a line has room for it."""
    room = LINE_MAX - HEADROOM
    while (excess := len(canonical(said)) - room) > 0:
        sizes = {name: len(canonical({"": value})) for name, value in said.items() if isinstance(value, str)}
        name = max(sizes, key=lambda one: sizes[one])
        if sizes[name] < 128:
            raise DataError(f"{said['event']} is too long for a line of the audit log")
        # Some room to spare: for `cut` itself.
        kept = _beginning(said[name], max(64, sizes[name] - excess - 128))
        missing = len(said[name]) - len(kept)
        said[name] = kept
        said["cut"] = {**said.get("cut", {}), name: said.get("cut", {}).get(name, 0) + missing}
    return said


def _beginning(text: str, size: int) -> str:
    """As much of the beginning as takes `size` bytes, encoded."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if len(canonical({"": text[:middle]})) - 5 <= size:
            low = middle
        else:
            high = middle - 1
    return text[:low]
