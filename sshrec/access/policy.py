"""The one rule engine: may this user have this request at these addresses? Values in, a decision out; no I/O.

Locks come first. Then the roles of the configuration in their order: the first that allows the whole case
decides, and what none allows is denied. Without roles a built-in one, `everyone`, has the other settings.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

from sshrec.access.decision import Allow, Case, Deny, Lock, Place, Unmet
from sshrec.access.roles import CompiledRole
from sshrec.config import Config, Node
from sshrec.patterns import Address
from sshrec.role import Role
from sshrec.session import Target


class Policy:
    """What a configuration allows, its patterns compiled: made once, asked for every session."""

    def __init__(self, config: Config) -> None:
        self._restricted = bool(config.nodes)
        self._nodes: dict[str, Node] = {}
        for node in (*config.nodes, *config.enrolled):
            self._nodes.setdefault(node.name, node)
        builtin = not config.roles
        roles = config.roles or (Role(name="everyone", kinds=config.kinds),)
        self._roles = tuple(CompiledRole(role, config, builtin=builtin) for role in roles)

    def locate(self, target: Target) -> Place | Deny:
        """Find a target in the inventory, or take it as it is where there is none."""
        node = self._nodes.get(target.host)
        if node is None:
            if self._restricted:
                return Deny("nodes", f"there is no node {target.host}")
            literal = _literal(target.host) is not None
            return Place(target.host, target.host, target.port or 22, named=False, literal=literal)
        if target.port not in (None, node.port):
            return Deny("nodes", f"{node.name} is reached on port {node.port}, not {target.port}")
        # An IP address, and not a name that DNS may lead anywhere.
        named = _literal(node.address) is not None
        return Place(node.name, node.address or node.name, node.port, named=named, labels=node.labels)

    def authorise(self, case: Case) -> Allow | Deny:
        """Decide. A Deny names the role that came nearest, and what it wants."""
        if locked := self.locked(case):
            return locked
        nearest = Unmet("roles", f"no role is for user {case.subject.user}", 0)
        for role in self._roles:
            answer = role.weigh(case)
            if isinstance(answer, Allow):
                return answer
            if answer.met > nearest.met:
                nearest = answer
        return Deny(nearest.rule, nearest.reason)

    def destinations(self, user: str, logins: Iterable[str]) -> list[tuple[str, str]]:
        """Login and node of what a user might go to, of the inventory, at some time and from somewhere."""
        given = frozenset(logins)
        found = []
        for node in self._nodes.values():
            place = self.locate(Target("", node.name, None))
            assert isinstance(place, Place)
            address = _literal(node.address)
            for login in sorted(given):
                if any(role.might(user, given, login, place, address) for role in self._roles):
                    found.append((login, node.name))
        return found

    def weigh(self, case: Case) -> tuple[Allow | Unmet, ...]:
        """What each role says by itself, in their order; locks aside."""
        return tuple(role.weigh(case) for role in self._roles)

    def locked(self, case: Case) -> Deny | None:
        """The lock that shuts a case out, of a session to come or of one that lives; None where none does."""
        for lock in case.subject.locks:
            if who := self._meant(lock, case):
                return Deny("lock", lock.said(who))
        return None

    def _meant(self, lock: Lock, case: Case) -> str | None:
        """Who of a case a lock is for."""
        if lock.kind == "user":
            user = case.subject.user
            return user if user == lock.name or user in lock.names else None
        if lock.kind == "login":
            return case.login if case.login == lock.name or case.login in lock.names else None
        if lock.kind == "session":
            return case.session if case.session == lock.name else None
        return self._meant_node(lock, case)

    @functools.cached_property
    def _names_at(self) -> dict[str, list[str]]:
        """Nodes by their addresses as text, which IPv4 has one of: reading 10 000 takes 20 ms."""
        names: dict[str, list[str]] = {}
        for node in self._nodes.values():
            address = node.address or ""
            shown = str(_literal(address) or address) if ":" in address else address
            names.setdefault(shown, []).append(node.name)
        return names

    def _meant_node(self, lock: Lock, case: Case) -> str | None:
        """A host by any name of its: whoever is locked out of web1 shall not come by its address."""
        place, hosts = case.place, lock.hosts
        if place.name == lock.name or hosts.names(place.name, place.labels, literal=place.literal):
            return place.name
        for address in case.addresses:
            if address in hosts.networks:
                return place.name
            for name in self._names_at.get(str(address), ()):
                node = self._nodes[name]
                # Two nodes of the inventory with one address are two all the same.
                same = place.name not in self._nodes or place.port == node.port
                if same and (name == lock.name or hosts.names(name, node.labels)):
                    return name
        return None


def _literal(address: str | None) -> Address | None:
    try:
        return ipaddress.ip_address(address) if address else None
    except ValueError:
        return None
