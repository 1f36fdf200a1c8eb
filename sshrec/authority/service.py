"""The auth service: answers those who may ask, over a Unix socket, and holds what they may not touch.

For now one question: sign the audit log's next checkpoint. A thread a connection; the rule is one at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import stat
import threading
from collections.abc import Collection
from pathlib import Path

from sshrec.access import protocol
from sshrec.access.protocol import Advance, Answer, At, Position, Question, Refused, Sign, Signed
from sshrec.audit.log import Head
from sshrec.authority.checkpoint import Checkpoints, advance
from sshrec.authority.log_key import NAMESPACE, LogKey
from sshrec.config import Config
from sshrec.errors import ConfigError, SshrecError, describe
from sshrec.openssh.sshsig import sign_data, verify_data
from sshrec.peer import peer

_BACKLOG, _CONNECTIONS = 128, 64
_IDLE_SECONDS = 120.0

log = logging.getLogger("sshrec-authd")


class Service:
    """The whole of it; `run` returns when a signal asks for that."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._key = LogKey(config)
        self._checkpoints = Checkpoints(config.authority_dir / "checkpoint.json", self._sign)
        self._one = threading.Lock()
        self._room = threading.Semaphore(_CONNECTIONS)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        if not self._key.exists:
            raise ConfigError(f"{self._config.authority_dir} has no keys", hint="sshrec-ca init makes them")
        listener = _listen(self._config.auth_socket)
        stopping = threading.Event()

        def stop(*_: object) -> None:
            stopping.set()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        log.info("listening on %s", self._config.auth_socket)
        while not stopping.is_set():
            try:
                asker, _ = listener.accept()
            except OSError as error:
                if not stopping.is_set():
                    log.warning("cannot accept: %s", describe(error))
                    stopping.wait(0.1)
                continue
            self._room.acquire()
            threading.Thread(target=self._serve, args=(asker,), daemon=True).start()
        listener.close()
        self._config.auth_socket.unlink(missing_ok=True)

    def _serve(self, asker: socket.socket) -> None:
        try:
            with asker:
                asker.settimeout(_IDLE_SECONDS)
                _, uid = peer(asker)
                if uid not in self._may_ask():
                    protocol.send(asker, Refused("you are not one of those who may ask"))
                    log.warning("refused uid %d", uid)
                    return
                self._answer_all(asker)
        except (OSError, SshrecError) as error:
            log.info("a connection ended: %s", error)
        finally:
            self._room.release()

    def _may_ask(self) -> Collection[int]:
        """Root, ourselves, and whoever owns the recorder's run directory."""
        known = {0, os.geteuid()}
        with contextlib.suppress(OSError):
            known.add(self._config.run_dir.stat().st_uid)
        return known

    def _answer_all(self, asker: socket.socket) -> None:
        shown: Head | None = None
        while (question := protocol.receive_question(asker)) is not None:
            try:
                with self._one:
                    shown, answer = self._answer(question, shown)
            except SshrecError as error:
                log.warning("refused: %s", error)
                answer = Refused(str(error))
            protocol.send(asker, answer)

    def _answer(self, question: Question, shown: Head | None) -> tuple[Head, Answer]:
        """The answer, and how far this connection has shown the log."""
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


def _listen(path: Path) -> socket.socket:
    """The socket, for everybody on this host to ask at: who it is, the kernel says."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        if path.exists() and stat.S_ISSOCK(path.lstat().st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise ConfigError(f"somebody listens on {path} already")
            path.unlink()
        old = os.umask(0o111)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old)
    except OSError as error:
        raise ConfigError(f"cannot listen on {path}: {describe(error)}") from error
    listener.listen(_BACKLOG)
    return listener
