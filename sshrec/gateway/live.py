"""A session that was allowed: its recording, its hop, and the bytes between. Record, then show.

The recording's end and the session's imply each other: whatever fails, `conduct` leaves a sealed recording
(as far as the disk lets it) and no hop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sshrec import __version__
from sshrec.audit.client import Journal
from sshrec.audit.event import AuditError
from sshrec.config import Config
from sshrec.errors import RecordingError, SshrecError, Unreachable, describe
from sshrec.gateway import network, terminal
from sshrec.gateway.agents import AgentRelay
from sshrec.gateway.ending import FOREVER, Ending, complaint, stop_hop
from sshrec.gateway.grant import Grant
from sshrec.gateway.hop import Hop, under_pty, with_pipes
from sshrec.gateway.relay import READ_BYTES, Loop, Pump
from sshrec.gateway.surroundings import Surroundings
from sshrec.gateway.trail import Trail
from sshrec.gateway.visit import Visit
from sshrec.openssh import client
from sshrec.recording import asciicast
from sshrec.recording.recorder import HOLD_US, Data, Recorder, Stream
from sshrec.recording.seal import Outcome
from sshrec.session import Winsize
from sshrec.storage.local import RecordingFile, Store

RESIZE_SECONDS = 0.05  # at most one resize in that time is recorded and passed on
RAW_SECONDS = 0.002  # between looks whether ssh, about to begin, has set its terminal raw
SILENT_SECONDS = 1.0  # of a shell without a terminal, until we say how to get one
COMMAND_BYTES = 256 * 1024  # a read of a command's stream

NO_TERMINAL = "sshrec: this shell has no terminal; for one, connect with ssh -tA\n"

log = logging.getLogger("sshrec.session")


class Left(Exception):
    """The person is gone, or was made to go."""


class Live:
    """One session, from its recording's first line to its last.

    `until` turns the worker's loop; `changed` tells the watchers what is new; `gateway` dials the agent;
    `journal` takes what the audit log must have.
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
    ) -> None:
        self._config, self._session, self._loop = config, session, loop
        self._turn, self._changed, self._gateway = until, changed, gateway
        self._visit, self._grant, self._journal = visit, grant, journal
        self._request, self._name = grant.request, grant.place.name
        self._run = client.Run(Path(config.run_dir, session))
        self._size = terminal.winsize(visit.stdin) if grant.request.terminal else Winsize(*asciicast.FALLBACK)
        self._around: Surroundings | None = None
        self._hop: Hop | None = None
        self._hop_ended = False
        self._pumps: dict[str, Pump] = {}
        self._closing = contextlib.ExitStack()
        self._connection: socket.socket | None = None
        self._address: str | None = None
        self._ending = Ending()
        self._resize_at = FOREVER
        self._resized_at = 0.0
        self._hint_at = FOREVER
        self._raw = False
        self._sealed = False
        self._outcome: Outcome | None = None  # once the recording has it

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
                self._fail(error, "recording-failed")
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
        wall_ms = time.time_ns() // 1_000_000
        self._file: RecordingFile = Store(self._config.recordings_dir).create(
            self._session, durable=self._config.session_recording == "proxy-sync"
        )
        self._start_ns = time.monotonic_ns()
        facts = self._facts(wall_ms)
        try:
            self._recorder = Recorder(
                self._file,
                self._session,
                asciicast.header_line(
                    width=self._size.columns,
                    height=self._size.rows,
                    timestamp=wall_ms // 1000,
                    title=f"{self._grant.user.name} → {facts['target']}",
                    command=facts.get("command"),
                    env={"TERM": self._visit.term},
                    facts=facts,
                ),
                wall_ms=wall_ms,
                terminal=self._request.terminal,
                stream_limit=self._config.limits.stream_bytes,
            )
        except RecordingError:
            with contextlib.suppress(RecordingError):
                self._file.finish()
            self._file.path.unlink(missing_ok=True)
            raise
        self._trail = Trail(self._journal, self._loop, facts)
        self._loop.watch(self._file.notify, self._synced)
        self._closing.callback(self._loop.unwatch, self._file.notify)
        shown = {key: facts[key] for key in ("target", "kind", "terminal", "start")}
        self._changed(state="connecting", **shown)

    def _facts(self, wall_ms: int) -> dict[str, Any]:
        """What the header says of the session, under the key `sshrec`: sshrec-recording(5)."""
        facts = {"session": self._session, **self._grant.facts()}
        facts |= {"client": self._visit.client, "start": asciicast.rfc3339(wall_ms)}
        if self._visit.tty:
            facts["tty"] = self._visit.tty
        return facts | {"recording": self._config.session_recording, "version": __version__}

    def _connect(self) -> None:
        """Dial, and start ssh on the connection with the pumps around it."""
        self._until(lambda: self._file.on_disk > 0 or self._file.failure is not None)
        self._trail.started(self._size, self._visit.local)  # the log and the target are asked at the same time
        connection, self._address = network.dial(
            self._grant.decision.addresses,
            self._grant.place.port,
            self._config.hop.connect_timeout,
            self._loop,
            self._until,
        )
        self._connection = connection
        self._closing.callback(connection.close)
        self._until(self._trail.is_begun)
        self._around = Surroundings(
            self._config,
            self._run,
            self._grant,
            self._visit.lang,
            loop=self._loop,
            gateway=self._gateway,
            connection=connection,
            log_came=self._log_came,
        )
        self._closing.callback(self._around.close)
        argv = client.arguments(self._run, self._name, self._request.command)
        environment = client.environment(self._visit.term)
        modes = self._visit.modes
        if modes is not None:
            self._hop = under_pty(argv, environment, modes.original, self._size)
            self._relay_terminal(self._hop)
        else:
            self._hop = with_pipes(argv, environment)
            self._relay_streams(self._hop)
        self._loop.watch(self._hop.pidfd, self._ended)
        self._changed(state="live", hop=self._hop.pid, address=self._address)

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
        sync = self._config.session_recording == "proxy-sync" and name != "stdin"
        kept = (lambda: self._file.synced >= self._file.written) if sync else None
        size = READ_BYTES if self._request.terminal else COMMAND_BYTES
        self._pumps[name] = Pump(self._loop, source, sink, take, size=size, kept=kept, **ends)

    def _close(self) -> tuple[int, str]:
        """End the hop if it still runs, seal the recording, let the person go."""
        self._stop_hop()
        ending = self._ending
        login, known_hosts = self._request.target.login, self._config.known_hosts
        status, text = ending.outcome(self._hop, self._around, self._name, login, known_hosts)
        outcome = Outcome(
            ending.reason or "exit",
            status=status,
            signal="unknown" if self._around is not None and self._around.log.signalled else None,
            detail=ending.detail,
            address=self._address,
            host_key=self._around.host_key if self._around is not None else None,
        )
        try:
            held = self._recorder.close(self._us(), self._wall(), outcome)
            if self._config.session_recording == "proxy-sync":
                self._loop.unwatch(self._file.notify)
                self._file.finish()
            for stream, data in held:
                self._show(stream, data)
        except RecordingError as error:
            text = text or complaint(error)
            status = 255
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

    def finish(self) -> None:
        """After the person has gone: make the recording durable and let go of it, then log its end.

        Of a recording that is not whole, recovery tells the end, once it has sealed it.
        """
        try:
            self._file.finish()
            if self._outcome is not None:
                ran = self._hop is not None
                self._trail.ended(self._file.path, self._outcome, self._recorder.counts, ran=ran)
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
            if not any(self._recorder.counts.values()) and not self._pumps["stdin"].ended:
                self._show("stderr", self._output("stderr", memoryview(NO_TERMINAL.encode())))
        for stream, data in self._recorder.tick(self._us(), self._wall()):
            self._show(stream, data)
        due = self._recorder.due(self._us())
        waits = [
            at - now for at in (self._ending.kill_at, self._ending.give_up_at, self._resize_at, self._hint_at)
        ]
        waits.append(told)
        if due is not None:
            waits.append(due / 1e6)
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
        n, previous = self._recorder.head
        return {"bytes": self._file.written, "durable": self._file.on_disk, "seal": n - 1, "head": previous}

    def _output(self, stream: Stream, data: memoryview) -> Data:
        if not data:
            return b"".join(held for _, held in self._recorder.release(self._us(), stream))
        shown = self._recorder.output(self._us(), data, stream)
        if not self._raw:
            self._go_raw(time.monotonic())
        if len(shown) != len(data):
            self._loop.within(HOLD_US / 1e6)
        return shown

    def _input(self, data: memoryview) -> Data:
        self._recorder.input(self._us(), data, keep=self._grant.decision.record_input)
        return data

    def _show(self, stream: Stream, data: Data) -> None:
        pump = self._pumps.get(stream)
        if pump is not None and not (pump.lost or pump.ended):
            pump.show(data)

    def _synced(self, _events: int) -> None:
        os.eventfd_read(self._file.notify)
        if self._file.failure is not None:
            raise RecordingError(f"cannot sync {self._file.path.name}: {describe(self._file.failure)}")
        self._trail.synced(self._recorder.head, self._file.written, self._file.on_disk)
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
                self._recorder.resize(self._us(), size.columns, size.rows)
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

    # ---- the end ---------------------------------------------------------------------------------------

    def _until(self, condition: Callable[[], bool]) -> None:
        """Before there is a hop: turn the loop, or be Left."""
        self._turn(lambda: condition() or self._ending.reason is not None)
        if self._ending.reason is not None:
            raise Left

    def _over(self) -> bool:
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

    # ---- clocks ----------------------------------------------------------------------------------------

    def _us(self) -> int:
        return (time.monotonic_ns() - self._start_ns) // 1000

    @staticmethod
    def _wall() -> int:
        return time.time_ns() // 1_000_000


def _nothing() -> None:
    pass
