"""`sshrec-ca`: the authority's command. Knows its commands' names, not their work."""

from __future__ import annotations

import resource
import signal
import sys
from typing import NoReturn

import click

from sshrec import __version__
from sshrec.cli.main import Commands, Settings, config_option, run

_COMMANDS = {
    "audit-key": ("sshrec.cli.ca_audit:audit_key", "The key that signs the audit log: show, renew, certify."),
    "enroll-node": ("sshrec.cli.ca_enroll:enroll_node", "Have a target prove itself, and trust the user CA."),
    "export": ("sshrec.cli.ca_keys:export", "Print a CA's public key, for those who are to trust it."),
    "init": ("sshrec.cli.ca_keys:init", "Make the CAs."),
    "krl": ("sshrec.cli.ca_ledger:krl", "Write the list of revoked certificates."),
    "ls": ("sshrec.cli.ca_ledger:ls", "List certificates."),
    "revoke": ("sshrec.cli.ca_ledger:revoke", "Make a certificate worthless, or all of somebody's."),
    "rotate": ("sshrec.cli.ca_keys:rotate", "Replace a CA by a new one, step by step."),
    "show": ("sshrec.cli.ca_ledger:show", "Show a certificate."),
    "sign": ("sshrec.cli.ca_sign:sign", "Sign people's keys."),
    "sign-host": ("sshrec.cli.ca_sign:sign_host", "Sign a host's key."),
    "status": ("sshrec.cli.ca_keys:status", "Say which CAs there are and what they signed."),
}


@click.command(
    cls=Commands,
    table=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[config_option()],
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="sshrec-ca", message="%(prog)s %(version)s")
@click.pass_context
def sshrec_ca(ctx: click.Context) -> None:
    """The certificate authority: who may enter, and which hosts are real."""
    ctx.ensure_object(Settings)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _end(number: int, _frame: object) -> NoReturn:
    """Leave as Ctrl-C would: no agent, no file of ours stays, and the terminal shows again what is typed."""
    sys.exit(128 + number)


def main() -> None:
    """The program `sshrec-ca`."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # passphrases and PINs are in our memory
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    sys.exit(run(sshrec_ca, "sshrec-ca"))
