"""The command `sshrecd`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from sshrec import __version__
from sshrec.cli.main import run
from sshrec.config import load
from sshrec.gateway.daemon import Daemon


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sshrecd")
@click.option(
    "--config", metavar="FILE", type=click.Path(path_type=Path), help="Instead of /etc/sshrec/sshrec.yaml."
)
@click.option("--check", is_flag=True, help="Check the configuration and exit.")
def sshrecd(config: Path | None, check: bool) -> None:
    """Conduct and record the sessions that sshrec-gateway hands over.

    Runs in the foreground. SIGTERM ends it, and none of its sessions.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    settings = load(config)
    if not check:
        Daemon(settings).run()


def main() -> None:
    """The program `sshrecd`."""
    sys.exit(run(sshrecd, "sshrecd"))
