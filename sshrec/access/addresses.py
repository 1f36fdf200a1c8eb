"""Addresses: those that no name should lead to unless somebody wrote them out, and which ones are one source's.

Knows nothing but the address.
"""

from __future__ import annotations

import ipaddress

from sshrec.patterns import Address, Hosts
from sshrec.session import printable

# Where clouds answer with an instance's credentials.
_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
        ),
    )
)


def never_meant(address: Address, own: frozenset[Address]) -> bool:
    """Whether it is the bastion's own (`own`), loopback, link-local, metadata, or one that is no host's at all."""
    mapped = _mapped(address)
    return (
        address in own
        or address in _METADATA
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address.is_reserved
        or (mapped is not None and never_meant(mapped, own))
    )


def written_out(address: Address, own: frozenset[Address], hosts: Hosts) -> bool:
    """Whether one that is never meant is meant by these hosts: by itself, or by a network of nothing but such."""
    if address in hosts.singled_out:
        return True
    if address in _METADATA or (address in own and not address.is_loopback):
        return False
    if _mapped(address) is not None:  # which Python 3.13 takes for loopback and link-local, too
        return False
    return address in hosts.special


def _mapped(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    return address.ipv4_mapped or address.sixtofour


def source_key(source: str | None) -> str:
    """By what a source is known: an IPv4 address, the /64 of an IPv6 one, which is what one customer gets."""
    if not source:
        return "unknown"
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return printable(source, 64)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
