"""Makes recorded terminal output safe for the terminal of whoever watches: what is not allowed is dropped.

An allow-list over decoded characters: text, and the sequences that move, erase, scroll and colour. Nothing
that a terminal answers, stores, prints, rings or types back, nor what changes what its keys and mouse send.
Knows no file and no terminal; remembers across calls what is unfinished and what has to be undone.
Sequences as in ECMA-48 and https://invisible-island.net/xterm/ctlseqs/ctlseqs.html.
"""

from __future__ import annotations

import re

_NUMBER_MAX = 9999  # of lines, columns, repeats; terminals have looped for minutes (CVE-2012-2738)
_REPEAT_MAX = 500
_SEQUENCE_MAX = 256  # characters of a control sequence
_STRING_MAX = 1024 * 1024  # characters of a control string; past it, text is shown again rather than hidden

# DECSET modes that only change what is shown: origin, autowrap, cursor, alternate screen, synchronized output.
_MODES = frozenset({"6", "7", "25", "47", "1047", "1048", "1049", "2026"})
_ALTERNATE = frozenset({"47", "1047", "1049"})

# What passes as it is, in runs, which is nearly everything: text with BS, TAB, LF, CR, SO and SI; the common
# control sequences with numbers in bounds; save and restore, index, next line, reverse index, line drawing.
# No possessive quantifiers: Python before 3.11.5 matches too much with them (gh-106052).
_TEXT = r"[^\x00-\x07\x0b\x0c\x10-\x1f\x7f-\x9f\ud800-\udfff]*"
_SAFE = re.compile(
    _TEXT + r"(?:\x1b(?:\[(?:[0-9:;]{0,64}m|[0-9]{0,4}(?:[@ABCDEFGHILMPSTXZ`adef]|;[0-9]{0,4}[Hf])|[0-2]?[JK])"
    r"|[78DEM]|[()][0B])" + _TEXT + r"){0,1000}"
)
_CONTROL = re.compile(r"(?:\x1b\[|\x9b)([<=>?]?)([ -?]*)([@-~])")
_UNFINISHED = re.compile(r"(?:\x1b(?:\[[ -?]*|[ -/]{0,8})|\x9b[ -?]*)\Z")
_ESCAPE = re.compile(r"\x1b[ -/]{0,8}[0-~]")
_PARAMETERS = re.compile(r"[ -?]*")
_COLOURS = re.compile(r"[0-9:;]{0,64}")
_NUMBERS = re.compile(r"[0-9]*(?:;[0-9]*)*")

# DCS, SOS, OSC, PM, APC, and screen's title: everything up to ST or BEL, or what a terminal takes as abort.
_STRING_STARTS = frozenset("PX]^_k")
_STRING_STARTS_8BIT = frozenset("\x90\x98\x9d\x9e\x9f")
_STRING_END = re.compile("[\x07\x18\x1a\x1b\x9c]")

_MOVES = frozenset("@ABCDEFGILMPSTXZ`ade")  # with one number
_FINALS_WITHOUT_NUMBERS = frozenset("su")  # save and restore the cursor; with numbers they are other things


class Filter:
    """The filter, for one recording: feed it text in any pieces, and write what it returns."""

    def __init__(self) -> None:
        self._held = ""  # the beginning of a sequence whose end is still to come
        self._string = 0  # how many more characters of a control string to swallow
        self._swallow = False  # inside an overlong control sequence
        self._modes: dict[str, bool] = {}
        self._margins = False

    def feed(self, text: str) -> str:
        """What of the text may be shown. In pieces or at once, the result is the same."""
        if self._held:
            text = self._held + text
            self._held = ""
        shown: list[str] = []
        at = 0
        while at < len(text):
            if self._string:
                at = self._skip_string(text, at)
            elif self._swallow:
                at = self._skip_parameters(text, at)
            else:
                match = _SAFE.match(text, at)
                if match is not None and match[0]:
                    shown.append(match[0])
                    at = match.end()
                else:
                    at = self._control(text, at, shown)
        return "".join(shown)

    def undo(self) -> str:
        """What brings a terminal back from whatever was let through, and, to be sure, from what was not."""
        parts = ["\x1b\\"]  # ends a sequence that the writer was stopped in, and else means nothing
        if any(self._modes.get(mode) for mode in _ALTERNATE):
            # 1049 restores the cursor where leaving the screen by the other names would not.
            parts.append("\x1b[?1049l" if self._modes.get("1049") else "\x1b[?1047l")
        if self._modes.get("6"):
            parts.append("\x1b[?6l")
        if self._margins:
            parts.append("\x1b7\x1b[r\x1b8")  # setting margins moves the cursor
        parts.append("\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?2026l")
        parts.append("\x0f\x1b(B\x1b)B\x1b[4l\x1b[?7h\x1b[0m\x1b[?25h")
        return "".join(parts)

    def redo(self) -> str:
        """After `undo`: the modes that the recording had set, again."""
        return "".join(f"\x1b[?{mode}{'h' if on else 'l'}" for mode, on in self._modes.items())

    def _control(self, text: str, at: int, shown: list[str]) -> int:
        """Deal with the control character or sequence at `at`; returns where it ends."""
        if _UNFINISHED.match(text, at):
            if len(text) - at > _SEQUENCE_MAX:
                self._swallow = True
                return len(text)
            self._held = text[at:]
            return len(text)
        character = text[at]
        if character in "\x1b\x9b" and (match := _CONTROL.match(text, at)):
            if character == "\x1b" and len(match[0]) <= _SEQUENCE_MAX:
                shown.append(self._sequence(*match.groups()))
            return match.end()
        if character == "\x1b":
            if text.startswith("[", at + 1):  # a control sequence, broken off by another character
                end = _PARAMETERS.match(text, at + 2)
                return end.end() if end else at + 2
            if text[at + 1] in _STRING_STARTS:
                self._string = _STRING_MAX
                return at + 2
            match = _ESCAPE.match(text, at)
            return match.end() if match else at + 1
        if character in _STRING_STARTS_8BIT:
            self._string = _STRING_MAX
        elif character == "\x9b":
            end = _PARAMETERS.match(text, at + 1)
            return end.end() if end else at + 1
        elif "\ud800" <= character <= "\udfff":
            shown.append("\ufffd")
        return at + 1

    def _sequence(self, private: str, numbers: str, final: str) -> str:
        """The control sequence as it may be shown, bounded; or nothing."""
        if private == "?":
            if final in "hl":
                return self._mode(numbers, final)
            return f"\x1b[?{numbers}{final}" if final in "JK" and numbers in ("", "0", "1", "2") else ""
        if private:
            return ""
        if final == "m":
            return f"\x1b[{numbers}m" if _COLOURS.fullmatch(numbers) else ""
        if not _NUMBERS.fullmatch(numbers):
            return ""
        if final in "JK":
            return f"\x1b[{numbers}{final}" if numbers in ("", "0", "1", "2") else ""
        if final in "hl":  # insert mode is shown; 2 locks the keyboard, 20 changes what Return sends
            return f"\x1b[4{final}" if "4" in numbers.split(";") else ""
        if final in _FINALS_WITHOUT_NUMBERS:
            return f"\x1b[{final}" if not numbers else ""
        given = [min(int(number[-9:]), _NUMBER_MAX) if number else None for number in numbers.split(";")]
        if final == "r" and len(given) <= 2:
            self._margins = True
        elif final == "b":
            given = [min(number or 1, _REPEAT_MAX) for number in given[:1]]
        elif not (final in "Hf" and len(given) <= 2) and not (final in _MOVES and len(given) == 1):
            return ""
        return f"\x1b[{';'.join('' if number is None else str(number) for number in given)}{final}"

    def _mode(self, numbers: str, final: str) -> str:
        """Of the modes that a sequence sets or resets, those that are allowed."""
        allowed = [number for number in numbers.split(";") if number in _MODES]
        for number in allowed:
            self._modes[number] = final == "h"
        return f"\x1b[?{';'.join(allowed)}{final}" if allowed else ""

    def _skip_string(self, text: str, at: int) -> int:
        match = _STRING_END.search(text, at, at + self._string)
        if match is None:
            skipped = min(len(text) - at, self._string)
            self._string -= skipped
            return at + skipped
        self._string = 0
        return match.start() if match[0] == "\x1b" else match.end()

    def _skip_parameters(self, text: str, at: int) -> int:
        match = _PARAMETERS.match(text, at)
        at = match.end() if match else at
        if at < len(text):
            self._swallow = False
            if "@" <= text[at] <= "~":
                at += 1
        return at
