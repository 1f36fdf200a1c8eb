"""`sshrec-ca audit-key`: the key that signs the audit log, and what an auditor checks it with."""

from __future__ import annotations

import click

from sshrec.authority.log_key import LogKey
from sshrec.cli.authority import opened, read_signed
from sshrec.cli.main import Settings
from sshrec.errors import UsageError


@click.command("audit-key")
@click.option("--renew", is_flag=True, help="Make the next key, and destroy this one.")
@click.option("--certificate", metavar="FILE", help="Its certificate, by a CA kept elsewhere.")
@click.pass_obj
def audit_key(settings: Settings, renew: bool, certificate: str | None) -> None:
    """Print the lines that an auditor checks the audit log's signatures with (allowed_signers).

    Take a copy to where nobody on this host can change it, after each --renew. What a key signed stays good
    when it is gone; with the key gone, nobody can sign that past again.
    """
    if renew and certificate:
        raise UsageError("a new key has no certificate yet", hint="--renew first; then have it signed")
    signed = read_signed(certificate) if certificate else None
    with opened(settings) as authority, authority.keys.alone():
        key = LogKey(authority.config)
        if renew:
            fingerprint = key.make(authority.now)
            authority.tell("ca.rotate", {"ca_type": "audit", "ca_fingerprint": fingerprint, "phase": "current"})
            click.echo(f"{fingerprint} signs the audit log now", err=True)
        elif signed:
            fingerprint = key.certify(signed, authority.now)
            authority.tell("ca.rotate", {"ca_type": "audit", "ca_fingerprint": fingerprint, "phase": "certified"})
            click.echo(f"signatures carry the certificate of {fingerprint} now", err=True)
        click.echo(key.allowed_signers, nl=False)
