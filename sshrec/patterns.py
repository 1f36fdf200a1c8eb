"""Patterns of names, hosts and networks, compiled once and asked often. Knows no setting and resolves no name.

`*` stands for any characters and `?` for one, as in ssh_config(5). In the name of a host neither stands for a
dot, but for a `*` at the beginning: `web*` is web1 and not web1.elsewhere.example, whose DNS is somebody else's.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST = re.compile(r"[a-z0-9*?-][a-z0-9.*?-]{0,252}")
_NAME = re.compile(r"[A-Za-z0-9_*?][A-Za-z0-9_.@+*?-]{0,63}")
_LABEL = re.compile(r"(?P<key>[^\s=,*?][^\s=,*?]{0,62})=(?P<value>[^\s,]{0,253})")
_NUMBERS = re.compile(r".*[:/].*|[0-9.]+|(?=.*[0-9])(?=.*\.)[0-9.*?]+")  # at least, meant as an address


class Names:
    """Names that any of these patterns is for. ValueError where one is no pattern."""

    def __init__(self, patterns: Iterable[str]) -> None:
        texts = tuple(patterns)
        for text in texts:
            if not _NAME.fullmatch(text):
                raise ValueError(f"{text!r} is no pattern of names: letters, digits and _.@+-, * and ?")
        self._any = "*" in texts
        self._literals = frozenset(text for text in texts if not _is_pattern(text))
        self._rest = _compiled((text for text in texts if _is_pattern(text)), ".", ".")

    def __contains__(self, name: object) -> bool:
        return self._any or name in self._literals or bool(self._rest and self._rest.fullmatch(str(name)))


class Networks:
    """Addresses that are within any of these networks; a question costs as many steps as there are lengths."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._bases: dict[tuple[int, int], set[int]] = {}
        for network in networks:
            key = (network.version, int(network.netmask))
            self._bases.setdefault(key, set()).add(int(network.network_address))

    def __bool__(self) -> bool:
        return bool(self._bases)

    def __contains__(self, address: object) -> bool:
        assert isinstance(address, Address)
        version, number = address.version, int(address)
        return any(version == of and number & mask in bases for (of, mask), bases in self._bases.items())


class Hosts:
    """What hosts these texts are for: patterns of names, networks, and labels. ValueError where one is none."""

    def __init__(self, texts: Iterable[str]) -> None:
        names, labels, networks = [], [], []
        for text in texts:
            if found := _LABEL.fullmatch(text):
                labels.append((found["key"], _compiled((found["value"],), ".", ".")))
            elif _NUMBERS.fullmatch(text):
                networks.append(network(text))
            elif _HOST.fullmatch(text):
                names.append(text)
            else:
                kinds = "pattern of names (web*), network (10.2.0.0/16) or label (env=prod)"
                raise ValueError(f"{text!r} is no {kinds}")
        self.networks = Networks(networks)
        # What nobody means who writes 0.0.0.0/0 must be written as such.
        single = [one for one in networks if one.prefixlen == one.max_prefixlen]
        self.singled_out = Networks(single)
        self.special = Networks(one for one in networks if one.is_loopback or one.is_link_local)
        self._any = "*" in names
        self._literals = frozenset(name for name in names if not _is_pattern(name))
        self._rest = _compiled((name for name in names if _is_pattern(name)), ".", "[^.]")
        self._labels = tuple(labels)

    def names(self, name: str, labels: Mapping[str, str], *, literal: bool = False) -> bool:
        """Whether a host is meant by its name or its labels; `literal`: the name is an address, so only by `*`."""
        if self._any:
            return True
        if not literal and (name in self._literals or (self._rest and self._rest.fullmatch(name))):
            return True
        return any(key in labels and value and value.fullmatch(labels[key]) for key, value in self._labels)


def network(text: str) -> Network:
    """A network or one address; ValueError where it is none, or has bits beyond its length."""
    try:
        whole = ipaddress.ip_network(text, strict=False)
    except ValueError:
        whole = None
    if whole is None or "%" in text:  # a zone is one of this host's interfaces
        raise ValueError(f"{text!r} is no address and no network such as 10.2.0.0/16")
    if ipaddress.ip_interface(text).ip != whole.network_address:
        raise ValueError(f"{text!r} is an address within the network {whole}: write one of them")
    return whole


def _is_pattern(text: str) -> bool:
    return "*" in text or "?" in text


def _compiled(patterns: Iterable[str], first: str, other: str) -> re.Pattern[str] | None:
    """One expression for all; `first`: what a `*` at the beginning repeats, `other`: what the others do."""
    expressions = [
        "".join(
            (first if n == 0 else other) + "*" if c == "*" else other if c == "?" else re.escape(c)
            for n, c in enumerate(re.sub(r"\*+", "*", text))
        )
        for text in patterns
    ]
    return re.compile("|".join(f"(?:{one})" for one in expressions), re.DOTALL) if expressions else None
