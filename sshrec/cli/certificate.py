"""A certificate as people and programs are shown it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sshrec.authority.ledger import Entry
from sshrec.cli.authority import moment
from sshrec.duration import left
from sshrec.openssh.certificate import FOREVER, Certificate
from sshrec.recording.asciicast import rfc3339
from sshrec.session import printable

_LABEL_WIDTH = 12


def lines(facts: Sequence[tuple[str, str]]) -> list[str]:
    """Labels and values, lined up; a fact without a value is left out."""
    return [f"  {label:<{_LABEL_WIDTH}} {value}" for label, value in facts if value]


def facts(certificate: Certificate, now: float) -> list[tuple[str, str]]:
    """What a certificate says."""
    key = certificate.key
    return [
        ("key id", printable(certificate.key_id)),
        ("principals", printable(", ".join(certificate.principals) or "none: good for nobody", 2000)),
        ("valid", validity(certificate.valid_after, certificate.valid_before, now)),
        ("options", options(certificate.critical_options, certificate.extensions)),
        ("serial", str(certificate.serial)),
        ("key", f"{key.fingerprint} {key.algorithm} {printable(certificate.comment, 60)}".rstrip()),
        ("signed by", certificate.ca.fingerprint),
    ]


def validity(after: int, before: int, now: float) -> str:
    """From when until when, and what that means now."""
    span = f"{moment(after)} to {moment(before)}"
    return f"{span} ({remaining(after, before, now)})"


def remaining(after: int, before: int, now: float) -> str:
    """What is left of a validity interval."""
    if now < after:
        return f"not yet, in {left(after - now)}"
    if before >= FOREVER:
        return "endless"
    return f"{left(before - now)} left" if now < before else f"expired {left(now - before)} ago"


def options(critical: Mapping[str, str], extensions: Sequence[str]) -> str:
    """Critical options, with what they say, and extensions."""
    shown = [f"{name}={value}" if value else name for name, value in critical.items()]
    return printable(", ".join([*shown, *extensions]) or "none", 2000)


def as_object(certificate: Certificate) -> dict[str, Any]:
    """A certificate for machines; names as in the ledger, times in UTC."""
    return {
        "kind": certificate.kind,
        "serial": certificate.serial,
        "key_id": certificate.key_id,
        "principals": list(certificate.principals),
        "valid_after": _time(certificate.valid_after),
        "valid_before": _time(certificate.valid_before),
        "critical_options": dict(certificate.critical_options),
        "extensions": list(certificate.extensions),
        "key_fingerprint": certificate.key.fingerprint,
        "ca_fingerprint": certificate.ca.fingerprint,
    }


def entry_object(entry: Entry) -> dict[str, Any]:
    """A row of the ledger for machines."""
    return {
        "kind": entry.kind,
        "serial": entry.serial,
        "key_id": entry.key_id,
        "principals": list(entry.principals),
        "valid_after": _time(entry.valid_after),
        "valid_before": _time(entry.valid_before),
        "critical_options": dict(entry.critical_options),
        "extensions": list(entry.extensions),
        "key_fingerprint": entry.key_fingerprint,
        "ca_fingerprint": entry.ca_fingerprint,
        "asked_by": entry.asked_by,
        "asked_from": entry.asked_from,
        "made": rfc3339(entry.made_ms),
        "withdrawn": entry.withdrawn,
        "revoked": entry.revoked
        and {"at": rfc3339(entry.revoked.at_ms), "by": entry.revoked.by, "reason": entry.revoked.reason},
    }


def _time(seconds: int) -> str | None:
    """RFC 3339; None for an end that never comes, or that no calendar has."""
    return rfc3339(seconds * 1000) if seconds < 1 << 37 else None
