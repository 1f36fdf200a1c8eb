"""Enrolling a target: what is to change there, and the order in which it does.

The plan is made of values alone; doing it is left to `openssh.target`. Signs nothing: the caller does, after
it has looked at the plan.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from sshrec.errors import ConfigError, DataError, SshrecError, Unreachable, UsageError
from sshrec.openssh import public_key
from sshrec.openssh.public_key import PublicKey
from sshrec.openssh.target import Facts, File, HostKey, SshCommand, Transaction, View, change
from sshrec.session import HOST, printable

DROP_IN = "00-sshrec.conf"  # the first Match block that fits wins, in the order of file names
KRL_LIMIT = 2 << 20  # bytes; every login on the target reads it

_PREFERRED = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
_ADDRESSES = re.compile(r"!?[0-9A-Fa-f.:]+(?:/[0-9]+)?")
_KEYWORD = re.compile(r"\s*(include|match)(?:\s*=\s*|\s+)(.*)", re.IGNORECASE)

# Nobody's addresses, for documentation (RFC 5737, RFC 3849): logins from there must not see our CA.
_ELSEWHERE = ("192.0.2.1", "203.0.113.77", "198.51.100.1", "2001:db8::77", "2001:db8:ffff::1")

_OURS = "# Written by sshrec-ca enroll-node"
_TEXT = """\
{ours}, which writes it again when it is run again.
HostCertificate {certificate}
{exempt}# People's certificates open this host from the bastion alone.
Match Address {bastions}
    TrustedUserCAKeys {user_ca}
"""
_EXEMPT = """\
# Or one person's refused logins would close this host to everybody who comes from the bastion.
PerSourcePenaltyExemptList {addresses}
"""
_REVOKED = """\
    # Kept fresh by sshrec-fetch-krl. Without the file, sshd lets nobody in from the bastion.
    RevokedKeys {krl}
"""


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """What is to be signed: a host's key, for these names and addresses; the first is the node's."""

    key: PublicKey
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What enrolling changes on a target.

    `bastions`: as sshd's Match Address takes them; `files`: all but the host certificate; `user_ca`: the keys
    that are trusted; `krl`: the path of the KRL that sshd is to heed, or None.
    """

    facts: Facts
    certificate_request: CertificateRequest
    host_key: HostKey
    bastions: tuple[str, ...]
    files: tuple[File, ...]
    user_ca: tuple[PublicKey, ...]
    user_ca_path: str
    krl: str | None

    @property
    def certificate_path(self) -> str:
        return f"{self.host_key.path}-cert.pub"

    @property
    def addresses(self) -> tuple[str, ...]:
        """One of each bastion, or of its network."""
        return tuple(str(ipaddress.ip_network(bastion)[0]) for bastion in self.bastions)

    @property
    def elsewhere(self) -> tuple[str, ...]:
        """Where no bastion is."""
        networks = [ipaddress.ip_network(bastion) for bastion in self.bastions]
        return tuple(
            address for address in _ELSEWHERE if not any(ipaddress.ip_address(address) in net for net in networks)
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an enrolment did: the files written and those that were so already; how sshd was told.

    `reloaded`: a systemd unit, SIGHUP, "none" where no sshd was running.
    """

    changed: tuple[str, ...]
    same: tuple[str, ...]
    reloaded: str


def plan(
    facts: Facts,
    names: Sequence[str],
    bastions: Iterable[str],
    user_ca_lines: Iterable[str],
    krl: bytes | None = None,
) -> Plan:
    """What is to change on the target that `facts` are of.

    `names`: of the node, then its other names and addresses; `bastions`: addresses and networks that the
    target sees the bastion come from; `user_ca_lines`: the user CA's public keys, the old one too while it is
    rotated; `krl`: the list of revoked keys, or None while there is none.

    UsageError for a bad name; ConfigError for a bad bastion; DataError for a target that cannot be enrolled.
    """
    where = printable(facts.destination)
    keys = tuple(public_key.parse(line.encode(), "the user CA") for line in user_ca_lines)
    if not keys:
        raise ConfigError("there is no user CA to be trusted", hint="sshrec-ca init")
    if krl is not None and (not krl.startswith(b"SSHKRL\n\0") or len(krl) > KRL_LIMIT):
        raise DataError(f"the KRL is none, or has more than {KRL_LIMIT >> 20} MiB")
    directory = str(PurePosixPath(facts.sshd_config).parent)
    user_ca_path, krl_path = f"{directory}/sshrec_user_ca.pub", f"{directory}/sshrec_krl"
    matched = _networks(bastions)
    # A KRL that is in place stays heeded, whether or not there is a fresher one to put there.
    revoked = krl_path if krl is not None or facts.krl else None
    host_key = _host_key(facts)
    text = _TEXT.format(
        ours=_OURS,
        certificate=f"{host_key.path}-cert.pub",
        exempt=_exempt(facts, matched),
        bastions=",".join(matched),
        user_ca=user_ca_path,
    ) + (_REVOKED.format(krl=revoked) if revoked else "")
    files = [File(user_ca_path, "".join(f"{key.line}\n" for key in keys).encode())]
    if krl is not None:
        files.append(File(krl_path, krl))
    drop_in = f"{_drop_ins(facts)}/{DROP_IN}"
    if not facts.present.get(drop_in, _OURS.encode()).startswith(_OURS.encode()):
        raise DataError(
            f"{where} has a {drop_in} that no enrolment wrote",
            hint="if it is a bastion's, keep it, under another name: 00-sshrec-bastion.conf",
        )
    files.append(File(drop_in, text.encode()))
    for keyword, ours in (("trustedusercakeys", None), ("revokedkeys", revoked)):
        for value in facts.settings.get(keyword, ()):
            if keyword == "trustedusercakeys" and _holds(facts.trusted, keys):
                raise DataError(
                    f"{where} trusts the user CA from everywhere: TrustedUserCAKeys {printable(value)}",
                    hint=f"take that line out of its sshd_config: {DROP_IN} trusts the CA from the bastion alone",
                )
            if ours and value not in ("none", ours):
                raise DataError(
                    f"{where} has a list of revoked keys of its own, {printable(value)}, and sshd heeds one only",
                    hint="take that RevokedKeys line out of its sshd_config, or into a Match block",
                )
    return Plan(
        facts=facts,
        certificate_request=CertificateRequest(host_key.key, _names(names)),
        host_key=host_key,
        bastions=matched,
        files=tuple(files),
        user_ca=keys,
        user_ca_path=user_ca_path,
        krl=revoked,
    )


def _names(names: Iterable[str]) -> tuple[str, ...]:
    """Names as a certificate has them, each once."""
    checked: dict[str, None] = {}
    for name in names:
        try:
            checked[str(ipaddress.ip_address(name))] = None
        except ValueError:
            if not HOST.fullmatch(name.lower()):
                raise UsageError(f"{printable(name)!r} is no name of a host and no address") from None
            checked[name.lower()] = None
    if not checked:
        raise UsageError("a host without a name cannot be enrolled")
    return tuple(checked)


def _networks(bastions: Iterable[str]) -> tuple[str, ...]:
    """Addresses and networks as sshd's Match Address takes them, each once."""
    checked: dict[str, None] = {}
    for bastion in bastions:
        try:
            network = ipaddress.ip_network(bastion)
        except ValueError as error:
            hint = "without host bits: 10.0.0.0/24" if "host bits" in str(error) else None
            raise ConfigError(f"bastion {printable(bastion)!r} is no address and no network", hint=hint) from None
        if network.prefixlen == 0:
            raise ConfigError(f"bastion {bastion!r} is everywhere")
        if network.version == 6 and network[0].ipv4_mapped:
            raise ConfigError(f"bastion {bastion!r}: sshd sees {network[0].ipv4_mapped}")
        if network.version == 6 and "%" in bastion:
            raise ConfigError(f"bastion {printable(bastion)!r}: sshd compares no zones")
        single = network.prefixlen == network.max_prefixlen
        checked[str(network[0]) if single else str(network)] = None
    if not checked:
        raise ConfigError("no bastion's address is known", hint="targets take user certificates from there alone")
    return tuple(checked)


def _host_key(facts: Facts) -> HostKey:
    """The one to be signed."""
    for algorithm in _PREFERRED:
        for host_key in facts.host_keys:
            if host_key.key.algorithm == algorithm:
                return host_key
    raise DataError(
        f"{printable(facts.destination)} has no host key that can be signed: ed25519, ecdsa, or rsa of 3072 bits",
        hint="ssh-keygen -A there makes them",
    )


def _drop_ins(facts: Facts) -> str:
    """The directory that sshd_config includes, in its global part, for a file of the name that ours has."""
    for line in facts.config.splitlines():
        if not (match := _KEYWORD.match(line)):
            continue
        if match[1].lower() == "match":
            break  # what is included from here on is for some logins only
        try:
            patterns = shlex.split(match[2], comments=True)
        except ValueError:
            continue
        for pattern in patterns:
            path = PurePosixPath("/etc/ssh", pattern)
            if fnmatch.fnmatchcase(DROP_IN, path.name) and not set("*?[") & set(str(path.parent)):
                return str(path.parent)
    raise DataError(
        f"{printable(facts.destination)}: {facts.sshd_config} includes no directory for {DROP_IN}",
        hint="put this line first there, and make the directory: Include /etc/ssh/sshd_config.d/*.conf",
    )


def _exempt(facts: Facts, bastions: Iterable[str]) -> str:
    """The line against sshd's penalties, where it has them (OpenSSH 9.8); who is exempt already stays so."""
    if (before := facts.settings.get("persourcepenaltyexemptlist")) is None:
        return ""
    others = [word for value in before for word in value.split(",") if _ADDRESSES.fullmatch(word)]
    return _EXEMPT.format(addresses=",".join(dict.fromkeys([*bastions, *others])))


def _holds(trusted: bytes, keys: Iterable[PublicKey]) -> bool:
    """Whether a TrustedUserCAKeys file has one of our keys in it."""
    words = set(trusted.split())
    return any(key.blob.encode() in words for key in keys)


def describe(planned: Plan) -> list[str]:
    """The plan for a person, one line each: what --dry-run prints."""
    facts, request = planned.facts, planned.certificate_request
    where = printable(facts.destination)
    others = [value for value in facts.settings.get("trustedusercakeys", ()) if value not in ("none",)]
    lines = [
        f"{where}: {facts.version}, {facts.sshd_config}",
        f"sign {planned.host_key.path} ({request.key.algorithm}, {request.key.fingerprint})",
        f"  for {', '.join(request.names)}",
        f"write {planned.certificate_path}",
    ]
    for file in planned.files:
        lines.append(f"write {file.path}")
        if file.path.endswith((".conf", ".pub")):
            lines += [f"  | {printable(line, 2000)}" for line in file.content.decode().splitlines()]
        else:
            lines.append(f"  ({len(file.content)} bytes)")
    lines += [f"note: from the bastion, TrustedUserCAKeys {printable(other)} no longer counts" for other in others]
    lines.append("check with sshd -t and sshd -T, reload sshd, log in through the bastion; or put all of it back")
    return lines


def enrol(
    ssh: SshCommand, planned: Plan, certificate_line: str, verify: Callable[[], None], limit: int = 120
) -> Outcome:
    """Carry a plan out; whatever fails, the target is as it was before.

    `certificate_line`: the signed certificate. `verify`: a look from outside while the change is in place and
    not yet settled, a login through the bastion; it raises SshrecError where it fails, and has `limit`
    seconds less what the rest takes.
    """
    certificate = File(planned.certificate_path, f"{_one_line(certificate_line)}\n".encode())
    addresses = (*planned.addresses, *planned.elsewhere)
    with change(ssh, planned.facts, (certificate, *planned.files), addresses, limit) as transaction:
        judge(planned, transaction.views)
        reloaded = transaction.reload()  # also where no file changed: nobody says that sshd has read them
        _look(planned, transaction, verify, reloaded)
        transaction.commit()
    return Outcome(tuple(transaction.changed), tuple(transaction.same), reloaded)


def _one_line(certificate: str) -> str:
    line = certificate.strip()
    if not re.fullmatch(r"[a-z0-9-]+-cert-v01@openssh\.com [A-Za-z0-9+/=]+(?: [^\x00-\x1f\x7f]*)?", line):
        raise DataError("what was signed is no line of a certificate")
    return line


def _look(planned: Plan, transaction: Transaction, verify: Callable[[], None], reloaded: str) -> None:
    """Have the caller look; its error then says that the target is as it was, once it is."""
    try:
        verify()
    except SshrecError as error:
        hint = error.hint
        if reloaded == "none" and not hint:
            hint = "no running sshd was found there to be reloaded: has it a pid file or a systemd unit?"
        transaction.take_back(error)
        where = printable(planned.facts.destination)
        raise Unreachable(
            f"{where} fails the look from outside, and is as it was before: {error}", hint=hint
        ) from error


def judge(planned: Plan, views: Iterable[View]) -> None:
    """DataError unless sshd, with the files in place, trusts our CA from the bastion and from nowhere else."""
    where, seen = printable(planned.facts.destination), {view.address: view for view in views}
    if missing := {*planned.addresses, *planned.elsewhere} - set(seen):
        raise DataError(f"{where} does not tell how a login from {min(missing)} is treated")
    for address in planned.addresses:
        settings = seen[address].settings
        wanted = {"trustedusercakeys": planned.user_ca_path, "hostcertificate": planned.certificate_path}
        if planned.krl:
            wanted["revokedkeys"] = planned.krl
        for keyword, path in wanted.items():
            if path not in settings.get(keyword, ()):
                found = printable(" ".join(settings.get(keyword, ())) or "none")
                raise DataError(
                    f"{where}: sshd takes {keyword} {found} for a login from {address}, not {path}",
                    hint="something before our file in its sshd_config says so, and the first value wins",
                )
    for address in planned.elsewhere:
        view = seen[address]
        if planned.user_ca_path in view.settings.get("trustedusercakeys", ()) or _holds(
            view.trusted, planned.user_ca
        ):
            found = printable(" ".join(view.settings.get("trustedusercakeys", ())))
            raise DataError(
                f"{where} would trust the user CA from {address} too: trustedusercakeys {found}",
                hint="take that TrustedUserCAKeys out of its sshd_config",
            )
