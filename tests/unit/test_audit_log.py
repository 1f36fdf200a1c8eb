"""The audit log's files: a chain that a stranger can check, and what a crash at any byte leaves of it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sshrec.audit.appender import GROUP_BYTES, Appender, LogFull
from sshrec.audit.direct import Direct
from sshrec.audit.event import LINE_MAX, AuditError, canonical, packet
from sshrec.audit.log import GENESIS, Line, Problem, read_log
from sshrec.errors import NotFound
from tests.disks import disk, fill

NOON = 1_795_435_200_000  # 2026-11-23T12:00:00Z
DAY = 86_400_000


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def event(number: int = 0, **fields: Any) -> dict[str, Any]:
    return packet("resize", {"sid": "S", "size": f"{number}:25", **fields}) | {"sender_uid": 0}


def write(directory: Path, clock: Clock, *groups: list[dict[str, Any]]) -> list[int]:
    """One life of a writer."""
    appender = Appender(directory, clock=clock)
    assert appender.lock()
    try:
        return [number for group in groups for number in appender.append(group)]
    finally:
        appender.close()


def path(directory: Path) -> Path:
    (only,) = directory.iterdir()
    return only


def lines(directory: Path) -> list[Line]:
    """All lines of a log that has nothing wrong with it."""
    found = list(read_log(directory))
    assert [item for item in found if isinstance(item, Problem)] == []
    return [item for item in found if isinstance(item, Line)]


def kinds(directory: Path) -> list[str]:
    return [item.kind for item in read_log(directory) if isinstance(item, Problem)]


def stranger(directory: Path) -> list[dict[str, Any]]:
    """The log checked with hashlib and json alone; no torn bytes."""
    prev = hashlib.sha256(b"sshrec-audit-v1").hexdigest()
    found: list[dict[str, Any]] = []
    for file in sorted(directory.iterdir()):
        for raw in file.read_bytes().splitlines(keepends=True):
            fields = json.loads(raw)
            assert raw == json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n"
            assert (fields["n"], fields["prev"]) == (len(found), prev)
            prev = hashlib.sha256(raw).hexdigest()
            found.append(fields)
    return found


# ---- the chain --------------------------------------------------------------------------------------------


def test_lines_in_a_chain(directory: Path, clock: Clock) -> None:
    assert write(directory, clock, [event(1), event(2)], [event(3)]) == [0, 1, 2]
    assert write(directory, clock, [event(4)]) == [3]
    found = stranger(directory)
    assert [fields["size"] for fields in found] == ["1:25", "2:25", "3:25", "4:25"]
    assert found[0]["prev"] == GENESIS
    assert found[0]["time"].startswith("2026-11-23T12:00:00.0")
    assert found[0]["time"].endswith("Z")
    assert path(directory).name == "2026-11-23.jsonl"
    assert path(directory).stat().st_mode & 0o777 == 0o640
    assert [line.fields for line in lines(directory)] == found


def test_an_event_that_comes_again_keeps_its_number(directory: Path, clock: Clock) -> None:
    one, two = event(1), event(2)
    assert write(directory, clock, [one, two, one], [two]) == [0, 1, 0, 1]
    assert write(directory, clock, [two, event(3), one]) == [1, 2, 0]
    assert len(stranger(directory)) == 3


def test_a_new_day(directory: Path, clock: Clock) -> None:
    appender = Appender(directory, clock=clock)
    assert appender.lock()
    yesterday = event(1)
    appender.append([yesterday])
    clock.now += DAY
    assert appender.append([event(2), yesterday]) == [1, 0]
    appender.close()
    clock.now += DAY
    assert write(directory, clock, [event(3), yesterday]) == [2, 0]
    assert sorted(file.name for file in directory.iterdir()) == [f"2026-11-{day}.jsonl" for day in (23, 24, 25)]
    assert len(stranger(directory)) == 3


def test_a_clock_that_goes_back(directory: Path, clock: Clock) -> None:
    """Times say what the clock said; numbers and files go on."""
    write(directory, clock, [event(1)])
    clock.now -= 3 * DAY
    write(directory, clock, [event(2)])
    found = stranger(directory)
    assert path(directory).name == "2026-11-23.jsonl"
    assert [fields["time"][:10] for fields in found] == ["2026-11-23", "2026-11-20"]
    assert lines(directory)


def test_a_large_group_is_written_in_pieces(directory: Path, clock: Clock) -> None:
    events = [event(n, reason="x" * 60_000) for n in range(40)]
    assert write(directory, clock, events) == list(range(40))
    assert path(directory).stat().st_size > 2 * GROUP_BYTES
    assert len(lines(directory)) == 40


def test_nothing_there(directory: Path) -> None:
    with pytest.raises(NotFound, match="no audit log in "):
        list(read_log(directory))


# ---- what a crash leaves ----------------------------------------------------------------------------------


def test_torn_at_every_byte(directory: Path, clock: Clock) -> None:
    """Whatever of the last write is there: what was before stays, and readers are content."""
    write(directory, clock, [event(1)], [event(2, reason="naïve \x1b]0;")])
    whole = path(directory).read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(len(whole) + 1):
        path(directory).write_bytes(whole[:end])
        write(directory, clock, [event(3)])
        after = path(directory).read_bytes()
        assert after.startswith(whole[:end])
        found = lines(directory)
        assert [line.n for line in found] == list(range(len(found)))
        names = [line.event for line in found]
        if end in (0, first, len(whole)):
            assert names == ["resize"] * (whole[:end].count(b"\n") + 1)
        elif end in (first - 1, len(whole) - 1):  # only its newline was missing
            assert names == ["resize"] * (whole[:end].count(b"\n") + 2)
            assert after.startswith(whole[: end + 1])
        else:
            assert names == ["resize"] * whole[:end].count(b"\n") + ["log.repair", "resize"]
            torn = whole[0 if end < first else first : end] + b"\n"
            repair = found[-2].fields
            assert repair["torn_bytes"] == len(torn)
            assert repair["torn_sha256"] == hashlib.sha256(torn).hexdigest()


def test_a_repair_that_is_torn_itself(directory: Path, clock: Clock) -> None:
    write(directory, clock, [event(1)])
    with path(directory).open("ab") as file:
        file.write(b'{"half')
    kept = path(directory).read_bytes()
    write(directory, clock, [])
    whole = path(directory).read_bytes()
    for end in range(len(kept), len(whole) + 1):
        path(directory).write_bytes(whole[:end])
        write(directory, clock, [event(2)])
        assert path(directory).read_bytes().startswith(whole[:end])
        assert [line.event for line in lines(directory)][-2:] == ["log.repair", "resize"]


def test_pages_that_a_power_cut_left_out(directory: Path, clock: Clock) -> None:
    """Of one write of many lines, some pages of zeros and later lines that are whole: all of it is set aside."""
    write(directory, clock, [event(0)])
    kept = path(directory).stat().st_size
    write(directory, clock, [event(n) for n in range(100)])
    data = bytearray(path(directory).read_bytes())
    data[8192:12288] = bytes(4096)
    path(directory).write_bytes(data)
    write(directory, clock, [event(7)])
    found = lines(directory)
    assert [line.event for line in found[-2:]] == ["log.repair", "resize"]
    assert found[-1].fields["size"] == "7:25"
    assert kept < found[-2].offset
    write(directory, clock, [event(8)])  # and what was set aside is not set aside again
    assert [line.event for line in lines(directory)[-3:]] == ["log.repair", "resize", "resize"]


def test_a_new_day_after_a_crash(directory: Path, clock: Clock) -> None:
    """The repair is in the torn file, and a file without any line is no harm."""
    write(directory, clock, [event(1)])
    with path(directory).open("ab") as file:
        file.write(b"half")
    (directory / "2026-11-24.jsonl").touch()
    clock.now += DAY
    write(directory, clock, [event(2)])
    assert kinds(directory) == ["torn"]  # never looked at again: nobody was to write to it
    (directory / "2026-11-24.jsonl").unlink()
    write(directory, clock, [event(2)])
    assert [line.event for line in lines(directory)] == ["resize", "log.repair", "resize"]
    (directory / "2026-11-24.jsonl").write_bytes(b"half a first line")
    write(directory, clock, [event(3)])
    assert [line.event for line in lines(directory)] == ["resize", "log.repair", "log.repair", "resize"]


def test_damage_of_old_is_not_mended(directory: Path, clock: Clock) -> None:
    """A bit that flips in an old line stays for the verifier to find; the chain goes on from the end."""
    write(directory, clock, [event(n, reason="x" * 50_000) for n in range(60)])
    data = bytearray(path(directory).read_bytes())
    at = data.index(b"xxx", len(data) - 2_000_000 + 100_000)
    data[at] ^= 1
    path(directory).write_bytes(data)
    write(directory, clock, [event(61)])
    assert kinds(directory) == ["chain"]


def test_two_writers(directory: Path, clock: Clock) -> None:
    first, second = Appender(directory, clock=clock), Appender(directory, clock=clock)
    assert first.lock()
    assert not second.lock()
    first.append([event(1)])
    first.unlock()
    assert second.lock()
    assert second.append([event(2)]) == [1]
    second.unlock()
    assert first.lock()  # which looks again before it goes on
    assert first.append([event(3)]) == [2]
    first.close()
    second.close()
    assert len(stranger(directory)) == 3


# ---- the disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A small disk for a log; room is made by removing what lies there beside it."""
    with disk(tmp_path / "disk", 256 * 1024) as small:
        (small / "other").write_bytes(bytes(64 * 1024))
        yield small


def fill_log(appender: Appender, small: Path) -> list[int]:
    """Write until the disk has no more room; the numbers of what was acknowledged."""
    numbers: list[int] = []
    with pytest.raises(LogFull, match=r"cannot write the audit log .*: no space left on device"):
        for n in range(1000):
            numbers += appender.append([event(n, reason="x" * 3000)])
    fill(small)
    return numbers


def last_words(n: int) -> dict[str, Any]:
    return {**event(n), "event": "session.end", "code": "T2004I"}


@pytest.mark.root
def test_a_full_disk(full: Path, clock: Clock) -> None:
    """Nothing is acknowledged that is not there, and what must be told all the same is; with room, all goes on."""
    appender = Appender(full / "audit", clock=clock, reserve=16 * 1024)
    assert appender.lock()
    count = len(fill_log(appender, full))
    assert count > 10
    with pytest.raises(LogFull):
        appender.append([event(2000, reason="x" * 5000), last_words(2001)])
    assert appender.append([last_words(2001), last_words(2002)]) == [count, count + 1]
    appender.close()

    # The room that was kept is the file's: who writes next finds it.
    appender = Appender(full / "audit", clock=clock, reserve=16 * 1024)
    assert appender.lock()
    with pytest.raises(LogFull):
        appender.append([event(2000, reason="x" * 5000)])
    assert appender.append([last_words(2003)]) == [count + 2]
    (full / "other").unlink()
    assert appender.append([event(2000, reason="x" * 5000)]) == [count + 3]
    appender.close()
    assert [line.event for line in lines(full / "audit")] == ["resize"] * count + ["session.end"] * 3 + ["resize"]


@pytest.mark.root
def test_midnight_on_a_full_disk(full: Path, clock: Clock) -> None:
    """A new day's file would have no room kept for it: the old one is written to until there is."""
    appender = Appender(full / "audit", clock=clock, reserve=16 * 1024)
    assert appender.lock()
    count = len(fill_log(appender, full))
    clock.now += DAY
    assert appender.append([last_words(2001)]) == [count]
    with pytest.raises(LogFull):
        appender.append([event(2000, reason="x" * 5000)])
    assert sorted(os.listdir(full / "audit")) == ["2026-11-23.jsonl"]
    (full / "other").unlink()
    assert appender.append([event(2000, reason="x" * 5000)]) == [count + 1]
    appender.close()
    assert sorted(os.listdir(full / "audit")) == ["2026-11-23.jsonl", "2026-11-24.jsonl"]
    assert (full / "audit" / "2026-11-24.jsonl").read_bytes().count(b"\n") == 1
    assert len(lines(full / "audit")) == count + 2
    # And yesterday's file has given back what was kept.
    yesterday = (full / "audit" / "2026-11-23.jsonl").stat()
    assert yesterday.st_blocks * 512 - yesterday.st_size <= 4096


@pytest.mark.root
def test_a_full_disk_without_a_writer(tmp_path: Path) -> None:
    """As with one: what must be told is, and the rest waits for room."""
    with disk(tmp_path / "disk", 16 << 20) as small:
        direct = Direct(small / "audit")
        direct.send("session.start", {"sid": "S"})
        filler = fill(small)
        while not direct.pending:
            direct.send("resize", {"sid": "S", "size": "x" * 30_000})
        (waiting,) = direct.pending
        direct.send("session.end", {"sid": "S"})
        assert list(direct.pending) == [waiting]
        assert "no space left on device" in direct.errors[waiting]
        filler.unlink()
        assert direct.wait(0)
        direct.close()
        assert [line.event for line in lines(small / "audit")][-2:] == ["session.end", "resize"]


def test_a_directory_that_is_none(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "audit").write_text("")
    with pytest.raises(AuditError, match="cannot open the audit log"):
        Appender(tmp_path / "audit", clock=clock).lock()


# ---- reading what somebody changed ------------------------------------------------------------------------


@pytest.fixture
def log(directory: Path, clock: Clock) -> Path:
    write(directory, clock, [event(n) for n in range(6)])
    return directory


def change(directory: Path, edit: Any) -> list[str]:
    """What a reader says after `edit` of the list of lines."""
    raw = path(directory).read_bytes().splitlines(keepends=True)
    path(directory).write_bytes(b"".join(edit(raw)))
    return kinds(directory)


def test_a_changed_line(log: Path) -> None:
    assert change(log, lambda raw: [raw[0], raw[1].replace(b"1:25", b"9:25"), *raw[2:]]) == ["chain"]


def test_every_flipped_bit_is_seen(log: Path) -> None:
    whole = path(log).read_bytes()
    last = whole.rindex(b"\n", 0, -1)  # of the last line only a signature tells
    for at in range(0, last, 7):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        path(log).write_bytes(flipped)
        assert kinds(log), at


def test_lines_taken_out_put_in_and_exchanged(log: Path) -> None:
    whole = path(log).read_bytes()
    for edit, expected in (
        (lambda raw: raw[:2] + raw[3:], ["number"]),
        (lambda raw: raw[:2] + raw[1:], ["number"]),
        (lambda raw: [raw[0], raw[2], raw[1], *raw[3:]], ["number", "number", "number"]),
        (lambda raw: raw[2:], ["begins"]),
        (lambda raw: [*raw[:3], b"\n", *raw[3:]], ["line", "number"]),
        (lambda raw: [*raw[:3], b'{"half\n', *raw[3:]], ["line", "number"]),
        (lambda raw: [*raw[:3], raw[3].replace(b":", b": ", 1), *raw[4:]], ["canonical", "chain"]),
        (lambda raw: [*raw[:5], raw[5][:-1]], ["torn"]),
    ):
        assert change(log, edit) == expected
        path(log).write_bytes(whole)


def test_a_repair_that_does_not_match_excuses_nothing(directory: Path, clock: Clock) -> None:
    write(directory, clock, [event(1)])
    with path(directory).open("ab") as file:
        file.write(b'{"half')
    write(directory, clock, [event(2)])
    whole = path(directory).read_bytes()
    path(directory).write_bytes(whole.replace(b'{"half', b'{"hale'))
    assert kinds(directory) == ["line", "number"]


JUNK = [b"\0", b"x", b"\n", b"[[[[", b'{"n":0}\n', b'{"a":' * 100 + b"\n", b'{"event":"log.repair"}\n']


@pytest.mark.parametrize("junk", JUNK)
def test_junk(directory: Path, junk: bytes) -> None:
    directory.mkdir()
    (directory / "2026-11-23.jsonl").write_bytes(junk * (4_000_000 // len(junk)))
    items = iter(read_log(directory))
    first = next(items)
    assert isinstance(first, Problem)
    assert first.kind in ("line", "torn")
    assert all(isinstance(item, Problem) for item, _ in zip(items, range(1000), strict=False))


def test_files_that_are_none(log: Path) -> None:
    os.mkfifo(log / "2026-11-24.jsonl")
    (log / "2026-11-25.jsonl").symlink_to(log / "2026-11-23.jsonl")
    (log / "2026-11-26.jsonl").mkdir()
    (log / "notes.txt").write_text("not ours")
    assert kinds(log) == ["file", "file", "file"]


def test_a_signature_stands_by_its_checkpoint(directory: Path, clock: Clock) -> None:
    def own(name: str, code: str) -> dict[str, Any]:
        return {"event": name, "code": code, "uid": f"{name}-0123456789", "sender_uid": 0}

    checkpoint, signature = own("checkpoint", "SR002I"), own("checkpoint.signature", "SR003I")
    write(directory, clock, [checkpoint, signature])
    assert lines(directory)
    write(directory, clock, [signature | {"uid": "other-0123456789"}])
    assert kinds(directory) == ["signature"]


def test_no_line_is_longer_than_a_line_may_be(directory: Path, clock: Clock) -> None:
    write(directory, clock, [event(0, reason="\x7f" * 70_000)])
    (line,) = lines(directory)
    assert len(line.raw) <= LINE_MAX
    assert line.fields["cut"]["reason"] + len(line.fields["reason"]) == 70_000
    assert canonical(line.fields) + b"\n" == line.raw


def test_the_manuals_check_of_the_chain(directory: Path, clock: Clock) -> None:
    """The shell script in sshrec-audit(5), as it stands there."""
    page = (Path(__file__).parents[2] / "man/man5/sshrec-audit.5").read_text()
    script = page.split(".Bd -literal -offset indent\n")[1].split(".Ed\n")[0].replace("\\e", "\\")

    def said() -> str:
        done = subprocess.run(
            ["sh", "-c", script], cwd=directory.parent, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    write(directory, clock, [event(n, reason='"naïve\\') for n in range(5)])
    clock.now += DAY
    write(directory, clock, [event(5)])
    assert said() == ""
    first = directory / "2026-11-23.jsonl"
    first.write_bytes(first.read_bytes().replace(b'"3:25"', b'"9:25"'))
    assert said().startswith('does not continue: {"code":"T2002I","event":"resize","n":4,')
