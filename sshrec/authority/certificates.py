"""Who gets which certificate: the rules, the ledger's row, then the signature, in this order.

Decides what a certificate says; ssh-keygen signs it (sshrec.openssh.keygen), the ledger has it first.
"""

from __future__ import annotations

import ipaddress
import re
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sshrec.authority.keys import Kind
from sshrec.authority.ledger import Draft, Entry, Ledger
from sshrec.config import Authority
from sshrec.duration import Duration
from sshrec.errors import UsageError
from sshrec.openssh import keygen
from sshrec.openssh.certificate import Certificate, Terms
from sshrec.openssh.destinations import GATEWAY
from sshrec.openssh.public_key import PublicKey
from sshrec.openssh.signer import Ready
from sshrec.session import HOST, LOGIN, printable

SKEW_SECONDS = 300  # a certificate is good from then on in the past: clocks differ
BASTION_PREFIX = "sshrec:"  # of the principal that opens a person's own account on the bastion
PRINCIPALS_MAX = 128  # sshd takes 256: SSHKEY_CERT_MAX_PRINCIPALS, sshkey.h
GATEWAY_TTL = Duration(300)
_CHUNK = 50  # in one transaction

# A principal besides: what an account on some target is called. No colon, so none can look like ours.
_PRINCIPAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_COMMAND = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,4096}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One certificate that is asked for; `ttl` in seconds from now."""

    kind: Kind
    key: PublicKey
    key_id: str
    principals: tuple[str, ...]
    ttl: Duration
    critical_options: Mapping[str, str] = field(default_factory=dict)
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks for it, and from where: what the ledger keeps of that."""

    by: str
    source: str


def for_user(
    settings: Authority,
    key: PublicKey,
    user: str,
    principals: Iterable[str],
    ttl: Duration | None = None,
    *,
    source_addresses: Sequence[str] = (),
    force_command: str | None = None,
    verify_required: bool = False,
) -> Request:
    """The certificate of a person: opens their own account on the bastion, and `principals` on targets.

    UsageError names what cannot be.
    """
    if not LOGIN.fullmatch(user):
        raise UsageError(f"{printable(user)!r} cannot be a user", hint=f"a user is what {LOGIN.pattern} matches")
    options: dict[str, str] = {}
    if force_command is not None:
        if not _COMMAND.fullmatch(force_command):
            raise UsageError(f"{printable(force_command)!r} cannot be a forced command: one line without controls")
        options["force-command"] = force_command
    if source_addresses:
        options["source-address"] = ",".join(_network(text) for text in source_addresses)
    if verify_required:
        if not key.algorithm.startswith("sk-"):
            raise UsageError(f"a key of type {key.algorithm} verifies nobody", hint="a FIDO key (sk-…) does")
        options["verify-required"] = ""
    return Request(
        kind="user",
        key=key,
        key_id=user,
        principals=(BASTION_PREFIX + user, *_principals(principals)),
        ttl=_limited(ttl or settings.user_ttl, settings.user_ttl_limit, "user"),
        critical_options=options,
        extensions=("permit-agent-forwarding", "permit-pty"),
    )


def for_host(settings: Authority, key: PublicKey, names: Iterable[str], ttl: Duration | None = None) -> Request:
    """The certificate of a host under all its names and addresses; the first is its key id."""
    checked = _distinct(map(_host, names), "a hostname")
    return Request(
        kind="host",
        key=key,
        key_id=checked[0],
        principals=checked,
        ttl=_limited(ttl or settings.host_ttl, settings.host_ttl_limit, "host"),
    )


def for_gateway(key: PublicKey, host: str) -> Request:
    """The gateway's own, for the minutes in which a client asks who it is: that host, by way of the gateway."""
    return Request(
        kind="gateway",
        key=key,
        key_id=f"gateway:{_host(host)}",
        principals=(f"{_host(host)}.{GATEWAY}", GATEWAY),
        ttl=GATEWAY_TTL,
    )


def issue(
    ledger: Ledger, signer: Ready, requests: Sequence[Request], asker: Asker, now: float, jobs: int = 1
) -> Generator[tuple[Entry, Certificate], None, None]:
    """Sign them, in order, up to `jobs` at once: each is in the ledger before it is signed.

    They come out some at a time, and no thread of ours runs meanwhile. Where one cannot be signed, none of
    those that go with it leaves; where it is closed before its end, the rest does not. The ledger says so.
    """
    now_ms = int(now * 1000)
    for start in range(0, len(requests), _CHUNK):
        chunk = requests[start : start + _CHUNK]
        entries = ledger.reserve([_draft(request, signer, asker, now) for request in chunk], now_ms)
        work = [(request.key, _terms(entry)) for request, entry in zip(chunk, entries, strict=True)]
        try:
            # One alone without threads, which Ctrl-C would wait for.
            signed = list(keygen.sign_many(signer, work, min(jobs, len(work))))
        except BaseException as error:  # Ctrl-C, too
            why = printable(str(error)) or type(error).__name__
            ledger.withdraw([entry.serial for entry in entries], why, now_ms)
            raise
        waiting = deque(zip(entries, signed, strict=True))
        try:
            while waiting:
                yield waiting.popleft()
        finally:
            if waiting:
                why = "one before it could not be handed out"
                ledger.withdraw([entry.serial for entry, _ in waiting], why, now_ms)


def _draft(request: Request, signer: Ready, asker: Asker, now: float) -> Draft:
    return Draft(
        kind=request.kind,
        key_id=request.key_id,
        principals=request.principals,
        valid_after=int(now) - SKEW_SECONDS,
        valid_before=int(now) + request.ttl,
        key_fingerprint=request.key.fingerprint,
        ca_fingerprint=signer.public.fingerprint,
        critical_options=request.critical_options,
        extensions=request.extensions,
        asked_by=asker.by,
        asked_from=asker.source,
    )


def _terms(entry: Entry) -> Terms:
    return Terms(
        kind="user" if entry.kind == "user" else "host",
        key_id=entry.key_id,
        principals=entry.principals,
        valid_after=entry.valid_after,
        valid_before=entry.valid_before,
        serial=entry.serial,
        critical_options=entry.critical_options,
        extensions=entry.extensions,
    )


def _principals(given: Iterable[str]) -> tuple[str, ...]:
    for name in (checked := _distinct(given, "a principal")):
        if not _PRINCIPAL.fullmatch(name):
            raise UsageError(
                f"{printable(name)!r} cannot be a principal",
                hint="the name of a login: letters, digits and _.@+-, 64 at most, no wildcard",
            )
    return checked


def _distinct(given: Iterable[str], what: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(given))
    if not names:
        raise UsageError(f"a certificate needs {what}")
    if len(names) > PRINCIPALS_MAX:
        raise UsageError(f"{len(names)} names are more than a certificate may have, {PRINCIPALS_MAX}")
    return names


def _host(name: str) -> str:
    try:
        return str(_without_zone(ipaddress.ip_address(name)))
    except ValueError:
        if HOST.fullmatch(name):
            return name
        raise UsageError(
            f"{printable(name)!r} cannot be a hostname",
            hint="lower case, no wildcard: web1, web1.example.com, 10.0.0.5",
        ) from None


def _without_zone(address: _Address) -> _Address:
    """ValueError for fe80::1%eth0: the zone is any text, and means something on one machine alone."""
    if getattr(address, "scope_id", None) is not None:
        raise ValueError("an address with a zone")
    return address


def _network(text: str) -> str:
    try:
        network = ipaddress.ip_network(text)
        _without_zone(network.network_address)
        return str(network)
    except ValueError:
        raise UsageError(
            f"{printable(text)!r} is no address and no network", hint="10.0.0.5, 10.0.0.0/24, 2001:db8::/32"
        ) from None


def _limited(ttl: Duration, limit: Duration, kind: str) -> Duration:
    if ttl > limit:
        raise UsageError(
            f"{ttl} is longer than a {kind}'s certificate may be good for, {limit}",
            hint=f"authority.{kind}_ttl_limit in sshrec.yaml",
        )
    return ttl
