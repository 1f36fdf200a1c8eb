"""A QR code drawn with characters, two dots above each other in one. Knows not what it says."""

from __future__ import annotations

# Dark on light whatever the terminal's colours: cameras do not read the inverse. In 256 colours, for themes
# change the first sixteen.
_ON, _OFF = "\x1b[38;5;16;48;5;231m", "\x1b[0m"
_BLOCKS = {(0, 0): " ", (1, 0): "▀", (0, 1): "▄", (1, 1): "█"}
_BORDERS = (2, 1)  # dots; the standard asks for four, which phones do without


def draw(text: str, columns: int, lines: int, *, unicode: bool = True) -> list[str]:
    """The picture, a string a line, to be shown as it is (it sets and resets colours); [] where it does not fit.

    `columns`, `lines`: what there is room for. Without `unicode`: two columns and a line for each dot. 80 columns
    and 23 lines hold 134 bytes of text with `unicode`, and hardly any without.
    """
    import segno  # with it come XML and HTTP, which sshrecd has no use for otherwise

    code = segno.make(text, error="l", micro=False, boost_error=False)
    for border in _BORDERS:
        rows = [tuple(row) for row in code.matrix_iter(border=border)]
        wide, high = (len(rows), -(-len(rows) // 2)) if unicode else (2 * len(rows), len(rows))
        if wide <= columns and high <= lines:
            return _halves(rows) if unicode else _plain(rows)
    return []


def _halves(rows: list[tuple[int, ...]]) -> list[str]:
    if len(rows) % 2:
        rows = [*rows, (0,) * len(rows[0])]
    return [
        _ON + "".join(_BLOCKS[bool(upper), bool(lower)] for upper, lower in zip(*pair, strict=True)) + _OFF
        for pair in zip(rows[::2], rows[1::2], strict=True)
    ]


def _plain(rows: list[tuple[int, ...]]) -> list[str]:
    """Spaces on black and white: nothing that a character set could spoil."""
    dark, light = "\x1b[48;5;16m  ", "\x1b[48;5;231m  "
    return ["".join(dark if dot else light for dot in row) + _OFF for row in rows]
