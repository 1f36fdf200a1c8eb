"""Who decides about a session: the auth service, or where there is no sshrecd, the configuration alone.

Both by the same rules (access/policy.py). A worker asks; it has no part in the answer.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sshrec.access.client import AuthService
from sshrec.access.decision import Allow, Case, Deny
from sshrec.access.policy import Policy
from sshrec.access.protocol import Allowed, Authorise, CheckFactor, FactorNeeded, Failed, Forbidden
from sshrec.errors import Unreachable
from sshrec.gateway.relay import Loop
from sshrec.openssh.public_key import fingerprint
from sshrec.session import Credential, Target

SECONDS = 5.0  # for an answer
PATIENCE = 3.0  # of them for a service that is away, for it may be restarting
BREAK_GLASS = "an administrator can start it: systemctl start sshrec-auth; root's own login is not affected"

Until = Callable[[Callable[[], bool]], None]  # turns the loop until a condition holds


class Judge(Protocol):
    """Decides about sessions."""

    def authorise(self, case: Case, target: Target, credential: Credential) -> Allow | Deny | FactorNeeded:
        """The decision; FactorNeeded where it is yes once a code was shown. Unreachable where nobody decides."""

    def certify_host(self, case: Case, target: Target, credential: Credential, public_key: str) -> str | Deny:
        """The certificate, a line, by which a key of ours stands for the target's."""

    def check_factor(self, case: Case, code: str) -> Failed | None:
        """Show a code of the user's for the session; None where it is right."""

    def close(self) -> None:
        """Let go of whoever was asked."""


class OwnJudge:
    """The configuration alone: knows no accounts and no codes."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def authorise(self, case: Case, target: Target, credential: Credential) -> Allow | Deny | FactorNeeded:  # noqa: ARG002
        decision = self._policy.authorise(case)
        if isinstance(decision, Allow) and decision.mfa is not None:
            return Deny(
                decision.rule, f"{decision.rule} wants a code for each session, and nobody here can check one"
            )
        return decision

    def certify_host(
        self,
        case: Case,  # noqa: ARG002
        target: Target,  # noqa: ARG002
        credential: Credential,  # noqa: ARG002
        public_key: str,  # noqa: ARG002
    ) -> str | Deny:
        return Deny("embedded", "the transparent way in needs sshrecd and its auth service")

    def check_factor(self, case: Case, code: str) -> Failed | None:  # noqa: ARG002
        return Failed("nobody here can check a code")

    def close(self) -> None:
        pass


class AuthServiceJudge:
    """The auth service, which knows the accounts and holds what a worker may not touch.

    While it thinks, `until` turns the loop; what that raises, a question does, too.
    """

    def __init__(self, path: Path, loop: Loop, until: Until) -> None:
        self._loop, self._until = loop, until
        self._service = AuthService(path, SECONDS, patience=PATIENCE, ready=self._ready)

    def authorise(self, case: Case, target: Target, credential: Credential) -> Allow | Deny | FactorNeeded:
        try:
            answer = self._service.authorise(_question(case, target, credential))
        except Unreachable as error:
            raise Unreachable(str(error), hint=BREAK_GLASS) from error
        if isinstance(answer, Allowed):
            return Allow(answer.rule, tuple(map(ipaddress.ip_address, answer.addresses)), answer.terms)
        if isinstance(answer, Forbidden):
            return Deny(answer.rule, answer.reason, answer.hint)
        return answer

    def certify_host(self, case: Case, target: Target, credential: Credential, public_key: str) -> str | Deny:
        try:
            answer = self._service.certify_host(_question(case, target, credential), public_key)
        except Unreachable as error:
            raise Unreachable(str(error), hint=BREAK_GLASS) from error
        return (
            Deny(answer.rule, answer.reason, answer.hint) if isinstance(answer, Forbidden) else answer.certificate
        )

    def check_factor(self, case: Case, code: str) -> Failed | None:
        source = case.subject.source
        asked = CheckFactor(case.session or "", case.subject.user, code, str(source) if source else None)
        try:
            return self._service.check_factor(asked)
        except Unreachable as error:
            raise Unreachable(str(error), hint=BREAK_GLASS) from error

    def close(self) -> None:
        self._service.close()

    def _ready(self, sock: socket.socket | None, events: int, seconds: float) -> bool:
        """As poll(2), on our loop."""
        deadline = time.monotonic() + seconds
        come: list[int] = []

        def over() -> bool:
            left = deadline - time.monotonic()
            self._loop.within(max(0.0, left))
            return bool(come) or left <= 0

        if sock is None:
            self._until(over)
            return False
        self._loop.watch(sock.fileno(), come.append, events)
        try:
            self._until(over)
        finally:
            self._loop.unwatch(sock.fileno())
        return bool(come)


def _question(case: Case, target: Target, credential: Credential) -> Authorise:
    subject = case.subject
    return Authorise(
        session=case.session or "",
        user=subject.user,
        login=case.login,
        host=target.host,
        port=target.port,
        kind=case.kind,
        source=str(subject.source) if subject.source else None,
        addresses=tuple(map(str, case.addresses)),
        own=tuple(map(str, case.own)),
        algorithm=credential.algorithm,
        fingerprint=fingerprint(credential.blob),
        key_id=credential.key_id,
        serial=credential.serial,
        verify_required=credential.verify_required,
        live=subject.live or 0,
    )
