"""Problems of the configuration, told to the audit log by a sshrecd that begins: no writer of its own runs yet."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from sshrec.audit.client import Journal, Sender, tell
from sshrec.audit.direct import Direct
from sshrec.config import Config
from sshrec.errors import SshrecError

TELL_SECONDS = 5.0

log = logging.getLogger("sshrecd")


def tell_problem(config: Config, problem: str, *, refused: bool = False) -> None:
    """Have the log know a problem, durable if it can be; `refused`: nothing starts because of it.

    By the writer of an earlier sshrecd that goes on, or straight into the log; not where there is none of ours.
    """
    sender = Sender(config.audit_socket)
    sender.tick()
    if sender.fileno() < 0 and not _is_ours(config.audit_dir):
        return
    journal: Journal = sender if sender.fileno() >= 0 else Direct(config.audit_dir)
    with contextlib.closing(journal):
        try:
            fields = {"problem": problem, "refused": refused}
            tell(journal, "config.problem", fields, code="SR301E" if refused else "SR301W", seconds=TELL_SECONDS)
        except SshrecError as error:  # of no use to whoever starts us: what keeps them is the problem itself
            log.warning("%s", error)


def _is_ours(directory: Path) -> bool:
    """Whether files that we make there are those of its writers to come: root's would keep them out."""
    try:
        return directory.stat().st_uid == os.geteuid()
    except OSError:
        return False
