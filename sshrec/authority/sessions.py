"""What the auth service answers about sessions: may it be, is that code right, what is locked. Applies policy.

A worker that a hostile target took over can ask, and learns no more than yes or no.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable
from datetime import datetime

from sqlalchemy import Connection

from sshrec.access.addresses import source_key
from sshrec.access.decision import Case, Deny, Lock, Place, Subject
from sshrec.access.protocol import (
    Allowed,
    Authenticated,
    Authorise,
    CheckFactor,
    FactorNeeded,
    Failed,
    Forbidden,
    Locked,
)
from sshrec.access.protocol import Lock as Said
from sshrec.access.rules import Rules
from sshrec.authority import factors, ledger, locks, users
from sshrec.authority.failures import TooMany
from sshrec.authority.login import Logins, Wrong
from sshrec.config import Config
from sshrec.errors import DataError
from sshrec.patterns import Address
from sshrec.session import Target
from sshrec.storage.database import Database


class Sessions:
    """`database` opens it when it is first needed, `logins` what checks codes."""

    def __init__(
        self,
        config: Config,
        rules: Rules,
        database: Callable[[], Database],
        logins: Callable[[], Logins],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config, self._rules, self._database = config, rules, database
        self._logins, self._clock = logins, clock

    def authorise(self, asked: Authorise, *, checked: bool = False) -> Allowed | Forbidden | FactorNeeded:
        """May this session be? `checked`: a code of this user's was shown for it on this connection.

        DatabaseError where nobody knows, DataError for what is no question.
        """
        now, policy = self._clock(), self._rules()
        place = policy.locate(Target(asked.login, asked.host, asked.port))
        if isinstance(place, Deny):
            return _forbidden(place)
        with self._database().reading() as connection:
            logins = users.given(connection, asked.user)
            held = _held(connection, int(now * 1000))
            case = _case(asked, place, logins, held, datetime.fromtimestamp(now))
            if locked := policy.locked(case):  # which revokes certificates, and says why
                return _forbidden(locked)
            if asked.serial is not None and (why := _revoked(connection, asked)):
                return Forbidden("revocation", why, "log in again, for a new one")
            if logins is None and self._config.accounts == "required":
                hint = "an administrator can make one: sshrec users add"
                return Forbidden("accounts", f"{asked.user} has no account in sshrec", hint)
            decision = policy.authorise(case)
            if isinstance(decision, Deny):
                return _forbidden(decision)
            allowed = Allowed(decision.rule, tuple(map(str, decision.addresses)), decision.terms)
            if decision.mfa is None or checked:
                return allowed
            at_ms = factors.last_check(connection, asked.user, source_key(asked.source))
            if at_ms is not None and 0 <= now * 1000 - at_ms < decision.mfa.grace * 1000:
                return allowed
            if not factors.has_any(connection, asked.user):
                return Forbidden(
                    decision.rule,
                    f"{decision.rule} wants a code for each session, and {asked.user} has nothing that makes one",
                    "an administrator can invite you to register: sshrec users",
                )
            return FactorNeeded(decision.rule)

    def check_factor(self, asked: CheckFactor) -> Authenticated | Failed:
        """Whether it is a code of the user's, that nobody has used. Denied where the user is locked."""
        try:
            self._logins().check_factor(
                asked.user, asked.code, asked.source, int(self._clock() * 1000), asked.session
            )
        except TooMany as error:
            return Failed(str(error), error.seconds, again=False)
        except Wrong as error:
            return Failed(str(error))
        return Authenticated(asked.user, ())

    def locks(self) -> Locked:
        """What is locked now, and who has no certificate any more: their live sessions must end."""
        with self._database().reading() as connection:
            held = _held(connection, int(self._clock() * 1000))
            cut = ledger.all_cut_off(connection, "user")
        said = [Said(one.kind, one.name, one.reason, one.until_ms) for one in held]
        return Locked((*said, *(Said("user", one.key_id, one.revoked.reason, None) for one in cut)))


def _forbidden(answer: Deny) -> Forbidden:
    return Forbidden(answer.rule, answer.reason, answer.hint)


def _held(connection: Connection, now_ms: int) -> tuple[Lock, ...]:
    return tuple(
        Lock(one.kind, one.name, one.reason, one.until_ms, kept=True) for one in locks.active(connection, now_ms)
    )


def _case(
    asked: Authorise, place: Place, logins: frozenset[str] | None, held: tuple[Lock, ...], when: datetime
) -> Case:
    (source,) = _addresses([asked.source]) if asked.source else (None,)
    return Case(
        subject=Subject(
            user=asked.user,
            logins=logins,
            source=source,
            algorithm=asked.algorithm,
            verify_required=asked.verify_required,
            live=asked.live,
            locks=held,
        ),
        login=asked.login,
        kind=asked.kind,
        place=place,
        addresses=_addresses(asked.addresses),
        own=frozenset(_addresses(asked.own)),
        when=when,
        session=asked.session,
    )


def _addresses(texts: Iterable[str]) -> tuple[Address, ...]:
    try:
        return tuple(map(ipaddress.ip_address, texts))
    except ValueError as error:
        raise DataError(f"not an address: {error}") from error


def _revoked(connection: Connection, asked: Authorise) -> str | None:
    """Why this certificate is good no more. sshd has a list, too, which may be a moment late.

    A certificate that is not in the ledger is another authority's, and sshd's to judge.
    """
    if asked.key_id is not None and (cut := ledger.is_cut_off(connection, "user", asked.key_id)):
        return f"the certificates of {asked.key_id} are revoked" + _because(cut.revoked.reason)
    if found := ledger.revocation(connection, asked.serial or 0):
        return "this certificate is revoked" + _because(found.reason)
    return None


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
