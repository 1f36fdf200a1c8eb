"""`sshrec-ca sign` and `sign-host`: keys in, certificates out, each in the ledger before."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sshrec.authority import certificates
from sshrec.authority.certificates import Request
from sshrec.cli import certificate as shown
from sshrec.cli.authority import DurationType, Opened, ask, beside, check_output, opened, write_certificate
from sshrec.cli.ls import SCHEMA
from sshrec.cli.main import Settings
from sshrec.duration import Duration
from sshrec.errors import SshrecError, UsageError, describe
from sshrec.openssh import public_key
from sshrec.openssh.certificate import Certificate
from sshrec.openssh.public_key import PublicKey
from sshrec.openssh.signer import unlocked
from sshrec.session import printable

_STANDARD = "-"

_ttl = click.option(
    "--ttl", type=DurationType(), metavar="TIME", help="How long it is good for: 30m, 12h, 7d, 1y."
)
_output = click.option(
    "-o", "--output", metavar="FILE", help="Where to write it, - for standard output. Default: KEY-cert.pub."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON about what was signed.")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


@click.command("sign")
@click.argument("keys", metavar="KEY.pub...", nargs=-1, required=True)
@click.option(
    "--user", required=True, metavar="NAME", help="Whose key it is: the account on the bastion, the key id."
)
@click.option("--principals", required=True, metavar="LOGIN,...", help="Logins on targets that it is good for.")
@_ttl
@click.option(
    "--source-address", metavar="NET,...", help="Networks it may come from; the bastion's must be among them."
)
@click.option("--force-command", metavar="COMMAND", help="The one command it is good for, on targets.")
@click.option("--verify-required", is_flag=True, help="The FIDO key must verify its holder at each use.")
@_output
@click.option("--jobs", type=click.IntRange(1, 64), metavar="N", help="How many are signed at once.")
@_json
@click.pass_obj
def sign(
    settings: Settings,
    keys: tuple[str, ...],
    user: str,
    principals: str,
    ttl: Duration | None,
    source_address: str | None,
    force_command: str | None,
    verify_required: bool,
    output: str | None,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Sign people's public keys.

    The certificate opens NAME's own account on the bastion, and through it the LOGINs on targets. It is
    written to KEY-cert.pub, where ssh and ssh-add look for it. A KEY of - is read from standard input, and the
    certificate goes to standard output.
    """
    config = settings.config

    def request(key: PublicKey) -> Request:
        return certificates.for_user(
            config.authority,
            key,
            user,
            _words(principals),
            ttl,
            source_addresses=_words(source_address) if source_address is not None else (),
            force_command=force_command,
            verify_required=verify_required,
        )

    requests = [request(public_key.read(key)) for key in keys]
    outputs = _outputs(keys, output)
    with opened(settings) as authority:
        _hand_out(authority, requests, outputs, jobs or os.cpu_count() or 1, as_json)


@click.command("sign-host")
@click.argument("key", metavar="KEY.pub")
@click.option(
    "--hostname",
    "hostnames",
    required=True,
    metavar="NAME,...",
    help="Its names and addresses, all that people type.",
)
@_ttl
@_output
@_json
@click.pass_obj
def sign_host(
    settings: Settings, key: str, hostnames: str, ttl: Duration | None, output: str | None, as_json: bool
) -> None:
    """Sign a host's public key.

    The certificate goes beside the host's key, and into its sshd_config as HostCertificate. enroll-node does
    all that over ssh.
    """
    request = certificates.for_host(settings.config.authority, public_key.read(key), _words(hostnames), ttl)
    outputs = _outputs((key,), output)
    with opened(settings) as authority:
        _hand_out(authority, [request], outputs, 1, as_json)


def _outputs(keys: Sequence[str], output: str | None) -> list[Path | None]:
    """Where each certificate goes, None for standard output; UsageError before anything is signed."""
    if len(keys) > 1 and (output is not None or _STANDARD in keys):
        raise UsageError("several keys at once go beside their files", hint="without --output, and without -")
    if output is None:
        paths = [None if key == _STANDARD else beside(Path(key)) for key in keys]
    else:
        paths = [None if output == _STANDARD else Path(output)]
    for path in paths:
        if path is not None:
            check_output(path)
            if paths.count(path) > 1:
                raise UsageError(f"two keys would go to {printable(str(path))}")
    return paths


def _hand_out(
    authority: Opened, requests: Sequence[Request], outputs: Sequence[Path | None], jobs: int, as_json: bool
) -> None:
    made: list[dict[str, Any]] = []
    many = len(requests) > 1
    signer = authority.keys.signer(requests[0].kind)
    with (
        unlocked(signer, ask) as ready,
        click.progressbar(
            length=len(requests), label="signing", file=sys.stderr, hidden=not (many and sys.stderr.isatty())
        ) as progress,
        contextlib.closing(
            certificates.issue(authority.ledger, ready, requests, authority.asker, authority.now, jobs)
        ) as issued,
    ):
        for (_, certificate), path in zip(issued, outputs, strict=True):
            _write(authority, certificate, path)
            made.append(shown.as_object(certificate) | {"file": str(path) if path else None})
            if not many and not as_json:
                _tell(certificate, path, authority.now)
            progress.update(1)
    if as_json:
        text = json.dumps({"schema": SCHEMA, "certificates": made}, indent=2)
        click.echo(text, err=None in outputs)
    elif many:
        click.echo(f"signed {len(made)} keys for {requests[0].key_id}")


def _write(authority: Opened, certificate: Certificate, path: Path | None) -> None:
    try:
        if path is None:
            click.echo(certificate.line)
            return
        with authority.privileges.as_caller():
            check_output(path)
            write_certificate(path, certificate)
    except (OSError, UsageError) as error:
        words = describe(error) if isinstance(error, OSError) else str(error)
        raise SshrecError(
            f"signed, and cannot write {printable(str(path or 'to standard output'))}: {words}",
            hint=f"nobody has it; sshrec-ca revoke {certificate.serial} makes sure",
        ) from error


def _tell(certificate: Certificate, path: Path | None, now: float) -> None:
    whose = printable(certificate.key_id)
    click.echo(
        f"signed {whose}'s key" if certificate.kind == "user" else f"signed the key of {whose}", err=path is None
    )
    for line in shown.lines(
        [*shown.facts(certificate, now)[1:], ("written to", printable(str(path or ""), 2000))]
    ):
        click.echo(line, err=path is None)
