"""The ledger on SQLite and PostgreSQL: no serial twice, nothing lost, nobody signed who was cut off."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from sshrec.authority.ledger import SERIAL_MAX, AuthorityRow, Draft, Entry, Ledger, Revocation
from sshrec.errors import Denied, NotFound, UsageError
from sshrec.storage.database import Busy, Conflict, Database, DatabaseError
from tests.contract.processes import SPAWN, at_once

NOW = 1_700_000_000
NOW_MS = NOW * 1000
HOUR = 3600

JOE = Draft(
    kind="user",
    key_id="joe",
    principals=("joe", "root", "sshrec:joe"),
    valid_after=NOW - 300,
    valid_before=NOW + HOUR,
    key_fingerprint="SHA256:8Jp4c0cPm0Wq4y1o5jzq2b0cVq0i2wG7mYxj0o2yqzE",
    ca_fingerprint="SHA256:userca",
    critical_options={"source-address": "10.0.0.0/8", "force-command": 'echo "ü"'},
    extensions=("permit-pty", "permit-agent-forwarding"),
    asked_by="root",
    asked_from="10.0.0.7",
)
ALICE = dataclasses.replace(JOE, key_id="alice", principals=("alice",), critical_options={})
WEB1 = dataclasses.replace(JOE, kind="host", key_id="web1", ca_fingerprint="SHA256:hostca", extensions=())


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


def _choosing(*serials: int) -> Callable[[], int]:
    remaining: Iterator[int] = iter(serials)
    return lambda: next(remaining)


def _key_ids(entries: list[Entry]) -> list[str]:
    return [entry.key_id for entry in entries]


# ---- serials -----------------------------------------------------------------------------------------------


def test_what_goes_in_comes_out(ledger: Ledger) -> None:
    (entry,) = ledger.reserve([JOE], NOW_MS)
    assert 0 < entry.serial <= SERIAL_MAX
    assert ledger.entry(entry.serial) == entry
    assert {name: getattr(entry, name) for name in dataclasses.asdict(JOE)} == dataclasses.asdict(JOE)
    assert (entry.made_ms, entry.withdrawn, entry.revoked) == (NOW_MS, None, None)
    assert not entry.expired(NOW + HOUR - 1)
    assert entry.expired(NOW + HOUR)


def test_a_thousand_at_once_in_their_order(ledger: Ledger) -> None:
    drafts = [dataclasses.replace(JOE, key_id=f"user{number}") for number in range(1000)]
    entries = ledger.reserve(drafts, NOW_MS)
    assert _key_ids(entries) == [draft.key_id for draft in drafts]
    assert len({entry.serial for entry in entries}) == 1000
    assert {entry.serial: entry for entry in ledger.entries()} == {entry.serial: entry for entry in entries}
    assert len(ledger.revoke([entry.serial for entry in entries], "root", "all", NOW_MS)) == 1000


def test_none_for_none(ledger: Ledger) -> None:
    assert ledger.reserve([], NOW_MS) == []


@pytest.mark.parametrize("serial", [1, SERIAL_MAX])
def test_the_smallest_and_the_greatest_serial(database: Database, serial: int) -> None:
    ledger = Ledger(database, choose=_choosing(serial))
    ledger.reserve([JOE], NOW_MS)
    ledger.revoke([serial], "root", "", NOW_MS)
    assert ledger.revoked_serials(JOE.ca_fingerprint, NOW) == [serial]


def test_a_serial_that_is_taken_is_chosen_anew(database: Database) -> None:
    ledger = Ledger(database, choose=_choosing(7, 7, 7, 8, 8, 9))
    assert [entry.serial for entry in ledger.reserve([JOE], NOW_MS)] == [7]
    # Taken by the first, chosen twice within one call, and both at once.
    assert sorted(entry.serial for entry in ledger.reserve([ALICE, WEB1], NOW_MS)) == [8, 9]
    assert ledger.entry(7).key_id == "joe"


def test_random_numbers_that_are_not(database: Database) -> None:
    ledger = Ledger(database, choose=lambda: 7)
    ledger.reserve([JOE], NOW_MS)
    with pytest.raises(DatabaseError, match="no free serial"):
        ledger.reserve([ALICE], NOW_MS)
    assert _key_ids(ledger.entries()) == ["joe"]


@pytest.mark.parametrize("serial", [0, -1])
def test_no_certificate_has_serial_0(database: Database, serial: int) -> None:
    with pytest.raises(DatabaseError, match="ck_certificates_serial"):
        Ledger(database, choose=lambda: serial).reserve([JOE], NOW_MS)
    assert Ledger(database).entries() == []


def _reserve(url: str, times: int, most: int) -> list[int]:
    """Of so few serials that two processes choose the same ones all the time."""
    with Database.open(url, busy_seconds=60) as database:
        ledger = Ledger(database, choose=lambda: 1 + secrets.randbelow(most))
        return [ledger.reserve([JOE], NOW_MS)[0].serial for _ in range(times)]


def test_two_processes_never_share_a_serial(url: str, ledger: Ledger) -> None:
    one, two = at_once([_reserve] * 2, url, 40, 300)
    assert len({*one, *two}) == 80
    assert {entry.serial for entry in ledger.entries()} == {*one, *two}


# ---- what must not be signed -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kind": "admin"}, "unknown kind of certificate 'admin'"),
        ({"key_id": ""}, "it needs a key id and principals"),
        ({"principals": ()}, "it needs a key id and principals"),
        ({"principals": ("joe", "")}, "it needs a key id and principals"),
        ({"valid_before": JOE.valid_after}, "it must begin before it ends"),
        ({"valid_before": 2**64 - 1}, "and end"),
        ({"valid_after": -1}, "it must begin before it ends"),
        ({"key_id": "joe\x1b]0;"}, r"'joe\x1b]0;' has control characters"),
        ({"asked_from": "10.0.0.7\n"}, r"'10.0.0.7\n' has control characters"),
        ({"asked_by": "joe\0"}, r"'joe\x00' has control characters"),
        ({"asked_by": "joe\udcff"}, r"'joe\udcff' has control characters"),
        ({"principals": ("jo\u202ee",)}, r"'jo\u202ee' has control characters"),
        ({"critical_options": {"force-command": "id\nsh"}}, "has control characters"),
    ],
)
def test_a_draft_that_cannot_be(ledger: Ledger, changed: dict[str, object], said: str) -> None:
    bad = dataclasses.replace(JOE, **changed)  # type: ignore[arg-type]
    with pytest.raises(UsageError) as raised:
        ledger.reserve([ALICE, bad], NOW_MS)
    assert said in str(raised.value)
    assert str(raised.value).isprintable()
    assert ledger.entries() == []


def test_a_revoked_key_id_gets_none_and_neither_do_those_with_it(ledger: Ledger) -> None:
    ledger.revoke_key_id("user", "joe", "alice", "left the company", NOW_MS)
    with pytest.raises(Denied) as raised:
        ledger.reserve([ALICE, JOE], NOW_MS)
    assert str(raised.value) == (
        "user key id 'joe' was revoked by alice on 2023-11-14 22:13:20 UTC: left the company"
    )
    assert raised.value.hint == "to lift it: sshrec-ca revoke --undo joe"
    assert ledger.entries() == []


def test_a_host_may_bear_the_name_of_a_revoked_user(ledger: Ledger) -> None:
    ledger.revoke_key_id("user", "web1", "root", "", NOW_MS)
    assert _key_ids(ledger.reserve([WEB1], NOW_MS)) == ["web1"]


# ---- withdrawn ---------------------------------------------------------------------------------------------


def test_what_was_never_handed_out_is_kept_apart(ledger: Ledger) -> None:
    joe, alice = ledger.reserve([JOE, ALICE], NOW_MS)
    ledger.withdraw([joe.serial], "ssh-keygen: agent refused\noperation", NOW_MS)
    ledger.withdraw([joe.serial], "another reason", NOW_MS)
    assert ledger.entry(joe.serial).withdrawn == r"ssh-keygen: agent refused\noperation"
    assert ledger.entries() == [alice]
    assert sorted(_key_ids(ledger.entries(withdrawn=True))) == ["alice", "joe"]


# ---- looking -----------------------------------------------------------------------------------------------


def test_the_newest_first_and_what_was_asked_for(ledger: Ledger) -> None:
    ledger.reserve([JOE], NOW_MS)
    ledger.reserve([WEB1], NOW_MS + 2)
    ledger.reserve([ALICE], NOW_MS + 1)
    ledger.reserve([dataclasses.replace(JOE, valid_before=NOW + 9 * HOUR)], NOW_MS + 3)
    assert _key_ids(ledger.entries()) == ["joe", "web1", "alice", "joe"]
    assert _key_ids(ledger.entries(limit=2)) == ["joe", "web1"]
    assert _key_ids(ledger.entries(kind="user")) == ["joe", "alice", "joe"]
    assert _key_ids(ledger.entries(kind="user", key_id="alice")) == ["alice"]
    assert _key_ids(ledger.entries(ca="SHA256:hostca")) == ["web1"]
    assert _key_ids(ledger.entries(valid_at=NOW + HOUR)) == ["joe"]
    assert len(ledger.entries(valid_at=NOW + HOUR - 1)) == 4
    assert len(ledger.entries(valid_at=JOE.valid_after)) == 4
    assert ledger.entries(valid_at=JOE.valid_after - 1) == []


@pytest.mark.parametrize("serial", [0, -1, 12345, 2**63, 2**64 - 1, 10**30])
def test_a_serial_that_is_not_there(ledger: Ledger, serial: int) -> None:
    for ask in (
        lambda: ledger.entry(serial),
        lambda: ledger.revoke([serial], "root", "", NOW_MS),
        lambda: ledger.withdraw([serial], "why", NOW_MS),
    ):
        with pytest.raises(NotFound, match=f"^no certificate with serial {serial} in the ledger$"):
            ask()


# ---- revoked -----------------------------------------------------------------------------------------------


def test_the_first_revocation_stands(ledger: Ledger) -> None:
    joe, alice = ledger.reserve([JOE, ALICE], NOW_MS)
    first = Revocation(at_ms=NOW_MS + 1, by="root", reason="lost laptop")
    assert ledger.revoke([joe.serial], "root", "lost laptop", NOW_MS + 1) == [
        dataclasses.replace(joe, revoked=first)
    ]
    again = ledger.revoke([alice.serial, joe.serial], "eve", "for fun", NOW_MS + 2)
    assert [entry.revoked for entry in again] == [Revocation(at_ms=NOW_MS + 2, by="eve", reason="for fun"), first]
    assert ledger.entry(joe.serial).revoked == first


def test_all_are_revoked_or_none(ledger: Ledger) -> None:
    (joe,) = ledger.reserve([JOE], NOW_MS)
    with pytest.raises(NotFound):
        ledger.revoke([joe.serial, 12345], "root", "", NOW_MS)
    assert ledger.entry(joe.serial).revoked is None


def test_a_reason_is_one_line(ledger: Ledger) -> None:
    (joe,) = ledger.reserve([JOE], NOW_MS)
    with pytest.raises(UsageError, match=r"^reason: "):
        ledger.revoke([joe.serial], "root", "lost\x1b[2J", NOW_MS)
    assert ledger.entry(joe.serial).revoked is None


def test_a_key_id_with_all_that_it_has(ledger: Ledger) -> None:
    expired = dataclasses.replace(JOE, valid_before=NOW)
    joe, old, alice = ledger.reserve([JOE, expired, ALICE], NOW_MS)
    (revoked,) = ledger.revoke_key_id("user", "joe", "root", "left", NOW_MS)
    assert revoked.serial == joe.serial
    assert ledger.entry(joe.serial).revoked == Revocation(at_ms=NOW_MS, by="root", reason="left")
    assert ledger.entry(old.serial).revoked is None
    assert ledger.entry(alice.serial).revoked is None
    assert [each.key_id for each in ledger.revoked_key_ids("user")] == ["joe"]
    assert ledger.revoked_key_ids("host") == []


def test_a_key_id_revoked_twice_is_revoked_once(ledger: Ledger) -> None:
    ledger.revoke_key_id("user", "joe", "root", "left", NOW_MS)
    ledger.revoke_key_id("user", "joe", "eve", "again", NOW_MS + 1)
    (found,) = ledger.revoked_key_ids("user")
    assert (found.key_id, found.revoked) == ("joe", Revocation(at_ms=NOW_MS, by="root", reason="left"))
    assert ledger.revoked_key_ids("host") == []


def test_a_key_id_that_is_lifted_gets_new_ones_and_the_old_stay_revoked(ledger: Ledger) -> None:
    (old,) = ledger.reserve([JOE], NOW_MS)
    ledger.revoke_key_id("user", "joe", "root", "left", NOW_MS)
    ledger.lift_key_id("user", "joe", "root", NOW_MS + 1)
    (new,) = ledger.reserve([JOE], NOW_MS + 2)
    assert ledger.revoked_key_ids("user") == []
    assert ledger.revoked_serials(JOE.ca_fingerprint, NOW) == [old.serial]
    ledger.revoke_key_id("user", "joe", "root", "left again", NOW_MS + 3)
    assert ledger.revoked_serials(JOE.ca_fingerprint, NOW) == sorted([old.serial, new.serial])
    assert [found.revoked.reason for found in ledger.revoked_key_ids("user")] == ["left again"]


def test_only_what_is_revoked_can_be_lifted(ledger: Ledger) -> None:
    ledger.revoke_key_id("host", "joe", "root", "", NOW_MS)
    with pytest.raises(NotFound, match=r"^user key id 'joe' is not revoked$"):
        ledger.lift_key_id("user", "joe", "root", NOW_MS)


def _sign(url: str, people: int) -> None:
    """For one after the other, until the ledger refuses."""
    with Database.open(url, busy_seconds=60) as database:
        ledger = Ledger(database)
        for number in range(people):
            with contextlib.suppress(Denied):
                while True:
                    (entry,) = ledger.reserve([dataclasses.replace(JOE, key_id=f"joe{number}")], NOW_MS)
                    ledger.entry(entry.serial)  # SQLite knows no queue: leave the other a gap


def _revoke(url: str, people: int) -> None:
    """One after the other, as soon as there is something to revoke."""
    with Database.open(url, busy_seconds=60) as database:
        ledger = Ledger(database)
        for number in range(people):
            while not ledger.entries(key_id=f"joe{number}", limit=1):
                pass
            ledger.revoke_key_id("user", f"joe{number}", "root", "", NOW_MS)


def test_no_certificate_slips_past_its_revocation(url: str, ledger: Ledger) -> None:
    at_once([_sign, _revoke], url, 20)
    assert len(ledger.revoked_key_ids("user")) == 20
    assert [entry for entry in ledger.entries() if not entry.revoked] == []


def test_the_list_for_a_krl_has_what_is_not_expired_of_one_ca(ledger: Ledger) -> None:
    joe, alice, web1, _ = ledger.reserve([JOE, ALICE, WEB1, JOE], NOW_MS)
    ledger.revoke([joe.serial, alice.serial, web1.serial], "root", "", NOW_MS)
    assert ledger.revoked_serials("SHA256:userca", NOW) == sorted([joe.serial, alice.serial])
    assert ledger.revoked_serials("SHA256:hostca", NOW + HOUR - 1) == [web1.serial]
    assert ledger.revoked_serials("SHA256:hostca", NOW + HOUR) == []


def test_krl_numbers_only_grow(ledger: Ledger) -> None:
    times = [NOW_MS, NOW_MS, NOW_MS - 60_000, NOW_MS + 5]
    assert [ledger.next_krl_number(now_ms) for now_ms in times] == [NOW_MS, NOW_MS + 1, NOW_MS + 2, NOW_MS + 5]


def test_whatever_changes_the_list_makes_the_last_one_old(ledger: Ledger) -> None:
    assert ledger.krl_number() == 0
    (joe,) = ledger.reserve([JOE], NOW_MS)
    published = ledger.next_krl_number(NOW_MS)
    ledger.withdraw([joe.serial], "no signature", NOW_MS)
    assert ledger.krl_number() == published
    changes: list[Callable[[], object]] = [
        lambda: ledger.revoke([joe.serial], "root", "", NOW_MS),
        lambda: ledger.revoke_key_id("user", "joe", "root", "", NOW_MS),
        lambda: ledger.lift_key_id("user", "joe", "root", NOW_MS),
        lambda: ledger.add_authorities([_ca("one", "current")], "root", NOW_MS),
        lambda: ledger.change_authorities(lambda _: [_ca("one", "retired")], "root", NOW_MS),
    ]
    for change in changes:
        change()
        assert ledger.krl_number() > published
        published = ledger.next_krl_number(NOW_MS)


def _krl_numbers(url: str, times: int) -> list[int]:
    with Database.open(url, busy_seconds=60) as database:
        return [Ledger(database).next_krl_number(NOW_MS) for _ in range(times)]


def test_two_processes_never_share_a_krl_number(url: str, ledger: Ledger) -> None:
    one, two = at_once([_krl_numbers] * 2, url, 20)
    assert sorted(one + two) == list(range(NOW_MS, NOW_MS + 40))


# ---- authorities -------------------------------------------------------------------------------------------


def _ca(name: str, phase: str, kind: str = "user") -> AuthorityRow:
    return AuthorityRow(
        fingerprint=f"SHA256:{name}",
        kind=kind,
        public_key=f"ssh-ed25519 AAAA{name} sshrec {kind} CA",
        phase=phase,
        made_ms=NOW_MS,
        file=f"{kind}_ca",
    )


def _phases(ledger: Ledger) -> dict[str, str]:
    return {row.fingerprint.removeprefix("SHA256:"): row.phase for row in ledger.authorities()}


def test_authorities_of_each_kind(ledger: Ledger) -> None:
    rows = [_ca("a", "current"), _ca("b", "next"), _ca("c", "current", "host"), _ca("d", "old"), _ca("e", "old")]
    for row in rows:
        ledger.add_authorities([row], "root", NOW_MS)
    assert ledger.authorities() == rows
    assert ledger.authorities("host") == [rows[2]]
    assert ledger.authorities("gateway") == []


@pytest.mark.parametrize("forwards", [True, False])
def test_phases_change_together(ledger: Ledger, forwards: bool) -> None:
    a, b = _ca("a", "current"), _ca("b", "next")
    ledger.add_authorities([a], "root", NOW_MS)
    ledger.add_authorities([b], "root", NOW_MS)
    changed = [
        dataclasses.replace(a, phase="old", old_ms=NOW_MS, retires_at=NOW + HOUR),
        dataclasses.replace(b, phase="current", current_ms=NOW_MS),
    ]
    ledger.change_authorities(lambda _: changed if forwards else changed[::-1], "root", NOW_MS)
    assert ledger.authorities() == changed
    # And straight over cross: each takes the place of the other.
    changed = [dataclasses.replace(b, phase="next"), dataclasses.replace(a, phase="current")]
    ledger.change_authorities(lambda _: changed, "root", NOW_MS)
    changed = [dataclasses.replace(a, phase="next"), dataclasses.replace(b, phase="current")]
    ledger.change_authorities(lambda _: changed, "root", NOW_MS)
    assert _phases(ledger) == {"a": "next", "b": "current"}


def test_one_next_and_one_current_of_a_kind(ledger: Ledger) -> None:
    ledger.add_authorities([_ca("a", "current")], "root", NOW_MS)
    ledger.add_authorities([_ca("b", "old")], "root", NOW_MS)
    with pytest.raises(Conflict, match=r"^the user CA SHA256:c is there already, or another is current$"):
        ledger.add_authorities([_ca("c", "current")], "root", NOW_MS)
    with pytest.raises(Conflict, match="only one current"):
        ledger.change_authorities(lambda _: [_ca("b", "current")], "root", NOW_MS)
    assert _phases(ledger) == {"a": "current", "b": "old"}


def test_a_key_is_an_authority_once(ledger: Ledger) -> None:
    ledger.add_authorities([_ca("a", "retired")], "root", NOW_MS)
    with pytest.raises(Conflict, match="is there already"):
        ledger.add_authorities([_ca("a", "current", "host")], "root", NOW_MS)


def test_an_authority_that_is_not_there_changes_nothing(ledger: Ledger) -> None:
    ledger.add_authorities([_ca("a", "current")], "root", NOW_MS)
    with pytest.raises(NotFound, match=r"^no certificate authority SHA256:b$"):
        ledger.change_authorities(lambda _: [_ca("a", "old"), _ca("b", "current")], "root", NOW_MS)
    assert _phases(ledger) == {"a": "current"}


# ---- faults ------------------------------------------------------------------------------------------------


def test_a_locked_ledger_gives_no_certificate(url: str, ledger: Ledger, database: Database) -> None:
    with Database.open(url, busy_seconds=0.05) as impatient:
        with database.transaction(), pytest.raises(Busy):
            Ledger(impatient).reserve([JOE], NOW_MS)
        assert ledger.entries(withdrawn=True) == []
        (entry,) = Ledger(impatient).reserve([JOE], NOW_MS)
    assert ledger.entries() == [entry]


def test_a_full_disk_gives_no_certificate(tmp_path: Path) -> None:
    with Database.open(f"sqlite:///{tmp_path}/sshrec.db", create=True) as database:
        ledger = Ledger(database)
        (first,) = ledger.reserve([JOE], NOW_MS)
        with database.transaction() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(DatabaseError, match="no space left"):
            ledger.reserve([JOE] * 1000, NOW_MS)
        assert ledger.entries() == [first]


def _reserve_until_killed(url: str, told: Connection) -> None:
    with Database.open(url) as database:
        ledger = Ledger(database)
        for number in range(20):
            told.send([entry.serial for entry in ledger.reserve([JOE, ALICE], NOW_MS + number)])
        with database.transaction() as connection:
            connection.exec_driver_sql("UPDATE certificates SET key_id = 'half'")
            told.send(None)
            told.recv()  # never comes


def test_killed_in_the_middle(url: str, ledger: Ledger) -> None:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_reserve_until_killed, args=(url, theirs), daemon=True)
    process.start()
    serials: list[int] = []
    while (part := ours.recv()) is not None:
        serials += part
    process.kill()
    process.join(30)
    assert sorted(entry.serial for entry in ledger.entries()) == sorted(serials)
    assert {entry.key_id for entry in ledger.entries()} == {"joe", "alice"}
    assert len(ledger.reserve([JOE], NOW_MS)) == 1


def _reserve_for_ever(url: str, told: Connection) -> None:
    with Database.open(url) as database:
        ledger = Ledger(database)
        while True:
            told.send(ledger.reserve([JOE] * 10, NOW_MS)[0].serial)


@pytest.mark.parametrize("answers", [1, 7, 30])
def test_killed_at_any_time(url: str, ledger: Ledger, answers: int) -> None:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=_reserve_for_ever, args=(url, theirs), daemon=True)
    process.start()
    theirs.close()
    for _ in range(answers):
        ours.recv()
    process.kill()
    process.join(30)
    found = ledger.entries()
    assert len(found) >= 10 * answers
    assert len(found) % 10 == 0
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        connection.close()
