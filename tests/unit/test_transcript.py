"""What stood on the lines of a terminal: what was sent, what is read."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshrec.playback.transcript import Transcript


def read(sent: str, columns: int | None = 80) -> str:
    transcript = Transcript(columns)
    return transcript.feed(sent) + transcript.finish()


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("plain\r\ntext\r\n", "plain\ntext\n"),
        ("without an end", "without an end\n"),
        ("", ""),
        ("\r\n\r\n", "\n\n"),
        ("\x1b[1;31mred\x1b[0m and \x1b]0;a title\x07not\r\n", "red and not\n"),
        ("a\x1b[38:5:1mb\x1b(0c\x1b7\x1b8\r\n", "abc\n"),
        ("10 %\r50 %\r100 %\r\n", "100 %\n"),
        ("longer\rshort\x1b[K\r\n", "short\n"),
        ("mistkae\b\b\b\x1b[Kake\r\n", "mistake\n"),  # as readline takes back
        ("$ ehco\b\b\bc\x1b[1@h\r\n", "$ echo\n".replace("echo", "echco")),  # typed into the middle
        ("abcdef\x1b[4D\x1b[2P!\r\n", "ab!f\n"),
        ("abcdef\x1b[3G__\x1b[2C|\r\n", "ab__ef|\n"),
        ("abc\x1b[2K\rd\r\n", "d\n"),
        ("abc\b\x1b[1Kx\r\n", "  x\n"),
        ("abcdef\r\x1b[2Xx\r\n", "x cdef\n"),
        ("a\x1b[3bb\r\n", "aaaab\n"),
        ("a\tb\r\n12345678\tc\r\n", "a       b\n12345678        c\n"),
        ("one\x1b[5;3Htwo\x1b[Hthree\r\n", "one\n  two\nthree\n"),
        ("one\x1b[2J\x1b[Htwo\r\n", "one\ntwo\n"),
        ("one\x1b[1Atwo\r\n", "one\n   two\n"),
        ("trailing   \r\n", "trailing\n"),
        ("naïve 漢字 🙂\r\n", "naïve 漢字 🙂\n"),
    ],
)
def test_what_is_read(sent: str, shown: str) -> None:
    assert read(sent) == shown


def test_a_line_that_wraps_is_one_line() -> None:
    # What bash sends when a person types past the edge: a space and a return, to be sure of the next row.
    typed = "$ " + "x" * 8 + " \r" + "yz"
    assert read(typed + "\r\n", columns=10) == "$ xxxxxxxxyz\n"
    # And takes back across it: up a row, to its end.
    assert read(typed + "\b\b\x1b[K\x1b[A\x1b[9C!" + "\r\n", columns=10) == "$ xxxxxxx!\n"


def test_output_that_went_to_no_terminal_keeps_what_it_has() -> None:
    assert read("a  \n\n" + "b" * 200 + "\n", columns=None) == "a  \n\n" + "b" * 200 + "\n"


def test_a_long_line_stays_whole() -> None:
    line = "".join(f"{n:07} " for n in range(50_000))
    assert read(line + "\r\nnext\r\n") == line.rstrip() + "\nnext\n"
    transcript = Transcript(80)
    pieces = [transcript.feed(line[at : at + 7]) for at in range(0, len(line), 7)]
    assert "".join(pieces) + transcript.finish() == line.rstrip() + "\n"


def test_a_note_stands_by_itself() -> None:
    transcript = Transcript(80)
    shown = transcript.feed("half") + transcript.note("not kept") + transcript.feed("rest") + transcript.finish()
    assert shown == "half\n[not kept]\nrest\n"


HOSTILE = st.lists(
    st.one_of(
        st.sampled_from(
            ["\x1b[", "\x1b]", "\x1b", "\r", "\b", "\n", "\t", "\x9b", "\x07", "\x1b[999999C", "\x1b[9999@"]
        ),
        st.text(alphabet="abc;?0123456789ABCDEFGHJKPXbdfm@`\ud800漢", max_size=8),
    ),
    max_size=60,
).map("".join)


@given(HOSTILE, st.integers(1, 500), st.integers(1, 20))
def test_nothing_that_a_terminal_obeys_is_left_and_pieces_make_no_difference(
    sent: str, columns: int, size: int
) -> None:
    shown = read(sent, columns)
    assert all(character == "\n" or character >= " " for character in shown)
    assert not any("\x7f" <= character <= "\x9f" or "\ud800" <= character <= "\udfff" for character in shown)
    transcript = Transcript(columns)
    pieces = [transcript.feed(sent[at : at + size]) for at in range(0, len(sent), size)]
    assert "".join(pieces) + transcript.finish() == shown


@pytest.mark.parametrize(
    "unit", ["a\r", "\x1b[9999@x", "\x1b[500b", "x\x1b[80D", "\t\b", "\x1b[9999C", "\x1b[1;80Hx"]
)
def test_hostile_output_costs_little(unit: str) -> None:
    transcript = Transcript(80)
    transcript.feed("y" * 8000)
    began = time.process_time()
    size = sum(len(transcript.feed(unit * 1000)) for _ in range(50))
    assert time.process_time() - began < 20
    assert size < 50_000_000
    assert len(transcript.finish()) < 20_000
