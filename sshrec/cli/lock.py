"""`sshrec lock`, `unlock` and `locks`: who and what is shut out, at once and until when."""

from __future__ import annotations

import json
import shutil
import sys

import click

from sshrec.access.names import is_user
from sshrec.authority import locking, revocation
from sshrec.authority.locks import KINDS, Kind
from sshrec.authority.users import Users
from sshrec.cli import table
from sshrec.cli.authority import DurationType, moment, opened
from sshrec.cli.ls import SCHEMA
from sshrec.cli.main import Settings
from sshrec.duration import Duration
from sshrec.errors import NotFound, UsageError
from sshrec.recording.asciicast import rfc3339
from sshrec.session import SESSION_ID, printable

REASON_MAX = 500

_HEADINGS = ("KIND", "LOCKED", "UNTIL", "SINCE", "BY", "REASON")
_PIPE_WIDTH = 200
_kind = click.argument("kind", metavar="user|login|node|session", type=click.Choice(KINDS))


@click.command("lock")
@_kind
@click.argument("name")
@click.option("--ttl", type=DurationType(), metavar="TIME", help="For how long. Default: until it is lifted.")
@click.option("--reason", default="", metavar="TEXT", help="Why; whom it stops is told.")
@click.pass_obj
def lock(settings: Settings, kind: Kind, name: str, ttl: Duration | None, reason: str) -> None:
    """Shut out a user, a login, a node or a session, by its NAME.

    Nodes also by a pattern ('db*'), a network (10.2.0.0/16) or a label (env=prod), as in a role.

    New sessions are refused, and those that live are ended. A user's certificates are revoked, and there are no
    new ones.
    """
    _check(kind, name)
    if len(reason) > REASON_MAX or not reason.isprintable():
        raise UsageError(f"--reason: '{printable(reason, 40)}' is not one line of {REASON_MAX} characters at most")
    with opened(settings) as authority:
        now_ms = int(authority.now * 1000)
        until_ms = None if ttl is None else now_ms + ttl * 1000
        revoked = locking.lock(authority.database, kind, name, reason, until_ms, authority.asker, now_ms)
        if kind == "user" and not _is_known(Users(authority.database), name, now_ms):
            click.echo(f"there is no user {name}: a slip?", err=True)
        if revoked:
            revocation.write_krl(authority.ledger, authority.keys, authority.config.krl, authority.now)
    until = "" if until_ms is None else f" until {moment(until_ms // 1000)}"
    what = f"; {len(revoked)} certificate{'' if len(revoked) == 1 else 's'} revoked" if revoked else ""
    click.echo(f"locked {kind} {name}{until}{what}")


def _is_known(users: Users, name: str, now_ms: int) -> bool:
    try:
        users.user(name, now_ms)
    except NotFound:
        return False
    return True


@click.command("unlock")
@_kind
@click.argument("name")
@click.pass_obj
def unlock(settings: Settings, kind: Kind, name: str) -> None:
    """Lift a lock. Certificates that it revoked stay so: the user logs in again."""
    _check(kind, name)
    with opened(settings) as authority:
        locking.unlock(authority.database, kind, name, authority.asker, int(authority.now * 1000))
    click.echo(f"unlocked {kind} {name}")


@click.command("locks")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_obj
def locks(settings: Settings, as_json: bool) -> None:
    """List the locks that hold, oldest first."""
    with opened(settings) as authority:
        held = locking.held(authority.database, int(authority.now * 1000))
    if as_json:
        shown = [
            {
                "kind": one.kind,
                "name": one.name,
                "reason": one.reason,
                "since": rfc3339(one.made_ms),
                "by": one.made_by,
                "until": None if one.until_ms is None else rfc3339(one.until_ms),
            }
            for one in held
        ]
        click.echo(json.dumps({"schema": SCHEMA, "locks": shown}, indent=2, ensure_ascii=True))
    elif held:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
        rows = [
            (
                one.kind,
                printable(one.name),
                "unlocked" if one.until_ms is None else moment(one.until_ms // 1000),
                moment(one.made_ms // 1000),
                printable(one.made_by, 32),
                printable(one.reason),
            )
            for one in held
        ]
        for line in table.lines(_HEADINGS, rows, width):
            click.echo(line)
    else:
        click.echo("nothing is locked", err=True)


def _check(kind: Kind, name: str) -> None:
    """UsageError for what nothing of that kind could be called: a lock on it would stop nobody."""
    if kind == "session":
        fits = SESSION_ID.fullmatch(name) is not None
    elif kind == "node":
        return  # what that may be, the rules know
    else:
        fits = is_user(name)
    if not fits:
        raise UsageError(f"'{printable(name, 60)}' cannot be the name of a {kind}")
