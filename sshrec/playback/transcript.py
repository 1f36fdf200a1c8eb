"""What a terminal showed, as lines of text: output in, in any pieces, what stood on its lines out.

Knows one line at a time, as far back as it may still be edited: enough for what shells and progress bars do. A
program that draws all over the screen comes out as the pieces of lines that it wrote. A character is one column.
"""

from __future__ import annotations

import re

from sshrec.playback.filter import Filter

_WINDOW = 8192  # characters of a line that may still change; what is before them is out already
_TAB = 8
_TOKEN = re.compile(
    r"(?P<text>[^\x00-\x1f\x7f-\x9f]+)"
    r"|(?P<control>[\x08-\x0d])"
    r"|\x1b\[(?P<numbers>[0-9;]*)(?P<final>[@-~])"
    r"|\x1b(?P<escape>[DEM])"
    r"|\x1b(?:\[[0-9:;?]*[@-~]|[78]|[()][0B])"  # no text moves by these
)


class Transcript:
    """One recording's; feed it text in any pieces, and keep what it returns, with `finish` for the rest.

    `columns`: of the terminal, where lines wrap; None for output that went to none.
    """

    def __init__(self, columns: int | None) -> None:
        self._filter = Filter()
        self._columns = columns or _WINDOW // 2
        self._strip = columns is not None  # what is behind the text is how it was erased
        self._line = ""
        self._at = 0
        self._full = False  # the row is, and the cursor stands on its last character until the next one comes
        self._begun = False  # the line's beginning is out already
        self._last = ""
        self._out: list[str] = []

    def feed(self, text: str) -> str:
        """The text of the lines that are done."""
        for token in _TOKEN.finditer(self._filter.feed(text)):
            if token["text"]:
                self._put(token["text"])
            elif token["control"]:
                self._control(token["control"])
            elif token["final"]:
                self._sequence(token["final"], [int(n) if n else 0 for n in token["numbers"].split(";")])
            elif token["escape"]:
                self._break()
        return self._taken()

    def note(self, words: str) -> str:
        """The same for a line that is not the terminal's."""
        self._break()
        return f"{self._taken()}[{words}]\n"

    def finish(self) -> str:
        """The line that is not done."""
        self._break()
        return self._taken()

    def _taken(self) -> str:
        text = "".join(self._out)
        self._out.clear()
        return text

    @property
    def _row(self) -> int:
        """Where the row begins that the cursor is in."""
        return self._at // self._columns * self._columns

    def _settle(self) -> None:
        """Be where a terminal's cursor is, before it moves."""
        if self._full:
            self._at, self._full = self._at - 1, False

    def _put(self, text: str) -> None:
        line = self._line.ljust(self._at)
        self._line = line[: self._at] + text + line[self._at + len(text) :]
        self._at += len(text)
        self._last = text[-1]
        if len(self._line) > _WINDOW:
            done = min(len(self._line) - _WINDOW // 2, self._at - 1) // self._columns * self._columns
            self._out.append(self._line[:done])
            self._line, self._at, self._begun = self._line[done:], self._at - done, self._begun or done > 0
        self._full = self._at % self._columns == 0

    def _new_line(self) -> None:
        self._out.append((self._line.rstrip(" ") if self._strip else self._line) + "\n")
        self._line, self._at, self._full, self._begun = "", 0, False, False

    def _break(self, column: int = 0) -> None:
        """Go to another line than the next one, and to a column of it."""
        if self._line or self._begun:
            self._new_line()
        self._at, self._full = min(column, self._columns - 1), False

    def _control(self, character: str) -> None:
        if character in "\n\x0b\x0c":
            self._new_line()
            return
        self._settle()
        if character == "\r":
            self._at = self._row
        elif character == "\b":
            self._at = max(self._row, self._at - 1)
        else:
            column = min(((self._at - self._row) // _TAB + 1) * _TAB, self._columns - 1)
            self._at = self._row + column

    def _sequence(self, final: str, numbers: list[int]) -> None:
        if final == "m":
            return
        self._settle()
        first = numbers[0]
        count = max(1, first)
        column = self._at - self._row
        if final in "JK":
            self._erase(final, first)
        elif final in "Ca":
            self._at = min(self._at + count, self._row + self._columns - 1)
        elif final == "D":
            self._at = max(self._row, self._at - count)
        elif final in "G`":
            self._at = self._row + min(count, self._columns) - 1
        elif final in "AF":
            self._vertical(-count, 0 if final == "F" else column)
        elif final in "BeE":
            self._vertical(count, 0 if final == "E" else column)
        elif final in "Hf":
            self._break(max(0, numbers[1] - 1) if len(numbers) > 1 else 0)
        elif final == "d":
            self._break(column)
        elif final == "P":
            self._line = self._line[: self._at] + self._line[self._at + count :]
        elif final == "X":
            end = min(self._at + count, len(self._line))
            self._line = self._line[: self._at].ljust(end) + self._line[end:]
        elif final == "@":
            self._line = (self._line[: self._at] + " " * count + self._line[self._at :])[:_WINDOW]
        elif final == "b" and self._last:
            self._put(self._last * count)

    def _vertical(self, rows: int, column: int) -> None:
        """Within a line that wraps, or away from it."""
        at = self._row + rows * self._columns
        if 0 <= at < max(len(self._line), self._row):
            self._at = at + column
        else:
            self._break(column)

    def _erase(self, final: str, what: int) -> None:
        if final == "J":
            if what:
                self._break(self._at - self._row)
            else:
                self._line = self._line[: self._at]
            return
        begin = self._at if what == 0 else self._row
        end = self._row + self._columns if what != 1 else self._at + 1
        rest = self._line[end:]
        self._line = self._line[:begin] + (" " * (end - begin) + rest if rest else "")
