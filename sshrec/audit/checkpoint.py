"""Checkpoints of the audit log: when one is due, what it says of live recordings, who signs it. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from sshrec.audit.event import LINE_MAX, Fields, new_uid

GROWN_SECONDS = 5.0  # from a change until it is under a checkpoint
URGENT_SECONDS = 0.5  # from a session's start or end
SIGN_SECONDS = 2.0  # that other events are held back for a signature
BACKOFF_SECONDS = 60.0  # at most, between checkpoints, while signatures do not come
HEADS_MAX = LINE_MAX // 128  # of one checkpoint; what has no room waits for the next

_URGENT = ("session.start", "session.end")


@dataclass(frozen=True, slots=True)
class Signature:
    """What the signer answers. `body`: the base64 of an SSHSIG, without its armour and without newlines."""

    body: str
    identity: str
    namespace: str


class CheckpointSigner(Protocol):
    """Signs checkpoints: the auth service, by whatever way it is asked."""

    def sign(self, line: bytes, seconds: float) -> Signature:
        """Sign exactly these bytes, a checkpoint's line without its newline, which is durable in the log already.

        Returns within about `seconds`; SshrecError where no signature comes.
        """


class Checkpoints:
    """What the next checkpoint must say, and when it is due. Times are monotonic seconds."""

    def __init__(self, host: str, boot_id: str, grown_seconds: float = GROWN_SECONDS) -> None:
        self._host, self._boot_id, self._grown = host, boot_id, grown_seconds
        self._heads: dict[str, tuple[int, str]] = {}  # of live sessions
        self._final: dict[str, tuple[int, str]] = {}  # of those that ended since the checkpoint before
        self._shown: dict[str, tuple[int, str]] = {}  # what the checkpoint before said
        self._taken: dict[str, tuple[int, str]] = {}
        self._due = math.inf
        self._not_before = 0.0
        self._failures = 0

    def head(self, session: str, n: int, digest: str, now: float) -> None:
        """A live recording has this newest durable seal."""
        if self._heads.get(session) != (n, digest):
            self._heads[session] = (n, digest)
            self._due = min(self._due, now + self._grown)

    def logged(self, event: Fields, now: float) -> None:
        """An event is in the log."""
        urgent = event["event"] in _URGENT
        self._due = min(self._due, now + (URGENT_SECONDS if urgent else self._grown))
        if event["event"] == "session.end" and isinstance(sid := event.get("sid"), str):
            last = self._heads.pop(sid, None)
            n, digest = event.get("seal"), event.get("seal_sha256")
            if isinstance(n, int) and isinstance(digest, str):
                last = (n, digest)
            if last is not None:
                self._final[sid] = last

    def due(self) -> float:
        """When the next checkpoint is due; infinity while nothing has changed."""
        return max(self._due, self._not_before)

    def take(self) -> dict[str, Any]:
        """The event of a checkpoint that is made now."""
        changed = {sid: head for sid, head in self._heads.items() if self._shown.get(sid) != head}
        rest = {sid: head for sid, head in self._heads.items() if sid not in changed}
        heads = dict(list({**self._final, **changed, **rest}.items())[:HEADS_MAX])
        self._taken = heads
        return {
            "event": "checkpoint",
            "code": "SR002I",
            "uid": new_uid(),
            "heads": {sid: list(head) for sid, head in heads.items()},
            "boot_id": self._boot_id,
            "host": self._host,
        }

    def written(self, now: float) -> None:
        """That checkpoint is in the log."""
        heads = self._taken
        self._shown = {sid: head for sid, head in {**self._shown, **heads}.items() if sid in self._heads}
        self._final = {sid: head for sid, head in self._final.items() if sid not in heads}
        self._due = now + self._grown if self._final else math.inf

    def signed(self, signature: Signature) -> dict[str, Any]:
        """The event of a signature that came."""
        self._failures, self._not_before = 0, 0.0
        return {
            "event": "checkpoint.signature",
            "code": "SR003I",
            "uid": new_uid(),
            "signature": signature.body,
            "identity": signature.identity,
            "namespace": signature.namespace,
        }

    def failed(self, now: float) -> None:
        """No signature came: try again, but hold nobody back too often."""
        self._failures += 1
        self._not_before = now + min(self._grown * 2**self._failures, BACKOFF_SECONDS)
        self._due = min(self._due, now + self._grown)
