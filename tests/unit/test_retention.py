"""Which recordings go: ages and sizes in, decisions out; holds; and a removal that dies between its two halves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshrec.audit.event import AuditError
from sshrec.config import Retention, parse
from sshrec.duration import Duration
from sshrec.errors import ConfigError, DataError, Unreachable
from sshrec.recording import packing
from sshrec.session import session_id
from sshrec.size import Size
from sshrec.storage import holds, removal
from sshrec.storage.holds import Hold, Holds, exclusive
from sshrec.storage.local import Store
from sshrec.storage.removal import Removal
from sshrec.storage.retention import UNPACKED, Policy, Remove, Stored, due
from tests.recordings import SESSION, noise, record

DAY = 86_400_000
TEXT = record([(0.1, noise(100_000, seed=n)) for n in range(20)]).text
NOW = 1_800_000_000_000
GIB = 1 << 30


def at(days_ago: float, *, size: int = GIB, packed: bool = True) -> Stored:
    return Stored(session_id(int(NOW - days_ago * DAY), b"0123456789"), size, packed)


def decide(*recordings: Stored, age: str | None = None, size: str | None = None, **kept: str) -> list[str]:
    """What becomes of recordings, by their age in days: `removed: why`, `kept: why`."""
    policy = Policy(Duration.parse(age) if age else None, Size.parse(size) if size else None)
    days = {stored.session: n for n, stored in enumerate(recordings)}
    why = {recordings[int(name[1:])].session: reason for name, reason in kept.items()}
    return [
        f"{days[found.stored.session]} {'removed' if isinstance(found, Remove) else 'kept'}: {found.reason}"
        for found in due(recordings, policy, NOW, why.get)
    ]


def test_without_a_policy_nothing_ever_goes() -> None:
    assert decide(at(10_000), at(5_000, packed=False)) == []


def test_by_age_the_oldest_first() -> None:
    assert decide(at(91), at(500), at(89), age="90d") == ["1 removed: older than 90d", "0 removed: older than 90d"]


def test_by_size_only_as_many_as_it_takes() -> None:
    said = decide(at(4), at(3), at(2), at(1), size="2GiB")
    assert said == [f"{n} removed: all recordings take more than 2GiB" for n in (0, 1)]
    assert decide(at(2), at(1), size="2GiB") == []


def test_what_is_not_packed_stays_and_counts() -> None:
    said = decide(at(3, packed=False), at(2), at(1), size="2GiB")
    assert said == [f"0 kept: {UNPACKED}", "1 removed: all recordings take more than 2GiB"]


def test_a_hold_is_told_only_where_the_policy_would_remove() -> None:
    said = decide(at(100), at(95), at(1), age="90d", _0="on hold", _2="on hold")
    assert said == ["0 kept: on hold", "1 removed: older than 90d"]


def test_age_and_size_together() -> None:
    said = decide(at(100), at(3), at(2), at(1), age="90d", size="2GiB")
    assert said == ["0 removed: older than 90d", "1 removed: all recordings take more than 2GiB"]


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 9), st.booleans(), st.booleans()), max_size=20),
    st.integers(1, 200),
    st.integers(1, 100),
)
def test_nothing_held_goes_and_no_more_than_it_takes(
    given_: list[tuple[int, int, bool, bool]], age: int, size: int
) -> None:
    recordings = [
        Stored(session_id(NOW - days * DAY, bytes([n] * 10)), amount, packed)
        for n, (days, amount, packed, _) in enumerate(given_)
    ]
    held = {stored.session for stored, (_, _, _, hold) in zip(recordings, given_, strict=True) if hold}
    policy = Policy(Duration(age * 86400), Size(size))
    found = list(due(recordings, policy, NOW, lambda session: "held" if session in held else None))
    gone = {one.stored.session for one in found if isinstance(one, Remove)}
    assert all(one.packed for one in recordings if one.session in gone)
    assert not gone & held
    sessions = [one.stored.session for one in found]
    assert sessions == sorted(sessions)
    left = [one for one in recordings if one.session not in gone]
    free = [one for one in left if one.packed and one.session not in held]
    assert sum(one.bytes for one in left) <= size or not free
    by_size = [one for one in found if isinstance(one, Remove) and "than " + str(policy.size) in one.reason]
    if by_size:
        assert sum(one.bytes for one in left) + by_size[-1].stored.bytes > size


# ---- sizes and settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size", "shown"),
    [
        ("1B", 1, "1B"),
        ("100GiB", 100 * GIB, "100GiB"),
        ("1.5 TiB", 1536 * GIB, "1536GiB"),
        ("1024KiB", 1 << 20, "1MiB"),
    ],
)
def test_sizes(text: str, size: int, shown: str) -> None:
    assert Size.parse(text) == size
    assert str(Size.parse(text)) == shown


@pytest.mark.parametrize("text", ["", "0B", "100", "100GB", "1,5GiB", "-1GiB", "1e9B", "٣GiB", "nanGiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size such as"):
        Size.parse(text)


def test_settings() -> None:
    assert parse("").retention == Retention(age=None, size=None)
    retention = parse("retention: {age: 90d, size: 100GiB}").retention
    assert (retention.age, str(retention.size)) == (90 * 86400, "100GiB")
    for wrong in (
        "retention: {size: 100}",
        "retention: {size: much}",
        "retention: {age: 90}",
        "retention: {keep: 1d}",
    ):
        with pytest.raises(ConfigError):
            parse(wrong)


# ---- holds ------------------------------------------------------------------------------------------------


def test_holds_are_kept(tmp_path: Path) -> None:
    kept = Holds(tmp_path)
    assert kept.read() == ()
    two = (
        Hold(kind="session", name=SESSION, by="root", since=1, reason="case 17"),
        Hold(kind="user", name="joe", by="root", since=2),
    )
    with kept.locked():
        kept.write(two)
    assert kept.read() == two
    assert [str(hold) for hold in two] == ["on hold: case 17", "on hold of user joe"]
    assert holds.over(two, SESSION, None) == two[0]
    assert holds.over(two, "0" * 26, "joe") == two[1]
    assert holds.over(two, "0" * 26, "alice") is None


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"schema":2,"holds":[]}', b'{"schema":1,"holds":[{}]}', b"\xff"]
)
def test_a_list_of_holds_that_is_none_is_an_error(tmp_path: Path, data: bytes) -> None:
    """Never an empty list: what is held would be removed."""
    (tmp_path / "holds.json").write_bytes(data)
    with pytest.raises(DataError, match="is no list of holds"):
        Holds(tmp_path).read()


def test_one_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with exclusive(lock, 0), pytest.raises(Unreachable, match=r"keeps .* locked"), exclusive(lock, 0):
        pytest.fail("two have it")


# ---- removal ----------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one packed recording and what belongs to it."""
    kept = Store(tmp_path / "recordings")
    packed = kept.packed(SESSION)
    packed.parent.mkdir(parents=True)
    plain = packed.parent / "plain"
    plain.write_bytes(TEXT)
    with plain.open("rb") as source, packed.open("w+b") as target:
        packing.pack(source, target)
    plain.unlink()
    for suffix in (".torn", ".screens"):
        kept.path(SESSION).with_suffix(suffix).touch()
    return kept


def left(store: Store) -> list[str]:
    return sorted(path.name.partition(".")[2] for path in store.root.rglob("*.*"))


ALL = ["cast.zst", "screens", "torn"]


def test_told_first_then_gone(store: Store, tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []

    def tell(fields: dict[str, Any]) -> None:
        assert left(store) == ALL
        said.append(fields)

    Removal(store, tmp_path / "intent").remove(SESSION, "u" * 16, tell)
    assert left(store) == []
    assert not (tmp_path / "intent").exists()
    assert said[0]["sid"] == SESSION
    assert said[0]["recording_bytes"] == len(TEXT)


def _refuse(_fields: dict[str, Any]) -> None:
    raise AuditError("the log is full")


def test_what_cannot_be_told_is_not_removed(store: Store, tmp_path: Path) -> None:
    remover = Removal(store, tmp_path / "intent")
    with pytest.raises(AuditError):
        remover.remove(SESSION, "u" * 16, _refuse)
    assert left(store) == ALL
    assert remover.interrupted(lambda _uid: False) is None


@pytest.mark.parametrize("lost", [(), (".screens",), (".screens", ".torn")])
def test_a_removal_that_died_after_it_was_told_is_finished(
    store: Store, tmp_path: Path, lost: tuple[str, ...]
) -> None:
    remover = Removal(store, tmp_path / "intent")
    with pytest.raises(AuditError):  # as if it had died there
        remover.remove(SESSION, "u" * 16, _refuse)
    for suffix in lost:
        store.path(SESSION).with_suffix(suffix).unlink()
    again = Removal(store, tmp_path / "intent")
    assert again.interrupted(lambda uid: uid == "u" * 16) == SESSION
    again.finish(SESSION)
    assert left(store) == []
    assert again.interrupted(lambda _uid: True) is None


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda _: b"", lambda data: data[:9] + b"!" + data[10:]]
)
def test_a_damaged_recording_is_evidence_and_stays(
    store: Store, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = store.packed(SESSION)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError):
        Removal(store, tmp_path / "intent").remove(SESSION, "u" * 16, lambda _: pytest.fail("told"))
    assert left(store) == ALL


def test_a_link_is_not_followed(store: Store, tmp_path: Path) -> None:
    path = store.packed(SESSION)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError):
        removal.facts(path)


def test_what_is_left_of_a_session_without_a_header_goes_like_a_recording(store: Store, tmp_path: Path) -> None:
    store.packed(SESSION).unlink()
    store.part(SESSION).touch()
    torn = store.path(SESSION).with_suffix(".torn")
    torn.write_bytes(b'{"version":2,"wid')
    assert store.remnant(SESSION) == torn
    assert removal.stored(store) == [Stored(SESSION, torn.stat().st_blocks * 512, packed=True)]
    said: list[dict[str, Any]] = []
    Removal(store, tmp_path / "intent").remove(SESSION, "u" * 16, said.append)
    digest = hashlib.sha256(b'{"version":2,"wid').hexdigest()
    assert said == [{"sid": SESSION, "torn": True, "file_bytes": 17, "file_sha256": digest}]
    assert left(store) == []


def test_torn_bytes_beside_a_recording_are_no_recording(store: Store) -> None:
    assert store.remnant(SESSION) is None
    assert [one.session for one in removal.stored(store)] == [SESSION]


def test_what_lay_beside_a_removed_recording_is_removed_too(store: Store, tmp_path: Path) -> None:
    """The directory's names may reach the disk in any order."""
    remover = Removal(store, tmp_path / "intent")
    with pytest.raises(AuditError):
        remover.remove(SESSION, "u" * 16, _refuse)
    store.packed(SESSION).unlink()
    assert remover.interrupted(lambda _uid: True) == SESSION
    remover.finish(SESSION)
    assert left(store) == []
