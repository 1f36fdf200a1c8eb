"""Host certificates by which the gateway stands in for a target: for one connection, where a session may be.

By a CA of its own, which clients trust for hosts that they reach through the bastion and for nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from sshrec.access.protocol import CertifyHost, Forbidden, HostCertified
from sshrec.authority import certificates
from sshrec.authority.certificates import Asker
from sshrec.authority.keys import Keys
from sshrec.authority.ledger import Ledger
from sshrec.authority.people import no_passphrase
from sshrec.authority.sessions import Sessions
from sshrec.config import Config
from sshrec.openssh import public_key
from sshrec.openssh.signer import unlocked
from sshrec.session import KINDS
from sshrec.storage.database import Database


class StandIns:
    """`database` opens it when it is first needed; `sessions` says where a session may be."""

    def __init__(
        self,
        config: Config,
        sessions: Sessions,
        database: Callable[[], Database],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config, self._sessions, self._database, self._clock = config, sessions, database, clock

    def certify(self, question: CertifyHost) -> HostCertified | Forbidden:
        """A certificate for minutes, where any kind of session may be; what kind, each channel is asked."""
        asked, refused = question.asked, None
        for kind in KINDS:
            answer = self._sessions.authorise(msgspec.structs.replace(asked, kind=kind))
            if not isinstance(answer, Forbidden):
                break
            refused = refused or answer
        else:
            assert refused is not None
            return refused
        key = public_key.parse(question.public_key.encode(), "the host key")
        request = certificates.for_gateway(key, asked.host)
        ledger = Ledger(self._database())
        asker = Asker(asked.user, asked.source or "")
        signer = Keys(self._config, ledger, asker.by).signer("gateway")
        with unlocked(signer, no_passphrase) as ready:
            ((_, certificate),) = certificates.issue(ledger, ready, [request], asker, self._clock())
        return HostCertified(certificate.line)
