"""What the auth service answers to a person who registers or logs in: who they have proved to be; certificates.

What was proved belongs to one connection, and ends with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sshrec.access import totp
from sshrec.access.password import Passwords
from sshrec.access.protocol import (
    Authenticate,
    Authenticated,
    Failed,
    Issued,
    PersonQuestion,
    Redeem,
    Register,
    Registration,
    SignKey,
)
from sshrec.access.rules import Rules
from sshrec.authority import certificates
from sshrec.authority.certificates import Asker
from sshrec.authority.destinations import Destinations
from sshrec.authority.failures import TooMany
from sshrec.authority.keys import Keys
from sshrec.authority.ledger import Ledger
from sshrec.authority.login import Logins, Wrong
from sshrec.authority.registration import Registrations
from sshrec.authority.seeds import Seeds
from sshrec.authority.users import Users
from sshrec.config import Config
from sshrec.duration import Duration
from sshrec.errors import ConfigError, Denied, NotFound, UsageError
from sshrec.openssh import public_key
from sshrec.openssh.signer import unlocked
from sshrec.storage.database import Database


@dataclass
class Visitor:
    """Whoever is at the other end of a connection. `source`: the client's address, as the worker says."""

    source: str | None = None
    token: str | None = field(default=None, repr=False)
    seed: bytes | None = field(default=None, repr=False)
    invited: str | None = None
    user: str | None = None  # who has proved to be it
    proved_ms: int = 0  # when: whoever was reset since, or came back under the name, has proved nothing


class People:
    """`database` opens it when it is first needed."""

    def __init__(
        self,
        config: Config,
        rules: Rules,
        database: Callable[[], Database],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config, self._database, self._clock = config, database, clock
        self._seeds = Seeds(config.authority_dir / "keys")
        self._passwords = Passwords()
        self._destinations = Destinations(config, rules)

    @property
    def _factor(self) -> bool:
        return self._config.second_factor != "off"

    def logins(self) -> Logins:
        """What checks passwords and codes."""
        return Logins(self._database(), self._seeds, self._passwords)

    def answer(self, question: PersonQuestion, visitor: Visitor) -> Registration | Authenticated | Failed | Issued:
        """The answer. What can be tried again is Failed, what cannot an SshrecError."""
        now = self._clock()
        try:
            if isinstance(question, Redeem):
                return self._redeem(question, visitor, int(now * 1000))
            if isinstance(question, Register):
                return self._register(question, visitor, int(now * 1000))
            if isinstance(question, Authenticate):
                return self._authenticate(question, visitor, int(now * 1000))
        except TooMany as error:
            return Failed(str(error), error.seconds, again=False)
        except Wrong as error:
            return Failed(str(error))
        return self._sign(question, visitor, now)

    def _registrations(self) -> Registrations:
        return Registrations(self._database(), self._seeds, self._passwords)

    def _redeem(self, question: Redeem, visitor: Visitor, now_ms: int) -> Registration | Failed:
        try:
            invited = self._registrations().start(question.token, question.source, now_ms)
        except TooMany:
            raise
        except Denied as error:
            return Failed(f"{error}; {error.hint}" if error.hint else str(error), again=False)
        visitor.source, visitor.token, visitor.invited = question.source, question.token, invited.user
        if not self._factor:
            return Registration(invited.user, invited.logins)
        visitor.seed = totp.new_seed()
        uri = totp.uri(visitor.seed, invited.user, self._config.bastion_host)
        return Registration(invited.user, invited.logins, uri, totp.spelled(visitor.seed))

    def _register(self, question: Register, visitor: Visitor, now_ms: int) -> Authenticated | Failed:
        if visitor.token is None or visitor.invited is None:
            raise UsageError("no registration was begun")
        registrations = self._registrations()
        try:
            codes = registrations.redeem(
                visitor.token, question.password, visitor.seed, question.code, visitor.source, now_ms
            )
        except UsageError as error:
            return Failed(f"{error}; {error.hint}" if error.hint else str(error))
        except Denied as error:
            return Failed(f"{error}; {error.hint}" if error.hint else str(error), again=False)
        user = visitor.invited
        visitor.token = visitor.seed = visitor.invited = None
        return self._proved(visitor, user, codes, now_ms)

    def _proved(self, visitor: Visitor, user: str, codes: tuple[str, ...], now_ms: int) -> Authenticated:
        logins = Users(self._database()).user(user, now_ms).logins
        visitor.user, visitor.proved_ms = user, now_ms
        return Authenticated(user, logins, codes)

    def _authenticate(self, question: Authenticate, visitor: Visitor, now_ms: int) -> Authenticated | Failed:
        visitor.user, visitor.source = None, question.source
        try:
            proved = self.logins().login(
                question.user,
                question.password,
                question.code,
                question.source,
                now_ms,
                second_factor=self._factor,
            )
        except (Wrong, TooMany):
            raise
        except Denied as error:  # locked
            return Failed(str(error), again=False)
        visitor.user, visitor.proved_ms = proved.user, now_ms
        return Authenticated(
            proved.user, proved.logins, codes_left=proved.recovery if proved.factor == "recovery" else None
        )

    def _sign(self, question: SignKey, visitor: Visitor, now: float) -> Issued:
        if visitor.user is None:
            raise Denied("nobody has logged in on this connection")
        config, logins = self._config, self._logins_now(visitor.user, visitor.proved_ms, int(now * 1000))
        key = public_key.parse(question.public_key.encode(), "the public key")
        if question.ttl is not None and question.ttl < 1:
            raise UsageError(f"{question.ttl} seconds are no time that a certificate could be good for")
        ttl = None if question.ttl is None else Duration(question.ttl)
        request = certificates.for_user(config.authority, key, visitor.user, logins, ttl)
        ledger = Ledger(self._database())
        asker = Asker(visitor.user, visitor.source or "")
        keys = Keys(config, ledger, asker.by)
        with unlocked(keys.signer("user"), no_passphrase) as ready:
            ((_, certificate),) = certificates.issue(ledger, ready, [request], asker, now)
        return self._destinations.issued(certificate, visitor.user, logins, keys)

    def _logins_now(self, name: str, proved_ms: int, now_ms: int) -> tuple[str, ...]:
        """A user's logins; Denied where the account is no longer the one that was proved: somebody may dawdle."""
        try:
            user = Users(self._database()).user(name, now_ms)
        except NotFound:
            user = None
        if user is None or user.status != "active" or (user.password_ms or 0) > proved_ms:
            raise Denied(f"the account of {name} was reset or removed meanwhile", hint="log in again")
        return user.logins


def no_passphrase(_prompt: str) -> str:
    """For a CA's key that wants one: ConfigError, for nobody is here to type it."""
    raise ConfigError(
        "a CA's key has a passphrase, and nobody is here to type it",
        hint="have an agent hold the key (authority.user, authority.gateway), and load it there",
    )
