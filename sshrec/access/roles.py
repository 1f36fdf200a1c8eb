"""One role, made ready to be asked: does it allow this case? Knows no clock, no file and no other role."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from sshrec.access.addresses import never_meant, written_out
from sshrec.access.decision import Allow, Case, Place, SessionMfa, Terms, Unmet
from sshrec.config import Config
from sshrec.duration import Duration
from sshrec.hours import DAYS, minute_of_week
from sshrec.patterns import Address, Hosts, Names, Networks, network
from sshrec.role import ALLOWED, USER, Role
from sshrec.session import Kind

TRANSFERS: frozenset[Kind] = frozenset({"upload", "download"})

_LISTED = 6  # of a setting's items, in a reason
_ASKED: dict[Kind, str] = {
    "shell": "requests for a shell",
    "exec": "requests for a command",
    "upload": "uploads",
    "download": "downloads",
}


class CompiledRole:
    """A role with its patterns compiled. `builtin`: of the one there is without any, unknown logins are any."""

    def __init__(self, role: Role, config: Config, *, builtin: bool = False) -> None:
        self.rule = f'role "{role.name}"'
        self._role = role
        self._builtin = builtin
        self._users = Names(role.users)
        self._logins = Names(text for text in role.logins if text != ALLOWED and USER not in text)
        self._own_logins = tuple(text for text in role.logins if USER in text)
        self._given = ALLOWED in role.logins
        self._hosts = Hosts(role.nodes)
        self._kinds = frozenset(role.kinds or config.kinds)
        self._sources = Networks(map(network, role.sources))
        self._hours = tuple(span for hours in role.hours for span in hours.spans())
        self._mfa = SessionMfa(float(role.mfa_grace or 0)) if role.mfa == "session" else None
        self._terms = _terms(role, config, self._kinds)

    def weigh(self, case: Case) -> Allow | Unmet:
        """Allow where every condition is met, else the first that is not: who, where, and then the rest."""
        user = case.subject.user
        if user not in self._users:
            return Unmet(self.rule, f"user {user} is not among {_listed(self._role.users)}", 0)
        named = self._hosts.names(case.place.name, case.place.labels, literal=case.place.literal)
        addresses = tuple(address for address in case.addresses if self._reaches(case, address, named=named))
        if not addresses:
            return Unmet(self.rule, self._unreached(case, named=named), 2 if named else 1)
        for met, reason in enumerate(self._conditions(case), 3):
            if reason is not None:
                return Unmet(self.rule, reason, met)
        return Allow(self.rule, addresses, self._terms, self._mfa)

    def might(self, user: str, given: frozenset[str], login: str, place: Place, address: Address | None) -> bool:
        """Whether it could allow a user a login at a place, whatever else it asks for.

        `address`: of the place, None where that is what a name will lead to.
        """
        there = self._hosts.names(place.name, place.labels, literal=place.literal) or (
            bool(self._hosts.networks) if address is None else address in self._hosts.networks
        )
        return there and user in self._users and self._refused_login(user, given, login) is None

    def _reaches(self, case: Case, address: Address, *, named: bool) -> bool:
        """Whether this address is meant: by a network, or by the host's name, which may lead anywhere."""
        if not named and address not in self._hosts.networks:
            return False
        return (
            case.place.named or not never_meant(address, case.own) or written_out(address, case.own, self._hosts)
        )

    def _unreached(self, case: Case, *, named: bool) -> str:
        name = case.place.name
        shown = name if case.place.literal or not case.addresses else f"{name}, at {case.addresses[0]},"
        if named or any(address in self._hosts.networks for address in case.addresses):
            return f"{shown} is where no session may go"
        return f"{shown} is not among {_listed(self._role.nodes)}"

    def _conditions(self, case: Case) -> Iterator[str | None]:
        """What is not met of each condition, None where it is."""
        subject, role = case.subject, self._role
        yield self._refused_login(subject.user, subject.logins, case.login)
        yield None if self._serves(case.kind) else f"{_ASKED[case.kind]} are not served"
        source = subject.source
        if source is not None and source.version == 6 and source.ipv4_mapped:
            source = source.ipv4_mapped
        if not role.sources or (source is not None and source in self._sources):
            yield None
        else:
            come = f"the address {source}" if source else "an unknown address"
            yield f"{come} is not among {_listed(role.sources)}"
        minute = minute_of_week(case.when)
        if not self._hours or any(minute in span for span in self._hours):
            yield None
        else:
            yield f"{DAYS[case.when.weekday()]} {case.when:%H:%M} is not within {_listed(role.hours)}"
        if not role.require_sk or (subject.algorithm or "").startswith("sk-"):
            yield None
        else:
            yield "the key that opened the bastion is not held by a FIDO security key"
        if not role.verify_required or subject.verify_required:
            yield None
        else:
            yield "the certificate that opened the bastion is not one with verify-required"
        if role.sessions is None or (subject.live is not None and subject.live < role.sessions):
            yield None
        elif subject.live is None:
            yield f"how many sessions {subject.user} has is not known here"
        else:
            yield f"{subject.user} has {_sessions(subject.live)} already"

    def _serves(self, kind: Kind) -> bool:
        """Of uploads and downloads one is enough: sftp may come to want either, and is denied file by file."""
        return kind in self._kinds or (kind in TRANSFERS and not TRANSFERS.isdisjoint(self._kinds))

    def _refused_login(self, user: str, given: frozenset[str] | None, login: str) -> str | None:
        own = tuple(text.replace(USER, user) for text in self._own_logins)
        unknown = self._given and given is None
        if login in self._logins or login in own or (self._given and login in (given or ())):
            return None
        if unknown and self._builtin:
            return None
        if unknown:
            return f"which logins {user} was given is not known here"
        fixed = (text for text in self._role.logins if text != ALLOWED and USER not in text)
        allowed = (*fixed, *own, *(sorted(given or ()) if self._given else ()))
        return f"login {login} is not among {_listed(allowed)}" if allowed else f"{user} was given no login"


def _terms(role: Role, config: Config, kinds: Collection[Kind]) -> Terms:
    limits = config.limits
    size = limits.session_bytes if role.session_bytes is None else role.session_bytes
    return Terms(
        record_input=config.record_input if role.record_input is None else role.record_input,
        recording=role.recording,
        stream_bytes=limits.stream_bytes if role.stream_bytes is None else role.stream_bytes,
        upload="upload" in kinds,
        download="download" in kinds,
        file_bytes=limits.file_bytes if role.file_bytes is None else role.file_bytes,
        longest=_seconds(limits.session_length if role.session_length is None else role.session_length),
        idle=_seconds(limits.idle if role.idle is None else role.idle),
        size=None if size is None else int(size),  # plain, for the wire
    )


def _seconds(duration: Duration | None) -> float | None:
    return None if duration is None else float(duration)


def _sessions(count: int) -> str:
    return "1 session" if count == 1 else f"{count} sessions"


def _listed(texts: Collection[str]) -> str:
    """The first of them, in words that stay on a line."""
    shown = list(texts)[:_LISTED]
    return ", ".join(shown) + (f" and {len(texts) - _LISTED} more" if len(texts) > _LISTED else "")
