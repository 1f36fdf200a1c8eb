"""The nouns of a session: id, user, credential, target, request. Values only; knows no file and no socket."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
SESSION_ID = re.compile(rf"[0-7][{_CROCKFORD}]{{25}}")

# Names as the request grammar and the configuration take them: ASCII, lower case, nothing ssh would expand.
LOGIN = re.compile(r"[a-z_][a-z0-9_.-]{0,31}")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
HOST = re.compile(rf"(?=.{{1,253}}\Z)(?!(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\Z){_LABEL}(?:\.{_LABEL})*")

# First words of ours, and those a file transfer sends: never a target, and no node may bear such a name.
_OURS = re.compile(r"sshrec(?:-.*)?|scp|sftp|rsync|git-.*|mosh-server|internal-sftp|.*/.*", re.DOTALL)

Kind = Literal["shell", "exec", "upload", "download"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def never_a_target(word: str) -> bool:
    """Whether a first word is one of ours or a transfer's, which `ssh bastion WORD` never hops to."""
    return _OURS.fullmatch(word) is not None


def session_id(wall_ms: int, randomness: bytes) -> str:
    """A ULID: 26 characters that sort by time (https://github.com/ulid/spec).

    `wall_ms`: Unix time in milliseconds, 48 bits; `randomness`: 10 bytes from the system's generator.
    """
    if not 0 <= wall_ms < 1 << 48 or len(randomness) != 10:
        raise ValueError("a ULID takes 48 bits of milliseconds and 10 bytes of randomness")
    number = wall_ms << 80 | int.from_bytes(randomness)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def started(session: str) -> int:
    """The Unix time in milliseconds that a session id carries."""
    number = 0
    for character in session[:10]:
        number = number << 5 | _CROCKFORD.index(character)
    return number


@dataclass(frozen=True, slots=True)
class Credential:
    """The public key or certificate that opened the first hop, as sshd's SSH_USER_AUTH file gives it."""

    algorithm: str
    blob: str  # base64
    key_id: str | None = None  # of a certificate
    serial: int | None = None
    verify_required: bool = False  # a FIDO key's certificate, and sshd has seen that the key verified its holder

    @property
    def line(self) -> str:
        """One line of a public key file."""
        return f"{self.algorithm} {self.blob}\n"


@dataclass(frozen=True, slots=True)
class User:
    """A person's account, named by the kernel."""

    name: str
    uid: int


@dataclass(frozen=True, slots=True)
class Target:
    """login@host:port as the person wrote it, checked; host in lower case, an IPv6 address without brackets."""

    login: str
    host: str
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.login}@{host}" + (f":{self.port}" if self.port else "")


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asks of a target: a shell (no command), the execution of one, or a subsystem."""

    target: Target
    command: bytes | None
    terminal: bool
    subsystem: str | None = None

    @property
    def kind(self) -> Kind:
        if self.subsystem is not None:
            return "download"  # or upload: what is not allowed of it, is denied file by file
        return "shell" if self.command is None else "exec"


@dataclass(frozen=True, slots=True)
class Winsize:
    """Columns and rows of a terminal, 0 to 65535 each."""

    columns: int
    rows: int


def printable(text: str | bytes, limit: int = 200) -> str:
    """Foreign text, safe for a terminal, a log line and a table.

    Control characters (C0, DEL, C1), bidirectional controls, surrogates and what else does not print
    come out as \\xNN, \\uNNNN; bytes that are no UTF-8 as \\xNN. At most `limit` characters are shown.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text[: limit + 1]
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
