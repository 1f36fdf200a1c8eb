"""`sshrec login`, `status`, `logout`, `ssh` and `config`: a person's laptop and a bastion."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click

from sshrec.cli import credential, profile
from sshrec.cli.credential import ACCOUNT, PREFIX, SSH, Door, UseAgent
from sshrec.cli.profile import Profile
from sshrec.duration import Duration, left
from sshrec.errors import DataError, NotFound, SshrecError, UsageError
from sshrec.openssh.agent import Agent
from sshrec.openssh.certificate import Certificate
from sshrec.openssh.destinations import Constrained, Unconstrained
from sshrec.openssh.signer import own_agent
from sshrec.openssh.ssh_config import block, quoted
from sshrec.session import printable

_SCHEMA = 1
_SOON = 60  # seconds; a certificate that ends sooner is as good as none for what starts now
_TTL = range(60, 366 * 86400)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")
_SECRET = 1024  # bytes
# What follows the node is the node's, options included.
_SSH = {"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}

_proxy = click.option("--proxy", metavar="BASTION", help="The bastion; default: the one that you logged in at.")
_user = click.option("--user", metavar="NAME", help="Your account there; default: as before, or as here.")
_account = click.option("--account", metavar="NAME", default=ACCOUNT, help="The account of the login dialogue.")
_config_file = click.option(
    "-F", "ssh_config", metavar="FILE", help="For ssh: read this instead of ~/.ssh/config."
)


def _ttl(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        if (seconds := Duration.parse(value)) in _TTL:
            return int(seconds)
    except ValueError:
        pass
    raise click.BadParameter(f"{value!r} is no time from 1m to 1y, such as 30m or 12h.")


@click.command("login")
@_proxy
@_user
@click.option(
    "--ttl", metavar="TIME", callback=_ttl, help="How long, at most: 30m, 12h. Default: what policy gives."
)
@click.option(
    "--agent",
    type=click.Choice(get_args(UseAgent)),
    default="yes",
    help="Where key and certificate go: the ssh-agent alone; it, or else files; files.",
)
@_account
@_config_file
def login(
    proxy: str | None, user: str | None, ttl: int | None, agent: UseAgent, account: str, ssh_config: str | None
) -> None:
    """Get a certificate that expires by itself.

    Asks for password and code. The key is made here; only its public half leaves.
    """
    bastion, known = _bastion(proxy, broken=True)
    _show(_log_in(Door(bastion, account, _options(ssh_config)), known, user, ttl, agent))


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> int:
    """Show who you are at each bastion, and for how long.

    Ends with 1 where no login is valid.
    """
    profiles = profile.every()
    valid = [_valid(one) for one in profiles]
    if as_json:
        logins = [_object(one, held) for one, held in zip(profiles, valid, strict=True)]
        click.echo(json.dumps({"schema": _SCHEMA, "logins": logins}, indent=2))
    elif not profiles:
        click.echo("not logged in anywhere; sshrec login --proxy BASTION", err=True)
    for number, (one, held) in enumerate(zip(profiles, valid, strict=True)):
        if not as_json:
            click.echo("\n" * bool(number), nl=False)
            _show(one, held)
    return 0 if any(valid) else 1


@click.command("logout")
@_proxy
def logout(proxy: str | None) -> None:
    """Take key and certificate out of the agent, and remove their files.

    Without --proxy, of every bastion.
    """
    found = [one for one in profile.every() if proxy is None or one.bastion == proxy]
    if not found:
        raise NotFound("not logged in" + (f" at {printable(proxy)}" if proxy else " anywhere"))
    for one in found:
        where = printable(one.bastion)
        try:
            if one.where == "agent" and (socket := credential.agent_socket()):
                Agent(socket).remove(PREFIX + one.user, one.credential().ca)
        except SshrecError as error:
            _warn(f"{error}; what it holds expires by itself")
        profile.forget(one.bastion)
        click.echo(f"logged out at {where}")


@click.command("ssh", context_settings=_SSH)
@_proxy
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Of the node's sshd; default: as the bastion knows it.",
)
@_account
@_config_file
@click.argument("target", metavar="[LOGIN@]NODE")
@click.argument("command", metavar="[COMMAND]...", nargs=-1)
def ssh(
    proxy: str | None,
    port: int | None,
    account: str,
    ssh_config: str | None,
    target: str,
    command: tuple[str, ...],
) -> int:
    """Go to a node through the bastion, by plain ssh.

    Logs in first where that is needed. For a shell, and nothing else, you get a terminal.
    """
    if target.startswith("-") or not target:
        raise UsageError(f"'{printable(target)}' is not a node", hint="[login@]node")
    bastion, known = _bastion(proxy)
    options = _options(ssh_config)
    if known is None or not _valid(known):
        known = _log_in(Door(bastion, account, options), known, None, None, "yes")
    if port is not None:
        target = f"{target}:{port}"
    identity = quoted(str(known.identity))
    argv = [SSH, *options, "-A", "-l", known.user, "-o", "RemoteCommand=none"]
    argv += ["-o", f"IdentityFile={identity}", "-o", "IdentitiesOnly=yes"]
    if not command and sys.stdin.isatty():
        argv.append("-t")
    argv += ["--", bastion, target, *command]
    if known.where == "agent":
        os.execvp(SSH, argv)  # noqa: S606 - an argument list, the person's own ssh
    return _with_own_agent(known, argv)


@click.command("config")
@_proxy
def config(proxy: str | None) -> None:
    """Print the block for ~/.ssh/config that has plain ssh use your login."""
    bastion, known = _bastion(proxy)
    user = known.user if known else getpass.getuser()
    one = known or Profile(bastion=bastion, user=user, certificate="", where="agent")
    click.echo(block(bastion, user, one.identity, one.key if one.where == "files" else None), nl=False)


def _bastion(proxy: str | None, broken: bool = False) -> tuple[str, Profile | None]:
    """The bastion that is meant, and what is known of the login there; `broken`: nothing, if that is."""
    if proxy is not None:
        try:
            return profile.checked(proxy), profile.load(proxy)
        except DataError:
            if not broken:
                raise
            return proxy, None
    found = profile.every()
    if len(found) == 1:
        return found[0].bastion, found[0]
    names = ", ".join(one.bastion for one in found)
    raise UsageError("which bastion?", hint=f"--proxy {names}" if found else "sshrec login --proxy BASTION")


def _options(ssh_config: str | None) -> tuple[str, ...]:
    return ("-F", ssh_config) if ssh_config else ()


def _log_in(door: Door, known: Profile | None, user: str | None, ttl: int | None, use: UseAgent) -> Profile:
    credential.suited(use)  # before anything is asked
    usual = known.user if known else getpass.getuser()
    if user is None:
        user = _typed(f"User at {door.bastion} [{usual}]: ") or usual
    if not _USER.fullmatch(user):
        raise UsageError(f"'{printable(user, 60)}' is no user's name")
    password = _typed("Password: ", hidden=True)
    code = _typed("Code (Enter for none): ").replace(" ", "")
    done = credential.log_in(door, user, password, code, ttl, use)
    for warning in done.warnings:
        _warn(warning)
    return done.profile


def _typed(prompt: str, hidden: bool = False) -> str:
    """One line from the terminal, wherever standard input comes from."""
    try:
        terminal = Path("/dev/tty").open("r+b", buffering=0)
    except OSError as error:
        raise UsageError("a login needs a terminal to ask at") from error
    with terminal:
        if hidden:
            answer = getpass.getpass(prompt)
        else:
            terminal.write(prompt.encode())
            line = terminal.readline()
            if not line:
                raise click.Abort
            answer = line.decode("utf-8", "replace").strip()
    if len(answer.encode("utf-8", "replace")) > _SECRET:
        raise UsageError("that is too long")
    return answer


def _valid(one: Profile) -> bool:
    """Whether the login can be used now and for a minute."""
    certificate = one.credential()
    if not certificate.valid_after <= time.time() < certificate.valid_before - _SOON:
        return False
    if one.where == "files":
        return one.key.exists()
    socket = credential.agent_socket()
    if socket is None:
        return False
    with contextlib.suppress(SshrecError):
        return any(held.blob == certificate.blob for held in Agent(socket).identities())
    return False


def _with_own_agent(known: Profile, argv: Sequence[str]) -> int:
    """Run ssh with an agent that lives as long as it does: where files are, the hop still wants an agent."""
    found = Constrained(tuple(known.constraints), known.known_hosts, True) if known.constraints else None
    with own_agent() as socket:
        credential.load(Agent(socket), known.key, known.credential(), known.user, found or Unconstrained(""))
        environment = {**os.environ, "SSH_AUTH_SOCK": str(socket)}
        with subprocess.Popen(argv, env=environment) as child:
            while True:
                try:
                    return child.wait()
                except KeyboardInterrupt:
                    continue  # ssh has had it, too


def _show(one: Profile, valid: bool | None = None) -> None:
    """One login for people."""
    certificate = one.credential()
    key = "in the ssh-agent" if one.where == "agent" else f"in {one.key}"
    if valid is False and certificate.valid_before > time.time() + _SOON:
        key = f"no longer {key}; log in again"
    facts = [
        ("bastion", one.bastion),
        ("user", one.user),
        ("logins", ", ".join(_logins(certificate)) or "none"),
        ("valid", _until(certificate)),
        ("key", key),
        ("bound", one.bound or f"to nothing: {one.unbound}"),
    ]
    for label, value in facts:
        click.echo(f"{label:<8} {printable(value, 2000)}")


def _until(certificate: Certificate) -> str:
    end, now = certificate.valid_before, time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(end))
    return f"until {shown} ({left(end - now)} left)" if end > now else f"no more, since {shown}"


def _logins(certificate: Certificate) -> list[str]:
    return [name for name in certificate.principals if not name.startswith(PREFIX)]


def _object(one: Profile, valid: bool) -> dict[str, Any]:
    certificate = one.credential()
    return {
        "bastion": one.bastion,
        "user": one.user,
        "logins": _logins(certificate),
        "valid": valid,
        "valid_before": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(certificate.valid_before)),
        "serial": certificate.serial,
        "key": one.where,
        "bound": one.bound,
        "unbound": one.unbound or None,
    }


def _warn(words: str) -> None:
    click.echo(f"sshrec: warning: {words}", err=True)
