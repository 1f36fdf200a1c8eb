"""Destination constraints (ssh-add -h): where a person's key can be used, and by which way there.

At the bastion, and from there for the logins and nodes that the person may use, and nowhere else: so a forwarded
agent is of no use to who takes over the bastion, but for sessions that the person could have had. Pure; who is
allowed what is told, and the agent is another module's.

What ssh-agent goes by (match_key_hop in ssh-agent.c): the host key that each hop presented. A plain key must be
among those that the constraint has for the host; a certificate must be by one of its CAs, and have the name that
the constraint gives the host among its principals. The name that people type does not matter.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from sshrec.openssh.public_key import PublicKey

# The gateway's own CA certifies `web1.sshrec` for the node web1, and this name with each: apart from the real
# host's name, which the host's CA certifies.
GATEWAY = "sshrec"
MOST = 1024  # AGENT_MAX_DEST_CONSTRAINTS in ssh-agent.c
_MESSAGE = 256 * 1024 - 8 * 1024  # AGENT_MAX_LEN, without the room for key and certificate

# What ssh-add would split, or the agent take for a pattern (match_pattern), is not in it.
_LOGIN = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]{0,63}\$?")
_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.:-]{0,253}[a-z0-9_.])?")


@dataclass(frozen=True, slots=True)
class Host:
    """How a host proves itself: by plain `keys`, or a certificate of `authorities` with the principal `name`."""

    name: str
    keys: tuple[PublicKey, ...] = ()
    authorities: tuple[PublicKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Constrained:
    """For ssh-add: `constraints`, one -h each, and the text of the file for -H.

    `logins`: whether the agent tells logins apart; otherwise nodes alone.
    """

    constraints: tuple[str, ...]
    known_hosts: str
    logins: bool


@dataclass(frozen=True, slots=True)
class Unconstrained:
    """No constraints can be made, and why: part of a sentence."""

    reason: str


def constraints(
    account: str,
    bastion: Host,
    gateway: Sequence[PublicKey],
    allowed: Iterable[tuple[str, Host]] | None,
) -> Constrained | Unconstrained:
    """The ways of a person whose Unix account on the bastion is `account`.

    `gateway`: the CAs by which the gateway speaks for nodes itself (the transparent way in), if any; `allowed`:
    logins and nodes, None where there is no telling them all.
    """
    if allowed is None:
        return Unconstrained("the nodes that you may use cannot be listed")
    pairs = list(dict.fromkeys(allowed))
    nodes = list(dict.fromkeys(node for _, node in pairs))
    for name in (bastion.name, *(node.name for node in nodes)):
        if not _NAME.fullmatch(name):
            return Unconstrained(f"a constraint cannot name the host {name!r}")
    for login in (account, *(login for login, _ in pairs)):
        if not _LOGIN.fullmatch(login):
            return Unconstrained(f"a constraint cannot name the login {login!r}")
    for host in (bastion, *nodes):
        if not host.keys and not host.authorities:
            return Unconstrained(f"the host key of {host.name} is not known")
    if clash := {GATEWAY, bastion.name} & {node.name for node in nodes} or {GATEWAY} & {bastion.name}:
        return Unconstrained(f"a node has a name that is taken: {clash.pop()}")
    way_in = [(account, bastion), *([("", Host(GATEWAY, (), tuple(gateway)))] if gateway else [])]
    # An agent shows a key on a host only where it could be used from there: to see that it is loaded, somebody
    # without any node has a way from the bastion to itself.
    for onward in (pairs, [("", node) for node in nodes]):
        onward = onward or [(account, bastion)]
        edges = [(None, login, host) for login, host in way_in] + [(bastion, *edge) for edge in onward]
        if len(edges) <= MOST and sum(_size(*edge) for edge in edges) <= _MESSAGE:
            hosts = [*(host for _, host in way_in), *nodes]
            words = tuple(_words(*edge) for edge in edges)
            return Constrained(words, _known_hosts(hosts), onward is pairs or not pairs)
    return Unconstrained(f"{len(nodes)} nodes are more than an agent has constraints for")


def _words(source: Host | None, login: str, host: Host) -> str:
    return (f"{source.name}>" if source else "") + (f"{login}@" if login else "") + host.name


def _size(source: Host | None, login: str, host: Host) -> int:
    """Bytes of one constraint in the agent's message: strings, each behind its length (PROTOCOL.agent)."""
    return 12 + (_hop(source, "") if source else 12) + _hop(host, login)


def _hop(host: Host, login: str) -> int:
    keys = sum(len(b64decode(key.blob)) + 5 for key in (*host.keys, *host.authorities))
    return 12 + len(login) + len(host.name) + keys


def _known_hosts(hosts: Sequence[Host]) -> str:
    return "".join(f"{line}\n" for line in _lines(hosts))


def _lines(hosts: Sequence[Host]) -> Iterator[str]:
    """Plain keys host by host, and each CA with what it certifies.

    ssh-add goes through the file twice for each constraint, so where a CA certifies all hosts, they are not named.
    """
    certified: dict[PublicKey, list[str]] = {}
    for host in hosts:
        yield from (f"{host.name} {key.algorithm} {key.blob}" for key in host.keys)
        for ca in host.authorities:
            certified.setdefault(ca, []).append(host.name)
    real = sum(host.name != GATEWAY for host in hosts)
    for ca, names in certified.items():
        everywhere = GATEWAY not in names and len(names) == real
        yield f"@cert-authority {f'*,!{GATEWAY}' if everywhere else ','.join(names)} {ca.algorithm} {ca.blob}"
