"""`sshrec recipients`: to whom recordings are encrypted, and the proof that they can decrypt."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sshrec.cli.asking import ask
from sshrec.cli.main import Settings
from sshrec.errors import ConfigError, DataError
from sshrec.recipients import Recipient
from sshrec.recording.encryption import NoIdentity, encrypt
from sshrec.recording.identity import Identities
from sshrec.recording.reader import decrypted
from sshrec.session import printable

SCHEMA = 1
EXIT_USELESS, EXIT_UNPROVED = 1, 3
CHALLENGE_BYTES = 32


@click.command("recipients")
@click.argument("action", type=click.Choice(["ls", "test"]))
@click.option(
    "--identity",
    "files",
    metavar="FILE",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Decrypt with this age or ssh-ed25519 private key.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
@click.pass_obj
def command(settings: Settings, action: str, files: tuple[Path, ...], as_json: bool) -> int:
    """List to whom recordings are encrypted, or prove that they can decrypt.

    test encrypts a random challenge to all recipients, as recordings are, and decrypts it with each identity.

    The status of test is 0 where every recipient was proved, 3 where some were not, 1 where an identity
    decrypts nothing.
    """
    recipients = settings.config.encrypts_to
    if action == "test":
        if not recipients:
            raise ConfigError("no recipients are configured", hint="see recipients in sshrec.yaml(5)")
        proofs = {path: proved(recipients, Identities([path], ask)) for path in files}
    else:
        proofs = {}
        if not recipients and not as_json:
            click.echo("recordings are not encrypted: no recipients are configured", err=True)
    by = {one: [path for path, opens in proofs.items() if one in opens] for one in recipients}
    useless = [path for path, opens in proofs.items() if not opens]
    if as_json:
        click.echo(json.dumps(_document(action, by, useless), indent=2, ensure_ascii=True))
    else:
        for one, paths in by.items():
            click.echo(_line(one) if action == "ls" else _verdict(one, paths))
        for path in useless:
            click.echo(
                f"useless     {printable(str(path))}  decrypts nothing that is encrypted to these", err=True
            )
    if action == "ls":
        return 0
    return EXIT_USELESS if useless else 0 if all(by.values()) else EXIT_UNPROVED


def proved(recipients: Sequence[Recipient], identities: Identities) -> set[Recipient]:
    """Which of the recipients these identities are: they open what is encrypted to it alone, and to all."""
    found = {one for one in recipients if _opens([one], identities)}
    if found and not _opens(recipients, identities):
        raise DataError("what is encrypted to all recipients cannot be decrypted, and to one of them it can")
    return found


def _opens(recipients: Sequence[Recipient], identities: Identities) -> bool:
    challenge, sealed = secrets.token_bytes(CHALLENGE_BYTES), io.BytesIO()
    encrypt(io.BytesIO(challenge), sealed, recipients)
    sealed.seek(0)
    try:
        with decrypted(sealed, "the challenge", identities) as text:
            return text.read() == challenge
    except NoIdentity:
        return False


def _document(action: str, by: dict[Recipient, list[Path]], useless: list[Path]) -> dict[str, Any]:
    shown: list[dict[str, Any]] = [{"key": one.key, "comment": one.comment} for one in by]
    if action == "ls":
        return {"schema": SCHEMA, "recipients": shown}
    for one, paths in zip(shown, by.values(), strict=True):
        one |= {"proved": bool(paths), "by": [str(path) for path in paths]}
    return {"schema": SCHEMA, "recipients": shown, "useless": [str(path) for path in useless]}


def _line(one: Recipient) -> str:
    return f"{one.key}  {printable(one.comment)}".rstrip()


def _verdict(one: Recipient, paths: list[Path]) -> str:
    if not paths:
        return f"not proved  {_line(one)}"
    return f"proved      {_line(one)}  by {', '.join(printable(str(path)) for path in paths)}"
