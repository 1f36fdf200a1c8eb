"""`sshrec-ca init`, `export`, `rotate` and `status`: the CAs themselves."""

from __future__ import annotations

import json
import shutil
import string
import sys
from collections.abc import Callable
from typing import Any

import click

from sshrec.authority import outbox
from sshrec.authority.keys import KINDS, Kind
from sshrec.authority.ledger import AuthorityRow
from sshrec.authority.log_key import LogKey
from sshrec.cli import table
from sshrec.cli.authority import DurationType, Opened, ask, moment, opened
from sshrec.cli.certificate import remaining
from sshrec.cli.ls import SCHEMA
from sshrec.cli.main import Settings, colour
from sshrec.duration import Duration
from sshrec.errors import Denied, UsageError
from sshrec.openssh import known_hosts
from sshrec.openssh.public_key import PublicKey
from sshrec.recording.asciicast import rfc3339
from sshrec.session import printable

_PIPE_WIDTH = 200
_PATTERN_CHARACTERS = set(string.ascii_letters + string.digits + ".:*?_,!-")
_kind = click.argument("kind", metavar="[user|host|gateway]", type=click.Choice(KINDS))
_passphrase = click.option(
    "--passphrase", is_flag=True, help="Encrypt the private keys; the passphrase is asked for."
)


@click.command("init")
@_passphrase
@click.pass_obj
def init(settings: Settings, passphrase: bool) -> None:
    """Make the CAs: for users, for hosts, and for the gateway's own host certificates.

    Where the configuration says that an agent or a token holds a key, that one is taken up.
    """
    secret = _new_passphrase() if passphrase else None
    with opened(settings, create=True) as authority:
        log_key = LogKey(authority.config)
        rows = authority.keys.init(authority.now, secret)
        if not rows and log_key.exists:
            authority.catch_up()
            raise Denied(
                f"{authority.config.authority_dir} has its CAs already", hint="sshrec-ca status lists them"
            )
        if not log_key.exists:
            with authority.keys.alone():
                fingerprint = log_key.make(authority.now)
            authority.tell("ca.init", {"ca_type": "audit", "ca_fingerprint": fingerprint})
        authority.publish()
        click.echo(f"the authority is in {authority.config.authority_dir}")
        for row in rows:
            where = f"keys/{row.file}" if row.file else "held elsewhere"
            click.echo(f"  {row.kind + ' CA':<10}  {row.fingerprint}  {where}")
        public = authority.config.public_dir
        click.echo(f"what sshd and ssh are to trust is in {public}")


def _new_passphrase() -> str:
    first = ask("passphrase for the new keys: ")
    if not first:
        raise UsageError("an empty passphrase protects nothing", hint="leave --passphrase out to have none")
    if ask("the same once more: ") != first:
        raise UsageError("the passphrases are not the same")
    return first


_FORMATS: dict[str, Callable[[list[PublicKey], str], str]] = {
    "openssh": lambda keys, _: known_hosts.plain(keys),
    "authorized_keys": lambda keys, _: known_hosts.authorized_keys(keys),
    "known_hosts": known_hosts.authorities,
}


@click.command("export")
@click.option("--type", "kind", required=True, type=click.Choice(KINDS), help="Which CA.")
@click.option(
    "--format",
    "form",
    type=click.Choice([*_FORMATS]),
    help="openssh: bare keys, as TrustedUserCAKeys takes them (default for user). authorized_keys: with "
    "cert-authority before them. known_hosts: @cert-authority lines (default for host and gateway).",
)
@click.option("--hosts", metavar="PATTERN", help="Of known_hosts lines. Default: authority.hosts.")
@click.pass_obj
def export(settings: Settings, kind: Kind, form: str | None, hosts: str | None) -> None:
    """Print a CA's public key, for those who are to trust it.

    During a rotation that is several: the one that signs, the next and the old ones.
    """
    if hosts is not None and (not hosts or not set(hosts) <= _PATTERN_CHARACTERS):
        raise UsageError(f"'{printable(hosts)}' is no pattern of known_hosts", hint="*.example.com,10.0.0.*")
    with opened(settings) as authority:
        pattern = authority.config.authority.hosts if hosts is None else hosts
        keys = authority.keys.trusted(kind)
        click.echo(_FORMATS[form or ("openssh" if kind == "user" else "known_hosts")](keys, pattern), nl=False)


@click.command("rotate")
@_kind
@click.option("--now", "at_once", is_flag=True, help="Make the new CA and have it sign, in one step.")
@click.option(
    "--grace",
    type=DurationType(),
    metavar="TIME",
    help="How long the old one stays trusted. Default: as its certificates.",
)
@click.option("--retire", is_flag=True, help="End the old one's grace now.")
@click.option("--rollback", is_flag=True, help="Undo the last step.")
@_passphrase
@click.pass_obj
def rotate(
    settings: Settings,
    kind: Kind,
    at_once: bool,
    grace: Duration | None,
    retire: bool,
    rollback: bool,
    passphrase: bool,
) -> None:
    """Replace a CA by a new one, a step each time it is called.

    First there is a new CA: give both to those who are to trust them. Then the new one signs, and the old
    one stays trusted until its grace is over. Then it is retired, and its private key removed.
    """
    if sum((at_once, retire, rollback)) > 1:
        raise UsageError("--now, --retire and --rollback are three things")
    if (retire or rollback) and (grace or passphrase):
        raise UsageError("--retire and --rollback take neither --grace nor --passphrase")
    with opened(settings) as authority:
        keys, now = authority.keys, authority.now
        if rollback:
            click.echo(f"the {kind} CA that signs is {keys.roll_back(kind, now).fingerprint}")
        elif retire:
            for row in keys.retire(kind, now):
                click.echo(f"retired the {kind} CA {row.fingerprint}: nothing that it signed counts any more")
        else:
            _step_forward(authority, kind, at_once, grace, passphrase)
        authority.publish()
        click.echo(_advice(authority, kind), err=True)


def _step_forward(authority: Opened, kind: Kind, at_once: bool, grace: Duration | None, passphrase: bool) -> None:
    """Make a new CA, or have it sign, or both; UsageError for an option of the step that is not taken."""
    keys, now = authority.keys, authority.now
    makes = at_once or not keys.rows(kind, "next")
    switches = at_once or not makes
    if passphrase and not makes:
        raise UsageError("--passphrase is for the step that makes a new CA")
    if grace and not switches:
        raise UsageError("--grace is for the step that has the new CA sign")
    grace = _grace(authority, kind, grace)
    if makes:
        row = keys.introduce(kind, now, _new_passphrase() if passphrase else None)
        click.echo(f"the next {kind} CA is {row.fingerprint}")
    if switches:
        row = keys.switch(kind, now, grace)
        click.echo(f"{row.fingerprint} signs now; the old one is trusted until {moment(int(now) + grace)}")


def _grace(authority: Opened, kind: Kind, asked: Duration | None) -> Duration:
    """How long the CA that signs now stays trusted; UsageError for longer than any of its certificates is."""
    (current,) = authority.keys.rows(kind, "current")
    needed = Duration(max(_last(authority, current) - int(authority.now), 60))
    settings = authority.config.authority
    limit = max(needed, settings.user_ttl_limit if kind == "user" else settings.host_ttl_limit)
    if asked and asked > limit:
        raise UsageError(f"{asked} is longer than any certificate of the {kind} CA is good for, {limit}")
    return asked or needed


def _last(authority: Opened, ca: AuthorityRow) -> int:
    """When the last certificate of a CA expires; now where there is none."""
    entries = authority.ledger.entries(ca=ca.fingerprint, valid_at=int(authority.now))
    return max((entry.valid_before for entry in entries), default=int(authority.now))


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_obj
def status(settings: Settings, as_json: bool) -> None:
    """Say which CAs there are, in which phase, and what is still good that they signed."""
    with opened(settings) as authority:
        rows = [row for kind in KINDS for row in authority.keys.rows(kind)]
        counts = {row.fingerprint: _valid(authority, row) for row in rows}
        waiting = outbox.deliver(authority.database, authority.config)
        if as_json:
            shown = [_as_object(row, *counts[row.fingerprint]) for row in rows]
            document = {"schema": SCHEMA, "authorities": shown, "events_waiting": waiting}
            click.echo(json.dumps(document, indent=2))
            return
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
        headings = ("CA", "PHASE", "SINCE", "GOOD", "LAST EXPIRES", "FINGERPRINT")
        cells = [_cells(row, *counts[row.fingerprint]) for row in rows]
        for line in table.lines(headings, cells, width, right=("GOOD",), coloured=colour(sys.stdout)):
            click.echo(line)
        for kind in KINDS:
            if len(authority.keys.rows(kind, "current", "next", "old")) > 1:
                click.echo(_advice(authority, kind), err=True)
        if waiting:
            events = "1 event waits" if waiting == 1 else f"{waiting} events wait"
            click.echo(f"{events} until sshrecd runs here, for the audit log", err=True)


def _valid(authority: Opened, row: AuthorityRow) -> tuple[int, int | None]:
    """How many certificates of a CA are good, and when the last of them expires."""
    if row.phase == "retired":
        return 0, None
    entries = authority.ledger.entries(ca=row.fingerprint, valid_at=int(authority.now))
    good = [entry.valid_before for entry in entries if entry.revoked is None]
    return len(good), max(good, default=None)


def _cells(row: AuthorityRow, good: int, last: int | None) -> list[str | table.Cell]:
    since = row.retired_ms or row.old_ms or row.current_ms or row.made_ms
    phase = row.phase
    if row.phase == "old" and row.retires_at:
        phase = f"old until {moment(row.retires_at)}"
    return [
        row.kind,
        table.Cell(phase, "32" if row.phase == "current" else ""),
        moment(since // 1000),
        str(good),
        moment(last) if last else "-",
        row.fingerprint,
    ]


def _as_object(row: AuthorityRow, good: int, last: int | None) -> dict[str, Any]:
    times = {"made": row.made_ms, "current": row.current_ms, "old": row.old_ms, "retired": row.retired_ms}
    times["retires"] = row.retires_at and row.retires_at * 1000
    times["last_expires"] = last and last * 1000
    return {
        "kind": row.kind,
        "phase": row.phase,
        "fingerprint": row.fingerprint,
        "public_key": row.public_key,
        "file": row.file,
        "good": good,
        **{name: value and rfc3339(value) for name, value in times.items()},
    }


def _advice(authority: Opened, kind: Kind) -> str:
    """What is to be done next in a rotation."""
    where = {
        "user": "targets (enroll-node, or export --type user)",
        "host": "clients (export --type host)",
        "gateway": "clients (export --type gateway)",
    }[kind]
    if authority.keys.rows(kind, "next"):
        return f"next: give both CAs to {where}; then `sshrec-ca rotate {kind}` once more has the new one sign"
    old = authority.keys.rows(kind, "old")
    if not old:
        return f"the rotation of the {kind} CA is over"
    good, last = _valid(authority, old[0])
    text = f"next: nothing; the old {kind} CA is retired by itself"
    if old[0].retires_at:
        text += f" in {remaining(0, old[0].retires_at, authority.now).removesuffix(' left')}"
    if good and last and old[0].retires_at and last > old[0].retires_at:
        text += f", {good} certificates of it before their time: sshrec-ca ls --ca {old[0].fingerprint}"
    return text
