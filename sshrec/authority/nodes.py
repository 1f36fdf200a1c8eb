"""Enrolling targets, one or many: look at all, sign for all, change and prove each.

In three steps, because the authority signs with its own rights, and goes to targets with the caller's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from sshrec.authority import enrolment, inventory
from sshrec.authority.enrolment import Outcome, Plan
from sshrec.config import Config, Node
from sshrec.errors import ConfigError, SshrecError, UsageError
from sshrec.openssh import reach
from sshrec.openssh.certificate import Certificate
from sshrec.openssh.reach import Identity, Place
from sshrec.openssh.target import SshCommand, probe
from sshrec.session import HOST, printable

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One target that is to be enrolled. `name`: of the node, None for the host's own; `names`: further ones."""

    ssh: SshCommand
    name: str | None
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A target that was looked at, and what is to become of it.

    `listed`: sshrec.yaml has the node already; `bastion_here`: it sees us come from a bastion's address.
    """

    wanted: Wanted
    place: Place
    node: Node
    listed: bool
    plan: Plan
    bastion_here: bool


def survey(
    config: Config, wanted: Wanted, bastions: Sequence[str], user_ca: Sequence[str], krl: bytes
) -> Surveyed:
    """Look at a target and plan; changes nothing. `bastions`: none for the address that we come from."""
    place = reach.place(wanted.ssh)
    name = wanted.name or wanted.ssh.destination.rpartition("@")[2].lower()
    if not HOST.fullmatch(name):
        raise UsageError(f"{printable(name)!r} cannot be the name of a node", hint="--name gives it one")
    facts = probe(wanted.ssh)
    if not bastions and facts.client is None:
        raise ConfigError(f"{name} does not tell from where it is reached", hint="--bastion says it")
    names = dict.fromkeys((name, place.host, *wanted.names))
    planned = enrolment.plan(facts, [*names], bastions or [facts.client or ""], user_ca, krl)
    listed = next((node for node in config.nodes if node.name == name), None)
    if listed is not None:  # that is where the gateway goes, so that is what has to be proved
        place = Place(place.login, listed.address or name, listed.port)
    node = listed or Node(name=name, address=place.host if place.host != name else None, port=place.port)
    here = facts.client is not None and _within(facts.client, planned.bastions)
    return Surveyed(wanted, place, node, listed is not None, planned, here)


def _within(address: str, networks: Sequence[str]) -> bool:
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(network) for network in networks)


def carry_out(
    config: Config,
    surveyed: Surveyed,
    certificate: Certificate,
    who: Identity,
    through: SshCommand | None,
    known_hosts: Path,
) -> Outcome:
    """Change a target, know it as a node, and prove it by a login; whatever fails, all is as it was."""
    name = surveyed.node.name

    def verify() -> None:
        if through is None:
            reach.prove(who, surveyed.place, name, known_hosts)
        else:
            reach.prove_through(who, through, surveyed.place.login, name)

    if surveyed.listed:
        return enrolment.enrol(surveyed.wanted.ssh, surveyed.plan, certificate.line, verify)
    before = inventory.add(config, surveyed.node)
    try:
        return enrolment.enrol(surveyed.wanted.ssh, surveyed.plan, certificate.line, verify)
    except BaseException:
        inventory.put_back(config, name, before)
        raise


def side_by_side(work: Callable[[T], S], items: Sequence[T], jobs: int) -> Iterator[tuple[T, S | SshrecError]]:
    """Do the work for each, up to `jobs` at once; results and errors in the order of the items."""

    def attempt(item: T) -> S | SshrecError:
        try:
            return work(item)
        except SshrecError as error:
            return error

    with ThreadPoolExecutor(jobs) as pool:
        yield from zip(items, pool.map(partial(attempt), items), strict=True)
