"""sshrecd's child that ends live sessions of who and what is locked: it asks the auth service, again and again.

New sessions the auth service refuses itself; without it, what it said last holds.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import select
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from sshrec.access.client import AuthService
from sshrec.access.decision import Case, Lock, Place, Subject
from sshrec.access.policy import Policy
from sshrec.access.rules import Rules
from sshrec.config import Config
from sshrec.errors import Denied, SshrecError, Unreachable
from sshrec.gateway import control
from sshrec.gateway.child import Child
from sshrec.patterns import Address
from sshrec.session import Target

LOOK_SECONDS = 0.5  # between two looks: a lock holds within two seconds
ANSWER_SECONDS = 5.0  # for the auth service
STATUS_SECONDS, SILENT_SECONDS = 0.5, 0.02  # for a session, and for one that was silent the last time

log = logging.getLogger("sshrecd")


class Warden(Child):
    """One of a sshrecd; gone with it, for the next one has its own."""

    NAME = "sshrec-warden"
    WHAT = "the warden of locked sessions"

    def __init__(self, config: Config, in_child: Callable[[], None]) -> None:
        super().__init__(in_child)
        self._config = config

    def work(self, leave: int, above: int) -> None:
        service = AuthService(self._config.auth_socket, ANSWER_SECONDS)
        rules = Rules(self._config)
        held: tuple[Lock, ...] = ()
        watch = Watch(self._config)
        while not select.select([leave, above], [], [], LOOK_SECONDS)[0]:
            try:
                held = _asked(service)
            except Unreachable:
                pass  # the audit log's writer has said so already
            except SshrecError as error:
                log.warning("what is locked is not known: %s", error)
            now_ms = time.time() * 1000
            watch.look(rules(), tuple(one for one in held if one.until_ms is None or one.until_ms > now_ms))


class Watch:
    """Over the live sessions of a run directory. Remembers which need no second look."""

    def __init__(self, config: Config) -> None:
        self._run_dir = config.run_dir
        self._policy: Policy | None = None
        self._locks: tuple[Lock, ...] = ()
        self._settled: set[str] = set()  # sessions that these locks leave alone for good
        self._silent: set[str] = set()

    def look(self, policy: Policy, locks: tuple[Lock, ...]) -> None:
        """End those that are locked."""
        if locks != self._locks or policy is not self._policy:
            self._policy, self._locks = policy, locks
            self._settled = set()
        if not locks:
            return
        there = set(control.live(self._run_dir))
        self._settled &= there
        self._silent &= there
        for session in sorted(there - self._settled):
            try:
                self._look_at(session, policy, locks)
                self._silent.discard(session)
            except (Unreachable, Denied):  # it has just ended, or it is stuck, which is sshrecd's to mend
                self._silent.add(session)
            except SshrecError:
                log.exception("%s: cannot be looked at", session)

    def _look_at(self, session: str, policy: Policy, locks: tuple[Lock, ...]) -> None:
        patience = SILENT_SECONDS if session in self._silent else STATUS_SECONDS
        status = control.status(self._run_dir, session, patience)
        if status.get("state") in control.OVER:
            self._settled.add(session)
        elif denied := policy.locked(_case(policy, status, locks)):
            control.ask(self._run_dir, session, f"lock {denied.reason}".encode(), STATUS_SECONDS)
            log.warning("%s: ended, for %s", session, denied.reason)
        elif status.get("state") == "live":  # else more is to be known of it
            self._settled.add(session)


def _asked(service: AuthService) -> tuple[Lock, ...]:
    return tuple(Lock(one.kind, one.name, one.reason, one.until_ms, kept=True) for one in service.locks())


def _case(policy: Policy, status: dict[str, Any], locks: tuple[Lock, ...]) -> Case:
    """A session as the rules see it, as far as it has come: what is not known yet, no lock is for."""
    host, login = str(status.get("host", "")), str(status.get("login", ""))
    found = policy.locate(Target(login, host)) if host else None
    place = found if isinstance(found, Place) else Place(host, host, 22, named=False, literal=bool(_known([host])))
    dialled = str(status.get("address", "")).rpartition(":")[0].strip("[]")
    return Case(
        subject=Subject(user=str(status.get("user", "")), locks=locks),
        login=login,
        kind="shell",
        place=place,
        addresses=_known([dialled] if dialled else map(str, status.get("addresses", ()))),
        own=frozenset(),
        when=datetime.now(),
        session=status.get("session"),
    )


def _known(texts: Iterable[str]) -> tuple[Address, ...]:
    addresses = []
    for text in texts:
        with contextlib.suppress(ValueError):
            addresses.append(ipaddress.ip_address(text))
    return tuple(addresses)
