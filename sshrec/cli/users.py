"""`sshrec users`: who there is, with which logins on targets, and the invitation that makes an account theirs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Container
from typing import Any

import click

from sshrec import unix_account
from sshrec.access import invitation
from sshrec.authority import locking, revocation
from sshrec.authority.users import Invitation, User, Users
from sshrec.cli import certificate, table
from sshrec.cli.authority import DurationType, Opened, moment, opened
from sshrec.cli.ls import GREEN, RED, SCHEMA
from sshrec.cli.main import Commands, Settings, colour
from sshrec.config import Config
from sshrec.duration import Duration, left
from sshrec.errors import Denied, NotFound
from sshrec.gateway import control
from sshrec.recording.asciicast import rfc3339
from sshrec.session import printable

_COMMANDS = {
    "add": ("sshrec.cli.users:add", "Add a user, and print the invitation."),
    "ls": ("sshrec.cli.users:ls", "List the users."),
    "reset": ("sshrec.cli.users:reset", "Make password and second factor void, and invite anew."),
    "rm": ("sshrec.cli.users:rm", "Remove a user."),
    "show": ("sshrec.cli.users:show", "Show a user."),
    "update": ("sshrec.cli.users:update", "Change the logins that a user may use."),
}
_HEADINGS = ("USER", "STATUS", "SECOND FACTOR", "LAST LOGIN", "ALLOWED LOGINS")
_PIPE_WIDTH = 200

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_ttl = click.option(
    "--ttl",
    type=DurationType(),
    default=invitation.TTL,
    metavar="TIME",
    help=f"How long the invitation is good for, {invitation.TTL_LIMIT} at most. Default: {invitation.TTL}.",
)
_no_unix_account = click.option(
    "--no-unix-account", "no_account", is_flag=True, help="Leave the Unix account of that name alone."
)


@click.command(
    "users",
    cls=Commands,
    table=_COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.pass_context
def command(ctx: click.Context) -> None:
    """People: who there is, and which logins they may use on targets."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@click.command("add")
@click.argument("user")
@click.argument("logins", required=False)
@_ttl
@_no_unix_account
@_json
@click.pass_obj
def add(settings: Settings, user: str, logins: str | None, ttl: Duration, no_account: bool, as_json: bool) -> None:
    """Add a USER, who may log in to targets as one of LOGINS (joe,root,ec2-user; default: the user's name).

    The invitation that is printed is for them: with it they choose a password and a second factor themselves.
    On a bastion, root also makes their Unix account, which runs the gateway and nothing else.
    """
    with opened(settings) as authority:
        users, now_ms = _users(authority)
        users.check_new(user)
        made_account = not no_account and _make_account(authority, user)
        try:
            made = users.add(user, (user if logins is None else logins).split(","), ttl, authority.asker, now_ms)
        except BaseException:
            if made_account:
                with authority.privileges.as_caller():
                    unix_account.remove(user)
            raise
    _print(authority.config, made, as_json)


def _make_account(authority: Opened, user: str) -> bool:
    """Whether we made it. It is nobody's way in before there is a user of that name."""
    if authority.privileges.came[0] != 0:
        click.echo("no Unix account was made: only root can", err=True)
        return False
    with authority.privileges.as_caller():
        if unix_account.exists(user):
            return False
        unix_account.make(user)
    return True


@click.command("reset")
@click.argument("user")
@_ttl
@_json
@click.pass_obj
def reset(settings: Settings, user: str, ttl: Duration, as_json: bool) -> None:
    """Make a USER's password, second factor and recovery codes void, and print a new invitation.

    Their certificates stay good until they expire; sshrec lock user revokes them.
    """
    with opened(settings) as authority:
        users, now_ms = _users(authority)
        made = users.reset(user, ttl, authority.asker, now_ms)
    _print(authority.config, made, as_json)


def _print(config: Config, made: Invitation, as_json: bool) -> None:
    if as_json:
        document = {
            "user": made.user,
            "purpose": made.purpose,
            "ssh": _ssh(config),
            "token": made.token,
            "expires": rfc3339(made.expires_ms),
        }
        click.echo(json.dumps({"schema": SCHEMA, "invitation": document}, indent=2, ensure_ascii=True))
    else:
        click.echo("\n".join(invitation_lines(config, made)))


def invitation_lines(config: Config, made: Invitation) -> list[str]:
    """What the person is to be sent. The token is typed at a prompt: an argument would be in a shell's history."""
    verb = "invited" if made.purpose == "registration" else "to start anew"
    return [
        f"{made.user} is {verb}, until {moment(made.expires_ms // 1000)}. Two lines to send them in confidence:",
        "",
        f"    {_ssh(config)}",
        f"    {made.token}",
        "",
        "The first is run in a terminal; the second is the invitation, which it asks for. It is good once.",
    ]


def _ssh(config: Config) -> str:
    port = "" if config.bastion_port == 22 else f"-p {config.bastion_port} "
    return f"ssh -A {port}{config.login_account}@{config.bastion_host}"


@click.command("ls")
@_json
@click.pass_obj
def ls(settings: Settings, as_json: bool) -> None:
    """List the users, with the logins that they may use."""
    with opened(settings) as authority:
        users, now_ms = _users(authority)
        found = users.all(now_ms)
        locked = _locked(authority)
    if as_json:
        document = {"schema": SCHEMA, "users": [_object(user, user.name in locked) for user in found]}
        click.echo(json.dumps(document, indent=2, ensure_ascii=True))
    elif found:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
        rows = [_cells(user, user.name in locked, now_ms) for user in found]
        for line in table.lines(_HEADINGS, rows, width, coloured=colour(sys.stdout)):
            click.echo(line)
    else:
        click.echo("no users", err=True)


@click.command("show")
@click.argument("user")
@_json
@click.pass_obj
def show(settings: Settings, user: str, as_json: bool) -> None:
    """Show a USER: logins, second factors, what is left of the recovery codes, and the locks."""
    with opened(settings) as authority:
        users, now_ms = _users(authority)
        found = users.user(user, now_ms)
        locks = [
            lock for lock in locking.held(authority.database, now_ms) if (lock.kind, lock.name) == ("user", user)
        ]
    if as_json:
        click.echo(
            json.dumps({"schema": SCHEMA, "user": _object(found, bool(locks))}, indent=2, ensure_ascii=True)
        )
        return
    facts = [
        ("user", found.name),
        ("status", _status(found, bool(locks), now_ms).text),
        ("logins", ", ".join(found.logins)),
        *(
            ("factor", f"{f.label} ({f.kind}), added {moment(f.added_ms // 1000)}, " + _used(f.used_ms))
            for f in found.factors
        ),
        ("recovery", f"{found.recovery} codes left" if found.status == "active" else ""),
        ("last login", moment(found.login_ms // 1000) if found.login_ms is not None else ""),
        ("added", f"{moment(found.made_ms // 1000)} by {printable(found.made_by)}"),
        *(("lock", printable(str(lock))) for lock in locks),
    ]
    for line in certificate.lines(facts):
        click.echo(line)


def _used(used_ms: int | None) -> str:
    return "never used" if used_ms is None else f"used {moment(used_ms // 1000)}"


@click.command("update")
@click.argument("user")
@click.argument("logins")
@click.pass_obj
def update(settings: Settings, user: str, logins: str) -> None:
    """Let a USER use these LOGINS on targets, and no others.

    Certificates with a login that is gone are revoked.
    """
    with opened(settings) as authority:
        users, now_ms = _users(authority)
        found, revoked = users.update(user, logins.split(","), authority.asker, now_ms)
        _publish(authority, len(revoked))
        ended = _end_sessions(authority, user, set(found.logins))
    click.echo(f"{user} may log in as {', '.join(found.logins)}{_told(len(revoked), ended)}")


@click.command("rm")
@click.argument("user")
@_no_unix_account
@click.pass_obj
def rm(settings: Settings, user: str, no_account: bool) -> None:
    """Remove a USER; certificates are revoked. Root also removes the Unix account, if it is one of ours."""
    with opened(settings) as authority:
        users, now_ms = _users(authority)
        root = authority.privileges.came[0] == 0 and not no_account
        try:
            revoked = users.remove(user, authority.asker, now_ms)
        except NotFound:
            # Maybe all but the Unix account went before.
            if root and _remove_account(authority, user):
                click.echo(f"removed the Unix account {user}; there was no such user")
                return
            raise
        _publish(authority, 1)
        ended = _end_sessions(authority, user)
        click.echo(f"removed {user}{_told(len(revoked), ended)}")
        if root:
            try:
                _remove_account(authority, user)
            except Denied as error:
                click.echo(f"it stays: {error}", err=True)


def _remove_account(authority: Opened, user: str) -> bool:
    with authority.privileges.as_caller():
        return unix_account.remove(user)


def _end_sessions(authority: Opened, user: str, allowed: Container[str] = ()) -> int:
    """End a user's live sessions on this host, but those as an allowed login; how many."""

    def meant(status: dict[str, Any]) -> bool:
        return status.get("user") == user and status.get("login") not in allowed

    with authority.privileges.as_caller():
        try:
            return control.end_all(authority.config.run_dir, authority.asker.by, meant)
        except Denied as error:
            click.echo(f"sessions of {user}'s that live go on: {error}", err=True)
            return 0


def _publish(authority: Opened, count: int) -> None:
    """What sshd reads, where it changed."""
    if count:
        revocation.write_krl(authority.ledger, authority.keys, authority.config.krl, authority.now)


def _told(revoked: int, ended: int) -> str:
    said = f"; {revoked} certificate{'' if revoked == 1 else 's'} revoked" if revoked else ""
    return said + (f"; {ended} session{'' if ended == 1 else 's'} ended" if ended else "")


def _users(authority: Opened) -> tuple[Users, int]:
    return Users(authority.database, authority.config.login_account), int(authority.now * 1000)


def _locked(authority: Opened) -> set[str]:
    held = locking.held(authority.database, int(authority.now * 1000))
    return {lock.name for lock in held if lock.kind == "user"}


def _status(user: User, locked: bool, now_ms: int) -> table.Cell:
    if locked:
        return table.Cell("locked", RED)
    if user.status == "active":
        return table.Cell("active", GREEN)
    if user.invited_ms is None:
        return table.Cell("invitation expired")
    return table.Cell(f"invited, {left((user.invited_ms - now_ms) / 1000)} left")


def _cells(user: User, locked: bool, now_ms: int) -> list[str | table.Cell]:
    return [
        user.name,
        _status(user, locked, now_ms),
        ", ".join(sorted({factor.kind for factor in user.factors})) or "-",
        moment(user.login_ms // 1000) if user.login_ms is not None else "never",
        ", ".join(user.logins),
    ]


def _object(user: User, locked: bool) -> dict[str, Any]:
    def time(ms: int | None) -> str | None:
        return None if ms is None else rfc3339(ms)

    return {
        "user": user.name,
        "logins": list(user.logins),
        "status": user.status,
        "locked": locked,
        "added": time(user.made_ms),
        "added_by": user.made_by,
        "invited_until": time(user.invited_ms),
        "last_login": time(user.login_ms),
        "password_changed": time(user.password_ms),
        "factors": [
            {"kind": f.kind, "label": f.label, "added": time(f.added_ms), "used": time(f.used_ms)}
            for f in user.factors
        ],
        "recovery_codes": user.recovery,
    }
