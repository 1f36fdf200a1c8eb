"""What the auth service answers of the audit log: how far it is signed, and the signature of the next checkpoint.

Signs nothing that does not continue what it signed before: the rule is checkpoint.py's. One at a time.
"""

from __future__ import annotations

import threading

from sshrec.access.protocol import Advance, At, Position, SealingQuestion, Sign, Signed
from sshrec.audit.log import Head
from sshrec.authority.checkpoint import Checkpoints, advance
from sshrec.authority.log_key import NAMESPACE, LogKey
from sshrec.config import Config
from sshrec.openssh.sshsig import sign_data, verify_data


class Sealing:
    """The log's key, and what it has signed."""

    def __init__(self, config: Config) -> None:
        self._key = LogKey(config)
        self._checkpoints = Checkpoints(config.authority_dir / "checkpoint.json", self._sign)
        self._one = threading.Lock()

    @property
    def ready(self) -> bool:
        """Whether there is a key."""
        return self._key.exists

    def answer(self, question: SealingQuestion, shown: Head | None) -> tuple[Head, At | Signed]:
        """The answer, and how far the connection has shown the log. `shown`: the same before, None at first."""
        with self._one:
            last = self._checkpoints.last()
            if isinstance(question, Position) or shown is None:
                shown = last.head
            if isinstance(question, Advance):
                shown = advance(shown, question.lines)
            elif isinstance(question, Sign):
                signature = self._checkpoints.sign(shown, question.line)
                return self._checkpoints.last().head, Signed(signature, self._key.identity, NAMESPACE)
            return shown, At(shown.n, shown.prev, last.line, last.signature)

    def _sign(self, line: bytes) -> str:
        """Sign, and see that an auditor will find it good: with what the auditor has, at this time."""
        signer, certificate = self._key.signer()
        signature = sign_data(signer, line, NAMESPACE, certificate)
        with self._key.expected() as allowed:
            verify_data(allowed, self._key.identity, NAMESPACE, line, signature)
        return signature
