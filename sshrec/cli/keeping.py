"""What the commands that keep or remove recordings share: whose rights they work with, and how they tell of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sshrec.audit import log
from sshrec.audit.client import Journal, Sender, tell
from sshrec.audit.direct import Direct
from sshrec.config import Config
from sshrec.errors import Denied
from sshrec.privileges import become_owner, caller

TELL_SECONDS = 10.0  # that the audit log may take to have an event


@dataclass(frozen=True, slots=True)
class Teller:
    """Tells the audit log what `user` does, and waits until it is durable."""

    journal: Journal
    user: str
    account_uid: int

    def tell(self, event: str, fields: dict[str, Any], uid: str | None = None) -> None:
        """AuditError where the log cannot have it: then it must not happen."""
        own = {"user": self.user, "account_uid": self.account_uid, "cluster_name": os.uname().nodename}
        tell(self.journal, event, {**own, **fields}, uid=uid, seconds=TELL_SECONDS)


@contextlib.contextmanager
def telling(config: Config) -> Iterator[Teller]:
    """As the owner of data_dir from here on. Denied to everybody but that account and root.

    While sshrecd runs, its writer takes the events, and stamps who came; else they go straight into the log.
    """
    user, uid = caller(), os.getuid()
    sender = Sender(config.audit_socket)
    sender.tick()  # while we are root still, if we are
    become_owner(config.data_dir, "sshrec").give_up()
    if config.data_dir.exists() and os.geteuid() not in (0, config.data_dir.stat().st_uid):
        raise Denied(f"{config.data_dir} is not yours", hint="run this as root, or as the user of sshrecd")
    journal: Journal = sender if sender.fileno() >= 0 else Direct(config.audit_dir)
    try:
        yield Teller(journal, user, uid)
    finally:
        journal.close()


def told(directory: Path, uid: str) -> bool:
    """Whether the audit log has the event of that uid."""
    wanted = f'"uid":"{uid}"'.encode()
    for path in reversed(log.files(directory)):
        with path.open("rb") as file:
            if any(wanted in line for line in file):
                return True
    return False
