"""No hostile byte of a recording reaches a terminal: T-W-01 to T-W-04 of the test catalogue, and a property."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshrec.playback.filter import Filter

ESC = "\x1b"

# What the output may be made of, written down again from the requirement, not from the filter.
NUMBER = r"[0-9]{1,4}"
ALLOWED = re.compile(
    r"[\x08\t\n\r\x0e\x0f]"
    r"|[^\x00-\x1f\x7f-\x9f\ud800-\udfff]"
    r"|\x1b(?:[78DEM]|[()][0B])"
    r"|\x1b\[[0-9:;]{0,64}m"
    rf"|\x1b\[(?:{NUMBER})?(?:;(?:{NUMBER})?)?[Hfr]"
    rf"|\x1b\[(?:{NUMBER})?[@ABCDEFGILMPSTXZ`ade]"
    r"|\x1b\[\??[0-2]?[JK]"
    r"|\x1b\[(?:[0-9]{1,2}|[1-4][0-9]{2}|500)b"
    r"|\x1b\[[su]"
    r"|\x1b\[4[hl]"
    r"|\x1b\[\?(?:6|7|25|47|1047|1048|1049|2026)(?:;(?:6|7|25|47|1047|1048|1049|2026))*[hl]"
)


def shown(*pieces: str) -> str:
    filtered = Filter()
    return "".join(filtered.feed(piece) for piece in pieces)


def assert_safe(text: str) -> None:
    at = 0
    while at < len(text):
        match = ALLOWED.match(text, at)
        assert match, f"at {at}: {text[at : at + 20]!r}"
        at = match.end()


PASSES = [
    "plain text, Grüße, 日本語, 😀, e\u0301, \u200bzero width\r\n",
    "back\b\bspace\ttab\r\n",
    "\x1b[0m\x1b[1;31m\x1b[38;5;208m\x1b[48;2;1;2;3m\x1b[38:2::1:2:3m\x1b[4:3m\x1b[m",
    "\x1b[H\x1b[2J\x1b[10;20H\x1b[;5f\x1b[5d\x1b[7G\x1b[3`\x1b[2a\x1b[2e",
    "\x1b[A\x1b[2B\x1b[3C\x1b[4D\x1b[E\x1b[F\x1b[I\x1b[Z",
    "\x1b[K\x1b[0K\x1b[1K\x1b[2K\x1b[J\x1b[0J\x1b[1J\x1b[?2J\x1b[?K",
    "\x1b[@\x1b[3L\x1b[3M\x1b[3P\x1b[3S\x1b[3T\x1b[3X",
    "\x1b[5;20r\x1b[r\x1b[s\x1b[u\x1b[3b",
    "\x1b7\x1b8\x1bD\x1bE\x1bM",
    "\x1b(0lqqk\x1b(B\x1b)0\x0eqqq\x0f\x1b)B",
    "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[?6h\x1b[?2026h\x1b[?2026l\x1b[?47h\x1b[?1047l\x1b[?1048h\x1b[4h\x1b[4l",
]


@pytest.mark.parametrize("text", PASSES)
def test_what_draws_passes_unchanged(text: str) -> None:
    assert shown(text) == text
    assert_safe(text)


STRINGS = {  # T-W-01
    "title": "]0;title",
    "icon": "]1;icon",
    "title-2": "]2;title",
    "palette": "]4;1;?",
    "link": "]8;;http://example.com/",
    "font": "]50;?",
    "clipboard": "]52;c;cm0gLXJmIC8K",
    "clipboard-read": "]52;c;?",
    "notify": "]777;notify;a;b",
    "iterm-file": "]1337;File=name=YQ==:YWJj",
    "iterm-profile": "]50;SetProfile=x",
    "decrqss": "P$qm",
    "decrqss-escape": 'P$q"p',
    "sixel": 'Pq"1;1;93;14#0;2;60;0;0-$#1~~@@',
    "tmux": "Ptmux;x",
    "xtgettcap": "P+q544e",
    "kitty-graphics": "_Gf=24,s=10,v=20;AAAA",
    "pm": "^private",
    "sos": "Xstring",
    "screen-title": "ktitle",
}


@pytest.mark.parametrize("string", STRINGS.values(), ids=STRINGS)
def test_control_strings_are_dropped_whole(string: str) -> None:
    for end in ("\x07", "\x1b\\", "\x9c", "\x18", "\x1a"):
        assert shown(f"a{ESC}{string}{end}b") == "ab"
    assert shown(f"a{ESC}{string}{ESC}[1mb") == f"a{ESC}[1mb", "an escape ends it, and begins anew"
    assert shown(f"a{ESC}{string} never ended") == "a"


def test_8_bit_control_strings_are_dropped_whole() -> None:
    for start in "\x90\x98\x9d\x9e\x9f":
        assert shown(f"a{start}52;c;cm0K\x9cb") == "ab"
        assert shown(f"a{start}52;c;cm0K\x1b\\b") == "ab"


def test_a_string_without_end_hides_only_so_much() -> None:
    text = shown(ESC + "]0;" + "x" * (1024 * 1024) + "\r\nrm -rf /\r\n")
    assert text.endswith("rm -rf /\r\n")
    pieces = [ESC + "]", "0;", *["x" * 100_000] * 10, "x" * (1024 * 1024 - 1_000_000), "\r\nrm -rf /\r\n"]
    assert shown(*pieces) == text


ANSWERED = {  # T-W-02
    "da": "[c",
    "da-0": "[0c",
    "da-2": "[>c",
    "da-3": "[=c",
    "dsr": "[5n",
    "cpr": "[6n",
    "decxcpr": "[?6n",
    "decid": "Z",
    "decrqcra": "[1;1;1;1;1;1*y",
    "decrqm": "[?1$p",
    "decreqtparm": "[x",
    "window-report": "[14t",
    "title-report": "[21t",
    "xtversion": "[>q",
    "modify-other-keys": "[?4m",
    "kitty-keyboard": "[?u",
    "sixel-geometry": "[?2;1;0S",
    "presentation": "[1$w",
    "media-copy": "[5i",
    "media-copy-line": "[?1i",
}
HARMFUL = {
    "reset": "c",
    "soft-reset": "[!p",
    "resize": "[8;100;500t",
    "iconify": "[2t",
    "scrollback": "[3J",
    "leds": "[1q",
    "cursor-style": "[5 q",
    "keyboard-lock": "[2h",
    "newline-mode": "[20h",
    "modify-other-keys": "[>4;2m",
    "kitty-keyboard": "[>1u",
    "kitty-keyboard-set": "[=1;1u",
    "scp-margins": "[1;80s",
    "highlight-tracking": "[1;1;5;1;10T",
    "title-modes": "[>2T",
    "application-keypad": "=",
    "numeric-keypad": ">",
    "alignment": "#8",
    "utf-8-off": "%@",
    "8-bit-controls": " G",
    "locator": "[1'z",
    "tab-clear": "[3g",
    "tab-set": "H",
    "charset-uk": "(A",
    "single-shift": "N",
    "locking-shift": "n",
    "column-mode": "[?3h",
    "application-cursor": "[?1h",
    "mouse": "[?1000h",
    "mouse-drag": "[?1002h",
    "mouse-all": "[?1003h",
    "mouse-sgr": "[?1006h",
    "focus": "[?1004h",
    "paste": "[?2004h",
    "save-modes": "[?1000s",
    "restore-modes": "[?1000r",
    "sixel-scrolling": "[?80h",
}


@pytest.mark.parametrize("sequence", [*ANSWERED.values(), *HARMFUL.values()], ids=[*ANSWERED, *HARMFUL])
def test_what_is_answered_or_changes_the_terminal_is_dropped(sequence: str) -> None:
    assert shown(f"a{ESC}{sequence}b") == "ab"
    if sequence.startswith("["):
        assert shown(f"a\x9b{sequence[1:]}b") == "ab"
        assert shown(f"a\x9b{sequence[1:]}", "b") == "ab"


def test_other_controls_are_dropped() -> None:
    dropped = [chr(n) for n in range(0x20) if chr(n) not in "\b\t\n\r\x0e\x0f\x1b"]
    dropped += ["\x7f", *map(chr, (0x80, 0x84, 0x85, 0x88, 0x8D, 0x8E, 0x8F, 0x9A, 0x9C))]
    for character in dropped:
        assert shown(f"a{character}b") == "ab", repr(character)


def test_of_several_modes_the_allowed_ones_stay() -> None:
    assert shown("\x1b[?12;25h\x1b[?1;1049;2004h\x1b[?1000;1006l\x1b[4;20h") == "\x1b[?25h\x1b[?1049h\x1b[4h"


def test_numbers_are_bounded() -> None:
    assert shown("\x1b[2147483647@\x1b[99999999999999999999X\x1b[123456;7H") == "\x1b[9999@\x1b[9999X\x1b[9999;7H"
    assert shown("x\x1b[1000000b\x1b[b\x1b[0b") == "x\x1b[500b\x1b[1b\x1b[1b"
    assert shown("a\x1b[" + "1;" * 200 + "mb") == "ab"


def test_8_bit_and_split_sequences_leave_their_neighbours_intact() -> None:  # T-W-04
    assert shown("é\x9b31mé\x9b6né") == "ééé"
    assert shown("é\x9b", "31", "mé") == "éé"
    assert shown("é\x1b", "[", "3", "1", "m", "é") == "é\x1b[31mé"
    assert shown("é\x1b[6", "né") == "éé"
    assert shown("a\x1b]52;c;", "cm0K", "\x1b", "\\b") == "ab"
    assert shown("a\x1b") == "a"


def test_a_sequence_broken_off_does_not_swallow_what_follows() -> None:
    assert shown("a\x1b[3\nb") == "a\nb"
    assert shown("a\x1b[3\x1b[1mb") == "a\x1b[1mb"
    assert shown("a\x1b\x1b[1mb") == "a\x1b[1mb"
    assert shown("a\x1b(\nb") == "a(\nb"
    assert shown("a\x1b[3é") == "aé"


def test_surrogates_become_replacement_characters() -> None:
    assert shown("a\ud800b\udfffc") == "a\ufffdb\ufffdc"


def test_undoing_what_was_let_through() -> None:  # T-W-03
    plain = Filter()
    plain.feed("hello")
    assert "1049" not in plain.undo()
    for needed in ("\x1b[0m", "\x1b[?25h", "\x1b[?7h", "\x1b(B", "\x0f", "\x1b[?1000l", "\x1b[?2004l"):
        assert needed in plain.undo()
    full = Filter()
    full.feed("\x1b[?1049h\x1b[2;10r\x1b[?6h\x1b(0")
    assert "\x1b[?1049l" in full.undo()
    assert "\x1b[?6l" in full.undo()
    assert "\x1b[r" in full.undo()
    assert full.redo() == "\x1b[?1049h\x1b[?6h"
    full.feed("\x1b[?1049l")
    assert "1049" not in full.undo()


PIECES = st.one_of(
    st.sampled_from(
        ["\x1b", "\x1b[", "\x9b", "\x1b]", "\x1bP", "\x1b(", "\x1b\\", "\x07", "\x9c", "\x18", "?", ">"]
    ),
    st.sampled_from(["0", "4", "6", "25", "1049", "2004", "99999", ";", ":", " ", "!", "$", "*", "'", "\n", "é"]),
    st.characters(min_codepoint=0x40, max_codepoint=0x7E),
    st.characters(max_codepoint=0x9F),
    st.sampled_from([*PASSES, *STRINGS.values(), "0" * 130, "/" * 5]),
    st.characters(),
)
HOSTILE = st.lists(PIECES, max_size=40).map("".join)


@given(HOSTILE)
def test_nothing_forbidden_ever_comes_out(text: str) -> None:
    assert_safe(shown(text))


@given(HOSTILE, st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_pieces_make_no_difference(text: str, sizes: list[int]) -> None:
    pieces = []
    at = n = 0
    while at < len(text):
        size = sizes[n % len(sizes)]
        pieces.append(text[at : at + size])
        at, n = at + size, n + 1
    assert shown(*pieces) == shown(text)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])))
def test_text_passes_unchanged(text: str) -> None:
    assert shown(text) == text
