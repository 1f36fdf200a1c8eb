"""A user's second factors: which one a code is of, and that each code counts once. Decides nothing else.

What is called here belongs to the caller's transaction. TOTP and recovery codes so far; a WebAuthn credential has
its row in the same table, with `data` for what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from sshrec.access import recovery, totp
from sshrec.authority.outbox import tell
from sshrec.authority.seeds import Seeds
from sshrec.errors import NotFound
from sshrec.storage import schema

_FACTORS, _CODES, _CHECKS = schema.factors, schema.recovery_codes, schema.factor_checks
_NOBODYS = bytes(totp.SEED_BYTES)

TOTP_LABEL = "authenticator app"


@dataclass(frozen=True, slots=True)
class Totp:
    """The code is of this factor, at this step."""

    factor: int
    label: str
    step: int


@dataclass(frozen=True, slots=True)
class Recovery:
    """The code is this recovery code, which nobody has used."""

    digest: str


@dataclass(frozen=True, slots=True)
class NoMatch:
    """It is none; why, for the audit log and never for who typed it."""

    reason: str


def find(connection: Connection, seeds: Seeds, user: str, code: str, now_ms: int) -> Totp | Recovery | NoMatch:
    """What a code is good for now. A user who has no factor, or is not there, costs about as much."""
    wanted = (
        select(_FACTORS).where(_FACTORS.c.user_name == user, _FACTORS.c.kind == "totp").order_by(_FACTORS.c.id)
    )
    late = False
    rows = connection.execute(wanted).all()
    for row in rows:
        seed = seeds.open(user, row.seed)
        step = totp.match(seed, code, now_ms / 1000, row.last_step)
        if step is not None:
            return Totp(row.id, row.label, step)
        late = late or totp.match(seed, code, now_ms / 1000) is not None
    if not rows:
        totp.match(_NOBODYS, code, now_ms / 1000)
    digest = recovery.digest(user, code)
    unused = select(_CODES.c.hash, _CODES.c.used_ms).where(_CODES.c.user_name == user, _CODES.c.hash == digest)
    found = connection.execute(unused).first()
    if found is not None and recovery.is_code(code):
        return NoMatch("a recovery code that was used before") if found.used_ms is not None else Recovery(digest)
    if late:
        return NoMatch("a code that was used before, or the clock went back")
    return NoMatch("wrong code" if rows else "the user has no second factor")


def use(connection: Connection, user: str, found: Totp | Recovery, source: str, now_ms: int) -> bool:
    """Take the code, once: False where somebody else was first. `source`: of the asker, for the audit log."""
    if isinstance(found, Totp):
        columns = _FACTORS.c
        taken = connection.execute(
            update(_FACTORS)
            .where(columns.id == found.factor, columns.last_step < found.step)
            .values(last_step=found.step, used_ms=now_ms)
        )
        return bool(taken.rowcount)
    codes = _CODES.c
    taken = connection.execute(
        update(_CODES)
        .where(codes.user_name == user, codes.hash == found.digest, codes.used_ms.is_(None))
        .values(used_ms=now_ms)
    )
    if not taken.rowcount:
        return False
    said = {"user": user, "addr.remote": source, "success": True, "codes_left": codes_left(connection, user)}
    tell(connection, "recovery_code.used", said, now_ms)
    return True


def has_any(connection: Connection, user: str) -> bool:
    """Whether the user has anything that makes codes."""
    wanted = select(_FACTORS.c.id).where(_FACTORS.c.user_name == user).limit(1)
    return connection.execute(wanted).first() is not None


def codes_left(connection: Connection, user: str) -> int:
    """How many recovery codes a user has not used."""
    wanted = select(func.count()).where(_CODES.c.user_name == user, _CODES.c.used_ms.is_(None))
    return connection.execute(wanted).scalar_one()


def device(found: Totp | Recovery) -> dict[str, Any]:
    """How the audit log calls what was shown."""
    if isinstance(found, Totp):
        return {"mfa_device_name": found.label, "mfa_device_type": "totp"}
    return {"mfa_device_name": "recovery code", "mfa_device_type": "recovery"}


def add_totp(connection: Connection, user: str, sealed: str, step: int, source: str, now_ms: int) -> None:
    """A new factor, whose code of that step has proved that the seed arrived."""
    connection.execute(
        insert(_FACTORS).values(
            user_name=user,
            kind="totp",
            label=TOTP_LABEL,
            seed=sealed,
            last_step=step,
            data=json.dumps({}),
            added_ms=now_ms,
        )
    )
    said = {"user": user, "addr.remote": source, "mfa_device_name": TOTP_LABEL, "mfa_device_type": "totp"}
    tell(connection, "mfa.add", said, now_ms)


def add_codes(connection: Connection, user: str, codes: Iterable[str], source: str, now_ms: int) -> None:
    """A user's recovery codes, who has none."""
    rows = [{"user_name": user, "hash": recovery.digest(user, code)} for code in codes]
    connection.execute(insert(_CODES), rows)
    tell(connection, "recovery_code.generated", {"user": user, "addr.remote": source, "count": len(rows)}, now_ms)


def ensure_key(connection: Connection, seeds: Seeds) -> None:
    """Make the key that seals, where there is none. NotFound where it is gone: what it sealed would be lost."""
    if seeds.exists:
        return
    if connection.execute(select(_FACTORS.c.id).where(_FACTORS.c.seed.is_not(None)).limit(1)).first() is not None:
        raise NotFound(
            f"{seeds.path} does not exist, which sealed the second factors in the database",
            hint="restore it from a backup",
        )
    seeds.ensure()


def note_check(connection: Connection, user: str, source: str, session: str | None, now_ms: int) -> None:
    """A code was shown, from that source: a grace period begins."""
    columns = _CHECKS.c
    values = {"session": session, "at_ms": now_ms}
    changed = connection.execute(
        update(_CHECKS).where(columns.user_name == user, columns.source == source).values(values)
    )
    if not changed.rowcount:
        connection.execute(insert(_CHECKS).values(user_name=user, source=source, **values))


def last_check(connection: Connection, user: str, source: str) -> int | None:
    """When a code was shown last from that source (Unix milliseconds), None if never."""
    columns = _CHECKS.c
    wanted = select(columns.at_ms).where(columns.user_name == user, columns.source == source)
    found: int | None = connection.execute(wanted).scalar()
    return found
