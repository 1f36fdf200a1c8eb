"""The command `sshrec-authd`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click

from sshrec import __version__, privileges
from sshrec.authority.service import Service
from sshrec.cli.main import run
from sshrec.config import load
from sshrec.errors import ConfigError, describe


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sshrec-authd")
@click.option(
    "--config", metavar="FILE", type=click.Path(path_type=Path), help="Instead of /etc/sshrec/sshrec.yaml."
)
def sshrec_authd(config: Path | None) -> None:
    """Answer the questions of sshrecd and its workers: the auth service.

    Runs in the foreground; as root, it becomes the owner of the authority's directory for good.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    settings = load(config)
    rights = privileges.become_owner(settings.authority_dir, settings.authority.account)
    with rights.as_caller():
        _make(settings.auth_socket.parent, *rights.works)
    rights.give_up()
    Service(settings).run()


def _make(directory: Path, uid: int, gid: int) -> None:
    """The socket's directory, for those whose service manager did not make it."""
    try:
        if not directory.exists():
            directory.mkdir(mode=0o755)
            os.chown(directory, uid, gid)
    except OSError as error:
        raise ConfigError(f"cannot make {directory}: {describe(error)}") from error


def main() -> None:
    """The program `sshrec-authd`."""
    sys.exit(run(sshrec_authd, "sshrec-authd"))
