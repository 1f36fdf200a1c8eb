"""What rsync and git carry, by the command line that the client sends: which way, and the paths that it names.

Their own protocols pass as any command's bytes, counted and hashed. Anybody can write such a command: it is told
as what was asked for, and decides nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, Final

from sshrec.gateway.transfer.fact import PATH_BYTES, Direction

PATHS = 64  # told of one command
_SERVER = "--server"
_SENDER = "--sender"
_HERE = "."  # rsync's server side has it between the options and the paths (server_options in its options.c)
# gitprotocol-pack(5), "SSH Transport".
_GIT: Final[dict[str, Direction]] = {
    "upload-pack": "download",
    "upload-archive": "download",
    "receive-pack": "upload",
}


def carried(command: str) -> dict[str, Any]:
    """For the audit event of a command: `direction`, `paths`, and `paths_cut` where some are left out.

    Nothing where it is neither rsync nor git. The paths are as the target's shell gets them, but for its quotes.
    """
    try:
        words = shlex.split(command)
    except ValueError:
        return {}
    found = _rsync(words) or _git(words)
    if found is None:
        return {}
    direction, paths = found
    said: dict[str, Any] = {"direction": direction, "paths": [path[:PATH_BYTES] for path in paths[:PATHS]]}
    if len(paths) > PATHS:
        said["paths_cut"] = len(paths) - PATHS
    return said


def _rsync(words: Sequence[str]) -> tuple[Direction, Sequence[str]] | None:
    if not words or _basename(words[0]) != "rsync" or _SERVER not in words[1:2] or "--daemon" in words:
        return None
    # With --secluded-args no path is here: they come in rsync's own protocol.
    start = words.index(_HERE) + 1 if _HERE in words else len(words)
    return "download" if _SENDER in words[:start] else "upload", words[start:]


def _git(words: Sequence[str]) -> tuple[Direction, Sequence[str]] | None:
    program, *rest = words or ("",)
    name = _basename(program)
    if name == "git" and rest:
        name = f"git-{rest.pop(0)}"
    direction = _GIT.get(name.removeprefix("git-")) if name.startswith("git-") else None
    return None if direction is None else (direction, [word for word in rest if not word.startswith("-")])


def _basename(program: str) -> str:
    return program.rpartition("/")[2]
