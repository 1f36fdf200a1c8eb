"""The command `sshrecd`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from sshrec import __version__
from sshrec.cli.main import run
from sshrec.config import Config, load
from sshrec.errors import ConfigError, SshrecError
from sshrec.gateway.daemon import Daemon
from sshrec.gateway.problems import tell_problem
from sshrec.recipients import too_few


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
    problems: list[str] = []
    try:
        settings = load(config)
    except SshrecError as error:
        if config is None and not check:  # or nobody knows where its log is
            tell_problem(Config(), str(error), refused=True)
        raise
    for warning in warnings(settings):
        logging.warning(warning)  # not echoed: a full disk below stderr must not keep us from starting
        problems.append(warning)
    if check:
        return
    try:
        Daemon(settings, problems).run()
    except ConfigError as error:
        tell_problem(settings, str(error), refused=True)
        raise


def warnings(config: Config) -> Iterator[str]:
    """What is no mistake in itself, and will keep people out or is not what was meant."""
    if config.proxy_checks_host_keys and not any(os.access(path, os.R_OK) for path in config.known_hosts_files):
        files = ", ".join(map(str, config.known_hosts_files))
        yield f"none of {files} can be read: no target can prove itself, so none will be reached"
    if (few := too_few(config.encrypts_to)) is not None:
        yield few
    if os.geteuid() == 0:
        yield "running as root: recordings and sessions should belong to a user of their own"


def main() -> None:
    """The program `sshrecd`."""
    sys.exit(run(sshrecd, "sshrecd"))
