"""Lines that tell ssh and sshd whose certificates count: known_hosts, authorized_keys, TrustedUserCAKeys."""

from __future__ import annotations

from collections.abc import Iterable

from sshrec.openssh.public_key import PublicKey


def plain(keys: Iterable[PublicKey]) -> str:
    """Lines for TrustedUserCAKeys (sshd_config(5)): the bare public keys."""
    return "".join(f"{key.line}\n" for key in keys)


def authorized_keys(keys: Iterable[PublicKey]) -> str:
    """Lines for authorized_keys (sshd(8))."""
    return "".join(f"cert-authority {key.line}\n" for key in keys)


def authorities(keys: Iterable[PublicKey], hosts: str) -> str:
    """Lines for known_hosts (sshd(8)): these CAs vouch for hosts that match the pattern."""
    return "".join(f"@cert-authority {hosts} {key.line}\n" for key in keys)
