"""`sshrec-ca ls`, `show`, `revoke` and `krl`: what was signed, and what counts no more."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click

from sshrec.atomic import replace_file
from sshrec.authority import revocation
from sshrec.authority.keys import KINDS, Kind
from sshrec.authority.ledger import Entry
from sshrec.cli import certificate as shown
from sshrec.cli import table
from sshrec.cli.authority import Opened, check_output, moment, opened, read_signed
from sshrec.cli.ls import GREEN, RED, SCHEMA
from sshrec.cli.main import Settings, colour
from sshrec.errors import NotFound, SshrecError, UsageError, describe
from sshrec.openssh.certificate import Certificate
from sshrec.recording.asciicast import rfc3339
from sshrec.session import printable

_PIPE_WIDTH = 200
_HEADINGS = ("SERIAL", "KIND", "KEY ID", "STATUS", "UNTIL", "MADE", "BY", "PRINCIPALS")
_SERIAL_MAX = (1 << 63) - 1


@click.command("ls")
@click.option("--key-id", metavar="NAME", help="Of this user or host alone.")
@click.option("--kind", type=click.Choice(KINDS), help="Of this kind alone.")
@click.option("--ca", metavar="SHA256:...", help="Signed by this CA alone.")
@click.option("--all", "everything", is_flag=True, help="Expired ones too, and those that never left.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_obj
def ls(
    settings: Settings, key_id: str | None, kind: Kind | None, ca: str | None, everything: bool, as_json: bool
) -> None:
    """List certificates that are good or were revoked, newest first, with the time that is left."""
    for word in (key_id, ca):
        _check_word(word or "")
    with opened(settings) as authority:
        now = authority.now
        entries = authority.ledger.entries(
            kind=kind, key_id=key_id, ca=ca, valid_at=None if everything else int(now), withdrawn=everything
        )
        retired = {key.fingerprint for each in KINDS for key in authority.keys.retired(each)}
    if as_json:
        document = {"schema": SCHEMA, "certificates": [shown.entry_object(entry) for entry in entries]}
        click.echo(json.dumps(document, indent=2, ensure_ascii=True))
    elif entries:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
        rows = [_cells(entry, now, retired) for entry in entries]
        for line in table.lines(_HEADINGS, rows, width, right=("SERIAL",), coloured=colour(sys.stdout)):
            click.echo(line)
    else:
        click.echo(
            "no certificates" + ("" if everything else " that are good now; --all lists the others"), err=True
        )


def _check_word(word: str) -> None:
    """UsageError for what no database takes, and nothing bears as a name."""
    if printable(word, 1000) != word:
        raise UsageError(f"'{printable(word, 60)}' is no name: it has unprintable characters, or more than 1000")


def _cells(entry: Entry, now: float, retired: Collection[str]) -> list[str | table.Cell]:
    return [
        str(entry.serial),
        entry.kind,
        printable(entry.key_id, 48),
        _state(entry, now, retired),
        moment(entry.valid_before),
        moment(entry.made_ms // 1000),
        printable(entry.asked_by, 32),
        printable(", ".join(entry.principals), 2000),
    ]


def _state(entry: Entry, now: float, retired: Collection[str]) -> table.Cell:
    if entry.withdrawn is not None:
        return table.Cell("withdrawn", RED)
    if entry.revoked is not None:
        return table.Cell("revoked", RED)
    if entry.ca_fingerprint in retired:
        return table.Cell("CA retired", RED)
    good = entry.valid_after <= now < entry.valid_before
    return table.Cell(shown.remaining(entry.valid_after, entry.valid_before, now), GREEN if good else "")


@click.command("show")
@click.argument("what", metavar="FILE|SERIAL|-")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show(settings: Settings, what: str, as_json: bool) -> None:
    """Show a certificate: of a file, of standard input, or of the ledger by its serial."""
    certificate = None if _serial(what) else read_signed(what)
    with opened(settings) as authority:
        found = _find(authority, what, certificate)
        known = {ca.fingerprint: kind for kind in KINDS for ca in authority.keys.trusted(kind)}
        now = authority.now
    if as_json:
        document: dict[str, Any] = {"schema": SCHEMA, "ledger": found and shown.entry_object(found)}
        document["certificate"] = certificate and shown.as_object(certificate)
        click.echo(json.dumps(document, indent=2, ensure_ascii=True))
        return
    if certificate is not None:
        kind, ca, facts = str(certificate.kind), certificate.ca.fingerprint, shown.facts(certificate, now)
    elif found is not None:
        kind, ca, facts = found.kind, found.ca_fingerprint, _facts(found, now)
    click.echo(
        f"{kind} certificate, signed by " + (f"our {known[ca]} CA" if ca in known else "a CA that is not ours")
    )
    for line in shown.lines([*facts, *_history(found)]):
        click.echo(line)


def _find(authority: Opened, what: str, certificate: Certificate | None) -> Entry | None:
    """The ledger's row; None for a certificate that it does not have. Serials are unique within it only."""
    if certificate is None:
        return authority.ledger.entry(int(what))
    try:
        entry = authority.ledger.entry(certificate.serial)
    except NotFound:
        return None
    same = (entry.ca_fingerprint, entry.key_fingerprint) == (
        certificate.ca.fingerprint,
        certificate.key.fingerprint,
    )
    return entry if same else None


def _facts(entry: Entry, now: float) -> list[tuple[str, str]]:
    return [
        ("key id", printable(entry.key_id)),
        ("principals", printable(", ".join(entry.principals), 2000)),
        ("valid", shown.validity(entry.valid_after, entry.valid_before, now)),
        ("options", shown.options(entry.critical_options, entry.extensions)),
        ("serial", str(entry.serial)),
        ("key", entry.key_fingerprint),
        ("signed by", entry.ca_fingerprint),
    ]


def _history(entry: Entry | None) -> list[tuple[str, str]]:
    if entry is None:
        return [("ledger", "does not have it")]
    asked = f"{printable(entry.asked_by)} from {printable(entry.asked_from)}"
    told = [
        ("asked for by", f"{asked}, {rfc3339(entry.made_ms)}"),
        ("withdrawn", printable(entry.withdrawn or "")),
    ]
    if revoked := entry.revoked:
        told.append(
            ("revoked", f"{rfc3339(revoked.at_ms)} by {printable(revoked.by)}: {printable(revoked.reason)}")
        )
    return told


def _serial(what: str) -> bool:
    return what.isascii() and what.isdecimal() and 0 < int(what[:20]) <= _SERIAL_MAX


@click.command("revoke")
@click.argument("what", metavar="SERIAL|KEY-ID|FILE")
@click.option("--reason", default="", metavar="TEXT", help="Why; the ledger keeps it.")
@click.option("--kind", type=click.Choice(KINDS), default="user", help="Of a KEY-ID: whose it is. Default: user.")
@click.option("--undo", is_flag=True, help="Let a KEY-ID have certificates again; those revoked stay so.")
@click.pass_obj
def revoke(settings: Settings, what: str, reason: str, kind: Kind, undo: bool) -> None:
    """Make certificates worthless before they expire.

    A SERIAL or the FILE of a certificate (it ends in .pub, or has a / in its name): that one. A KEY-ID: all that
    somebody has, and none can be signed until --undo. The bastion's sshd knows at once, targets with their next
    look at the list (krl).
    """
    # Not by what is in the directory: there, somebody could put a file of somebody else's name.
    is_file = "/" in what or what.endswith(".pub")
    certificate = read_signed(what) if is_file else None
    one = is_file or _serial(what)
    if not one:
        _check_word(what)
    with opened(settings) as authority:
        ledger, at, by = authority.ledger, int(authority.now * 1000), authority.asker.by
        if undo:
            if one:
                raise UsageError("only a key id can have certificates again", hint="have a new one signed")
            ledger.lift_key_id(kind, what, by, at)
            told = f"{what} can have certificates again"
        elif not one:
            revocation.check_key_id(authority.keys, kind, what)
            entries = ledger.entries(kind=kind, key_id=what)
            if not entries:
                click.echo(f"the ledger has no {kind} certificate of {printable(what)}: a slip?", err=True)
            ledger.revoke_key_id(kind, what, by, reason, at)
            good = sum(entry.revoked is None and not entry.expired(int(authority.now)) for entry in entries)
            told = f"revoked {what}: {good} certificates that were good, and all to come"
        else:
            found = _find(authority, what, certificate)
            if found is None:
                raise NotFound(
                    f"the ledger does not have {printable(what)}", hint="if it is ours, revoke its key id"
                )
            (entry,) = ledger.revoke([found.serial], by, reason, at)
            told = f"revoked {entry.serial}, of {entry.key_id}"
        revocation.write_krl(ledger, authority.keys, authority.config.krl, authority.now)
        click.echo(printable(told))


@click.command("krl")
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="Another place for it.")
@click.pass_obj
def krl(settings: Settings, output: Path | None) -> None:
    """Write the list of revoked certificates, for RevokedKeys in sshd_config.

    It is kept up to date in the public directory by itself; this writes it again, or elsewhere.
    """
    if output is not None:
        check_output(output, "list of revoked certificates", revocation.is_krl)
    with opened(settings) as authority:
        authority.publish()
        if output is None:
            click.echo(authority.config.krl)
            return
        data = authority.config.krl.read_bytes()
        try:
            with authority.privileges.as_caller():
                replace_file(output, data, 0o644)
        except OSError as error:
            raise SshrecError(f"cannot write {printable(str(output))}: {describe(error)}") from error
