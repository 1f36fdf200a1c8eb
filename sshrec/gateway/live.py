"""A session that was allowed: its recording, its hop, and the bytes between. Record, then show.

The recording's end and the session's imply each other: whatever fails, `conduct` leaves a sealed recording
(as far as the disk lets it) and no hop.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sshrec.audit.client import Journal
from sshrec.audit.event import AuditError
from sshrec.config import Config
from sshrec.errors import DiskFull, RecordingError, SshrecError, Unreachable, describe
from sshrec.gateway import network, terminal
from sshrec.gateway.agents import AgentRelay
from sshrec.gateway.channel import Joined, Shared
from sshrec.gateway.ending import FOREVER, Ending, complaint, stop_hop
from sshrec.gateway.grant import Grant
from sshrec.gateway.hop import Hop, under_pty, with_pipes
from sshrec.gateway.limits import Limits, Over, Warn
from sshrec.gateway.record import Record
from sshrec.gateway.relay import READ_BYTES, Loop, Pump
from sshrec.gateway.surroundings import Surroundings
from sshrec.gateway.trail import Trail
from sshrec.gateway.transfer.stream import Transfer, asked_for
from sshrec.gateway.visit import Visit
from sshrec.openssh import client
from sshrec.recording import asciicast
from sshrec.recording.recorder import HOLD_US, Data, Stream
from sshrec.recording.seal import Outcome
from sshrec.session import Winsize

RESIZE_SECONDS = 0.05  # at most one resize in that time is recorded and passed on
RAW_SECONDS = 0.002  # between looks whether ssh, about to begin, has set its terminal raw
SILENT_SECONDS = 1.0  # of a shell without a terminal, until we say how to get one
COMMAND_BYTES = 256 * 1024  # a read of a command's stream

AGAIN_SECONDS = 3.0  # to dial a target that was dialled a moment ago; nothing else goes on meanwhile

NO_TERMINAL = "sshrec: this shell has no terminal; for one, connect with ssh -tA\n"

log = logging.getLogger("sshrec.session")


class Left(Exception):
    """The person is gone, or was made to go."""


class Live:
    """One session, from its recording's first line to its last.

    `until` turns the worker's loop; `changed` tells the watchers what is new; `gateway` dials the agent;
    `journal` takes what the audit log must have; `joined`: to the connection that this is a channel of.
    """

    def __init__(
        self,
        *,
        config: Config,
        session: str,
        loop: Loop,
        until: Callable[[Callable[[], bool]], None],
        changed: Callable[..., None],
        gateway: socket.socket,
        visit: Visit,
        grant: Grant,
        journal: Journal,
        joined: Joined | None = None,
    ) -> None:
        self._config, self._session, self._loop = config, session, loop
        self._turn, self._changed, self._gateway = until, changed, gateway
        self._visit, self._grant, self._journal = visit, grant, journal
        self._request, self._name = grant.request, grant.place.name
        self._run = client.Run(Path(config.run_dir, session), grant.agent)
        self._size = terminal.winsize(visit.stdin) if grant.request.terminal else Winsize(*asciicast.FALLBACK)
        self._around: Surroundings | None = None
        self._hop: Hop | None = None
        self._hop_ended = False
        self._pumps: dict[str, Pump] = {}
        self._closing = contextlib.ExitStack()
        self._joined = joined
        self._shared: Shared | None = None  # the master that this one goes by
        self._connection: socket.socket | None = None
        self._address: str | None = None
        self._ending = Ending()
        self._resize_at = FOREVER
        self._resized_at = 0.0
        self._hint_at = FOREVER
        self._raw = False
        self._notices: list[str] = []  # for the person's terminal
        self._lost: str | None = None  # why it is not recorded any more, though it goes on
        self._terms = grant.decision.terms
        self._limits = Limits(self._terms, time.monotonic(), terminal=grant.request.terminal)
        self._transfer: Transfer | None = None
        self._sealed = False
        self._outcome: Outcome | None = None  # once the recording has it
        self.unclosed: str | None = None  # why the recording has no end

    # ---- open, connect, relay, close ------------------------------------------------------------------

    def conduct(self, begun: Callable[[Live], None]) -> tuple[int, str]:
        """The session; returns the exit status for the person, and what to tell them.

        `begun` is called once there is a recording: from then on the other methods may be called, and
        `finish` must be.
        """
        self._open()
        begun(self)
        with self._closing:
            try:
                self._connect()
                self._turn(self._over)
            except RecordingError as error:
                self._fail(error, "enospc" if isinstance(error, DiskFull) else "recording-failed")
            except AuditError as error:
                self._fail(error, "audit-failed")
            except OSError as error:
                self._fail(SshrecError(f"{error.filename or 'sshrec'}: {describe(error)}"), "failed")
            except Unreachable as error:
                self._end("unreachable", f"cannot reach {self._name}: {error}")
            except Left:
                pass  # `leave` or `kill` has said why
            except BaseException:
                self._fail(SshrecError("sshrec itself failed"), "failed")
                self._close()
                raise
            return self._close()

    def _open(self) -> None:
        """The recording, with its header durable before anything is dialled."""
        self._record = Record(
            self._config, self._session, self._visit, self._grant, self._size, self._lose_recording
        )
        facts = self._record.facts
        self._trail = Trail(self._journal, self._loop, facts)
        self._loop.watch(self._record.notify, self._synced)
        self._closing.callback(self._loop.unwatch, self._record.notify)
        shown = {key: facts[key] for key in ("target", "kind", "terminal", "start")}
        self._changed(state="connecting", **shown)

    def _connect(self) -> None:
        """Dial, and start ssh on the connection with the pumps around it."""
        self._until(self._record.begun)
        self._trail.started(self._size, self._visit.local)  # the log and the target are asked at the same time
        self._transfer = asked_for(self._request, self._terms, self._record, self._trail)
        self._refuse_transfer()
        if self._ending.at_once:
            raise Left
        self._closing.callback(self._hang_up)
        self._reach()
        self._until(self._trail.is_begun)
        self._around = Surroundings(
            self._config,
            self._run,
            self._grant,
            self._visit.lang,
            loop=self._loop,
            gateway=self._gateway,
            connection=self._dialled,
            log_came=self._log_came,
            control=Path(self._shared.control) if self._shared is not None else None,
        )
        self._closing.callback(self._around.close)
        argv = client.arguments(self._run, self._name, self._request.command, self._request.subsystem)
        by_master = self._shared is not None
        environment = client.environment(self._visit.term, self._visit.lang if by_master else None)
        modes = self._visit.modes
        if modes is not None:
            quiet = self._grant.connection is not None  # the person's own ssh says it
            self._hop = under_pty(argv, environment, modes.original, self._size, quiet=quiet, master=by_master)
            self._relay_terminal(self._hop)
        else:
            self._hop = with_pipes(argv, environment)
            self._relay_streams(self._hop)
        self._loop.watch(self._hop.pidfd, self._ended)
        self._changed(state="live", hop=self._hop.pid, address=self._address)

    def _reach(self) -> None:
        """Have the master of the connection, where it has dialled what this session may, or dial."""
        addresses, port = self._grant.decision.addresses, self._grant.place.port
        seconds = self._config.hop.connect_timeout
        shared = None
        if self._joined is not None:
            shared = self._joined.shared(self._loop, self._until, seconds)
            self._joined.watch(self._loop, self.kill)
        if shared is not None and shared.address in (network.endpoint(one, port) for one in addresses):
            self._shared, self._address = shared, shared.address
            return
        self._connection, self._address = network.dial(addresses, port, seconds, self._loop, self._until)

    def _dialled(self) -> socket.socket:
        """For ssh itself; the target may have refused one session more on the master's connection."""
        if self._connection is None:
            port = self._grant.place.port
            (address,) = (
                one for one in self._grant.decision.addresses if network.endpoint(one, port) == self._address
            )
            self._connection = network.dial_again(address, port, AGAIN_SECONDS)
        return self._connection

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _relay_terminal(self, hop: Hop) -> None:
        visit = self._visit
        self._resize(time.monotonic())  # once more: it may have changed since the header
        output = partial(self._output, "stdout")
        self._pump("stdout", hop.stdout, visit.stdout, output, on_lost=self._left)
        # What ssh asks its terminal, if it ever does, comes here.
        self._pump("tty", hop.tty, visit.stderr, output, on_lost=self._left)

    def _relay_streams(self, hop: Hop) -> None:
        visit = self._visit
        for name, source, sink in (("stdout", hop.stdout, visit.stdout), ("stderr", hop.stderr, visit.stderr)):
            stream: Stream = "stdout" if name == "stdout" else "stderr"
            # Standard error stays open: what goes wrong is still to be told there.
            ended = partial(visit.let_go, sink) if stream == "stdout" else _nothing
            gone = partial(self._reader_gone, stream, source)
            self._pump(stream, source, sink, partial(self._output, stream), on_end=ended, on_lost=gone)
        over = partial(self._input_over, hop)
        self._pump("stdin", visit.stdin, hop.stdin, self._input, on_end=over, on_lost=over)

    def _pump(self, name: str, source: int, sink: int, take: Callable[[memoryview], Data], **ends: Any) -> None:
        kept = self._record.kept if name != "stdin" else None
        size = READ_BYTES if self._request.terminal else COMMAND_BYTES
        self._pumps[name] = Pump(self._loop, source, sink, take, size=size, kept=kept, **ends)

    def _close(self) -> tuple[int, str]:
        """End the hop if it still runs, seal the recording, let the person go."""
        self._stop_hop()
        self._ask_master()
        ending = self._ending
        login, known_hosts = self._request.target.login, self._config.known_hosts
        status, text = ending.outcome(self._hop, self._around, self._name, login, known_hosts)
        if self._lost is not None and not self._request.terminal:
            text += f"sshrec: {self._lost}\n"
        outcome = Outcome(
            ending.reason or "exit",
            status=status,
            signal="unknown" if self._around is not None and self._around.log.signalled else None,
            detail=ending.detail,
            address=self._address,
            host_key=self._host_key(),
            unrecorded=self._record.unrecorded,
        )
        self._loop.unwatch(self._record.notify)
        try:
            if self._transfer is not None:
                self._transfer.end()
            for stream, data in self._record.close(outcome):
                self._show(stream, data)
        except RecordingError as error:
            if self._record.unrecorded is None:
                text = text or complaint(error)
                status = 255
            self.unclosed = self._lost or ending.detail or str(error)
        else:
            self._outcome = outcome
        self._sealed = True
        for pump in self._pumps.values():
            pump.resume()
        self._flush()
        for pump in self._pumps.values():
            pump.stop()
        self._changed(state="ended", reason=outcome.reason, status=status, detail=outcome.detail)
        return status, text

    def _ask_master(self) -> None:
        """Why ssh says 255 of a session that it only handed to the master."""
        if self._around is None or self._joined is None or self._hop is None or self._hop.status != 255:
            return
        if (number := self._around.log.number) is not None:
            end = self._joined.end(number)
            self._around.log.signalled = end.signalled
            self._around.log.messages += [end.lost] if end.lost is not None else []

    def _host_key(self) -> str | None:
        seen = self._around.host_key if self._around is not None else None
        return self._shared.host_key if seen is None and self._shared is not None else seen

    def finish(self) -> None:
        """After the person has gone: make the recording durable and let go of it, then log its end.

        Of a recording that is not whole, recovery tells the end, once it has sealed it.
        """
        try:
            self._record.finish()
            if self._outcome is not None:
                ran = self._hop is not None
                self._trail.ended(self._record.path, self._outcome, self._record.counts, ran=ran)
        except (SshrecError, OSError):
            log.exception("%s: the end of the recording is not durable, or not logged", self._session)
        self._trail.close()

    @property
    def agents(self) -> AgentRelay | None:
        """Where the gateway's connections to the agent go."""
        return self._around.agents if self._around is not None else None

    @property
    def _established(self) -> bool:
        """Whether ssh has asked the target for the session."""
        return self._around is not None and self._around.log.established

    # ---- what happens while it lives -------------------------------------------------------------------

    def tick(self) -> float:
        """What time asks for; returns seconds until the next turn."""
        if self._sealed:
            return FOREVER
        told = self._trail.tick()
        now = time.monotonic()
        if not self._raw and self._established:
            self._go_raw(now)
        if now >= self._resize_at:
            self._resize_at = FOREVER
            self._resize(now)
        if now >= self._ending.kill_at and self._hop is not None:
            self._ending.kill_at = FOREVER
            self._hop.send_signal(signal.SIGKILL)
        if now >= self._hint_at:
            self._hint_at = FOREVER
            if not any(self._record.counts.values()) and not self._pumps["stdin"].ended:
                self._show("stderr", self._output("stderr", memoryview(NO_TERMINAL.encode())))
        for stream, data in self._record.tick():
            self._show(stream, data)
        limit = self._keep_limits(now)
        self._pace()
        self._show_notices()
        ending = self._ending
        waits = [at - now for at in (ending.kill_at, ending.give_up_at, self._resize_at, self._hint_at, limit)]
        waits += [told, self._record.due()]
        if not self._raw and self._established:
            waits.append(RAW_SECONDS)
        return max(0.0, min(waits))

    def leave(self) -> None:
        """The person is gone."""
        self._end("client-disconnect")

    def kill(self, who: str) -> None:
        """An administrator ends it."""
        self._end("killed", f"ended by {who}")

    def interrupted(self) -> None:
        """Ctrl-C, while the terminal was still the person's own: before ssh had its session."""
        if not self._raw:
            self._end("client-disconnect", "interrupted")

    def resized(self) -> None:
        """The person's terminal has another size."""
        now = time.monotonic()
        self._resize_at = max(now, self._resized_at + RESIZE_SECONDS)
        self._loop.within(self._resize_at - now)

    def report(self) -> dict[str, Any]:
        """Figures for `who` and for the signing of the log."""
        return self._record.report()

    def _output(self, stream: Stream, data: memoryview) -> Data:
        if self._transfer is not None and stream == "stdout":
            shown = self._transfer.output(data)
            self._refuse_transfer()
            self._pace()
        else:
            shown = self._record.output(stream, data)
        if not data:
            return shown
        now = time.monotonic()
        self._limits.shown(now)
        if excess := self._limits.excess(self._record.size):
            self._ending.fail(SshrecError(excess), "limit")
        if not self._raw:
            self._go_raw(now)
        if len(shown) != len(data):
            self._loop.within(HOLD_US / 1e6)
        return shown

    def _input(self, data: memoryview) -> Data:
        if data:
            self._limits.typed(time.monotonic())
        if self._transfer is None:
            self._record.input(data, keep=self._terms.record_input)
            return data
        forward, reply = self._transfer.input(data)
        self._refuse_transfer()
        self._pace()
        self._show("stdout", reply)
        return forward

    def _pace(self) -> None:
        """Have a transfer's requests wait while too many have no answer."""
        if self._transfer is not None and "stdin" in self._pumps:
            self._pumps["stdin"].hold(self._transfer.full)

    def _refuse_transfer(self) -> None:
        """End a session at once whose transfer may not be."""
        if self._transfer is not None and self._transfer.refusal is not None and not self._ending.at_once:
            self._ending.fail(SshrecError(self._transfer.refusal), "forbidden")

    def _show(self, stream: Stream, data: Data) -> None:
        pump = self._pumps.get(stream)
        if pump is not None and not (pump.lost or pump.ended):
            pump.show(data)

    def _synced(self, _events: int) -> None:
        self._record.synced()
        self._trail.synced(self._record.head, self._record.size, self._record.durable)
        for pump in self._pumps.values():
            pump.resume()

    def _go_raw(self, now: float) -> None:
        """Once ssh has its own terminal raw, so is the person's: until then it is theirs, as with ssh itself."""
        visit, hop = self._visit, self._hop
        if visit.modes is None or hop is None:
            self._raw = True
            if self._request.kind == "shell":
                self._hint_at = now + SILENT_SECONDS
        elif terminal.is_raw(hop.stdin):
            self._raw = True
            visit.modes.raw()
            hop.block_output()
            self._pump("stdin", visit.stdin, hop.stdin, self._input, on_end=self._left)

    def _resize(self, now: float) -> None:
        self._resized_at = now
        if self._hop is None or self._visit.modes is None:
            return  # _relay_terminal will look again
        with contextlib.suppress(OSError):  # a terminal that is gone says so by its pump
            size = terminal.copy_winsize(self._visit.stdin, self._hop.stdin)
            if size != self._size:
                self._size = size
                self._record.resize(size)
                self._trail.resized(size)

    def _log_came(self) -> None:
        if not self._raw and self._established:
            self._loop.within(0)

    def _reader_gone(self, stream: Stream, source: int) -> None:
        """The person's side reads no more of a stream: close ours, and the target learns of it as by a pipe."""
        assert self._hop is not None
        self._pumps[stream].stop()
        self._hop.let_go(source)
        if all(pump.lost or pump.ended for name, pump in self._pumps.items() if name != "stdin"):
            self._left()

    def _input_over(self, hop: Hop) -> None:
        self._pumps["stdin"].stop()
        hop.let_go(hop.stdin)

    def _left(self) -> None:
        self._end("client-disconnect")

    # ---- limits, and a recording that fails --------------------------------------------------------------

    def _keep_limits(self, now: float) -> float:
        """Warn, or end it, where a limit says so; when to look again."""
        if self._ending.reason is not None:
            return FOREVER
        match self._limits.turn(now):
            case Warn(text) if self._request.terminal:  # a command's streams are its own
                self._record.mark(f"sshrec: {text}")
                self._notices.append(text)
            case Over(detail):
                self._end("limit", detail)
                return FOREVER
        return self._limits.due()

    def _lose_recording(self, error: RecordingError, since: str) -> None:
        """Nothing can be recorded any more, and the session may go on: not before the audit log has that."""
        self._trail.unrecorded(error, since)
        self._lost = f"since {since} this session is not recorded: {error}"
        self._notices.append(self._lost)
        self._changed(unrecorded=since)
        self._loop.within(0)

    def _show_notices(self) -> None:
        """Tell the person, on their terminal; not while a pump is at it."""
        notices, self._notices = self._notices, []
        if self._request.terminal:
            for text in notices:
                self._show("stdout", f"\r\nsshrec: {text}\r\n".encode())

    # ---- the end ---------------------------------------------------------------------------------------

    def _until(self, condition: Callable[[], bool]) -> None:
        """Before there is a hop: turn the loop, or be Left."""
        self._turn(lambda: condition() or self._ending.reason is not None)
        if self._ending.reason is not None:
            raise Left

    def _over(self) -> bool:
        if self._ending.at_once:
            return True
        if not self._hop_ended:
            return self._ending.give_up_at is not FOREVER and time.monotonic() >= self._ending.give_up_at
        outputs = (pump for name, pump in self._pumps.items() if name != "stdin")
        return all(pump.ended or pump.lost for pump in outputs) or time.monotonic() >= self._ending.give_up_at

    def _ended(self, _events: int) -> None:
        """The hop has exited: what it wrote is still in the pipes."""
        assert self._hop is not None
        self._loop.unwatch(self._hop.pidfd)
        self._hop.reap()
        self._hop.block_output()  # where there never was a session: our end would keep the pipe open
        self._hop_ended = True
        self._ending.kill_at = FOREVER
        for name, pump in self._pumps.items():
            if name == "stdin":
                pump.stop()
            else:
                pump.drain()

    def _end(self, reason: str, detail: str | None = None) -> None:
        """Have the session end, for that reason unless there was one before."""
        if self._ending.ask(reason, detail) and self._hop is not None:
            self._hop.send_signal(signal.SIGTERM)
        self._loop.within(0)

    def _fail(self, error: SshrecError, reason: str) -> None:
        """Nothing may go on (the recording cannot be written, …): nothing more is shown, and the hop dies now."""
        self._ending.fail(error, reason)
        self._stop_hop()

    def _stop_hop(self) -> None:
        if self._hop is not None:
            if self._hop.status is None:
                self._loop.unwatch(self._hop.pidfd)
            stop_hop(self._hop, self._pumps)
        if self._around is not None:
            self._around.read_rest()
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def _flush(self) -> None:
        """Let the person have what was recorded and is not written yet; not for ever if they are gone."""
        self._ending.hurry()

        def flushed() -> bool:
            return all(pump.lost or not pump.pending for name, pump in self._pumps.items() if name != "stdin")

        self._turn(lambda: flushed() or time.monotonic() >= self._ending.give_up_at)


def _nothing() -> None:
    pass
