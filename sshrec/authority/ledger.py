"""The ledger: every certificate from before it is signed, who was cut off, and which keys sign in which phase.

Signs nothing and reads no certificate; the clock is the caller's. Writers take turns in the database, so what
is checked here (a free serial, a key id in good standing) still holds when the row is there.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import shlex
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Select, insert, select, update
from sqlalchemy.exc import IntegrityError

from sshrec.authority import locks, told
from sshrec.errors import Denied, NotFound, UsageError
from sshrec.session import printable
from sshrec.storage import schema
from sshrec.storage.database import Conflict, Database, DatabaseError

SERIAL_MAX = 2**63 - 1

_CERTIFICATES, _KEY_IDS, _AUTHORITIES = schema.certificates, schema.revoked_key_ids, schema.authorities
_AT_ONCE = 500  # values in one IN (…)
_ATTEMPTS = 16
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What a certificate is going to say, and for whom it is.

    `kind`: user, host or gateway. `valid_after`, `valid_before`: Unix seconds; it is good from the first and
    no more at the second. The fingerprints are SHA256:…. `asked_by`, `asked_from`: who asked, from where.
    """

    kind: str
    key_id: str
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    key_fingerprint: str
    ca_fingerprint: str
    critical_options: Mapping[str, str]
    extensions: tuple[str, ...]
    asked_by: str
    asked_from: str


@dataclass(frozen=True, kw_only=True)
class Revocation:
    """When (Unix milliseconds), by whom and why."""

    at_ms: int
    by: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Entry(Draft):
    """A certificate in the ledger. `withdrawn`: why it was never handed out, or None."""

    serial: int
    made_ms: int
    withdrawn: str | None
    revoked: Revocation | None

    def expired(self, now: float) -> bool:
        """Whether it is no longer good at a time in Unix seconds."""
        return now >= self.valid_before


@dataclass(frozen=True, kw_only=True)
class RevokedKeyId:
    """A key id that gets no certificate."""

    kind: str
    key_id: str
    revoked: Revocation


@dataclass(frozen=True, kw_only=True)
class AuthorityRow:
    """A CA's public key (the line) and its phase: next, current, old, retired.

    `retires_at`: Unix seconds, when an old one stops being exported. `file`: the private key's file name, None
    when the key lives in an agent or a token.
    """

    fingerprint: str
    kind: str
    public_key: str
    phase: str
    made_ms: int
    current_ms: int | None = None
    old_ms: int | None = None
    retires_at: int | None = None
    retired_ms: int | None = None
    file: str | None = None


def random_serial() -> int:
    """1 to 2^63-1: what both databases hold, and never the 0 that a KRL cannot revoke."""
    return 1 + secrets.randbelow(SERIAL_MAX)


class Ledger:
    """The ledger in a database. Every method is one transaction; DatabaseError where that fails.

    What it changes, the audit log is told of: in the same transaction, by the outbox.
    """

    def __init__(self, database: Database, *, choose: Callable[[], int] = random_serial) -> None:
        self._database = database
        self._choose = choose

    def reserve(self, drafts: Sequence[Draft], now_ms: int) -> list[Entry]:
        """Give each draft a serial and a row, all or none; durable when it returns.

        Denied for a key id that is revoked, or a user who is locked; UsageError for a draft that no certificate
        may be made of.
        """
        for draft in drafts:
            _check(draft)
        if not drafts:
            return []
        with self._database.transaction() as connection:
            _check_standing(connection, drafts, now_ms)
            entries = [
                Entry(**_fields(draft), serial=serial, made_ms=now_ms, withdrawn=None, revoked=None)
                for draft, serial in zip(drafts, self._free_serials(connection, len(drafts)), strict=True)
            ]
            connection.execute(insert(_CERTIFICATES), [_row(entry) for entry in entries])
            told.created(connection, entries, now_ms)
        return entries

    def withdraw(self, serials: Iterable[int], why: str, now_ms: int) -> None:
        """Note that these were never handed out; the first reason stands. NotFound for one that is not there."""
        why = printable(why, 1000)
        with self._database.transaction() as connection:
            found = [entry for entry in _entries(connection, serials).values() if entry.withdrawn is None]
            for part in _parts(entry.serial for entry in found):
                connection.execute(
                    update(_CERTIFICATES).where(_CERTIFICATES.c.serial.in_(part)).values(withdrawn=why)
                )
            told.withdrawn(connection, found, why, now_ms)

    def entry(self, serial: int) -> Entry:
        """The certificate of a serial, or NotFound."""
        with self._database.reading() as connection:
            return _entries(connection, [serial])[serial]

    def entries(
        self,
        *,
        kind: str | None = None,
        key_id: str | None = None,
        ca: str | None = None,
        valid_at: int | None = None,
        withdrawn: bool = False,
        limit: int | None = None,
    ) -> list[Entry]:
        """Certificates, the newest first.

        `ca`: its fingerprint. `valid_at`: Unix seconds within the validity interval, revoked or not.
        `withdrawn`: those that were never handed out, too.
        """
        columns = _CERTIFICATES.c
        wanted = select(_CERTIFICATES).order_by(columns.made_ms.desc(), columns.serial)
        for column, value in ((columns.kind, kind), (columns.key_id, key_id), (columns.ca_fingerprint, ca)):
            if value is not None:
                wanted = wanted.where(column == value)
        if valid_at is not None:
            wanted = wanted.where(columns.valid_after <= valid_at, columns.valid_before > valid_at)
        if not withdrawn:
            wanted = wanted.where(columns.withdrawn.is_(None))
        with self._database.reading() as connection:
            return [_entry(row) for row in connection.execute(wanted.limit(limit))]

    def revoke(self, serials: Iterable[int], by: str, reason: str, now_ms: int) -> list[Entry]:
        """Revoke certificates, and give them as they are now; the first revocation of each stands.

        NotFound for a serial that is not in the ledger; then none is revoked.
        """
        revocation = _revocation(by, reason, now_ms)
        with self._database.transaction() as connection:
            found = _entries(connection, serials)
            _take_krl_number(connection)
            good = [entry for entry in found.values() if entry.revoked is None]
            told.revoked(connection, good, revocation)
            return _revoke(connection, list(found), revocation)

    def revoke_key_id(self, kind: str, key_id: str, by: str, reason: str, now_ms: int) -> list[Entry]:
        """Refuse new certificates to a key id and revoke all it has that are not expired, which are given back.

        Where it is revoked already, the first revocation of the key id stands.
        """
        with self._database.transaction() as connection:
            return cut_off(connection, kind, key_id, by, reason, now_ms)

    def lift_key_id(self, kind: str, key_id: str, by: str, now_ms: int) -> None:
        """Allow a key id new certificates; those that were revoked stay so. NotFound when it is not revoked."""
        with self._database.transaction() as connection:
            let_back(connection, kind, key_id, by, now_ms)

    def revoked_key_ids(self, kind: str) -> list[RevokedKeyId]:
        """Those that are revoked now, the oldest first."""
        with self._database.reading() as connection:
            return all_cut_off(connection, kind)

    def revoked_serials(self, ca_fingerprint: str, valid_after: int) -> list[int]:
        """Revoked certificates of a CA whose validity ends after a time in Unix seconds, in order.

        Expired ones need not be in a KRL; how far a target's clock may be behind is the caller's to allow for.
        """
        columns = _CERTIFICATES.c
        wanted = select(columns.serial).where(
            columns.ca_fingerprint == ca_fingerprint,
            columns.revoked_ms.is_not(None),
            columns.valid_before > valid_after,
        )
        with self._database.reading() as connection:
            return list(connection.execute(wanted.order_by(columns.serial)).scalars())

    def next_krl_number(self, now_ms: int) -> int:
        """A number greater than all before it, even where the clock was set back."""
        with self._database.transaction() as connection:
            return _take_krl_number(connection, now_ms)

    def krl_number(self) -> int:
        """The last number: of the newest list, or greater where something was revoked, or a CA changed, since."""
        with self._database.reading() as connection:
            return _krl_number(connection) or 0

    def authorities(self, kind: str | None = None) -> list[AuthorityRow]:
        """The CAs, retired ones too, the oldest first."""
        wanted = _authorities()
        if kind is not None:
            wanted = wanted.where(_AUTHORITIES.c.kind == kind)
        with self._database.reading() as connection:
            return [AuthorityRow(**row._mapping) for row in connection.execute(wanted)]

    def add_authorities(self, rows: Sequence[AuthorityRow], by: str, now_ms: int) -> None:
        """Note new CAs, all or none; Conflict where a key is known, or another of its kind is in that phase."""
        with self._database.transaction() as connection:
            _take_krl_number(connection)
            told.introduced(connection, rows, by, now_ms)
            for row in rows:
                try:
                    connection.execute(insert(_AUTHORITIES).values(dataclasses.asdict(row)))
                except IntegrityError as error:
                    raise Conflict(
                        f"the {row.kind} CA {row.fingerprint} is there already, or another is {row.phase}"
                    ) from error

    def change_authorities(
        self,
        rule: Callable[[Sequence[AuthorityRow]], Sequence[AuthorityRow]],
        by: str,
        now_ms: int,
        why: str = "",
    ) -> list[AuthorityRow]:
        """Change phases, their times and files, several at once: what was current is old as the next takes over.

        `rule`: given all CAs, the oldest first, it says how some of them are to be, which are returned; nobody
        else changes one meanwhile. What it raises passes through, and nothing is changed. NotFound for a
        fingerprint that is not there, Conflict for a second next or current one of a kind.
        """
        try:
            with self._database.transaction() as connection:
                return self._change_authorities(connection, rule, by, now_ms, why)
        except Conflict as error:
            raise Conflict("only one CA of each kind can be next, and only one current") from error

    def _change_authorities(
        self,
        connection: Connection,
        rule: Callable[[Sequence[AuthorityRow]], Sequence[AuthorityRow]],
        by: str,
        now_ms: int,
        why: str,
    ) -> list[AuthorityRow]:
        columns = _AUTHORITIES.c
        there = [AuthorityRow(**row._mapping) for row in connection.execute(_authorities())]
        rows = list(rule(there))
        if not rows:
            return rows
        _take_krl_number(connection)
        # Both engines check after each row that there is one current CA a kind: first, all step aside.
        for phase in ("retired", None):
            for row in rows:
                values = {"phase": phase} if phase else {name: getattr(row, name) for name in _CHANGING}
                changed = connection.execute(
                    update(_AUTHORITIES).where(columns.fingerprint == row.fingerprint).values(values)
                )
                if not changed.rowcount:
                    raise NotFound(f"no certificate authority {row.fingerprint}")
        told.rotated(connection, rows, {row.fingerprint: row.phase for row in there}, by, why, now_ms)
        return rows

    def _free_serials(self, connection: Connection, count: int) -> list[int]:
        """So many serials that are neither in the ledger nor chosen twice."""
        free: dict[int, None] = {}
        for _ in range(_ATTEMPTS):
            chosen = {serial: None for _ in range(count - len(free)) if (serial := self._choose()) not in free}
            taken = {serial for part in _parts(chosen) for serial in connection.scalars(_serials_in(part))}
            free.update({serial: None for serial in chosen if serial not in taken})
            if len(free) == count:
                return list(free)
        raise DatabaseError(f"no free serial in {_ATTEMPTS} attempts: the random numbers are not random")


# ---- within somebody else's transaction --------------------------------------------------------------------


def cut_off(connection: Connection, kind: str, key_id: str, by: str, reason: str, now_ms: int) -> list[Entry]:
    """As Ledger.revoke_key_id."""
    _check_kind(kind)
    _check_text("key id", key_id)
    revocation = _revocation(by, reason, now_ms)
    _take_krl_number(connection)
    new = not connection.execute(_unlifted(kind, [key_id])).first()
    if new:
        connection.execute(
            insert(_KEY_IDS).values(kind=kind, key_id=key_id, revoked_ms=now_ms, revoked_by=by, reason=reason)
        )
    serials = [entry.serial for entry in _good(connection, kind, key_id, now_ms)]
    if new or serials:
        told.revoked_key_id(connection, kind, key_id, serials, revocation)
    return _revoke(connection, serials, revocation)


def let_back(connection: Connection, kind: str, key_id: str, by: str, now_ms: int) -> None:
    """As Ledger.lift_key_id."""
    _check_text("lifted by", by)
    lifted = connection.execute(
        update(_KEY_IDS)
        .where(_KEY_IDS.c.kind == kind, _KEY_IDS.c.key_id == key_id, _KEY_IDS.c.lifted_ms.is_(None))
        .values(lifted_ms=now_ms, lifted_by=by)
    )
    if not lifted.rowcount:
        raise NotFound(f"{kind} key id {key_id!r} is not revoked")
    _take_krl_number(connection)
    told.lifted_key_id(connection, kind, key_id, by, now_ms)


def all_cut_off(connection: Connection, kind: str) -> list[RevokedKeyId]:
    """The key ids that are revoked now, the oldest first."""
    return [_revoked_key_id(row) for row in connection.execute(_unlifted(kind))]


def is_cut_off(connection: Connection, kind: str, key_id: str) -> RevokedKeyId | None:
    """The revocation of a key id, None where it may have certificates."""
    row = connection.execute(_unlifted(kind, [key_id])).first()
    return None if row is None else _revoked_key_id(row)


def revocation(connection: Connection, serial: int) -> Revocation | None:
    """The revocation of a certificate; None where it is good, or not in the ledger."""
    if not 0 < serial <= SERIAL_MAX:
        return None  # no driver takes it
    columns = _CERTIFICATES.c
    row = connection.execute(
        select(columns.revoked_ms, columns.revoked_by, columns.revoke_reason).where(columns.serial == serial)
    ).first()
    if row is None or row.revoked_ms is None:
        return None
    return Revocation(at_ms=row.revoked_ms, by=row.revoked_by, reason=row.revoke_reason)


def revoke_all(
    connection: Connection,
    kind: str,
    key_id: str,
    by: str,
    reason: str,
    now_ms: int,
    principals: Iterable[str] | None = None,
) -> list[Entry]:
    """Revoke what a key id has that is not expired, and give it back; it may have new ones.

    `principals`: only certificates with one of these.
    """
    revocation = _revocation(by, reason, now_ms)
    good = _good(connection, kind, key_id, now_ms)
    if principals is not None:
        good = [entry for entry in good if not set(principals).isdisjoint(entry.principals)]
    if not good:
        return []
    _take_krl_number(connection)
    told.revoked(connection, good, revocation)
    return _revoke(connection, [entry.serial for entry in good], revocation)


def _good(connection: Connection, kind: str, key_id: str, now_ms: int) -> list[Entry]:
    columns = _CERTIFICATES.c
    wanted = select(_CERTIFICATES).where(
        columns.kind == kind,
        columns.key_id == key_id,
        columns.valid_before > now_ms // 1000,
        columns.revoked_ms.is_(None),
    )
    return [_entry(row) for row in connection.execute(wanted)]


def _authorities() -> Select[Any]:
    """All of them, the oldest first."""
    return select(_AUTHORITIES).order_by(_AUTHORITIES.c.made_ms, _AUTHORITIES.c.fingerprint)


_CHANGING = ("phase", "current_ms", "old_ms", "retires_at", "retired_ms", "file")


def _check(draft: Draft) -> None:
    """UsageError for what must never be signed: without principals, without an end, with unprintable names."""
    _check_kind(draft.kind)
    texts = (*draft.principals, *draft.extensions, *draft.critical_options, *draft.critical_options.values())
    for text in (draft.key_id, draft.asked_by, draft.asked_from, *texts):
        _check_text(f"certificate for {draft.key_id!r}", text)
    if not draft.key_id or not all(draft.principals) or not draft.principals:
        raise UsageError(f"certificate for {draft.key_id!r}: it needs a key id and principals")
    if not 0 <= draft.valid_after < draft.valid_before <= SERIAL_MAX:
        raise UsageError(f"certificate for {draft.key_id!r}: it must begin before it ends, and end")


def _check_kind(kind: str) -> None:
    if kind not in schema.KINDS:
        raise UsageError(f"unknown kind of certificate {kind!r}")


def _check_text(what: str, text: str) -> None:
    """UsageError for text that a terminal acts on, or that a database does not hold (NUL, lone surrogates)."""
    if text.isascii() and text.isprintable():
        return
    if any(unicodedata.category(character) in _UNPRINTABLE for character in text):
        raise UsageError(f"{what}: '{printable(text, 80)}' has control characters")


_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _check_standing(connection: Connection, drafts: Sequence[Draft], now_ms: int) -> None:
    """Denied where one of the drafts is for a revoked key id, or a user who is locked."""
    for part in _parts({draft.key_id for draft in drafts if draft.kind == "user"}):
        locks.check(connection, "user", part, now_ms)
    for kind in schema.KINDS:
        which = "" if kind == "user" else f"--kind {kind} "
        for part in _parts({draft.key_id for draft in drafts if draft.kind == kind}):
            for row in connection.execute(_unlifted(kind, part)):
                at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(row.revoked_ms / 1000))
                raise Denied(
                    f"{kind} key id {row.key_id!r} was revoked by {row.revoked_by} on {at}"
                    + (f": {row.reason}" if row.reason else ""),
                    hint=f"to lift it: sshrec-ca revoke --undo {which}{shlex.quote(row.key_id)}",
                )


def _revocation(by: str, reason: str, now_ms: int) -> Revocation:
    _check_text("revoked by", by)
    _check_text("reason", reason)
    return Revocation(at_ms=now_ms, by=by, reason=reason)


def _revoke(connection: Connection, serials: Sequence[int], revocation: Revocation) -> list[Entry]:
    for part in _parts(serials):
        connection.execute(
            update(_CERTIFICATES)
            .where(_CERTIFICATES.c.serial.in_(part), _CERTIFICATES.c.revoked_ms.is_(None))
            .values(revoked_ms=revocation.at_ms, revoked_by=revocation.by, revoke_reason=revocation.reason)
        )
    return list(_entries(connection, serials).values())


def _krl_number(connection: Connection) -> int | None:
    counters = schema.counters
    last: int | None = connection.execute(select(counters.c.value).where(counters.c.name == "krl")).scalar()
    return last


def _take_krl_number(connection: Connection, at_least: int = 1) -> int:
    """The next one. What changes what a list says takes one, so that a list from before can be told."""
    counters, last = schema.counters, _krl_number(connection)
    number = max((last or 0) + 1, at_least)
    if last is None:
        connection.execute(insert(counters).values(name="krl", value=number))
    else:
        connection.execute(update(counters).where(counters.c.name == "krl").values(value=number))
    return number


def _unlifted(kind: str, key_ids: Iterable[str] | None = None) -> Select[Any]:
    columns = _KEY_IDS.c
    wanted = select(_KEY_IDS).where(columns.kind == kind, columns.lifted_ms.is_(None))
    if key_ids is not None:
        wanted = wanted.where(columns.key_id.in_(list(key_ids)))
    return wanted.order_by(columns.revoked_ms, columns.id)


def _serials_in(part: Sequence[int]) -> Select[Any]:
    return select(_CERTIFICATES.c.serial).where(_CERTIFICATES.c.serial.in_(part))


def _entries(connection: Connection, serials: Iterable[int]) -> dict[int, Entry]:
    """Entries by serial, in the order asked for; NotFound for one that is not there."""
    wanted = list(dict.fromkeys(serials))
    # What is out of range no driver takes.
    possible = [serial for serial in wanted if 0 < serial <= SERIAL_MAX]
    found = {
        row.serial: _entry(row)
        for part in _parts(possible)
        for row in connection.execute(select(_CERTIFICATES).where(_CERTIFICATES.c.serial.in_(part)))
    }
    for serial in wanted:
        if serial not in found:
            raise NotFound(f"no certificate with serial {serial} in the ledger", hint="see: sshrec-ca ls")
    return {serial: found[serial] for serial in wanted}


def _parts(values: Iterable[_T]) -> Iterator[list[_T]]:
    listed = list(values)
    for start in range(0, len(listed), _AT_ONCE):
        yield listed[start : start + _AT_ONCE]


def _fields(draft: Draft) -> dict[str, Any]:
    return {field.name: getattr(draft, field.name) for field in dataclasses.fields(Draft)}


def _row(entry: Entry) -> dict[str, Any]:
    """A new entry as a row."""
    return _fields(entry) | {
        "serial": entry.serial,
        "made_ms": entry.made_ms,
        "principals": _json(list(entry.principals)),
        "critical_options": _json(dict(entry.critical_options)),
        "extensions": _json(list(entry.extensions)),
    }


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _entry(row: Row[Any]) -> Entry:
    fields = dict(row._mapping)
    at_ms, by, reason = fields.pop("revoked_ms"), fields.pop("revoked_by"), fields.pop("revoke_reason")
    fields["principals"] = tuple(json.loads(fields["principals"]))
    fields["critical_options"] = json.loads(fields["critical_options"])
    fields["extensions"] = tuple(json.loads(fields["extensions"]))
    revoked = None if at_ms is None else Revocation(at_ms=at_ms, by=by, reason=reason)
    return Entry(**fields, revoked=revoked)


def _revoked_key_id(row: Row[Any]) -> RevokedKeyId:
    revoked = Revocation(at_ms=row.revoked_ms, by=row.revoked_by, reason=row.reason)
    return RevokedKeyId(kind=row.kind, key_id=row.key_id, revoked=revoked)
