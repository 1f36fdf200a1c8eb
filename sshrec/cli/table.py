"""Tables for people: columns that line up whatever the script, the last one cut to fit the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cell:
    """Text that is safe to print, and the SGR parameters to paint it with, if any."""

    text: str
    paint: str = ""


def lines(
    headings: Sequence[str],
    rows: Sequence[Sequence[str | Cell]],
    width: int,
    *,
    right: Collection[str] = (),
    coloured: bool = False,
) -> list[str]:
    """The heading and a line a row, `width` columns at most; the columns named in `right` are flush right."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(columns(row[n].text) for row in cells) for n in range(len(headings))]
    room = max(width - sum(widths[:-1]) - 2 * (len(widths) - 1), len(headings[-1]))
    shown = []
    for row in cells:
        parts = []
        for heading, cell, wide in zip(headings, row, widths, strict=True):
            text = _cut(cell.text, room) if heading == headings[-1] else cell.text
            space = " " * (wide - columns(text))
            painted = f"\x1b[{cell.paint}m{text}\x1b[0m" if coloured and cell.paint else text
            parts.append(space + painted if heading in right else painted + space)
        shown.append("  ".join(parts).rstrip())
    return shown


def columns(text: str) -> int:
    """Columns that printable text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _cut(text: str, room: int) -> str:
    if columns(text) <= room:
        return text
    while text and columns(text) > room - 1:
        text = text[:-1]
    return f"{text}…"
