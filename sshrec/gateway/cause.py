"""Why a recording has no end of its own, told to whoever will close it: a file in the session's run directory.

That is on another disk than the recordings, mostly in memory, so there is room for it when they have none.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from sshrec.session import printable

UNKNOWN = "its worker died"

_NAME = "cause"
_MOST = 300


def leave(directory: Path, cause: str) -> None:
    """Leave it in a run directory; the first one stays. No harm where that cannot be."""
    with contextlib.suppress(OSError), directory.joinpath(_NAME).open("x") as file:
        file.write(cause)


def find(directory: Path) -> str:
    """What was left there, on one line."""
    try:
        return printable(directory.joinpath(_NAME).read_text(errors="replace")[:_MOST]) or UNKNOWN
    except OSError:
        return UNKNOWN
