"""What fuzzing asks of the reader and of verification, whatever bytes they get; for hypothesis and for atheris."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

from sshrec.errors import DataError
from sshrec.recording import packing, reader
from sshrec.recording.seal import is_seal
from sshrec.recording.verification import State, verify
from tests.recordings import SESSION, Step, record

_STEPS: list[Step] = [
    (0.1, b"root# "),
    (6.0, b"caf\xe9"),
    (0.2, (120, 40)),
    (7.0, b"S"),
    (6.0, b"\x1b[31mbye\r\n"),
]
_EVENTS_MAX = 10_000


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Recordings to start from: of a terminal and of a command, finished and not, plain and packed."""
    whole = record(_STEPS).text
    command = record([(0.1, b"out"), (6.0, b"\0\1"), (0.1, (b"e", "stderr"))], terminal=False, command="x").text
    packed = io.BytesIO()
    packing.pack(io.BytesIO(whole), packed)
    return whole, command, record(_STEPS, outcome=None).text, packed.getvalue()


def read(content: bytes) -> None:
    """Any bytes are a recording or a DataError that names the file; times are finite and never go back."""
    last = 0.0
    try:
        recording = reader.open_stream(io.BytesIO(content), "fuzz")
        for number, event in enumerate(recording):
            assert last <= event.time <= reader.TIME_MAX
            last = event.time
            if number > _EVENTS_MAX:
                return
    except DataError as error:
        assert str(error).startswith("fuzz: ")


def judge(content: bytes) -> None:
    """Any bytes get a verdict, whose parts agree; and what is COMPLETE is what some recorder sealed."""
    for session in (SESSION, None):
        verdict = verify(io.BytesIO(content), session, heads=range(4))
        assert (verdict.problem is not None) == (verdict.state is State.BAD)
        assert (verdict.gap is not None) == (verdict.state is State.INCOMPLETE)
        assert str(verdict.problem).isprintable()
        assert str(verdict.gap).isprintable()
        if verdict.state is State.COMPLETE:
            assert verdict.outcome is not None
            assert verdict.unsealed == 0
            assert verdict.head_at(verdict.seals) == verdict.head
            read(content)


def tampered(content: bytes) -> None:
    """No change to a finished recording is COMPLETE, but of what only the log vouches for: the last seal's own."""
    if content.startswith(packing.MAGIC) or verify(io.BytesIO(content), SESSION).state is not State.COMPLETE:
        return
    *before, last = content.splitlines(keepends=True)
    originals = [seed.splitlines(keepends=True)[:-1] for seed in seeds()[:2]]
    assert before in originals, "every line before the last seal is the recorder's"
    assert is_seal(last)


def mutate(content: bytes, changes: Sequence[tuple[int, int, bytes]]) -> bytes:
    """The content with some of its bytes cut out and others put in, each change by place, length and bytes."""
    for place, length, put in changes:
        at = place % (len(content) + 1)
        content = content[:at] + put + content[at + length :]
    return content
