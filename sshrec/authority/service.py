"""The auth service: answers those who may ask, over a Unix socket, and holds what they may not touch.

A thread a connection. Knows who asks and where a question belongs; the answers are sealing.py's, sessions.py's and
people.py's.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import stat
import threading
import time
from collections.abc import Collection
from pathlib import Path

from sshrec.access import protocol
from sshrec.access.protocol import (
    Answer,
    Authenticated,
    Authorise,
    CertifyHost,
    CheckFactor,
    Locks,
    PersonQuestion,
    Question,
    Refused,
    SealingQuestion,
)
from sshrec.access.rules import Rules
from sshrec.audit.log import Head
from sshrec.authority.guests import Guest, Guests
from sshrec.authority.outbox import keep_delivering
from sshrec.authority.people import People, Visitor
from sshrec.authority.sealing import Sealing
from sshrec.authority.sessions import Sessions
from sshrec.authority.standins import StandIns
from sshrec.config import Config
from sshrec.errors import ConfigError, SshrecError, describe
from sshrec.peer import peer
from sshrec.storage.database import Database

_BACKLOG = 1024
_BUSY_SECONDS = 3.0  # to wait for another writer: less than a worker waits for an answer
_IDLE_SECONDS = 900.0  # somebody installs an app on their phone meanwhile

log = logging.getLogger("sshrec-authd")


class Opener:
    """The database, opened when it is first needed, and again after it could not be, or was replaced."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._database: Database | None = None
        self._one = threading.Lock()

    def __call__(self) -> Database:
        """The database; SshrecError where it cannot be opened."""
        with self._one:
            if self._database is not None and not self._database.current:
                self._database.close()  # whoever is at it keeps what they have
                self._database = None
            if self._database is None:
                self._database = Database.open(self._url, busy_seconds=_BUSY_SECONDS)
            return self._database


class Service:
    """The whole of it; `run` returns when a signal asks for that."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._sealing = Sealing(config)
        rules, self._database = Rules(config), Opener(config.database_url)
        self._people = People(config, rules, self._database)
        self._sessions = Sessions(config, rules, self._database, self._people.logins)
        self._stand_ins = StandIns(config, self._sessions, self._database)
        self._guests = Guests()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        if not self._sealing.ready:
            raise ConfigError(f"{self._config.authority_dir} has no keys", hint="sshrec-ca init makes them")
        self._get_ready()
        # A signal that comes while this thread is on its way into accept() would be heard after the next asker.
        wake, waker = socket.socketpair()
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        listener = _listen(self._config.auth_socket)
        listener.setblocking(False)
        stopping = threading.Event()
        threading.Thread(target=keep_delivering, args=(self._config, stopping), daemon=True).start()
        log.info("listening on %s", self._config.auth_socket)
        while wake not in select.select([listener, wake], [], [])[0]:
            try:
                asker, _ = listener.accept()
            except BlockingIOError:
                continue  # who came has left
            except OSError as error:
                log.warning("cannot accept: %s", describe(error))
                select.select([wake], [], [], 0.1)
                continue
            if (pid := self._admitted(asker)) is None:
                asker.close()
                continue
            guest = self._guests.add(asker, pid)
            try:
                threading.Thread(target=self._serve, args=(guest,), daemon=True).start()
            except RuntimeError as error:  # no more threads
                log.warning("cannot serve: %s", error)
                self._guests.remove(guest)
                asker.close()
        stopping.set()
        listener.close()
        self._config.auth_socket.unlink(missing_ok=True)
        signal.set_wakeup_fd(-1)

    def _get_ready(self) -> None:
        """What the first who asks should not wait for."""
        try:
            self._database()
        except SshrecError as error:
            log.warning("%s; it is tried again when somebody asks", error)
        gc.collect()
        gc.freeze()  # what is here now stays, and need not be looked through again and again

    def _admitted(self, asker: socket.socket) -> int | None:
        """The process that asks; None where its uid may not, which is told."""
        try:
            pid, uid = peer(asker)
            if uid in self._may_ask():
                return pid
            log.warning("refused uid %d", uid)
            asker.setblocking(False)
            protocol.send(asker, Refused("you are not one of those who may ask"))
        except OSError as error:
            log.info("a connection ended: %s", describe(error))
        return None

    def _serve(self, guest: Guest) -> None:
        try:
            with guest.asker as asker:
                asker.settimeout(_IDLE_SECONDS)
                try:
                    self._answer_all(guest)
                finally:
                    self._guests.remove(guest)
        except (OSError, SshrecError) as error:
            log.info("a connection ended: %s", error)

    def _may_ask(self) -> Collection[int]:
        """Root, ourselves, and whoever owns the recorder's run directory."""
        known = {0, os.geteuid()}
        with contextlib.suppress(OSError):
            known.add(self._config.run_dir.stat().st_uid)
        return known

    def _answer_all(self, guest: Guest) -> None:
        asker, conversation = (
            guest.asker,
            Conversation(self._sealing, self._sessions, self._stand_ins, self._people),
        )
        while (question := protocol.receive_question(asker)) is not None:
            guest.since = None
            answer: Answer
            try:
                answer = conversation.answer(question)
            except SshrecError as error:
                log.warning("refused: %s", error)
                answer = Refused(str(error), error.hint)
            except Exception:
                log.exception("a question failed")
                answer = Refused("the auth service itself failed; its log has the reason")
            asker.settimeout(protocol.MESSAGE_SECONDS)
            protocol.send(asker, answer)
            asker.settimeout(_IDLE_SECONDS)
            guest.since = time.monotonic()


class Conversation:
    """One connection: what it has shown of the log, and of a person."""

    def __init__(self, sealing: Sealing, sessions: Sessions, stand_ins: StandIns, people: People) -> None:
        self._sealing, self._sessions, self._stand_ins, self._people = sealing, sessions, stand_ins, people
        self._shown: Head | None = None
        self._visitor = Visitor()
        self._checked: tuple[str, str] | None = None  # session and user for which a code was right

    def answer(self, question: Question) -> Answer:
        """The answer; SshrecError where there is none to give."""
        if isinstance(question, SealingQuestion):
            self._shown, answer = self._sealing.answer(question, self._shown)
            return answer
        if isinstance(question, PersonQuestion):
            return self._people.answer(question, self._visitor)
        if isinstance(question, Authorise):
            checked = self._checked == (question.session, question.user)
            return self._sessions.authorise(question, checked=checked)
        if isinstance(question, CertifyHost):
            return self._stand_ins.certify(question)
        if isinstance(question, CheckFactor):
            shown = self._sessions.check_factor(question)
            self._checked = (question.session, question.user) if isinstance(shown, Authenticated) else None
            return shown
        assert isinstance(question, Locks)
        return self._sessions.locks()


def _listen(path: Path) -> socket.socket:
    """The socket, for everybody on this host to ask at: who it is, the kernel says."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    new = path.with_suffix(".new")  # whoever sees the name finds it served
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        if os.path.lexists(path):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise ConfigError(f"cannot listen on {path}: it is there, and no socket")
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise ConfigError(f"somebody listens on {path} already")
        new.unlink(missing_ok=True)
        old = os.umask(0o111)
        try:
            listener.bind(str(new))
        finally:
            os.umask(old)
        listener.listen(_BACKLOG)
        new.rename(path)
    except OSError as error:
        raise ConfigError(f"cannot listen on {path}: {describe(error)}") from error
    return listener
