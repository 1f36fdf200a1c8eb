"""The chain of seals, checked with nothing but hashlib and json; and recovery, after a kill at any byte."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from sshrec.errors import DataError
from sshrec.recording import reader
from sshrec.recording.recovery import Found, recover
from sshrec.recording.seal import CHUNK_BYTES, Outcome, is_seal, read_seal
from tests.recordings import EXIT, SESSION, WALL_MS, Memory, Step, record

STEPS: list[Step] = [
    (0.1, b"root@web1:~# "),
    (1.0, "é─\r\n".encode()),
    (6.0, b"caf\xe9"),
    (0.2, (120, 40)),
    (0.2, b"x" * CHUNK_BYTES),
    (7.0, b"\xf0\x9f"),
    (0.1, b"bye\r\n"),
]


def check(text: bytes) -> list[dict[str, Any]]:
    """The seals of a whole recording, after checking each as a stranger would."""
    assert text.endswith(b"\n")
    seals: list[dict[str, Any]] = []
    chunk: list[bytes] = []
    previous = hashlib.sha256(SESSION.encode()).hexdigest()
    for line in text.splitlines(keepends=True):
        event = json.loads(line)
        if not (isinstance(event, list) and event[1] == "S"):
            chunk.append(line)
            continue
        seal = json.loads(event[2])
        assert event[2] == json.dumps(seal, sort_keys=True, separators=(",", ":")), "canonical"
        assert seal["n"] == len(seals)
        assert seal["count"] == len(chunk)
        assert seal["bytes"] == sum(map(len, chunk))
        assert seal["sha256"] == hashlib.sha256(b"".join(chunk)).hexdigest()
        assert seal["prev"] == previous
        assert isinstance(seal["wall"], int)
        previous = hashlib.sha256(line).hexdigest()
        chunk = []
        seals.append(seal)
    assert not chunk, "the last line is a seal"
    assert [n for n, seal in enumerate(seals) if "end" in seal] == [len(seals) - 1], "one outcome, at the end"
    return seals


def kill_and_recover(path: Path, text: bytes, expected: Found = Found.SEALED) -> bytes:
    """What recovery makes of a recording that was cut off."""
    path.write_bytes(text)
    with path.open("r+b") as file:
        found = recover(file, SESSION, path.with_suffix(".torn"), WALL_MS + 60_000, "its worker died")
        assert found is expected
    return path.read_bytes()


def test_the_chain_of_a_session() -> None:
    seals = check(record(STEPS).text)
    assert len(seals) == 3
    assert seals[-1]["end"] == {"reason": "exit", "status": 0}


def test_the_outcome_tells_what_was_learned() -> None:
    outcome = Outcome("exit", status=1, address="192.0.2.1:22", host_key="ssh-ed25519 SHA256:abc")
    end = check(record(STEPS, outcome=outcome).text)[-1]["end"]
    assert end == {
        "reason": "exit",
        "status": 1,
        "address": "192.0.2.1:22",
        "host_key": "ssh-ed25519 SHA256:abc",
    }


def test_any_flipped_bit_before_the_last_seal_breaks_the_chain() -> None:
    """The last seal has no other after it: that is what the audit log is for."""
    text = record([(0.1, b"hello\r\n"), (6.0, b"bye\r\n")]).text
    check(text)
    for at in range(text.rindex(b"\n", 0, -1)):
        broken = bytearray(text)
        broken[at] ^= 1
        with pytest.raises((AssertionError, ValueError, KeyError, TypeError, IndexError)):
            check(bytes(broken))


def offsets(sink: Memory) -> list[int]:
    """Every boundary between two writes, the bytes around it, and some anywhere."""
    ends = [sum(map(len, sink.writes[: n + 1])) for n in range(len(sink.writes))]
    some = random.Random(2).sample(range(ends[0], ends[-1]), 60)  # noqa: S311 - the same each time
    around = [end + step for end in ends[:-1] for step in (-1, 0, 1) if end + step >= ends[0]]
    return sorted({*around, *some})


def test_recovery_after_a_kill_at_any_byte(tmp_path: Path) -> None:
    sink = record(STEPS)
    path, torn = tmp_path / "a.cast", tmp_path / "a.torn"
    for cut in offsets(sink):
        torn.unlink(missing_ok=True)
        left = sink.text[:cut]
        whole = left[: left.rindex(b"\n") + 1]
        recovered = kill_and_recover(path, left)
        assert recovered.startswith(whole), cut
        assert (torn.read_bytes() if torn.exists() else b"") == left[len(whole) :], "what was torn is kept"
        end = check(recovered)[-1]["end"]
        assert end == {"reason": "aborted", "detail": "its worker died"}
        times = [event.time for event in reader.open_path(path)]
        assert times == sorted(times)
        with path.open("r+b") as file:
            found = recover(file, SESSION, torn, WALL_MS + 120_000, "again")
            assert found is Found.FINISHED, "a second run has nothing to do"
        assert path.read_bytes() == recovered


def test_recovery_leaves_a_finished_recording_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.cast"
    path.write_bytes(text := record(STEPS).text)
    with path.open("r+b") as file:
        assert recover(file, SESSION, tmp_path / "a.torn", WALL_MS, "no reason") is Found.FINISHED
    assert path.read_bytes() == text
    assert not (tmp_path / "a.torn").exists()


def test_recovery_killed_in_the_middle_of_itself(tmp_path: Path) -> None:
    sink = record(STEPS, outcome=None)
    recovered = kill_and_recover(tmp_path / "a.cast", sink.text)
    for cut in range(len(sink.text), len(recovered)):
        again = kill_and_recover(tmp_path / "b.cast", recovered[:cut])
        assert check(again)[-1]["end"]["reason"] == "aborted"
        assert again.startswith(sink.text)


def test_without_a_whole_header_there_is_nothing_to_seal(tmp_path: Path) -> None:
    path, torn = tmp_path / "a.cast", tmp_path / "a.torn"
    path.write_bytes(b'{"version":2,"wid')
    with path.open("r+b") as file:
        assert recover(file, SESSION, torn, WALL_MS, "its worker died") is Found.EMPTY
    assert torn.read_bytes() == b'{"version":2,"wid'


@pytest.mark.parametrize("kind", ["seal", "event"])
@pytest.mark.parametrize(("later", "byte"), [(0.1, b"!"), (61.0, b"\0")], ids=["no hole", "an old hole"])
def test_damage_is_kept_and_sealed_over(tmp_path: Path, kind: str, later: float, byte: bytes) -> None:
    """A line that cannot be read stays where it is: it is evidence, and verification will name it."""
    lines = record([*STEPS, (later, b"later")], outcome=None).text.splitlines(keepends=True)
    number = next(n for n, line in enumerate(lines) if is_seal(line) == (kind == "seal") and n > 1)
    lines[number] = lines[number][:9] + byte * 20 + b"\n"
    recovered = kill_and_recover(tmp_path / "a.cast", b"".join(lines))
    assert recovered.startswith(b"".join(lines))
    assert read_seal(recovered.splitlines(keepends=True)[-1])["end"]["reason"] == "aborted"


@pytest.mark.parametrize("outcome", [None, EXIT], ids=["aborted", "with its end"])
def test_from_a_hole_on_everything_is_set_aside(tmp_path: Path, outcome: Outcome | None) -> None:
    """After a power cut, a page may be on disk and the one before it not: what was synced ends before both."""
    text = record([*STEPS, (0.1, b"lost"), (0.1, b"not lost")], outcome=outcome).text
    at = text.index(b"lost")
    left = text[: at - 3] + bytes(10) + text[at + 7 :] + bytes(700)
    recovered = kill_and_recover(tmp_path / "a.cast", left)
    whole = text[: text.rindex(b"\n", 0, at) + 1]
    assert recovered.startswith(whole)
    assert check(recovered)[-1]["end"]["reason"] == "aborted"
    assert (tmp_path / "a.torn").read_bytes() == left[len(whole) : -700], "without the zeros at the end"
    assert kill_and_recover(tmp_path / "a.cast", recovered, Found.FINISHED) == recovered


def test_zeros_after_the_end_only_go(tmp_path: Path) -> None:
    text = record(STEPS).text
    assert kill_and_recover(tmp_path / "a.cast", text + bytes(5000), Found.FINISHED) == text
    assert kill_and_recover(tmp_path / "a.cast", bytes(5000), Found.EMPTY) == bytes(5000)
    assert not (tmp_path / "a.torn").exists()


def test_what_a_second_crash_tears_is_kept_behind_the_first(tmp_path: Path) -> None:
    path, torn = tmp_path / "a.cast", tmp_path / "a.torn"
    whole = record(STEPS, outcome=None).text
    torn.write_bytes(b"[14.7,first")
    for left in (b"[14.7,first", b"second", b"second"):
        kill_and_recover(path, whole + left)
    assert torn.read_bytes() == b"[14.7,firstsecond"
    assert sorted(os.listdir(tmp_path)) == ["a.cast", "a.torn"]


def test_only_a_seal_is_read_as_one() -> None:
    line = record(STEPS).writes[-1]
    assert is_seal(line)
    assert read_seal(line)["end"]["status"] == 0
    for other in (b'[1.0,"o","x"]\n', b'[1.0,"o","[1.0,\\"S\\",\\"{}\\"]"]\n', b"nonsense\n", b""):
        assert not is_seal(other)
        with pytest.raises(DataError):
            read_seal(other)
