"""What somebody who logs in is told besides the certificate: where it is good, and how hosts prove themselves.

From it, whoever loads the certificate makes the agent's destination constraints (openssh/destinations.py).
"""

from __future__ import annotations

from pathlib import Path

from sshrec.access.protocol import Issued
from sshrec.access.rules import Rules
from sshrec.authority.keys import Keys
from sshrec.config import Config
from sshrec.errors import SshrecError, describe
from sshrec.openssh import known_hosts, public_key
from sshrec.openssh.certificate import Certificate, read_certificate
from sshrec.openssh.public_key import FILE_LIMIT, PublicKey, read_file

_HOST_KEYS = Path("/etc/ssh")


class Destinations:
    """Of one configuration; `rules` say who may go where."""

    def __init__(self, config: Config, rules: Rules) -> None:
        self._config, self._rules = config, rules

    def issued(self, certificate: Certificate, user: str, logins: tuple[str, ...], keys: Keys) -> Issued:
        """The whole answer for a certificate that was just signed."""
        config = self._config
        host_cas = keys.trusted("host")
        name, own_keys = self._bastion()
        pairs = self._rules().destinations(user, logins) if config.destinations == "inventory" else None
        plain = self._plain_keys()
        nodes = {node for _, node in pairs or ()}
        return Issued(
            certificate=certificate.line,
            valid_before=certificate.valid_before,
            logins=logins,
            known_hosts=tuple(known_hosts.authorities(host_cas, config.authority.hosts).splitlines()),
            host_cas=tuple(key.line for key in host_cas),
            gateway_cas=tuple(key.line for key in keys.trusted("gateway")),
            bastion=name,
            bastion_keys=tuple(key.line for key in own_keys),
            nodes=tuple(pairs) if pairs else None,  # without an inventory, any host may be meant
            node_keys={node: tuple(key.line for key in plain[node]) for node in sorted(nodes & plain.keys())},
        )

    def _bastion(self) -> tuple[str, list[PublicKey]]:
        """A name that every host certificate of this bastion has, and its plain host keys."""
        found, names = [], [self._config.bastion_host]
        for path in self._config.host_keys or sorted(_HOST_KEYS.glob("ssh_host_*_key.pub")):
            try:
                found.append(public_key.read(path))
            except SshrecError:
                continue  # of a type that OpenSSH no longer has, or being made just now
            beside = path.with_name(f"{path.name.removesuffix('.pub')}-cert.pub")
            if beside.exists():
                certificate = read_certificate(read_file(beside, 4 * FILE_LIMIT), str(beside))
                names = [name for name in names if name in certificate.principals] or list(certificate.principals)
        return (names or [self._config.bastion_host])[0], found

    def _plain_keys(self) -> dict[str, list[PublicKey]]:
        found: dict[str, list[PublicKey]] = {}
        for path in self._config.known_hosts:
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise SshrecError(f"{path}: {describe(error)}") from error
            for name, keys in known_hosts.host_keys(data).items():
                found.setdefault(name, []).extend(keys)
        return found
