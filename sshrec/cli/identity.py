"""`--identity`, which every command has that reads recordings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from sshrec.cli.asking import ask
from sshrec.recording.identity import Identities

F = TypeVar("F", bound=Callable[..., Any])


def identity_option(command: F) -> F:
    """Adds the option; the command gets it as `identities`. Its files are read when they are needed."""
    return click.option(
        "--identity",
        "identities",
        metavar="FILE",
        type=click.Path(path_type=Path),
        multiple=True,
        callback=lambda _context, _parameter, files: Identities(files, ask),
        help="Open what is encrypted with this age or ssh-ed25519 private key.",
    )(command)
