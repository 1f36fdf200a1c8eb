"""What the audit log is told of certificates and CAs: rows of the ledger in, events into the outbox.

Each is called in the transaction that changes those rows. Names of fields are Teleport's where it has them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sshrec.authority.outbox import tell
from sshrec.recording.asciicast import rfc3339

if TYPE_CHECKING:  # the ledger calls us
    from sqlalchemy import Connection

    from sshrec.authority.ledger import AuthorityRow, Entry, Revocation

_FOREIGN = re.compile(r"[^A-Za-z0-9_]")  # to the name of an event's field
_CALENDAR_END = 1 << 37  # seconds: what no calendar has stays a number


def created(connection: Connection, entries: Sequence[Entry], now_ms: int) -> None:
    """Certificates have their rows, and are signed next: none leaves that the log does not get to know."""
    for entry in entries:
        fields = _which(entry) | {
            "user": entry.asked_by,
            "asked_from": entry.asked_from,
            "principals": list(entry.principals),
            "valid_after": _time(entry.valid_after),
            "valid_before": _time(entry.valid_before),
            "key_fingerprint": entry.key_fingerprint,
            "ca_fingerprint": entry.ca_fingerprint,
            "extensions": list(entry.extensions),
        }
        fields |= {
            f"critical_options.{_FOREIGN.sub('_', name)}": text for name, text in entry.critical_options.items()
        }
        if entry.kind == "user":
            fields |= {
                "identity.user": entry.key_id,
                "identity.logins": list(entry.principals),
                "identity.expires": _time(entry.valid_before),
            }
        tell(connection, "cert.create", fields, now_ms)


def withdrawn(connection: Connection, entries: Sequence[Entry], why: str, now_ms: int) -> None:
    """Certificates were not handed out after all."""
    for entry in entries:
        tell(connection, "cert.withdraw", {**_which(entry), "user": entry.asked_by, "reason": why}, now_ms)


def revoked(connection: Connection, entries: Sequence[Entry], revocation: Revocation) -> None:
    """Certificates count no more, each by its serial."""
    for entry in entries:
        fields = {**_which(entry), "user": revocation.by, "reason": revocation.reason}
        tell(connection, "cert.revoke", fields, revocation.at_ms)


def revoked_key_id(
    connection: Connection, kind: str, key_id: str, serials: Sequence[int], revocation: Revocation
) -> None:
    """A key id gets no certificate any more, and these of its count no more."""
    fields = {
        "cert_type": kind,
        "key_id": key_id,
        "serials": list(serials),
        "count": len(serials),
        "user": revocation.by,
        "reason": revocation.reason,
    }
    tell(connection, "cert.revoke", fields, revocation.at_ms)


def lifted_key_id(connection: Connection, kind: str, key_id: str, by: str, now_ms: int) -> None:
    """A key id may have certificates again."""
    tell(connection, "cert.unrevoke", {"cert_type": kind, "key_id": key_id, "user": by}, now_ms)


def introduced(connection: Connection, rows: Sequence[AuthorityRow], by: str, now_ms: int) -> None:
    """CAs are new: the first ones of their kind, which sign at once, or the next ones."""
    for row in rows:
        event = "ca.init" if row.phase == "current" else "ca.rotate"
        tell(connection, event, {**_authority(row), "user": by}, now_ms)


def rotated(
    connection: Connection, rows: Sequence[AuthorityRow], before: Mapping[str, str], by: str, why: str, now_ms: int
) -> None:
    """CAs go from one phase to another. `before`: fingerprint → phase."""
    for row in rows:
        if (was := before[row.fingerprint]) != row.phase:
            fields = {**_authority(row), "phase_before": was, "user": by}
            if row.phase == "old" and row.retires_at is not None:
                fields["trusted_until"] = _time(row.retires_at)
            tell(connection, "ca.rotate", fields | ({"reason": why} if why else {}), now_ms)


def _which(entry: Entry) -> dict[str, Any]:
    return {"cert_type": entry.kind, "key_id": entry.key_id, "serial": entry.serial}


def _authority(row: AuthorityRow) -> dict[str, Any]:
    return {"ca_type": row.kind, "ca_fingerprint": row.fingerprint, "phase": row.phase}


def _time(seconds: int) -> str | int:
    return rfc3339(seconds * 1000) if seconds < _CALENDAR_END else seconds
