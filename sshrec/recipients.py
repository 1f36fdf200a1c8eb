"""To whom recordings are encrypted: age's own keys and ssh-ed25519 keys, as people write them. Reads no file.

Nothing else that age could be told is taken: above all no plugin, which is a program that a key names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sshrec.errors import ConfigError

RECIPIENTS_MAX = 20  # all of them are named in one line of the audit log
ENOUGH = 2

_X25519 = re.compile(r"age1[02-9ac-hj-np-z]{58}")
_SSH = re.compile(r"(ssh-ed25519 [A-Za-z0-9+/]{68})(?:[ \t]+(.*))?")


@dataclass(frozen=True, slots=True)
class Recipient:
    """One public key. `key`: as age takes it, without a comment; `comment`: what stood behind an SSH key."""

    key: str
    comment: str = ""


def recipient(text: str) -> Recipient:
    """A recipient as it stands in a file; ConfigError where it is none that we encrypt to."""
    import pyrage  # where nobody encrypts, nobody pays for it

    text = text.strip()
    shown = text if len(text) <= 40 else f"{text[:40]}…"
    try:
        if match := _SSH.fullmatch(text):
            pyrage.ssh.Recipient.from_str(match[1])
            return Recipient(match[1], (match[2] or "").strip())
        if _X25519.fullmatch(text):
            pyrage.x25519.Recipient.from_str(text)
            return Recipient(text)
    except pyrage.RecipientError:
        raise ConfigError(f"{shown!r} is damaged: no such public key can be") from None
    raise ConfigError(f"{shown!r} is no recipient: neither age1… (X25519) nor ssh-ed25519 …")


def recipients(texts: Iterable[str]) -> tuple[Recipient, ...]:
    """Several of them, each once; ConfigError where one is none, or there are more than RECIPIENTS_MAX."""
    found = {one.key: one for one in map(recipient, texts)}
    if len(found) > RECIPIENTS_MAX:
        raise ConfigError(f"{len(found)} recipients, and {RECIPIENTS_MAX} is the most")
    return tuple(found.values())


def lines(text: str) -> list[str]:
    """The recipients of a file: one a line, with empty lines and # comments between them, as age -R reads it."""
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]


def too_few(found: tuple[Recipient, ...]) -> str | None:
    """The warning where the loss of one key would be the loss of all recordings."""
    if not 0 < len(found) < ENOUGH:
        return None
    return "recordings are encrypted to one recipient only: with its key they would all be lost"
