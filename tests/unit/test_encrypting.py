"""Encrypting what is in the store: in which order, with a crash at every step, and what is readable afterwards."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sshrec.errors import DataError, NotFound, RecordingError, SshrecError, Unreachable
from sshrec.recipients import Recipient, recipients
from sshrec.recording import encryption, packing, reader
from sshrec.recording.identity import Identities
from sshrec.recording.seal import Outcome
from sshrec.recording.verification import State, verify_path
from sshrec.storage import encrypting, facts, removal
from sshrec.storage.encrypting import Made
from sshrec.storage.local import Store
from tests.powercut import run
from tests.powercut.disk import Crash
from tests.powercut.lives import Life
from tests.powercut.trace import Tree
from tests.recordings import SESSION, Step, noise, record

STEPS: list[Step] = [(0.01, noise(100_000, n).hex().encode()) for n in range(5)]
NAMES = [f"{SESSION}.cast.zst.age", f"{SESSION}.json"]


@pytest.fixture(scope="module")
def text() -> bytes:
    return record(STEPS, command="uptime", terminal=False).text


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import pyrage

    path = tmp_path_factory.mktemp("key") / "key"
    made = pyrage.x25519.Identity.generate()
    path.write_text(f"{made}\n")
    path.with_suffix(".pub").write_text(f"{made.to_public()}\n")
    return path


@pytest.fixture
def to(key: Path) -> tuple[Recipient, ...]:
    return recipients([key.with_suffix(".pub").read_text()])


@pytest.fixture
def store(tmp_path: Path, text: bytes) -> Store:
    """With one packed recording in it."""
    return put(Store(tmp_path / "recordings"), text)


def put(store: Store, text: bytes) -> Store:
    path = store.path(SESSION)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    assert store.pack(SESSION)
    return store


def opened(path: Path, key: Path) -> bytes:
    """The text, as stock tools give it: age -d -i key | zstd -dc."""
    with reader.open_recording(path, Identities([key])) as file:
        packed = file.read()
    return subprocess.run(["zstd", "-dcq"], input=packed, capture_output=True, check=True).stdout


def names(store: Store) -> list[str]:
    return sorted(os.listdir(store.packed(SESSION).parent))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# What it comes to


def test_the_encrypted_file_takes_the_place_of_the_packed_one(
    store: Store, text: bytes, key: Path, to: tuple[Recipient, ...]
) -> None:
    packed = store.packed(SESSION).read_bytes()
    store.path(SESSION).with_suffix(".screens").write_bytes(b"screens")
    told: list[Made] = []

    def tell(made: Made) -> None:
        assert names(store) == [f"{SESSION}.cast.zst", *NAMES, f"{SESSION}.screens"], "told before anything goes"
        told.append(made)

    assert list(store.unencrypted()) == [SESSION]
    assert encrypting.encrypt(store, SESSION, to, tell)
    assert names(store) == NAMES
    sealed = store.encrypted(SESSION)
    assert opened(sealed, key) == text
    assert store.current(SESSION) == store.finished(SESSION) == store.find(SESSION[:20]) == sealed
    assert list(store) == [(SESSION, sealed)]
    assert list(store.unencrypted()) == []
    assert sealed.stat().st_mode & 0o777 == 0o640

    (made,) = told
    lines = text.splitlines(keepends=True)
    assert made.header == json.loads(lines[0])["sshrec"]
    assert made.end == {"reason": "exit", "status": 0}
    last = json.loads(json.loads(lines[-1])[2])
    assert made.fields == {
        "recipients": [to[0].key],
        "file_bytes": len(sealed.read_bytes()),
        "file_sha256": digest(sealed.read_bytes()),
        "facts_sha256": digest(facts.path_of(sealed).read_bytes()),
        "packed_bytes": len(packed),
        "packed_sha256": digest(packed),
        "recording_bytes": len(text),
        "seals": last["n"] + 1,
        "seal": last["n"],
        "seal_sha256": digest(lines[-1]),
        "verdict": "COMPLETE",
    }


def test_what_stays_readable(store: Store, text: bytes, to: tuple[Recipient, ...]) -> None:
    before = facts.summary(store.packed(SESSION))
    known = removal.facts(store.packed(SESSION))
    encrypting.encrypt(store, SESSION, to, lambda _made: None)
    after = facts.summary(store.encrypted(SESSION))
    assert (after.header, after.duration, after.end) == (before.header, before.duration, before.end)
    assert after.bytes == store.encrypted(SESSION).stat().st_size
    assert removal.facts(store.encrypted(SESSION)) == known
    shown = facts.path_of(store.encrypted(SESSION)).read_text()
    output = json.loads(text.splitlines()[2])[2]
    assert output[:50] not in shown, "nothing of what was on screen"


def test_a_second_run_changes_nothing(store: Store, to: tuple[Recipient, ...]) -> None:
    encrypting.encrypt(store, SESSION, to, lambda _made: None)
    before = store.encrypted(SESSION).read_bytes()
    with pytest.raises(NotFound):
        encrypting.encrypt(store, SESSION, to, lambda _made: pytest.fail("told again"))
    assert store.encrypted(SESSION).read_bytes() == before


def test_a_torn_line_is_encrypted_too(store: Store, key: Path, to: tuple[Recipient, ...]) -> None:
    torn = store.path(SESSION).with_suffix(".torn")
    torn.write_bytes(b'[1.000000,"o","half a li')
    encrypting.encrypt(store, SESSION, to, lambda _made: None)
    assert names(store) == [*NAMES, f"{SESSION}.torn.age"]
    with reader.open_recording(torn.with_suffix(".torn.age"), Identities([key])) as file:
        assert file.read() == b'[1.000000,"o","half a li'


def test_an_aborted_recording_is_told_to_be_one(tmp_path: Path, to: tuple[Recipient, ...]) -> None:
    store = put(
        Store(tmp_path / "recordings"), record(STEPS, outcome=Outcome("aborted", detail="its worker died")).text
    )
    told: list[Made] = []
    encrypting.encrypt(store, SESSION, to, told.append)
    said = told[0].fields
    assert (said["verdict"], said["incomplete"], said["incomplete_detail"]) == (
        "INCOMPLETE",
        "aborted",
        "its worker died",
    )


# What must not happen


def test_what_does_not_verify_is_left_for_people_to_look_at(store: Store, to: tuple[Recipient, ...]) -> None:
    packed = store.packed(SESSION)
    content = bytearray(packed.read_bytes())
    content[len(content) // 2] ^= 1
    packed.write_bytes(content)
    with pytest.raises(DataError, match="BAD, so it is not encrypted: chunk"):
        encrypting.encrypt(store, SESSION, to, lambda _made: pytest.fail("told"))
    assert names(store) == [packed.name]
    assert packed.read_bytes() == content


def test_what_cannot_be_told_is_not_removed(store: Store, text: bytes, to: tuple[Recipient, ...]) -> None:
    def refuse(_made: Made) -> None:
        raise SshrecError("the log is full")

    packed = store.packed(SESSION).read_bytes()
    with pytest.raises(SshrecError, match="the log is full"):
        encrypting.encrypt(store, SESSION, to, refuse)
    assert store.packed(SESSION).read_bytes() == packed
    assert store.current(SESSION) == store.packed(SESSION), "which stays the truth"
    assert list(store.unencrypted()) == [SESSION]


def test_a_full_disk_is_an_error_and_nothing_else(
    store: Store, to: tuple[Recipient, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordingError, match="no space left on device"):
        encrypting.encrypt(store, SESSION, to, lambda _made: pytest.fail("told"))
    assert names(store) == [f"{SESSION}.cast.zst"]


def test_a_disk_that_keeps_something_else_is_found_out(
    store: Store, to: tuple[Recipient, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossy(source: Any, target: Any, to: Any) -> encryption.Encrypted:
        made = encrypt(source, target, to)
        target.seek(-10, os.SEEK_END)
        target.write(b"!")
        return made

    encrypt = encryption.encrypt
    monkeypatch.setattr(encryption, "encrypt", lossy)
    with pytest.raises(RecordingError, match="is not what was written to it"):
        encrypting.encrypt(store, SESSION, to, lambda _made: pytest.fail("told"))
    assert names(store) == [f"{SESSION}.cast.zst"]


def test_while_it_is_plain_or_somebody_elses_it_waits(
    store: Store, text: bytes, to: tuple[Recipient, ...]
) -> None:
    with store.packed(SESSION).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert not encrypting.encrypt(store, SESSION, to, lambda _made: pytest.fail("told"))
    store.path(SESSION).write_bytes(text)  # as a packer leaves it that died before its last step
    assert not encrypting.encrypt(store, SESSION, to, lambda _made: pytest.fail("told"))
    assert store.pack(SESSION)
    assert encrypting.encrypt(store, SESSION, to, lambda _made: None)


CRASHES = [
    (encryption, "encrypt"),
    (os, "fsync"),
    (encrypting, "_write_facts"),
    (Path, "rename"),
    (encrypting, "sync_directory"),
    (encrypting, "_remove_plain"),
    (Path, "unlink"),
]


def die_at(step: Callable[..., object], *, after: bool, only: Path | None) -> Callable[..., object]:
    """The step, as the last thing that its process does, or does not do."""

    def last(*arguments: Any, **named: Any) -> object:
        if only is not None and arguments[0] != only:
            return step(*arguments, **named)
        if after:
            step(*arguments, **named)
        os._exit(9)

    return last


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("where", "name"), CRASHES, ids=lambda value: str(getattr(value, "__name__", value)))
def test_a_crash_at_any_step_loses_nothing(
    store: Store,
    text: bytes,
    key: Path,
    to: tuple[Recipient, ...],
    tmp_path: Path,
    where: Any,
    name: str,
    after: bool,
) -> None:
    packed = store.packed(SESSION)
    store.path(SESSION).with_suffix(".screens").write_bytes(b"screens")
    log = tmp_path / "log"
    log.touch()

    def tell(made: Made) -> None:
        with log.open("a") as file:
            file.write(f"{made.fields['file_sha256']}\n")

    child = os.fork()
    if child == 0:
        try:
            setattr(
                where, name, die_at(getattr(where, name), after=after, only=packed if name == "unlink" else None)
            )
            encrypting.encrypt(store, SESSION, to, tell)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    kept = store.current(SESSION)
    if kept == packed:
        assert list(store.unencrypted()) == [SESSION], "somebody comes for it"
        assert subprocess.run(["zstd", "-dcq", packed], capture_output=True, check=True).stdout == text
        assert encrypting.encrypt(store, SESSION, to, tell)
    assert names(store) == NAMES
    assert opened(store.encrypted(SESSION), key) == text
    assert digest(store.encrypted(SESSION).read_bytes()) == log.read_text().splitlines()[-1]
    found, _ = facts.read(facts.path_of(store.encrypted(SESSION)))
    assert found.file_sha256 == digest(store.encrypted(SESSION).read_bytes())


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace: apt-get install strace")
def test_a_power_cut_at_any_operation_loses_nothing(text: bytes, key: Path, to: tuple[Recipient, ...]) -> None:
    """In any order on disk; and whatever it leaves is encrypted to its end afterwards."""
    packed = io.BytesIO()
    packing.pack(io.BytesIO(text), packed)
    day = "recordings/2025-11-23"
    before: Tree = {"recordings": None, day: None, f"{day}/{SESSION}.cast.zst": packed.getvalue()}
    before |= {f"{day}/{SESSION}.torn": b"half a line", f"{day}/{SESSION}.screens": b"screens"}

    def told(mark: Callable[[str], None]) -> Callable[[Made], None]:
        return lambda made: mark(made.fields["file_sha256"])

    def work(root: Path, mark: Callable[[str], None]) -> None:
        assert encrypting.encrypt(Store(root / "recordings"), SESSION, to, told(mark))

    def judge(root: Path, crash: Crash, _notes: Mapping[str, Any]) -> None:
        store, log = Store(root / "recordings"), list(crash.marks)
        if not store.packed(SESSION).exists():
            assert digest(store.encrypted(SESSION).read_bytes()) in log, "told before the packed one went"
        for session in list(store.unencrypted()):
            assert encrypting.encrypt(store, session, to, told(log.append))
        assert list(store.unencrypted()) == []
        assert names(store) == [*NAMES, f"{SESSION}.torn.age"]
        assert opened(store.encrypted(SESSION), key) == text
        found, content = facts.read(facts.path_of(store.encrypted(SESSION)))
        assert found.file_sha256 == digest(store.encrypted(SESSION).read_bytes()) == log[-1]
        assert content

    life = Life("encryption", before, work, judge)
    judged = run.judge(life, run.states(life, 40))
    assert len(judged) > 20
    assert sum(judged.values()) > 100


# Removal


@pytest.fixture
def encrypted(store: Store, to: tuple[Recipient, ...]) -> Store:
    encrypting.encrypt(store, SESSION, to, lambda _made: None)
    return store


def test_removal_takes_all_of_it(encrypted: Store, text: bytes, tmp_path: Path) -> None:
    encrypted.path(SESSION).with_suffix(".torn.age").write_bytes(b"torn")
    (stored,) = removal.stored(encrypted)
    assert stored.packed
    assert stored.bytes >= encrypted.encrypted(SESSION).stat().st_size
    content = encrypted.encrypted(SESSION).read_bytes()
    told: list[dict[str, Any]] = []
    removal.Removal(encrypted, tmp_path / "intent").remove(SESSION, "uid", told.append)
    assert told[0]["sid"] == SESSION
    assert (told[0]["file_bytes"], told[0]["file_sha256"]) == (len(content), digest(content))
    assert (told[0]["recording_bytes"], told[0]["seal_sha256"]) == (len(text), digest(text.splitlines(True)[-1]))
    assert list(encrypted) == []
    assert not encrypted.packed(SESSION).parent.exists()


def test_what_is_being_encrypted_is_not_removed(store: Store, tmp_path: Path, to: tuple[Recipient, ...]) -> None:
    remover = removal.Removal(store, tmp_path / "intent")

    def remove(_made: Made) -> None:
        with pytest.raises(Unreachable, match="is being encrypted"):
            remover.remove(SESSION, "uid", lambda _said: pytest.fail("told"))

    assert encrypting.encrypt(store, SESSION, to, remove)
    assert names(store) == NAMES


def test_a_removal_that_died_is_finished_whatever_form_it_finds(
    store: Store, tmp_path: Path, to: tuple[Recipient, ...]
) -> None:
    remover = removal.Removal(store, tmp_path / "intent")
    child = os.fork()
    if child == 0:
        remover.remove(SESSION, "uid", lambda _said: os._exit(9))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    encrypting.encrypt(store, SESSION, to, lambda _made: None)
    assert remover.interrupted(lambda uid: uid == "uid") == SESSION
    remover.finish(SESSION)
    assert list(store) == []
    assert not store.packed(SESSION).parent.exists()


def test_without_its_facts_it_is_damaged_and_stays(encrypted: Store, tmp_path: Path) -> None:
    beside = facts.path_of(encrypted.encrypted(SESSION))
    for content in (None, b"", b"{}", b"[]", b'{"schema":2}', b"\xff"):
        if content is None:
            beside.unlink()
        else:
            beside.write_bytes(content)
        with pytest.raises(DataError, match=r"\.json: "):
            facts.summary(encrypted.encrypted(SESSION))
        with pytest.raises(DataError, match=r"\.json: "):
            removal.Removal(encrypted, tmp_path / "intent").remove(
                SESSION, "uid", lambda _said: pytest.fail("told")
            )
    assert encrypted.encrypted(SESSION).exists()


# Verification of the file


def test_without_an_identity_nothing_is_proved_without_a_log(encrypted: Store) -> None:
    path = encrypted.encrypted(SESSION)
    verdict = verify_path(path)
    assert (verdict.state, verdict.session) == (State.INCOMPLETE, SESSION)
    assert str(verdict.gap) == "encrypted: without an identity or the audit log nothing proves it"
    assert verdict.file is not None
    assert (verdict.file.bytes, verdict.file.sha256) == (path.stat().st_size, digest(path.read_bytes()))


def test_with_an_identity_the_whole_chain(encrypted: Store, text: bytes, key: Path) -> None:
    path = encrypted.encrypted(SESSION)
    read: list[int] = []
    verdict = verify_path(path, identities=Identities([key]), progress=read.append)
    assert verdict.state is State.COMPLETE
    assert verdict.sealed == len(text)
    assert sum(read) == path.stat().st_size
    assert verdict.file is not None
    assert (verdict.file.opened, verdict.file.sha256) == (True, digest(path.read_bytes()))


def test_another_identity_is_none(encrypted: Store, tmp_path: Path) -> None:
    import pyrage

    other = tmp_path / "other"
    other.write_text(f"{pyrage.x25519.Identity.generate()}\n")
    verdict = verify_path(encrypted.encrypted(SESSION), identities=Identities([other]))
    assert str(verdict.gap) == "encrypted: no identity that was given opens it"


@pytest.mark.parametrize("at", [30, 0.3, 0.7, -1], ids=str)
def test_damage_is_bad(encrypted: Store, key: Path, at: float) -> None:
    path = encrypted.encrypted(SESSION)
    content = path.read_bytes()
    place = at if isinstance(at, int) else int(len(content) * at)
    for damaged in (content[:place], content[:place] + bytes([content[place] ^ 1]) + content[place:][1:]):
        path.write_bytes(damaged)
        verdict = verify_path(path, identities=Identities([key]))
        if verdict.state is not State.BAD:  # a recipient's part of the header: then it has none
            assert str(verdict.gap) == "encrypted: no identity that was given opens it"
            assert at == 30
        assert verdict.file is not None
        assert verdict.file.sha256 == digest(damaged), "for the log to judge"


def test_what_is_called_encrypted_must_be(store: Store, to: tuple[Recipient, ...], key: Path) -> None:
    packed = store.packed(SESSION)
    path = store.encrypted(SESSION)
    path.write_bytes(packed.read_bytes())
    assert "it is not encrypted, and should be" in str(verify_path(path).problem)
    path.unlink()
    encrypting.encrypt(store, SESSION, to, lambda _made: None)
    path.rename(packed)
    assert "it is not packed, and should be" in str(verify_path(packed, identities=Identities([key])).problem)
