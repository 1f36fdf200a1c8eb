"""Verifying one file: every attack on it, and the verdict that is exactly that attack's."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from sshrec.errors import NotFound
from sshrec.recording import packing
from sshrec.recording.recorder import Recorder
from sshrec.recording.recovery import recover
from sshrec.recording.seal import CHUNK_BYTES, Chain, Outcome, is_seal, read_seal
from sshrec.recording.verification import LINE_MAX, NO_HEADER, State, Verdict, verify, verify_path
from sshrec.session import session_id
from tests.recordings import EXIT, SESSION, WALL_MS, Memory, Step, header, noise, record

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

OTHER = session_id(WALL_MS + 1, b"9876543210")
STEPS: list[Step] = [
    (0.1, b"root# "),
    (1.0, "é─\r\n".encode()),
    (6.0, b"caf\xe9"),
    (0.2, (120, 40)),
    (7.0, b"\xf0\x9f"),
    (0.1, b"S"),
    (6.0, b"bye\r\n"),
]


@pytest.fixture(scope="module")
def text() -> bytes:
    """Four chunks."""
    return record(STEPS).text


@pytest.fixture(scope="module")
def long() -> bytes:
    """Several packed frames."""
    return record([(0.01, noise(3000, n).hex().encode()) for n in range(700)]).text


def pack(text: bytes) -> bytes:
    target = io.BytesIO()
    packing.pack(io.BytesIO(text), target)
    return target.getvalue()


def look(content: bytes, session: str | None = SESSION, *, packed: bool | None = None) -> Verdict:
    return verify(io.BytesIO(content), session, packed=packed)


def said(content: bytes, session: str | None = SESSION, *, packed: bool | None = None) -> str:
    """The verdict in one line."""
    verdict = look(content, session, packed=packed)
    assert (verdict.problem is not None) == (verdict.state is State.BAD)
    assert (verdict.gap is not None) == (verdict.state is State.INCOMPLETE)
    return f"{verdict.state.value} {verdict.problem or verdict.gap or ''}".strip()


def chunks(text: bytes) -> list[bytes]:
    """The chunks, each with the seal that closes it."""
    found = [b""]
    for line in text.splitlines(keepends=True):
        found[-1] += line
        if is_seal(line):
            found.append(b"")
    return found[:-1]


def sealed(lines: Iterable[bytes], session: str = SESSION, end: Outcome = EXIT) -> bytes:
    """A recording of these lines, one chunk each, sealed as the recorder seals: what a forger makes."""
    chain, text = Chain(session), bytearray()
    lines = list(lines)
    for n, line in enumerate(lines):
        chain.add(line, line.count(b"\n"))
        seal = chain.seal(1_000_000, WALL_MS, end if n == len(lines) - 1 else None)
        chain.close(seal)
        text += line + seal
    return bytes(text)


# What is good


def test_a_whole_recording_plain_and_packed(text: bytes) -> None:
    for content in (text, pack(text)):
        verdict = look(content)
        assert verdict.state is State.COMPLETE
        assert (verdict.session, verdict.seals, verdict.outcome) == (SESSION, 4, EXIT)
        assert (verdict.sealed, verdict.unsealed) == (len(text), 0)
        assert verdict.head == hashlib.sha256(text.splitlines(keepends=True)[-1]).hexdigest()


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "command"])
def test_whatever_the_recorder_writes(terminal: bool) -> None:
    steps: list[Step] = [
        (0.1, b'quotes " and \\ and "S", and "m","stdout: from here on counted and hashed, not kept"]\n'),
        (0.1, (b"error\n", "stderr")),
        (70.0, b"\0\1\2" * 1000),
        (0.1, (b"\xff\xfe", "stderr")),
        (0.1, "\u2028\u2029\x85\x7f\x1b[0m".encode()),
        (9.0, bytes(range(256)) * 300),
        (0.1, (65535, 0)),
        (0.1, b"\n"),
        (0.1, b""),
        *((0.0001, b"%d" % n) for n in range(20000)),
    ]
    for outcome in (
        EXIT,
        Outcome("killed", None, "TERM", 'by "root" → \x1b[0m', "[::1]:22", "ssh-ed25519 SHA256:x"),
    ):
        recorded = record(
            steps, terminal=terminal, command=None if terminal else 'echo "S",', outcome=outcome
        ).text
        assert said(recorded) == said(pack(recorded)) == "COMPLETE"


def test_input_that_is_kept() -> None:
    sink = Memory()
    recorder = Recorder(sink, SESSION, header(), wall_ms=WALL_MS, terminal=True, stream_limit=0)
    recorder.input(5, b"ls\xff\r", keep=True)
    recorder.mark(6, 'a "marker"')
    recorder.tick(10_000_000, WALL_MS + 90_000)  # the wall clock was stepped
    recorder.close(10_000_000, WALL_MS, EXIT)
    assert said(sink.text) == "COMPLETE"


def test_without_a_name_it_is_who_it_says_it_is(text: bytes) -> None:
    verdict = look(text, None)
    assert (verdict.state, verdict.session) == (State.COMPLETE, SESSION)


def test_reads_that_end_anywhere(text: bytes, long: bytes) -> None:
    class Dribble(io.BytesIO):
        step = 4

        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, self.step))

    for step, content in ((4, text), (7, text), (100, text), (65537, long)):
        for form in (content, pack(content)):
            file = Dribble(form)
            file.step = step
            assert verify(file, SESSION).state is State.COMPLETE


def test_the_heads_are_those_that_the_worker_told(long: bytes) -> None:
    """`n` and the hash before it: what Recorder.head gave at that moment is what `head_at` gives for ever."""
    sink = Memory()
    told: dict[int, str] = {}
    recorder = Recorder(sink, SESSION, header(), wall_ms=WALL_MS, terminal=True, stream_limit=0)
    for n in range(40):
        recorder.output(n * 6_000_000, b"line %d\r\n" % n)
        recorder.tick(n * 6_000_000 + 5_500_000, WALL_MS)
        told.update([recorder.head])
    recorder.close(300_000_000, WALL_MS, EXIT)
    told.update([recorder.head])
    for content in (sink.text, pack(sink.text)):
        verdict = verify(io.BytesIO(content), SESSION, heads=(0, 7, 39, 99))
        assert {n: verdict.head_at(n) for n in (7, 39, 41)} == {n: told[n] for n in (7, 39, 41)}
        assert verdict.head_at(0) == hashlib.sha256(SESSION.encode()).hexdigest()
        assert verdict.head_at(99) is None, "it does not go that far"
        assert verdict.head_at(8) is None, "nobody asked for it"
    cut = b"".join(chunks(sink.text)[:9])
    short = verify(io.BytesIO(cut), SESSION, heads=range(50))
    assert (short.seals, short.head_at(9), short.head_at(10)) == (9, told[9], None)


def test_progress_tells_of_every_byte(long: bytes) -> None:
    for content in (long, pack(long)):
        counted: list[int] = []
        verify(io.BytesIO(content), SESSION, progress=counted.append)
        assert sum(counted) == len(content)


# What is not all there


def test_a_tail_cut_at_every_byte(text: bytes) -> None:
    for cut in range(len(text)):
        left = text[:cut]
        verdict = look(left)
        assert verdict.state is State.INCOMPLETE, cut
        assert verdict.gap is not None
        assert verdict.gap.why == ("empty" if not left else "unfinished" if left.endswith(b"\n") else "torn"), cut
        whole = sum(line.count(b'"S",') for line in left.splitlines(keepends=True) if line.endswith(b"\n"))
        assert verdict.seals == min(whole, 3)
        assert verdict.sealed + verdict.unsealed == cut


def test_a_packed_recording_is_all_there_or_bad(text: bytes) -> None:
    """It got its name when it was whole."""
    packed = pack(text)
    for cut in range(len(packed)):
        why = "the packed file ends in the middle" if cut >= 4 else "it is not packed, and should be"
        verdict = look(packed[:cut], packed=True)
        assert (verdict.state, verdict.problem and verdict.problem.what) == (State.BAD, why), cut


def test_a_tail_cut_before_packing(text: bytes) -> None:
    packed = frames([b"".join(chunks(text)[:2])])
    assert said(packed) == "BAD chunk 2, byte 968, after 14.300000 s: it was packed without its end"


@pytest.mark.parametrize("cut", [400, 500, 1100, 1698])
def test_what_recovery_closed_is_incomplete(tmp_path: Path, text: bytes, cut: int) -> None:
    path = tmp_path / f"{SESSION}.cast"
    path.write_bytes(text[:cut])
    with path.open("r+b") as file:
        recover(file, SESSION, tmp_path / f"{SESSION}.torn", WALL_MS, "its worker died")
    assert said(path.read_bytes()) == "INCOMPLETE aborted: its worker died"
    assert said(pack(path.read_bytes())) == "INCOMPLETE aborted: its worker died"


def test_an_outcome_that_is_no_end() -> None:
    failed = Outcome("recording-failed", detail="no space left\x1b[2J")
    assert said(record(STEPS, outcome=failed).text) == "INCOMPLETE recording-failed: no space left\\x1b[2J"
    for reason in ("killed", "client-disconnect", "unreachable"):
        assert said(record(STEPS, outcome=Outcome(reason)).text) == "COMPLETE"


def test_a_stream_that_was_not_all_kept() -> None:
    steps: list[Step] = [(0.1, b"x" * 100), (0.1, (b"e" * 300, "stderr")), (0.1, b"y" * 100)]
    text = record(steps, terminal=False, stream_limit=250).text
    assert said(text) == "INCOMPLETE stream-limit: stderr was kept up to its limit, then counted and hashed"
    for fake in (
        b"stderr: from here on counted and hashed, not kept",
        b'"m","stderr: from here on counted and hashed, not kept"',
    ):
        assert said(record([(0.1, fake)], terminal=False).text) == "COMPLETE", "anybody can print that"


# What was changed


def test_a_bit_flipped_anywhere(text: bytes) -> None:
    """Of the last seal, nothing in the file vouches for its time, its clock and the outcome: the log does."""
    last = text.rindex(b"\n", 0, -1) + 1
    free = set(range(last, last + 10))
    for begin, end in ((b'\\"end\\"', b',\\"n\\"'), (b'\\"wall\\"', b'}"]')):
        free |= set(range(text.index(begin, last), text.index(end, last)))
    for at in range(len(text)):
        for bit in range(8):
            broken = bytearray(text)
            broken[at] ^= 1 << bit
            state = look(bytes(broken)).state
            assert state is State.BAD or (at in free and state is State.COMPLETE), (at, bit)


def test_a_bit_flipped_anywhere_of_the_packed_form(text: bytes) -> None:
    """zstd has a few bits that mean nothing; where one is flipped, the text is what it was, bit for bit."""
    packed = pack(text)
    harmless = 0
    for at in range(len(packed)):
        for bit in range(8):
            broken = bytearray(packed)
            broken[at] ^= 1 << bit
            if look(bytes(broken), packed=True).state is not State.BAD:
                assert zstd.decompress(bytes(broken)) == text
                harmless += 1
    assert harmless < 8 * len(packed) // 100


def test_the_place_is_told(text: bytes) -> None:
    one, two, three, four = chunks(text)
    changed = one + two.replace(b"caf", b"cup") + three + four
    assert said(changed) == f"BAD chunk 1, byte {len(one)}, after 7.100000 s: its text is not what was sealed"
    verdict = look(changed)
    assert (verdict.seals, verdict.sealed) == (1, len(one)), "up to there it holds"


def changes(text: bytes) -> dict[str, tuple[bytes, str]]:
    """Attacks on a recording of four chunks, and what is said of them, without the place."""
    one, two, three, four = chunks(text)
    follows = "its seal follows another seal than the one before it"
    theirs = f"it is the recording of session {OTHER}"
    other = chunks(record(STEPS, session=OTHER).text)
    lines = text.splitlines(keepends=True)
    seal = lines[-1]
    bare = b"".join(two.splitlines(keepends=True)[:-1])
    return {
        "first dropped": (two + three + four, "it has no header of ours"),
        "chunk dropped": (one + three + four, "seal 2 stands where seal 1 should"),
        "chunk duplicated": (one + two + two + three + four, "seal 1 stands where seal 2 should"),
        "chunks swapped": (one + three + two + four, "seal 2 stands where seal 1 should"),
        "chunk replayed": (one + two + three + two + four, "seal 1 stands where seal 3 should"),
        "another session's": (one + other[1] + three + four, follows),
        "all of another's": (b"".join(other), theirs),
        "seal dropped": (one + bare + three + four, "seal 2 stands where seal 1 should"),
        "line dropped": (one + two[two.index(b"\n") + 1 :] + three + four, "it has 3 lines, and 4 were sealed"),
        "line added": (one + lines[5] + two + three + four, "it has 5 lines, and 4 were sealed"),
        "bytes added": (one + two.replace(b"caf", b"cafe") + three + four, "it has 89 bytes, and 88 were sealed"),
        "goes on": (text + lines[1], "it goes on after its end"),
        "a byte more": (text + b"\n", "it goes on after its end"),
        "half a line more": (text + b"[21.0", "it goes on after its end"),
        "two ends": (text + seal, "it goes on after its end"),
        "the whole twice": (text + text, "it goes on after its end"),
        "header changed": (text.replace(b'"joe"', b'"zoe"', 1), "its text is not what was sealed"),
        "header renamed": (text.replace(SESSION.encode(), OTHER.encode(), 1), theirs),
        "a second header": (one + lines[0] + two + three + four, "a line that the recorder does not write"),
        "blank line": (one + b"\n" + two + three + four, "a line that the recorder does not write"),
        "comment": (one + b"# hello\n" + two + three + four, "a line that the recorder does not write"),
        "last newline": (text[:-1] + b" ", "a line that the recorder does not write"),
    }  # fmt: skip


@pytest.mark.parametrize("attack", changes(record(STEPS).text))
def test_an_attack_on_the_file(text: bytes, attack: str) -> None:
    content, what = changes(text)[attack]
    for form in (content, frames([content])) if content.endswith(b"\n") else (content,):
        verdict = look(form)
        assert verdict.state is State.BAD
        assert verdict.problem is not None
        assert verdict.problem.what == what


@pytest.mark.parametrize(
    "seal",
    [
        b'{\\"n\\":0}',
        b"{}",
        b"[]",
        b"null",
        b"1e999",
        b"NaN",
        b'{\\"wall\\":NaN}',
        b'{\\"n\\":true,\\"wall\\":1}',
        b'{\\"n\\":1e2,\\"wall\\":1}',
        b'{\\"n\\":\\"0\\",\\"wall\\":1}',
        b'{\\"n\\":-1,\\"wall\\":1}',
        b'{\\"n\\":' + b"9" * 6000 + b',\\"wall\\":1}',
        b'{\\"n\\":0,\\"wall\\":' + b"9" * 6000 + b"}",
        b'{\\"n\\":0,\\"wall\\":-1}',
        b'{\\"n\\":0,\\"wall\\":1.5}',
        b'{\\"n\\":0,\\"wall\\":1,\\"end\\":7}',
        b'{\\"n\\":0,\\"wall\\":1,\\"end\\":{\\"status\\":0}}',
        b'{\\"n\\":0,\\"wall\\":1,\\"end\\":{\\"reason\\":\\"exit\\",\\"status\\":\\"0\\"}}',
        b'{\\"x\\":' * 5000,
        b"[" * 30000,
        b'{\\"x\\":' + b"[" * 20000 + b"]" * 20000 + b"}",
        b"\xff\xfe",
        b"\\ud800",
        b'","',
        b"",
    ],
    ids=lambda data: data[:24].decode("latin1"),
)
def test_a_seal_that_is_none(text: bytes, seal: bytes) -> None:
    lines = text.splitlines(keepends=True)
    lines[4] = b'[7.100000,"S","' + seal + b'"]\n'
    assert (
        said(b"".join(lines))
        == f"BAD chunk 0, byte {sum(map(len, lines[:4]))}, after 0.000000 s: its seal is damaged"
    )


def reworded(line: bytes, change: Callable[[dict[str, object]], str]) -> bytes:
    start, _, _ = line.partition(b'"S",')
    return start + b'"S",' + json.dumps(change(read_seal(line))).encode() + b"]\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda seal: json.dumps(seal, sort_keys=True),
        lambda seal: json.dumps(dict(sorted(seal.items(), reverse=True)), separators=(",", ":")),
        lambda seal: json.dumps({**seal, "more": 1}, sort_keys=True, separators=(",", ":")),
        lambda seal: json.dumps({**seal, "wall": float(seal["wall"])}, sort_keys=True, separators=(",", ":")),
        lambda seal: json.dumps({**seal, "n": False}, sort_keys=True, separators=(",", ":")),
        lambda seal: json.dumps({**seal, "sha256": seal["sha256"].upper()}, sort_keys=True, separators=(",", ":")),
    ],
    ids=["spaces", "order", "a key more", "float", "bool", "upper case"],
)
def test_a_seal_in_other_words_is_no_seal_of_ours(text: bytes, change: Callable[[dict[str, object]], str]) -> None:
    lines = text.splitlines(keepends=True)
    lines[4] = reworded(lines[4], change)
    assert look(b"".join(lines)).state is State.BAD


@pytest.mark.parametrize(
    "line",
    [
        b'[1.000000, "S","x"]\n',
        b'[1,"S","x"]\n',
        b' [1.000000,"S","x"]\n',
        b'[1.000000,"\\u0053","x"]\n',
        b'[1.000000,"o"]\n',
        b'[1.000000,"o",1]\n',
        b'[1.000000,"o","x"],\n',
        b'[1.000000,"oo","x"]\n',
        b'[1e9,"o","x"]\n',
        b'[NaN,"o","x"]\n',
        b'[-1.000000,"o","x"]\n',
        b'[99999999999.000000,"o","x"]\n',
        b'[1.000000,"W","soon"]\n',
        b'[1.000000,"C","{\\"bytes\\":1,\\"count\\":2}"]\n',
        b"{}\n",
        b"\0\n",
    ],
)
def test_a_line_that_the_recorder_does_not_write_under_a_chain_made_for_it(line: bytes) -> None:
    """Whoever makes the whole chain anew is found by the log alone; but no player may see other seals."""
    good = b'[1.000000,"o","x"]\n'
    assert said(sealed([header(), good, good])) == "COMPLETE"
    for lines in ([header(), line, good], [header(), good + line + good], [header() + line]):
        assert "a line that the recorder does not write" in said(sealed(lines))


@pytest.mark.parametrize(
    "first",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b'{"version":2,"width":80,"height":24}\n',
        b'{"version":2,"sshrec":{}}\n',
        b'{"version":2,"sshrec":{"session":7}}\n',
        b'{"version":"2","sshrec":{"session":"x"}}\n',
        b'{"version":2,"sshrec":' + b"[" * 100_000 + b"\n",
        b'{"x":' * 100_000 + b"\n",
        b"#!/bin/sh\necho\n",
        b"nothing with an end",
        b'{"version":3,',
    ],
    ids=lambda data: data[:24].decode(),
)
def test_what_is_no_recording_of_ours(text: bytes, first: bytes) -> None:
    for session in (SESSION, None):
        assert said(first, session) == "BAD chunk 0, byte 0, after 0.000000 s: it has no header of ours"


# The packed form


def frames(parts: Iterable[bytes], *, table: bool = True, tail: bytes = b"") -> bytes:
    """These texts as frames with their seek table: packing.pack without its care."""
    packed = [zstd.compress(part, options={zstd.CompressionParameter.checksum_flag: 1}) for part in parts]
    sizes = [(len(frame), len(part)) for frame, part in zip(packed, parts, strict=True)]
    return b"".join(packed) + (packing._seek_table(sizes) if table else b"") + tail


def test_frames_and_seek_table(long: bytes, text: bytes) -> None:
    good = pack(long)
    found = packing.frames(io.BytesIO(good))
    assert len(found) > 2
    first, second = (good[frame.offset : frame.offset + frame.packed] for frame in found[:2])
    rest = good[len(first) + len(second) :]
    table = "its seek table is not that of its frames"
    for content, what in (
        (second + first + rest, "it has no header of ours"),
        (first + rest, "seal"),
        (first + first + rest, "a line that the recorder does not write"),
        (good + b"\0", "there is more after the packed file's end"),
        (good + good, "there is more after the packed file's end"),
        (good[:-1], "the packed file ends in the middle"),
        (frames([text], table=False), "the packed file ends in the middle"),
        (frames([text], table=False) + b"\0", table),
        (frames([text])[:-5] + b"\1" + frames([text])[-4:], table),
        (frames([text], table=False) + packing._seek_table([(1, len(text))]), table),
        (frames([b"".join(chunks(long)[:3]), b"".join(chunks(long)[3:])]), ""),
        (frames([long[:600_000], long[600_000:]]), "a packed frame ends in the middle of a chunk"),
        (frames([text[: text.index(b"\n", 380) + 1], b""]), "a packed frame ends in the middle of a chunk"),
        (frames(chunks(text)), "a packed frame is smaller than the packer makes them"),
        (frames([b"", text]), "a packed frame is smaller than the packer makes them"),
    ):
        verdict = look(content)
        assert (verdict.problem.what if verdict.problem else "").startswith(what) and bool(what) == bool(
            verdict.problem
        )


def test_a_name_says_which_form_it_is(tmp_path: Path, text: bytes) -> None:
    for name, content, what in (
        (f"{SESSION}.cast", text, ""),
        (f"{SESSION}.cast.zst", pack(text), ""),
        ("evidence", pack(text), ""),
        (f"{SESSION}.cast.zst", text, "it is not packed, and should be"),
        (f"{SESSION}.cast.zst", b"", "it is not packed, and should be"),
        (f"{SESSION}.cast", pack(text), "it is packed, and should not be"),
        (f"{OTHER}.cast", text, f"it is the recording of session {SESSION}"),
        (f"{OTHER}.cast.zst", pack(text), f"it is the recording of session {SESSION}"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        problem = verify_path(path).problem
        assert (problem.what if problem else "") == what


# Hostile files


def test_what_is_no_file(tmp_path: Path) -> None:
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to("/dev/zero")
    for path in (fifo, link, tmp_path, Path("/dev/tty"), Path("/proc/self")):
        problem = verify_path(path).problem
        assert problem is not None
        assert problem.what in ("it is no regular file", "cannot be read: no such device or address")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "too many levels" in str(verify_path(loop).problem)
    with pytest.raises(NotFound):
        verify_path(tmp_path / "nothing")


def bombs(directory: Path) -> dict[str, str]:
    """Files that would fill memory or time, by their names, and what is said of them."""
    head = header()
    line = b'[1.000000,"o","' + b"x" * 1000 + b'"]\n'
    good = sealed([head, line])
    many = zstd.compress(line * 50_000)
    wide = zstd.compress(b"\0" * 50_000_000, options={zstd.CompressionParameter.window_log: 27})
    nested = good
    for _ in range(3):
        nested = frames([nested])
    line_long = "a line of more bytes than the recorder writes"
    middle = "a packed frame ends in the middle of a chunk"
    small = "a packed frame is smaller than the packer makes them"
    cases: dict[str, tuple[bytes, int, str]] = {
        "sparse": (b"", 10 << 30, line_long),
        "sparse-after-header": (head, 10 << 30, line_long),
        "sparse-packed": (pack(good), 10 << 30, "there is more after the packed file's end"),
        "zeros.zst": (zstd.compress(b"\0" * 300_000_000), 0, line_long),
        "one-chunk.zst": (zstd.compress(head) + many * 40, 0, middle),
        "one-chunk": (head + line * 50_000, 0, "a chunk of more bytes than the recorder makes one of"),
        "window.zst": (wide, 0, "a packed frame is damaged"),
        "frames.zst": (zstd.compress(head) + zstd.compress(line) * 1_000_000, 0, middle),
        "empty-frames.zst": (zstd.compress(b"") * 1_000_000, 0, small),
        "nested.zst": (nested, 0, "it has no header of ours"),
        "table.zst": (zstd.compress(good), 10 << 30, "its seek table is not that of its frames"),
        "header": (b'{"version":2,"width":80,"a":"' + b"x" * 3_000_000, 0, line_long),
        "seals": (sealed([head] + [b'[1.000000,"o",""]\n'] * 50_000), 0, ""),
    }  # fmt: skip
    for name, (content, size, _) in cases.items():
        with (directory / name).open("wb") as file:
            file.write(content)
            if size:
                file.truncate(size)
    return {name: what for name, (_, _, what) in cases.items()}


def test_bombs_are_bounded_in_memory_and_time(tmp_path: Path) -> None:
    for name, what in bombs(tmp_path).items():
        program = (
            "import resource, sys\n"
            "from pathlib import Path\n"
            "from sshrec.recording.verification import verify_path\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "problem = verify_path(Path(sys.argv[1])).problem\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
            "print(problem.what if problem else '')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / name],
            capture_output=True,
            text=True,
            timeout=60,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20)),
        )
        assert done.returncode == 0, (name, done.stderr)
        kib, found = done.stdout.splitlines()
        assert found == what, name
        assert int(kib) < 100 * 1024, name


def test_a_line_at_the_limit_and_one_over_it() -> None:
    def of(size: int) -> bytes:
        return b'[1.000000,"o","%b"]\n' % (b"x" * (size - 18))

    assert said(sealed([header(), of(LINE_MAX)])) == "COMPLETE"
    assert "a line of more bytes" in said(sealed([header(), of(2 * LINE_MAX)]))
    assert CHUNK_BYTES < LINE_MAX


@pytest.mark.parametrize("left", [b'{"version":2,"wid', bytes(300) + b'"}\n[0.1,"o","x"]\n', b"anything"])
def test_what_is_left_of_a_session_without_a_header_may_be_anything(tmp_path: Path, left: bytes) -> None:
    torn = tmp_path / f"{SESSION}.torn"
    torn.write_bytes(left)
    assert (verify_path(torn).state, verify_path(torn).gap) == (State.INCOMPLETE, NO_HEADER)
    torn.write_bytes(record([(1.0, b"hello")]).text.replace(b"hello", b"hallo"))
    assert verify_path(torn.rename(tmp_path / f"{SESSION}.cast")).state is State.BAD
