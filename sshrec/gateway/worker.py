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
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sshrec.access.policy import Deny, authorise, locate
from sshrec.audit.client import Journal, Sender
from sshrec.audit.direct import Direct
from sshrec.config import Config, load
from sshrec.errors import Denied, NotFound, SshrecError, UsageError, describe
from sshrec.gateway import control, handoff, network, request, terminal
from sshrec.gateway.control import Control
from sshrec.gateway.ending import complaint
from sshrec.gateway.floor import check_floor
from sshrec.gateway.grant import Grant
from sshrec.gateway.live import Live
from sshrec.gateway.relay import Loop
from sshrec.gateway.trail import tell_end, tell_refusal
from sshrec.gateway.visit import Visit
from sshrec.recording.recovery import Found
from sshrec.session import Request, Target, User, session_id
from sshrec.storage.local import Store

BEAT_SECONDS = 1.0
TRIES = 5  # at typing a target
USAGE = "ssh -A bastion [login@]host[:port] [command…]"

T = TypeVar("T")

log = logging.getLogger("sshrec.worker")


class Gone(Exception):
    """The person left, or was made to, before there was a session."""


class Worker:
    """One visit. `watcher`: a socket to sshrecd, for heartbeats; None in embedded mode."""

    def __init__(
        self, config: Config, session: str, gateway: socket.socket, watcher: socket.socket | None = None
    ) -> None:
        self._config = config
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
        self._refusal: SshrecError | None = None
        self._rule: str | None = None  # that refused it
        self._beat_at = 0.0

    def run(self) -> None:
        """The visit. Whatever happens, the gateway learns how it ended, once the person's descriptors are shut."""
        status, text = 255, ""
        try:
            self._serve()
            visit = Visit(handoff.receive_hello(self._gateway))
            try:
                status, text = self._conduct(visit)
            finally:
                visit.close()
        except Gone:
            self._changed(state="left")
        except SshrecError as error:
            self._changed(state="refused", error=str(error))
            text = complaint(error)
            self._refusal = error
        except Exception:
            log.exception("%s: failed", self.session)
            text = complaint(SshrecError(f"sshrec itself failed; its log has the reason under {self.session}"))
        handoff.finish(self._gateway, status, text)
        if self._live is not None:
            self._live.finish()
        elif self._refusal is not None:
            tell_refusal(self._journal, self._facts, self._refusal, self._rule)
        if self._control is not None:
            self._control.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._gateway.close()

    # ---- the steps ------------------------------------------------------------------------------------

    def _conduct(self, visit: Visit) -> tuple[int, str]:
        with contextlib.suppress(OSError):  # a gateway that is gone says so by its end
            self._gateway.send(b"T")
        self._loop.watch(self._gateway.fileno(), self._hear)
        user, credential = visit.identify()
        self._changed(user=user.name, uid=user.uid, client=visit.client)
        check_floor(self._config, self._journal)
        wanted = self._request(visit, user)
        self._facts |= {"login": wanted.target.login, "target": str(wanted.target)}
        if not visit.agent:
            raise Denied("no agent came with you, and the target wants your key", hint=f"connect with -A: {USAGE}")
        place = self._allowed(locate(self._config, wanted.target))
        seconds = self._config.hop.connect_timeout
        addresses = network.resolve(place.lookup, place.port, seconds, self._loop, self._until)
        own = visit.server | {address for address in addresses if network.is_own(address)}
        decision = self._allowed(authorise(self._config, user, wanted, place, addresses, own))
        live = Live(
            config=self._config,
            session=self.session,
            loop=self._loop,
            until=self._turn,
            changed=self._changed,
            gateway=self._gateway,
            visit=visit,
            grant=Grant(user, credential, wanted, place, decision),
            journal=self._journal,
        )
        return live.conduct(self._set_live)

    def _allowed(self, answer: T | Deny) -> T:
        """What policy answers, unless it is no."""
        if isinstance(answer, Deny):
            self._rule = answer.rule
            raise Denied(answer.reason)
        return answer

    def _serve(self) -> None:
        """The run directory and the control socket: from here on a new sshrecd finds this worker."""
        new = self._directory.with_suffix(".new")
        try:
            new.mkdir(mode=0o700)
            self._control = Control(self._loop, new, self._report, self.kill)
            new.rename(self._directory)  # so whoever finds it finds it served, while its worker lives
        except OSError as error:
            raise SshrecError(f"cannot make {self._directory}: {describe(error)}") from error
        if self._watcher is not None:
            self._control.add_watcher(self._watcher)

    def _request(self, visit: Visit, user: User) -> Request:
        """What sshd was given, or what the person types when asked."""
        if visit.command:
            return request.parse(visit.command, terminal=visit.terminal, login=user.name)
        if not visit.terminal:
            raise UsageError("no target was named", hint=f"name one: {USAGE}")
        return Request(self._ask(visit, user), None, terminal=True)

    def _ask(self, visit: Visit, user: User) -> Target:
        line = terminal.Line("Connect to: ", self._config.node_names)

        def show(text: str) -> None:
            with contextlib.suppress(OSError):
                os.write(visit.stdout, text.encode())

        def typed(_events: int) -> None:
            try:
                data = os.read(visit.stdin, 4096)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            show(line.feed(data or b"\4"))

        assert visit.modes is not None
        visit.modes.raw()
        os.set_blocking(visit.stdin, False)
        self._loop.watch(visit.stdin, typed)
        show(line.greeting())
        try:
            for _ in range(TRIES):
                self._until(lambda: line.done or line.cancelled)
                if line.cancelled:
                    raise Gone
                try:
                    if line.text.strip():
                        return request.parse_target(line.text.strip().encode(), user.name)
                except UsageError as error:
                    show(f"{error}\r\n")
                show(line.again())
        finally:
            self._loop.unwatch(visit.stdin)
            visit.modes.restore()
        raise UsageError("no target was named", hint=f"name one: {USAGE}")

    # ---- the loop -------------------------------------------------------------------------------------

    def _turn(self, condition: Callable[[], bool]) -> None:
        self._loop.run(condition, self._tick)

    def _until(self, condition: Callable[[], bool]) -> None:
        """Turn the loop until then; Gone where the person leaves first."""
        self._turn(lambda: condition() or self._gone)
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
            if self._live is not None and self._live.agents is not None:
                self._live.agents.dialled(message)
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


def new_session() -> str:
    """An id for a session that begins now."""
    return session_id(time.time_ns() // 1_000_000, os.urandom(10))


def journal(config: Config, *, embedded: bool) -> Journal:
    """Where events go: to sshrecd's writer of the log, or where there is no sshrecd, into the log itself."""
    return Direct(config.audit_dir) if embedded else Sender(config.audit_socket)


def look_after(config: Config, session: str, journal: Journal) -> Found:
    """Seal, log and pack what an ended session left, and remove its run directory; says what its recording was.

    AuditError where the end of the session cannot be logged; then the rest waits.
    """
    if control.answers(config.run_dir, session):
        return Found.ALIVE  # with no recording yet, it may be: somebody is choosing a target
    store = Store(config.recordings_dir)
    found = store.recover(session, time.time_ns() // 1_000_000, "its worker died")
    if found in (Found.SEALED, Found.FINISHED):
        with contextlib.suppress(FileNotFoundError):  # somebody else has packed it
            tell_end(journal, store.path(session))
    if found is not Found.ALIVE:
        shutil.rmtree(Path(config.run_dir, session), ignore_errors=True)
    if found in (Found.SEALED, Found.FINISHED):
        with contextlib.suppress(NotFound):  # somebody else has packed it
            store.pack(session)
    return found


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
    for left in {session, *control.live(config.run_dir)}:  # ours, and those whose workers died: nobody else does
        with contextlib.suppress(SshrecError):  # damaged; the others are looked after all the same
            look_after(config, left, log_itself)


if __name__ == "__main__":
    main()
