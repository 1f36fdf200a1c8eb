"""sshrecd's child that writes the audit log, and has it signed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from sshrec.audit.writer import Writer
from sshrec.config import Config
from sshrec.gateway.child import Child
from sshrec.gateway.notary import Notary


class LogWriter(Child):
    """One whose sshrecd is gone goes on for the sessions that go on; that of the next sshrecd asks it to leave."""

    NAME = "sshrec-audit"
    WHAT = "the writer of the audit log"

    def __init__(self, config: Config, in_child: Callable[[], None]) -> None:
        super().__init__(in_child)
        self._config = config

    def work(self, leave: int, above: int) -> None:
        config = self._config
        # Without an authority there is nobody who signs, and the chain is all there is.
        signer = Notary(config.audit_dir, config.auth_socket) if config.authority_dir.is_dir() else None
        Writer(
            config.audit_dir,
            config.audit_socket,
            senders=self._senders,
            leave=leave,
            parent=above,
            signer=signer,
            grown_seconds=config.audit.checkpoint_interval,
        ).serve()

    def _senders(self) -> frozenset[int]:
        """Who may send: root, our own user, and the authority's, once it is there."""
        uids = {0, os.geteuid()}
        with contextlib.suppress(OSError):
            uids.add(self._config.authority_dir.stat().st_uid)
        return frozenset(uids)
