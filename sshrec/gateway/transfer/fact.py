"""What a transfer comes to, file by file, as the recording and the audit log say it. Values; decodes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Data = bytes | memoryview
Direction = Literal["upload", "download"]
Action = Literal["rename", "remove", "mkdir", "rmdir", "symlink", "link", "setstat", "copy", "extended"]

OK = "ok"
PATH_BYTES = 4096  # kept of a path
TEXT_CHARACTERS = 256  # kept of what a peer says for people


class Passed(NamedTuple):
    """What becomes of some bytes of one direction.

    `forward`: goes on to the other side; `kept`: what of them is no file's content, for the recording;
    `reply`: goes back to the client in their stead.
    """

    forward: Data
    kept: Data
    reply: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file that was transferred, or was to be.

    `size`: bytes that passed; `sha256`: of the whole file's content, None where other than that passed, and then
    `ranges` says which part: (from, to) in bytes, the end exclusive; `name`: what the sender calls it, in scp;
    `flags`: with which SFTP opens it; `denied`: by us.
    """

    direction: Direction
    path: bytes
    size: int = 0
    sha256: str | None = None
    ranges: tuple[tuple[int, int], ...] = ()
    mode: int | None = None
    name: bytes | None = None
    flags: int | None = None
    outcome: str = OK
    denied: bool = False

    def said(self) -> dict[str, Any]:
        """For canonical JSON: sshrec-recording(5)."""
        fact: dict[str, Any] = {"action": self.direction, "size": self.size, "outcome": self.outcome}
        fact |= spelled("path", self.path)
        if self.name is not None:
            fact |= spelled("name", self.name)
        if self.sha256 is not None:
            fact["sha256"] = self.sha256
        else:
            fact["ranges"] = [list(one) for one in self.ranges]
        if self.mode is not None:
            fact["mode"] = octal(self.mode)
        return fact


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What else was done to the target's files.

    `to`: the other path: the new name, the place of a link; `more`: mode, size, owner, times, as far as they are
    set.
    """

    action: Action
    path: bytes
    to: bytes | None = None
    more: dict[str, Any] = field(default_factory=dict)
    outcome: str = OK

    def said(self) -> dict[str, Any]:
        """For canonical JSON: sshrec-recording(5)."""
        fact: dict[str, Any] = {"action": self.action, "outcome": self.outcome, **self.more}
        fact |= spelled("path", self.path)
        return fact if self.to is None else fact | spelled("to", self.to)


Fact = File | Change


def spelled(name: str, path: bytes) -> dict[str, Any]:
    """A path as text; with its bytes in hexadecimal where they are no UTF-8, cut where it is too long."""
    shown = path[:PATH_BYTES]
    said: dict[str, Any] = {name: shown.decode("utf-8", "replace")}
    if said[name].encode() != shown:
        said[f"{name}_bytes"] = shown.hex()
    if len(path) > PATH_BYTES:
        said[f"{name}_cut"] = len(path) - PATH_BYTES
    return said


def octal(mode: int) -> str:
    """The permission bits, as ls and chmod have them."""
    return f"{mode & 0o7777:04o}"


def words(text: bytes) -> str:
    """What a peer says for people, on a line and not too long."""
    said = " ".join(text[: 4 * TEXT_CHARACTERS].decode("utf-8", "replace").split())
    return said[:TEXT_CHARACTERS]
