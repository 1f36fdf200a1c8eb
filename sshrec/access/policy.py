"""The rules: may this user have this request at these addresses? Values in, a decision out; no I/O.

For now the configuration alone answers: everybody whom sshd let in, to the nodes it names (or to any host
but those that are never meant), for the kinds of request it serves.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from sshrec.config import Config
from sshrec.session import Request, Target, User

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Where clouds answer with an instance's credentials, outside the link-local range.
_METADATA = frozenset(
    map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"))
)


@dataclass(frozen=True, slots=True)
class Place:
    """What a target's name stands for: the name it is known by, what to resolve, and the port to dial."""

    name: str
    lookup: str
    port: int
    named: bool  # the inventory gives this very address, so it may be any


@dataclass(frozen=True, slots=True)
class Allow:
    """Go on: to one of these addresses, on these terms. `rule` is what allowed it."""

    rule: str
    addresses: tuple[Address, ...]
    record_input: bool


@dataclass(frozen=True, slots=True)
class Deny:
    """Not so. `rule` is what denied it, `reason` says it to the person."""

    rule: str
    reason: str


def locate(config: Config, target: Target) -> Place | Deny:
    """Find a target in the inventory, or take it as it is where there is none."""
    node = config.node(target.host)
    if node is None:
        if config.nodes:
            return Deny("nodes", f"there is no node {target.host}")
        return Place(target.host, target.host, target.port or 22, named=False)
    if target.port not in (None, node.port):
        return Deny("nodes", f"{node.name} is reached on port {node.port}, not {target.port}")
    return Place(node.name, node.address or node.name, node.port, named=_is_literal(node.address))


def authorise(
    config: Config,
    user: User,
    request: Request,
    place: Place,
    addresses: tuple[Address, ...],
    own: frozenset[Address],
) -> Allow | Deny:
    """Decide. `addresses`: what the name resolved to, once; `own`: those of them that are this host's."""
    del user  # everybody whom sshd let in
    if request.kind not in config.kinds:
        return Deny(
            "kinds", f"requests for {'a shell' if request.kind == 'shell' else 'a command'} are not served"
        )
    allowed = tuple(address for address in addresses if place.named or not _never_meant(address, own))
    if not allowed:
        return Deny("addresses", f"{_told(place.name, addresses)} is where no session may go")
    return Allow("nodes" if config.nodes else "any host", allowed, config.record_input)


def _is_literal(address: str | None) -> bool:
    """Whether it is an IP address, and not a name that DNS may lead anywhere."""
    try:
        return address is not None and bool(ipaddress.ip_address(address))
    except ValueError:
        return False


def _told(name: str, addresses: tuple[Address, ...]) -> str:
    return name if name == str(addresses[0]) else f"{name}, at {addresses[0]},"


def _never_meant(address: Address, own: frozenset[Address]) -> bool:
    """Addresses that no name should lead to unless the inventory says so: the bastion's own, and the like."""
    mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
    return (
        address in own
        or address in _METADATA
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
        or (mapped is not None and _never_meant(mapped, own))
    )
