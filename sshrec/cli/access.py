"""`sshrec access`: what the roles would do, and why. Resolves the name as a session would; decides nothing."""

from __future__ import annotations

import ipaddress
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, get_args

import click

from sshrec import privileges
from sshrec.access.decision import Allow, Case, Deny, Lock, Place, Subject
from sshrec.access.explain import Answer, Explainer, Explanation, terms
from sshrec.authority import locks
from sshrec.authority.users import Users
from sshrec.cli.ls import SCHEMA
from sshrec.cli.main import Settings
from sshrec.config import Config
from sshrec.errors import NotFound, SshrecError, Unreachable, describe
from sshrec.gateway import network, request
from sshrec.hours import DAYS
from sshrec.patterns import Address
from sshrec.session import Kind, Target, printable
from sshrec.storage.database import Database

DENIED = 1
_WHAT = {"shell": "a shell", "exec": "a command", "upload": "an upload", "download": "a download"}


class _AddressType(click.ParamType[Address]):
    """--from 10.0.0.9."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return ipaddress.ip_address(str(value))
        except ValueError:
            return self.fail(f"'{printable(str(value), 60)}' is no IP address", param, ctx)


@click.command("access")
@click.argument("words", nargs=-1, metavar="[USER] [LOGIN@]HOST[:PORT]")
@click.option("--who", "ask_who", is_flag=True, help="List the users who may, instead of one user's roles.")
@click.option("--kind", type=click.Choice(get_args(Kind)), default="shell", help="Of request; default: shell.")
@click.option("--from", "source", type=_AddressType(), metavar="ADDR", help="Where the client is.")
@click.option(
    "--at",
    "when",
    type=click.DateTime(["%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"]),
    metavar="TIME",
    help="When, as 2026-11-23 14:00 by the bastion's clock; default: now.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(
    settings: Settings,
    words: tuple[str, ...],
    ask_who: bool,
    kind: Kind,
    source: Address | None,
    when: datetime | None,
    as_json: bool,
) -> int:
    """Tell what would happen to a request, and why.

    Each role is asked, in its order; the first that allows the whole request decides. The status is 0 where
    the session would be allowed, 1 where it would not. With --who: who would be allowed.
    """
    if len(words) != (1 if ask_who else 2):
        raise click.UsageError("name the target" if ask_who else "name a user and a target")
    user = "" if ask_who else words[0]
    target = request.parse_target(words[-1].encode(), user)
    users, held = _accounts(settings.config)
    explainer = Explainer(settings.config, anywhere=source is None)
    place = explainer.policy.locate(target)
    if isinstance(place, Deny):
        return _print(Explanation(place, (), None), f"{target}:", {"target": str(target)}, as_json)
    addresses = _resolve(place)
    case = Case(
        subject=Subject(user=user, logins=(users or {}).get(user), source=source, locks=held),
        login=target.login,
        kind=kind,
        place=place,
        addresses=addresses,
        own=frozenset(address for address in addresses if network.is_own(address)),
        when=when or datetime.now(),
    )
    if ask_who:
        if users is None:
            raise NotFound("nobody is known here: there is no database of users", hint="sshrec users add")
        return _print_who(dict(explainer.who(case, users)), case, target, as_json)
    if users is not None and user not in users:
        click.echo(f"sshrec: warning: there is no user {printable(user, 40)}", err=True)
    asked = f"{printable(user, 40)} wants {_WHAT[kind]} as {_where(case, target)}"
    return _print(explainer.explain(case), asked, _facts(case, target), as_json)


def _print(explanation: Explanation, asked: str, facts: dict[str, Any], as_json: bool) -> int:
    verdict, by = explanation.verdict, explanation.by
    allowed = isinstance(verdict, Allow)
    if as_json:
        document = {"schema": SCHEMA, **facts, "allowed": allowed, "rule": verdict.rule}
        document |= {"roles": [_object(answer) for answer in explanation.answers]}
        document |= _object(by) if by else {"reason": verdict.reason if isinstance(verdict, Deny) else None}
        click.echo(json.dumps(document, indent=2, ensure_ascii=True))
        return 0 if allowed else DENIED
    click.echo(asked)
    wide = max((len(answer.decision.rule) for answer in explanation.answers), default=0)
    for answer in explanation.answers:
        yes, text = _told(answer)
        later = "" if answer is by or not yes or not allowed else " (an earlier one decides)"
        click.echo(f"  {'yes' if yes else 'no ':<3}  {answer.decision.rule:<{wide}}  {text}{later}".rstrip())
    if isinstance(verdict, Deny):
        click.echo(f"denied: {verdict.rule}: {verdict.reason}")
        return DENIED
    click.echo(f"allowed by {verdict.rule}" + (f", {'; '.join(by.conditions)}" if by and by.conditions else ""))
    return 0


def _print_who(found: Mapping[str, Answer], case: Case, target: Target, as_json: bool) -> int:
    if as_json:
        users = [{"user": user, **_object(answer)} for user, answer in found.items()]
        facts = _facts(case, target)
        del facts["user"]
        click.echo(json.dumps({"schema": SCHEMA, **facts, "users": users}, indent=2, ensure_ascii=True))
        return 0 if found else DENIED
    wide = max(map(len, found), default=0)
    for user, answer in found.items():
        click.echo(f"{user:<{wide}}  {answer.decision.rule}  {_told(answer)[1]}".rstrip())
    if not found:
        click.echo(f"nobody may have {_WHAT[case.kind]} as {_where(case, target)}", err=True)
    return 0 if found else DENIED


def _told(answer: Answer) -> tuple[bool, str]:
    if isinstance(answer.decision, Allow):
        return True, "; ".join((*answer.conditions, *terms(answer.decision)))
    return False, answer.decision.reason


def _where(case: Case, target: Target) -> str:
    name = "" if case.place.literal else f" at {', '.join(map(str, case.addresses))}"
    source = f" from {case.subject.source}" if case.subject.source else ""
    return f"{target}{name}{source}, {DAYS[case.when.weekday()]} {case.when:%Y-%m-%d %H:%M}"


def _facts(case: Case, target: Target) -> dict[str, Any]:
    subject = case.subject
    return {
        "user": subject.user,
        "logins": None if subject.logins is None else sorted(subject.logins),
        "target": str(target),
        "kind": case.kind,
        "addresses": list(map(str, case.addresses)),
        "source": str(subject.source) if subject.source else None,
        "at": case.when.isoformat(timespec="minutes"),
    }


def _object(answer: Answer) -> dict[str, Any]:
    decision = answer.decision
    if not isinstance(decision, Allow):
        return {"rule": decision.rule, "allowed": False, "reason": decision.reason}
    return {
        "rule": decision.rule,
        "allowed": True,
        "conditions": list(answer.conditions),
        "dialled": list(map(str, decision.addresses)),
        "terms": asdict(decision.terms),
        "mfa": None if decision.mfa is None else {"grace": decision.mfa.grace},
    }


def _accounts(config: Config) -> tuple[dict[str, frozenset[str]] | None, tuple[Lock, ...]]:
    """Every user with the logins that were given, None where that cannot be known; and what is locked now."""
    now_ms = time.time_ns() // 1_000_000
    try:
        privileges.become_owner(config.authority_dir, config.authority.account)
        with Database.open(config.database_url) as database:
            known = {user.name: frozenset(user.logins) for user in Users(database).all(now_ms)}
            with database.reading() as connection:
                held = locks.active(connection, now_ms)
    except NotFound:
        return None, ()  # no authority here
    except SshrecError as error:
        click.echo(f"sshrec: warning: what users were given and what is locked is not known: {error}", err=True)
        return None, ()
    return known, tuple(Lock(one.kind, one.name, one.reason, one.until_ms, kept=True) for one in held)


def _resolve(place: Place) -> tuple[Address, ...]:
    """The addresses of a place; Unreachable where it has none."""
    try:
        return (ipaddress.ip_address(place.lookup),)
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(place.lookup, place.port, type=socket.SOCK_STREAM)
        return tuple(dict.fromkeys(ipaddress.ip_address(address[0]) for *_, address in found))
    except (OSError, ValueError) as error:
        reason = describe(error) if isinstance(error, OSError) else str(error)
        raise Unreachable(f"the name {place.lookup} cannot be resolved: {reason}") from error
