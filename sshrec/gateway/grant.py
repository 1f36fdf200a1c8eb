"""What was asked for and allowed: who, with which credential, what of which target, on which terms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sshrec.access.decision import Allow, Place
from sshrec.openssh.public_key import fingerprint
from sshrec.session import Credential, Request, User


@dataclass(frozen=True, slots=True)
class Grant:
    """One decision to let a session happen."""

    user: User
    credential: Credential
    request: Request
    place: Place
    decision: Allow
    connection: str | None = None  # the transparent one that this is a channel of
    agent: Path | None = None  # the socket of that one's agent

    @property
    def target(self) -> str:
        """login@host, by the name that the host is known by."""
        return f"{self.request.target.login}@{self.place.name}"

    def facts(self) -> dict[str, Any]:
        """What a recording's header says of it: sshrec-recording(5)."""
        request, credential = self.request, self.credential
        facts: dict[str, Any] = {
            "user": self.user.name,
            "uid": self.user.uid,
            "login": request.target.login,
            "host": self.place.name,
            "port": self.place.port,
            "target": self.target,
            "kind": request.kind,
            "terminal": request.terminal,
            "rule": self.decision.rule,
            "key": f"{credential.algorithm} {fingerprint(credential.blob)}",
        }
        if credential.key_id is not None:
            facts |= {"key_id": credential.key_id, "serial": credential.serial}
        if self.connection is not None:
            facts["connection"] = self.connection
        if request.subsystem is not None:
            facts["subsystem"] = request.subsystem
        if request.command is not None:
            facts["command"] = request.command.decode("utf-8", "replace")
            if facts["command"].encode() != request.command:
                facts["command_bytes"] = request.command.hex()
        return facts
