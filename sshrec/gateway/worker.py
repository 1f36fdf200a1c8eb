"""Conducts one visit, from the gateway's hello to its exit status: the only code that does.

sshrecd forks it; `sshrec-gateway --embedded` runs it as a program. It does the steps up to the decision
(request, identify, resolve, authorise), keeps the heart beating, and leaves the session itself to Live.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sshrec.access.decision import Deny
from sshrec.access.policy import Policy
from sshrec.audit.client import Journal, Sender
from sshrec.audit.direct import Direct
from sshrec.config import Config, load
from sshrec.errors import Denied, NotFound, SshrecError, describe
from sshrec.gateway import cause, channel, control, handoff, transparent
from sshrec.gateway.admission import Admission, NotAllowed
from sshrec.gateway.agents import AgentRelay
from sshrec.gateway.answers import Answers
from sshrec.gateway.asking import Gone
from sshrec.gateway.channel import Joined, Whose
from sshrec.gateway.control import Control
from sshrec.gateway.ending import complaint
from sshrec.gateway.floor import check_floor, has_room_to_pack
from sshrec.gateway.live import Live
from sshrec.gateway.relay import Loop
from sshrec.gateway.trail import tell_encryption, tell_end, tell_packing, tell_refusal
from sshrec.gateway.transparent import Connection
from sshrec.gateway.visit import Visit
from sshrec.gateway.watchdog import Watchdog
from sshrec.recording.recovery import Found
from sshrec.session import Credential, Target, User, session_id
from sshrec.storage.local import Store

BEAT_SECONDS = 1.0
DAYS = 2  # that have recordings, of which what was left undone is looked for now and then

log = logging.getLogger("sshrec.worker")


class Worker:
    """One visit. `watcher`: a socket to sshrecd, for heartbeats; `others`: how many sessions each uid has.

    Both are None in embedded mode. `policy`: of this configuration, where there is one already.
    """

    def __init__(
        self,
        config: Config,
        session: str,
        gateway: socket.socket,
        watcher: socket.socket | None = None,
        others: Mapping[int, int] | None = None,
        policy: Policy | None = None,
    ) -> None:
        self._config = config
        self._policy = policy or Policy(config)
        self._others = others
        self._gateway = gateway
        self._watcher = watcher
        self._loop = Loop()
        self._journal = journal(config, embedded=watcher is None)
        self.session = session
        self._directory = Path(config.run_dir, self.session)
        self._facts: dict[str, Any] = {"session": self.session, "pid": os.getpid(), "state": "starting"}
        self._control: Control | None = None
        self._live: Live | None = None
        self._gone = False
        self._killed_by: str | None = None
        self._locked: str | None = None  # by which lock, and why
        self._refusal: SshrecError | None = None
        self._at_door = False  # strangers could fill the audit log with refusals
        self._agents: AgentRelay | None = None  # where there is no session
        self._connection: Connection | None = None
        self._joined: Joined | None = None  # to the connection that this is a channel of
        self._beat_at = 0.0
        self._watchdog: Watchdog | None = None

    def run(self) -> None:
        """The visit. Whatever happens, the gateway learns how it ended, once the person's descriptors are shut."""
        status, text = 255, ""
        try:
            self._serve()
            visit = Visit(handoff.receive_hello(self._gateway))
            if not visit.terminal:
                self._watchdog = Watchdog(visit.drop)
            try:
                status, text = self._conduct(visit)
            finally:
                visit.close()
                if self._watchdog is not None:
                    self._watchdog.close()
        except Gone:
            self._changed(state="left")
        except SshrecError as error:
            self._changed(state="refused", error=str(error))
            text = complaint(error)
            self._refusal = error
        except Exception:
            log.exception("%s: failed", self.session)
            text = complaint(SshrecError(f"sshrec itself failed; its log has the reason under {self.session}"))
        if self._joined is not None:
            self._joined.close()  # the person may have another at once
        handoff.finish(self._gateway, status, text)
        if self._connection is not None:
            self._connection.close()
        if self._live is not None:
            self._live.finish()
        elif self._refusal is not None and not self._at_door:
            tell_refusal(self._journal, self._facts, self._refusal, getattr(self._refusal, "rule", None))
        if self._control is not None:
            self._control.close()
        if self._live is not None and self._live.unclosed is not None:
            cause.leave(self._directory, self._live.unclosed)  # whoever closes the recording removes the directory
        else:
            shutil.rmtree(self._directory, ignore_errors=True)
        self._gateway.close()

    # ---- the steps ------------------------------------------------------------------------------------

    def _conduct(self, visit: Visit) -> tuple[int, str]:
        with contextlib.suppress(OSError):  # a gateway that is gone says so by its end
            self._gateway.send(b"T")
        self._loop.watch(self._gateway.fileno(), self._hear)
        if visit.account == self._config.login_account and self._others is not None:
            self._at_door = True
            return self._answer(visit, lambda answers: answers.login())
        found = None
        if visit.channel and self._others is not None and visit.uid == os.geteuid():
            self._joined = Joined(self._config.run_dir, visit.channel)
            found = self._joined.whose
            self._changed(connection=found.connection)
            user, credential = channel.identify(found, visit)
        else:
            user, credential = visit.identify()
        self._changed(user=user.name, uid=user.uid, client=visit.client)
        words = visit.command.split(b" ")
        if words[0] == b"sshrec" and self._others is not None and found is None:
            return self._answer(visit, lambda answers: answers.answer(user.name, words[1:]))
        admission = Admission(
            self._config,
            self._policy,
            visit,
            session=self.session,
            loop=self._loop,
            until=self._until,
            known=self._facts.update,
            live=self._count(user, found),
        )
        if words[0] == transparent.COMMAND and found is None:
            return self._connect(visit, user, credential, transparent.parse(words[1:]), admission)
        check_floor(self._config, self._journal)
        grant = admission.grant(user, credential, found)
        live = Live(
            config=self._config,
            session=self.session,
            loop=self._loop,
            until=self._turn,
            changed=self._changed,
            gateway=self._gateway,
            visit=visit,
            grant=grant,
            journal=self._journal,
            joined=self._joined,
        )
        return live.conduct(self._set_live)

    def _connect(
        self, visit: Visit, user: User, credential: Credential, target: Target, admission: Admission
    ) -> tuple[int, str]:
        """The transparent way in: nothing of a target's is in it, but in its channels, which are sessions."""
        connection = Connection(
            self._config,
            visit,
            connection=self.session,
            loop=self._loop,
            until=self._until,
            turn=self._turn,
            gateway=self._gateway,
            directory=self._directory,
            changed=self._changed,
        )
        self._agents, self._connection = connection.agents, connection
        status = connection.serve(user, credential, target, lambda: admission.passage(user, credential, target))
        self._changed(state="left")
        return status, ""

    def _count(self, user: User, of: Whose | None) -> int | None:
        """How many sessions the person has beside this one, None where nobody counts.

        `of`: the connection of a channel; sshrecd may not know yet that its other channels are this person's.
        """
        if self._others is None:
            return None
        return max(self._others.get(user.uid, 0), of.beside if of else 0)

    def _answer(self, visit: Visit, give: Callable[[Answers], int]) -> tuple[int, str]:
        """What the bastion answers itself."""
        self._changed(state="answering", user=visit.account, uid=visit.uid, client=visit.client)
        answers = Answers(
            self._config,
            visit,
            loop=self._loop,
            until=self._until,
            gateway=self._gateway,
            directory=self._directory,
        )
        self._agents = answers.agents
        try:
            status = give(answers)
        finally:
            self._agents = None
            answers.close()
        self._changed(state="left")
        return status, ""

    def _serve(self) -> None:
        """The run directory and the control socket: from here on a new sshrecd finds this worker."""
        new = self._directory.with_suffix(".new")
        try:
            new.mkdir(mode=0o700)
            self._control = Control(self._loop, new, self._report, self.kill, self.lock)
            new.rename(self._directory)  # so whoever finds it finds it served, while its worker lives
        except OSError as error:
            raise SshrecError(f"cannot make {self._directory}: {describe(error)}") from error
        if self._watcher is not None:
            self._control.add_watcher(self._watcher)

    # ---- the loop -------------------------------------------------------------------------------------

    def _turn(self, condition: Callable[[], bool]) -> None:
        self._loop.run(condition, self._tick)

    def _until(self, condition: Callable[[], bool]) -> None:
        """Turn the loop until then; Gone where the person leaves first."""
        self._turn(lambda: condition() or self._gone)
        if self._locked is not None:
            raise NotAllowed(Deny("lock", self._locked))
        if self._killed_by is not None:
            raise Denied(f"this session was ended by {self._killed_by}")
        if self._gone:
            raise Gone

    def _tick(self) -> float:
        now = time.monotonic()
        if now - self._beat_at >= BEAT_SECONDS:
            self._beat_at = now
            if self._control is not None:
                self._control.beat()
            if self._watchdog is not None:
                self._watchdog.beat()
            with contextlib.suppress(OSError):  # a gateway that is gone says so by its end
                self._gateway.send(b"B")
        wait = self._beat_at + BEAT_SECONDS - now
        return min(wait, self._live.tick()) if self._live is not None else wait

    def _hear(self, _events: int) -> None:
        """A message of the gateway."""
        try:
            message = handoff.receive(self._gateway)
        except BlockingIOError:
            return None
        if isinstance(message, handoff.Agent):
            agents = self._live.agents if self._live is not None else self._agents
            if agents is not None:
                agents.dialled(message)
            elif message.descriptor is not None:
                os.close(message.descriptor)
            return None
        if isinstance(message, handoff.Signal) and self._live is not None:
            if message.number == signal.SIGWINCH:
                return self._live.resized()
            if message.number in (signal.SIGINT, signal.SIGQUIT):
                return self._live.interrupted()
        if isinstance(message, handoff.Signal) and message.number == signal.SIGWINCH:
            return None
        if message is None:
            self._loop.unwatch(self._gateway.fileno())
        self._gone = True
        if self._live is not None:
            self._live.leave()
        return None

    def _set_live(self, live: Live) -> None:
        self._live = live

    def _changed(self, **facts: Any) -> None:
        self._facts |= facts
        if self._control is not None:
            self._control.changed()

    def _report(self) -> dict[str, Any]:
        return self._facts | (self._live.report() if self._live is not None else {})

    def kill(self, who: str) -> None:
        """An administrator ends the visit."""
        self._gone, self._killed_by = True, who
        if self._live is not None:
            self._live.kill(who)
        if self._connection is not None:
            self._connection.kill(who)

    def lock(self, why: str) -> None:
        """The visit is shut out by a lock: ended, or refused where there is no session yet."""
        self._locked = why
        self.kill(f"a lock: {why}")


def new_session() -> str:
    """An id for a session that begins now."""
    return session_id(time.time_ns() // 1_000_000, os.urandom(10))


def journal(config: Config, *, embedded: bool) -> Journal:
    """Where events go: to sshrecd's writer of the log, or where there is no sshrecd, into the log itself."""
    return Direct(config.audit_dir) if embedded else Sender(config.audit_socket)


def look_after(config: Config, session: str, journal: Journal) -> Found:
    """Seal, log, pack and encrypt what an ended session left, and remove its run directory.

    Says what its recording was. AuditError where its end, or what becomes of it, cannot be logged; then the rest
    waits.
    """
    if control.answers(config.run_dir, session):
        return Found.ALIVE  # with no recording yet, it may be: somebody is choosing a target
    store = Store(config.recordings_dir)
    why = cause.find(Path(config.run_dir, session))
    found = store.recover(session, time.time_ns() // 1_000_000, why)
    if found in (Found.SEALED, Found.FINISHED):
        with contextlib.suppress(FileNotFoundError):  # somebody else has packed it
            tell_end(journal, store.path(session))
    if found is not Found.ALIVE:
        shutil.rmtree(Path(config.run_dir, session), ignore_errors=True)
    if found in (Found.SEALED, Found.FINISHED):
        with contextlib.suppress(NotFound, FileNotFoundError):  # somebody else has packed it
            if has_room_to_pack(store.path(session)):  # else sshrecd tries again
                store.pack(session, lambda packed: tell_packing(journal, store.path(session), packed))
    if found is not Found.ALIVE and config.encrypts_to:
        from sshrec.storage.encrypting import encrypt  # a session should not pay for reading and verifying

        with contextlib.suppress(NotFound):  # not packed, or encrypted already
            encrypt(store, session, config.encrypts_to, lambda made: tell_encryption(journal, made))
    return found


def unfinished(config: Config, days: int | None = None) -> set[str]:
    """Sessions whose recordings are not in their last form yet. `days`: of the newest that have recordings."""
    store = Store(config.recordings_dir)
    return {*store.unfinished(days), *(store.unencrypted(days) if config.encrypts_to else ())}


def main() -> None:
    """Embedded: one visit on descriptor 3, with the configuration that the arguments name, if any."""
    gateway = socket.socket(fileno=3)
    try:
        config = load(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
        config.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (SshrecError, OSError) as error:
        shown = error if isinstance(error, SshrecError) else SshrecError(f"{error.filename}: {describe(error)}")
        handoff.finish(gateway, 255, complaint(shown))
        return
    session = new_session()
    Worker(config, session, gateway).run()
    os.nice(19)
    log_itself = journal(config, embedded=True)
    # Ours, and those whose workers died, before they were packed or while: nobody else does.
    for left in {session, *control.live(config.run_dir), *unfinished(config, DAYS)}:
        with contextlib.suppress(SshrecError):  # damaged; the others are looked after all the same
            look_after(config, left, log_itself)


if __name__ == "__main__":
    main()
