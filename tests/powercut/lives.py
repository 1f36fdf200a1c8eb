"""What a recording and the audit log live through, and what must hold of them whatever the power does.

A Life's `work`, the real code, is traced; `judge` gets each state that a power cut may leave of it, mends it as
sshrecd does when it starts, and asserts. It does so twice: the second time nothing may change.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import select
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pyrage

from sshrec.audit.appender import Appender
from sshrec.audit.log import Line, Problem, read_log
from sshrec.recipients import Recipient
from sshrec.recording import packing
from sshrec.recording.recorder import Recorder
from sshrec.recording.recovery import Found
from sshrec.recording.verification import State, verify_path
from sshrec.storage import facts, local, recording_file
from sshrec.storage.encrypting import encrypt
from sshrec.storage.local import Store
from sshrec.storage.removal import Removal
from tests.powercut.disk import Crash
from tests.powercut.trace import Tree, read_tree
from tests.recordings import EXIT, SESSION, WALL_MS, header, noise, record

MarkIt = Callable[[str], None]
LATER_MS = WALL_MS + 86_400_000
DAY = Path("recordings/2025-11-23")
LOG_MS = 1_800_000_000_000


@dataclass(frozen=True, slots=True)
class Life:
    """`before`: what is durable when it begins; `notes`: what `judge` needs to know of it."""

    name: str
    before: Tree
    work: Callable[[Path, MarkIt], None]
    judge: Callable[[Path, Crash, Mapping[str, Any]], None]
    notes: Mapping[str, Any] = field(default_factory=dict)


# ---- recordings ---------------------------------------------------------------------------------------------


def mend(store: Store) -> None:
    """As sshrecd's housekeeper does: seal what was left, then pack it."""
    for session in list(store.unfinished()):
        store.recover(session, LATER_MS, "its worker died")
        if store.path(session).exists():
            assert store.pack(session)


def mended(root: Path) -> Tree:
    """What is there once all is mended, asserting that it is mended for good."""
    store = Store(root / "recordings")
    for session in list(store.unfinished()):
        store.recover(session, LATER_MS + 5_000, "its worker died")
    recovered = read_tree(root)
    for session in list(store.unfinished()):
        store.recover(session, LATER_MS + 9_000, "again")
    assert read_tree(root) == recovered, "a second recovery changes nothing"
    mend(store)
    packed = read_tree(root)
    mend(store)
    assert read_tree(root) == packed, "nor does a second packing"
    allowed = {".cast.zst", ".torn"}
    assert {
        os.path.basename(name).removeprefix(SESSION) for name, data in packed.items() if data is not None
    } <= allowed
    return packed


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def text_of(store: Store) -> bytes | None:
    """The text of the one recording."""
    path = store.packed(SESSION)
    if not path.exists():
        return None
    with path.open("rb") as file:
        return io.BufferedReader(packing.Unpacked(file)).read()


def judge_recording(root: Path, crash: Crash, notes: Mapping[str, Any]) -> None:
    """Nothing that counted as kept is lost; what had its end is whole; and it verifies."""
    whole: bytes = notes["text"]
    kept = max([notes.get("kept", 0), *(int(mark[5:]) for mark in crash.marks if mark.startswith("kept "))])
    kept = whole.rfind(b"\n", 0, kept) + 1  # an event is a line
    tree = mended(root)
    store = Store(root / "recordings")
    text = text_of(store)
    if text is None:
        assert not kept
        assert all(name.endswith(".torn") for name, data in tree.items() if data is not None)
    else:
        assert text.startswith(whole[:kept])
        state = verify_path(store.packed(SESSION)).state
        if text == whole and notes.get("finished", True):
            assert state is State.COMPLETE
        else:
            assert state is State.INCOMPLETE
            last = packing.outcome(packing.last_line(io.BytesIO(text)))
            assert last == {"reason": "aborted", "detail": "its worker died"}
            body = text[: text.rindex(b"\n", 0, -1) + 1]
            assert whole.startswith(body), "it is what was recorded, up to some line"
    if sealed := [mark[7:] for mark in crash.marks if mark.startswith("sealed ")]:
        assert text is not None
        assert sealed == [_digest(text)]
    torn = store.path(SESSION).with_suffix(".torn")
    if torn.exists():
        assert torn.stat().st_size
        assert verify_path(torn).state is State.INCOMPLETE or text is not None
    for piece in notes.get("torn", ()):
        assert piece in torn.read_bytes()


OUTPUT = [b"root@web1:~# ", "é─\r\n".encode(), noise(900, 1).hex().encode(), b"\xff\xfe", b"bye\r\n"]


def _record(root: Path, mark: MarkIt) -> None:
    with mock.patch.multiple(recording_file, SYNC_SECONDS=60, ASK_SECONDS=0):
        file = Store(root / "recordings").create(SESSION, durable=False)
        recorder = Recorder(file, SESSION, header(), wall_ms=WALL_MS, terminal=True, stream_limit=1 << 24)
        us = 0
        for piece in OUTPUT:
            us += 2_600_000
            recorder.tick(us, WALL_MS + us // 1000)
            recorder.output(us, piece)
            if piece is not OUTPUT[1]:
                _until_kept(file, mark)
        recorder.close(us, WALL_MS + us // 1000, EXIT)
        file.finish()
        mark(f"kept {file.written}")


def _until_kept(file: Any, mark: MarkIt) -> None:
    """Wait until all that was written counts as kept, and say so."""
    file.sync()
    poll = select.poll()
    poll.register(file.notify, select.POLLIN)
    while file.on_disk < file.written:
        poll.poll(10_000)
        os.eventfd_read(file.notify)
    mark(f"kept {file.on_disk}")


def recorded() -> bytes:
    """What the life of a recording leaves in the end."""
    steps = [(2.6, piece) for piece in OUTPUT]
    return record(steps).text


def _record_second(root: Path, mark: MarkIt) -> None:
    (root / DAY).mkdir()
    _record(root, mark)


def recording_in_a_new_day() -> Life:
    """Another worker has made the day's directory, and died before that was durable."""
    return Life("a new day", {"recordings": None}, _record_second, judge_recording, {"text": recorded()})


def recording() -> Life:
    return Life("recording", {"recordings": None}, _record, judge_recording, {"text": recorded()})


def _recover(root: Path, mark: MarkIt) -> None:
    store = Store(root / "recordings")
    for session in list(store.unfinished()):
        if store.recover(session, LATER_MS, "its worker died") in (Found.SEALED, Found.FINISHED):
            # Its end is told in the audit log now, with the hash of the last seal.
            mark(f"sealed {_digest(store.path(session).read_bytes())}")
            store.pack(session)


def recoveries(crashes: list[Crash]) -> Iterator[Life]:
    """Recovery itself is cut off, of what some power cuts left."""
    for number, crash in enumerate(crashes):
        kept = max([0, *(int(mark[5:]) for mark in crash.marks if mark.startswith("kept "))])
        yield Life(
            f"recovery of {number}", crash.tree, _recover, judge_recording, {"text": recorded(), "kept": kept}
        )


def torn_recovery(*, hole: bool = False) -> Life:
    """A worker was killed in the midst of a line, and then the power goes while its recording is closed.

    `hole`: the power had gone before, and taken a page.
    """
    steps = [(2.6, piece) for piece in (*OUTPUT, *[noise(300, seed).hex().encode() for seed in range(4)])]
    text = record(steps, outcome=None).text
    at = text.index(b"bye") if hole else len(text) - 9
    left = text[:at] + bytes(70) + text[at + 70 :] if hole else text[:at]
    whole = text[: text.rindex(b"\n", 0, at) + 1]
    before: Tree = {"recordings": None, str(DAY): None, str(DAY / f"{SESSION}.cast"): left}
    notes = {"text": text, "kept": len(whole), "torn": [left[len(whole) :]], "finished": False}
    return Life(f"recovery of a {'hole' if hole else 'torn line'}", before, _recover, judge_recording, notes)


def unsynced_end() -> Life:
    """A worker was killed right after its last seal, which may not be on disk."""
    text = recorded()

    def work(root: Path, mark: MarkIt) -> None:
        path = root / DAY / f"{SESSION}.cast"
        with path.open("ab", buffering=0) as worker:
            worker.write(text[at:])
        _recover(root, mark)

    at = text.rindex(b"\n", 0, -1) + 1
    before: Tree = {"recordings": None, str(DAY): None, str(DAY / f"{SESSION}.cast"): text[:at]}
    return Life("an end that was not synced", before, work, judge_recording, {"text": text, "kept": at})


# Frames of a quarter of the size, so that a small recording has several.
LONG = [(0.4, noise(30_000, seed).hex().encode()) for seed in range(20)]


@contextlib.contextmanager
def _small() -> Iterator[None]:
    with mock.patch.object(packing, "FRAME_BYTES", 1 << 18), mock.patch.object(local, "AHEAD_BYTES", 1 << 18):
        yield


def _pack(root: Path, _mark: MarkIt) -> None:
    with _small():
        assert Store(root / "recordings").pack(SESSION)


def _judge_packing(root: Path, crash: Crash, notes: Mapping[str, Any]) -> None:
    with _small():
        judge_recording(root, crash, notes)


def packing_its_end() -> Life:
    text = record(LONG).text
    before: Tree = {"recordings": None, str(DAY): None, str(DAY / f"{SESSION}.cast"): text}
    return Life("packing", before, _pack, _judge_packing, {"text": text, "kept": len(text)})


def _pack_ahead(root: Path, mark: MarkIt) -> None:
    store, text = Store(root / "recordings"), record(LONG).text
    fd = os.open(store.path(SESSION), os.O_WRONLY | os.O_APPEND)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with _small():
        for at in range(0, len(text), 350_000):
            os.write(fd, text[at : at + 350_000])
            store.pack_ahead(SESSION)
            os.fdatasync(fd)
            mark(f"kept {min(len(text), at + 350_000)}")
        os.close(fd)
        assert store.part(SESSION).stat().st_size > 100_000
        assert store.pack(SESSION)


def packing_ahead() -> Life:
    text = record(LONG).text
    before: Tree = {"recordings": None, str(DAY): None, str(DAY / f"{SESSION}.cast"): b""}
    return Life("packing ahead", before, _pack_ahead, _judge_packing, {"text": text})


# ---- encryption ---------------------------------------------------------------------------------------------


def encryption() -> Life:
    """A packed recording with a torn line beside it becomes an encrypted one, for whoever has the key."""
    identity = pyrage.x25519.Identity.generate()
    to = [Recipient(str(identity.to_public()))]
    target = io.BytesIO()
    packing.pack(io.BytesIO(recorded()), target)
    packed = str(DAY / f"{SESSION}.cast.zst")
    before: Tree = {"recordings": None, str(DAY): None, packed: target.getvalue()}
    before[str(DAY / f"{SESSION}.torn")] = b"[1.0,torn"

    def work(root: Path, mark: MarkIt) -> None:
        assert encrypt(
            Store(root / "recordings"), SESSION, to, lambda made: mark(f"told {made.fields['file_sha256']}")
        )

    def judge(root: Path, crash: Crash, _notes: Mapping[str, Any]) -> None:
        store = Store(root / "recordings")
        told = [mark[5:] for mark in crash.marks if mark.startswith("told ")]
        for _ in range(2):
            for session in list(store.unencrypted()):
                encrypt(store, session, to, lambda made: told.append(str(made.fields["file_sha256"])))
        files = {path.name.removeprefix(SESSION): path.read_bytes() for path in (root / DAY).iterdir()}
        assert set(files) == {".cast.zst.age", ".torn.age", ".json"}
        assert _digest(files[".cast.zst.age"]) == told[-1], "the log has the file that is there"
        assert pyrage.decrypt(files[".cast.zst.age"], [identity]) == target.getvalue()
        assert pyrage.decrypt(files[".torn.age"], [identity]) == b"[1.0,torn"
        assert facts.read(root / DAY / f"{SESSION}.json")[0].file_sha256 == told[-1]

    return Life("encryption", before, work, judge)


# ---- removal ------------------------------------------------------------------------------------------------


def _remove(root: Path, mark: MarkIt) -> None:
    log = Appender(root / "audit")
    assert log.lock()
    log.append([_event(0, 10)])

    def tell(fields: Mapping[str, Any]) -> None:
        log.append([{"event": "recording.delete", "code": "SR203I", "uid": "u" * 16, **fields}])

    _remover(root).remove(SESSION, "u" * 16, tell)
    mark("removed")


def _remover(root: Path) -> Removal:
    return Removal(Store(root / "recordings"), root / "removal.json")


def judge_removal(root: Path, crash: Crash, notes: Mapping[str, Any]) -> None:
    """What is gone is in the log; what is in the log goes, to its last file; what is not stays as it was."""
    lines = list(read_log(root / "audit")) if list(root.glob("audit/*.jsonl")) else []
    told = any(isinstance(line, Line) and line.event == "recording.delete" for line in lines)
    for _ in range(2):
        session = _remover(root).interrupted(lambda _uid: told)
        if session is not None:
            _remover(root).finish(session)
    tree = read_tree(root)
    there = {os.path.basename(name) for name in tree if SESSION in name}
    if told:
        assert not there
    else:
        assert "removed" not in crash.marks
        assert there == notes["files"]
        assert tree[notes["packed"]] == notes["data"]


def removal() -> Life:
    target = io.BytesIO()
    packing.pack(io.BytesIO(recorded()), target)
    packed = str(DAY / f"{SESSION}.cast.zst")
    before: Tree = {"recordings": None, str(DAY): None, packed: target.getvalue()}
    before |= {str(DAY / f"{SESSION}{suffix}"): b"x" for suffix in (".torn", ".screens")}
    files = {os.path.basename(name) for name in before if SESSION in name}
    notes = {"files": files, "packed": packed, "data": target.getvalue()}
    return Life("removal", before, _remove, judge_removal, notes)


# ---- the audit log ------------------------------------------------------------------------------------------


def _event(number: int, size: int) -> dict[str, Any]:
    return {"event": "user.update", "code": "T1003I", "uid": f"{number:016}", "text": "x" * size}


# Sizes of events that are sent at once; some begin a day.
GROUPS: list[list[int]] = [[30], [400, 1200, 50], [700], [10, 3000], [5]]
LARGE: list[list[int]] = [[30], [60_000] * 19, [5], [60_000] * 4, [7]]
_NEW_DAYS = (2, 4)


def _append(groups: list[list[int]]) -> Callable[[Path, MarkIt], None]:
    def work(root: Path, mark: MarkIt) -> None:
        clock = [LOG_MS]
        log = Appender(root / "audit", clock=lambda: clock[0])
        assert log.lock()
        sent = 0
        for turn, sizes in enumerate(groups):
            clock[0] += 86_400_000 if turn in _NEW_DAYS else 1000
            events = [_event(sent + number, size) for number, size in enumerate(sizes)]
            for event, n in zip(events, log.append(events), strict=True):
                mark(f"acked {event['uid']} {n}")
            sent += len(sizes)
        log.close()

    return work


def _reopen(root: Path, _mark: MarkIt) -> None:
    log = Appender(root / "audit", clock=lambda: LOG_MS + 5 * 86_400_000)
    assert log.lock()
    log.ready()
    log.close()


def judge_log(root: Path, crash: Crash, notes: Mapping[str, Any]) -> None:
    """Whoever opens it next makes its chain whole, with all that was acknowledged at the number that was given."""
    _reopen(root, lambda _text: None)
    tree = read_tree(root)
    _reopen(root, lambda _text: None)
    assert read_tree(root) == tree, "a second time nothing changes"
    log = Appender(root / "audit", clock=lambda: LOG_MS + 6 * 86_400_000)
    assert log.lock()
    log.append([_event(99, 10)])
    log.close()
    items = list(read_log(root / "audit"))
    assert not [item for item in items if isinstance(item, Problem)]
    found = {line.fields["uid"]: line.n for line in items if isinstance(line, Line)}
    acked = {**notes.get("acked", {}), **acknowledged(crash)}
    assert {uid: found.get(uid) for uid in acked} == acked


def acknowledged(crash: Crash) -> dict[str, int]:
    return {mark.split()[1]: int(mark.split()[2]) for mark in crash.marks if mark.startswith("acked")}


def audit_log(groups: list[list[int]]) -> Life:
    return Life("audit log" if groups is GROUPS else "large groups", {}, _append(groups), judge_log)


def repairs(crashes: list[Crash]) -> Iterator[Life]:
    """The repair itself is cut off, of what some power cuts left."""
    for number, crash in enumerate(crashes):
        yield Life(f"repair of {number}", crash.tree, _reopen, judge_log, {"acked": acknowledged(crash)})
