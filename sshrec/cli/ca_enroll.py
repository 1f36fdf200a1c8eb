"""`sshrec-ca enroll-node`: targets that prove themselves, and let people in from the bastion alone."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import click

from sshrec.authority import certificates, enrolment, nodes
from sshrec.authority.nodes import Surveyed, Wanted, side_by_side
from sshrec.cli.authority import DurationType, Opened, ask, opened
from sshrec.cli.certificate import remaining
from sshrec.cli.ls import SCHEMA
from sshrec.cli.main import Settings
from sshrec.duration import Duration
from sshrec.errors import SshrecError, UsageError
from sshrec.openssh import known_hosts, reach
from sshrec.openssh.certificate import Certificate
from sshrec.openssh.reach import Identity
from sshrec.openssh.signer import unlocked
from sshrec.openssh.target import STANDARD_CONFIG, SshCommand, config_option, split_words
from sshrec.session import printable

_PROOF = "sshrec-ca"  # key id of the certificate that a login is tried with, where nobody is named
_PROOF_TTL = Duration.parse("1h")
_PERSON = re.compile(r"([a-z_][a-z0-9_.-]*)@(.+)")


@click.command("enroll-node", context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument(
    "words", metavar="[SSH-OPTION]... [LOGIN@]HOST...", nargs=-1, required=True, type=click.UNPROCESSED
)
@click.option("--name", metavar="NAME", help="What people type for it. Default: HOST as it is given.")
@click.option(
    "--hostname", "hostnames", metavar="NAME,...", default="", help="Further names and addresses of its."
)
@click.option("--bastion", "bastions", metavar="NET,...", help="From where it takes people's certificates.")
@click.option("--ttl", type=DurationType(), metavar="TIME", help="How long its certificate is good for.")
@click.option("--through", metavar="USER@BASTION", help="Prove it by a login of USER's through the bastion.")
@click.option("--sudo", is_flag=True, help="LOGIN is not root, and may sudo without a password.")
@click.option(
    "--sshd-config", metavar="FILE", default=STANDARD_CONFIG, help="Of its sshd. Default: the usual one."
)
@click.option("--dry-run", is_flag=True, help="Look, print what would be done, and change nothing.")
@click.option("--jobs", type=click.IntRange(1, 64), default=8, metavar="N", help="How many targets at once.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def enroll_node(
    settings: Settings,
    words: tuple[str, ...],
    name: str | None,
    hostnames: str,
    bastions: str | None,
    ttl: Duration | None,
    through: str | None,
    sudo: bool,
    sshd_config: str,
    dry_run: bool,
    jobs: int,
    as_json: bool,
) -> int:
    """Have targets prove themselves, and trust the user CA from the bastion alone.

    Goes there by ssh as you would, signs the host's key, installs the certificate and a file in
    sshd_config.d, checks both with sshd, reloads it, adds the node to the inventory and logs in by
    certificate. Whatever fails, the target is left as it was. Done again, it renews.
    """
    options, destinations = split_words(list(words))
    if len(destinations) > 1 and (name or hostnames):
        raise UsageError("--name and --hostname are one target's")
    env = dict(os.environ)
    wanted = [
        Wanted(
            SshCommand(destination, options, env, sudo, sshd_config),
            name,
            tuple(filter(None, hostnames.split(","))),
        )
        for destination in destinations
    ]
    person = _person(through)
    with opened(settings) as authority, _identity(authority) as who:
        config, now = authority.config, authority.now
        allowed = bastions.split(",") if bastions else config.authority.bastions
        user_ca = known_hosts.plain(authority.keys.trusted("user")).splitlines()
        look = partial(nodes.survey, config, bastions=allowed, user_ca=user_ca, krl=config.krl.read_bytes())
        with authority.privileges.as_caller():
            looked = list(side_by_side(look, wanted, jobs))
        failed = {item.ssh.destination: found for item, found in looked if isinstance(found, SshrecError)}
        found = [found for _, found in looked if isinstance(found, Surveyed)]
        if dry_run:
            for surveyed in found:
                click.echo("\n".join(enrolment.describe(surveyed.plan)))
            return _end(failed, [], as_json)
        if person is None and (elsewhere := [surveyed for surveyed in found if not surveyed.bastion_here]):
            raise UsageError(
                f"{elsewhere[0].node.name} sees us at {elsewhere[0].plan.facts.client}, which is no bastion",
                hint="run it on the bastion, or have --through try a login through it",
            )
        signed = _sign(authority, found, ttl, who, person and person[0]) if found else []
        # Whoever is to be let in has read our files by now; what is new there is for the login to tell.
        bastion = SshCommand(person[1], config_option(options), env) if person else None
        work = partial(_carry_out, authority, who, bastion)
        done: list[dict[str, Any]] = []
        try:
            with authority.privileges.as_caller():
                for (surveyed, certificate), outcome in side_by_side(
                    work, list(zip(found, signed, strict=True)), jobs
                ):
                    if isinstance(outcome, SshrecError):
                        failed[surveyed.wanted.ssh.destination] = outcome
                        continue
                    done.append(_told(surveyed, certificate, outcome))
                    if not as_json:
                        _tell(done[-1], remaining(0, certificate.valid_before, now))
        finally:  # the database is not the caller's
            for each in done:
                authority.tell("node.enroll", _event(each))
    return _end(failed, done, as_json)


@contextlib.contextmanager
def _identity(authority: Opened) -> Iterator[Identity]:
    """Keys that the proving login is made with, the caller's as that login is."""
    with contextlib.ExitStack() as stack:
        with authority.privileges.as_caller():
            who = stack.enter_context(reach.identity())
        try:
            yield who
        finally:
            with authority.privileges.as_caller():
                stack.close()


def _person(through: str | None) -> tuple[str, str] | None:
    """Whose login proves it, and the bastion as ssh is told of it."""
    if through is None:
        return None
    found = _PERSON.fullmatch(through)
    if found is None:
        raise UsageError(f"--through {printable(through)!r} is not USER@BASTION")
    return found[1], through


def _sign(
    authority: Opened, found: Sequence[Surveyed], ttl: Duration | None, who: Identity, user: str | None
) -> list[Certificate]:
    """The hosts' certificates; and that of the login that is to prove them, into `who`."""
    settings, asker, now = authority.config.authority, authority.asker, authority.now
    logins = {surveyed.place.login for surveyed in found}
    proof = certificates.for_user(
        settings,
        who.public,
        user or _PROOF,
        sorted(logins),
        min(_PROOF_TTL, settings.user_ttl_limit),
        force_command="true",  # of no other use to anybody; the bastion's sshd heeds its own ForceCommand
    )
    requests = [
        certificates.for_host(
            settings, surveyed.plan.certificate_request.key, surveyed.plan.certificate_request.names, ttl
        )
        for surveyed in found
    ]
    with unlocked(authority.keys.signer("user"), ask) as ready:
        ((_, certificate),) = certificates.issue(authority.ledger, ready, [proof], asker, now)
    with authority.privileges.as_caller():
        who.certify(certificate.line)
    with unlocked(authority.keys.signer("host"), ask) as ready:
        jobs = os.cpu_count() or 1
        return [signed for _, signed in certificates.issue(authority.ledger, ready, requests, asker, now, jobs)]


def _carry_out(
    authority: Opened, who: Identity, bastion: SshCommand | None, item: tuple[Surveyed, Certificate]
) -> enrolment.Outcome:
    public = authority.config.public_dir / "known_hosts"
    return nodes.carry_out(authority.config, *item, who, bastion, public)


def _told(surveyed: Surveyed, certificate: Certificate, outcome: enrolment.Outcome) -> dict[str, Any]:
    return {
        "node": surveyed.node.name,
        "address": surveyed.place.host,
        "port": surveyed.place.port,
        "names": list(certificate.principals),
        "serial": certificate.serial,
        "bastions": list(surveyed.plan.bastions),
        "changed": list(outcome.changed),
        "reloaded": outcome.reloaded,
    }


def _event(done: dict[str, Any]) -> dict[str, Any]:
    """The same for the audit log."""
    address, port = done["address"], done["port"]
    return {
        "server_hostname": done["node"],
        "server_addr": f"[{address}]:{port}" if ":" in address else f"{address}:{port}",
        **{name: done[name] for name in ("names", "serial", "bastions", "changed", "reloaded")},
    }


def _tell(done: dict[str, Any], left: str) -> None:
    click.echo(f"enrolled {done['node']}, {done['address']} port {done['port']}: its certificate has {left}")
    click.echo(f"  people's certificates open it from {', '.join(done['bastions'])} alone; a login was tried")


def _end(failed: dict[str, SshrecError], done: list[dict[str, Any]], as_json: bool) -> int:
    """Say what failed; one failure alone is the command's own."""
    if as_json:
        errors = {name: str(error) for name, error in failed.items()}
        click.echo(json.dumps({"schema": SCHEMA, "enrolled": done, "failed": errors}, indent=2))
    if len(failed) == 1 and not done:
        raise next(iter(failed.values()))
    for name, error in failed.items():
        hint = f" ({error.hint})" if error.hint else ""
        click.echo(f"{printable(name)}: {error}{hint}", err=True)
    if failed:
        raise SshrecError(f"{len(failed)} targets were not enrolled")
    return 0
