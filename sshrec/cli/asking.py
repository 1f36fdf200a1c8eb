"""Secrets that a person types at the terminal: never from an argument, never from a pipe."""

from __future__ import annotations

import getpass
import os

from sshrec.errors import Denied


def ask(prompt: str, hint: str | None = None) -> str:
    """A passphrase or a PIN, typed after the prompt at the terminal. Denied where there is none, with the hint."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError as error:
        raise Denied(f"{prompt.rstrip(': ')}: there is no terminal to ask for it at", hint=hint) from error
    return getpass.getpass(prompt)
