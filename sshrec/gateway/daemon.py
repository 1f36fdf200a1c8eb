"""sshrecd: accepts gateways, forks a worker for each, supervises them. Small, single-threaded, without state.

It may end and start again under live sessions: workers go on without it, and a new one adopts them by
their control sockets. What a dead worker left is sealed and cleaned up; finished recordings are packed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import logging
import os
import pwd
import select
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sshrec.access.addresses import source_key
from sshrec.access.policy import Policy
from sshrec.atomic import stamp
from sshrec.audit.client import post
from sshrec.config import Config, with_inventory
from sshrec.errors import ConfigError, Denied, SshrecError, Unreachable, describe
from sshrec.gateway import cause, control, handoff
from sshrec.gateway.child import Child
from sshrec.gateway.ending import complaint
from sshrec.gateway.housekeeper import Housekeeper
from sshrec.gateway.logwriter import LogWriter
from sshrec.gateway.problems import tell_problem
from sshrec.gateway.rehearsal import rehearse
from sshrec.gateway.shipper import Shipper
from sshrec.gateway.warden import Warden
from sshrec.gateway.worker import DAYS, Worker, new_session
from sshrec.peer import peer
from sshrec.storage.local import Store

STUCK_SECONDS = 10.0  # without a heartbeat: the hop is killed
DEAD_SECONDS = 20.0  # without one: the worker itself, once it has let go of the person's pipes
CHECK_SECONDS = 1.0
SLEPT_SECONDS = 3.0  # between two checks: then sshrecd itself was not running
RESCAN_SECONDS = 60.0
BACKLOG = 1024
FIRST_FD = 3  # of socket activation: sd_listen_fds(3)

STUCK = "its worker was stuck, as on a disk that hangs"

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

log = logging.getLogger("sshrecd")


@dataclass(slots=True)
class Supervised:
    """A worker: forked by this process, or adopted. `status` is what it last said of itself."""

    session: str
    pid: int
    uid: int
    pidfd: int
    channel: socket.socket
    forked: bool
    beat: float
    status: dict[str, Any]
    hop_killed: bool = False
    leaving: bool = False  # to make room


class Daemon:
    """The whole of it; `run` returns when a signal asks for that, and ends no session.

    `problems`: of the configuration, for the audit log.
    """

    def __init__(self, config: Config, problems: Sequence[str] = ()) -> None:
        self._config, self._problems = config, problems
        self._store = Store(config.recordings_dir)
        self._poll = select.poll()
        self._workers: dict[int, Supervised] = {}  # by pidfd
        self._channels: dict[int, int] = {}  # channel to pidfd
        self._housekeeper = Housekeeper(config, self._let_go)
        self._log_writer = LogWriter(config, self._let_go)
        self._shipper = Shipper(config, self._let_go)
        self._warden = Warden(config, self._let_go)
        self._children: dict[int, Child] = {}  # by pidfd
        self._rescanned = 0.0
        self._inventory = stamp(config.inventory)
        self._policy = Policy(config)
        self._login_uid = _uid(config.login_account)
        self._stop = False
        self._bound: Path | None = None

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        self._directories()
        for problem in self._problems:
            tell_problem(self._config, problem)
        self._listener = self._listen()
        wake, waker = socket.socketpair()
        for end in (wake, waker):
            end.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self._wake = (wake, waker)
        self._poll.register(wake, select.POLLIN)
        self._poll.register(self._listener, select.POLLIN)
        self._keep_children()
        self._rescan(everything=True)
        keep_heap()
        try:
            rehearse(self._config)
        except Exception:
            log.exception("the rehearsal failed; sessions will only start a little slower")
        gc.collect()
        gc.freeze()  # what is here now stays shared with the workers
        notify("READY=1")
        log.info("listening on %s", self._config.socket)
        checked = time.monotonic()
        while not self._stop:
            for fd, _ in self._poll.poll(CHECK_SECONDS * 1000):
                if fd == self._listener.fileno():
                    self._accept()
                elif fd in self._workers:
                    self._reap(self._workers[fd])
                elif fd in self._channels:
                    self._hear(self._workers[self._channels[fd]])
                elif fd == self._housekeeper.pidfd:
                    self._housekept(fd)
                elif fd in self._children:
                    self._childless(fd)
                elif fd == wake.fileno():
                    wake.recv(512)
            now = time.monotonic()
            if now - checked >= CHECK_SECONDS:
                self._check(now, slept=now - checked > SLEPT_SECONDS)
                checked = now
        notify("STOPPING=1")
        if self._bound is not None:
            self._bound.unlink(missing_ok=True)
        log.info("stopping; %d sessions go on", len(self._workers))

    # ---- starting --------------------------------------------------------------------------------------

    def _directories(self) -> None:
        config = self._config
        for path, mode in ((config.run_dir, 0o755), (config.recordings_dir, 0o750), (config.audit_dir, 0o750)):
            try:
                path.mkdir(mode=mode, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"cannot make {path}: {describe(error)}") from error
            if not os.access(path, os.W_OK | os.X_OK):
                raise ConfigError(
                    f"cannot write in {path}", hint="it must belong to the user that sshrecd runs as"
                )

    def _listen(self) -> socket.socket:
        """The socket that systemd passed, or our own."""
        if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
            listener = socket.socket(fileno=FIRST_FD)
            listener.set_inheritable(False)
        else:
            path = self._config.socket
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            _remove_stale(path)
            old = os.umask(0o111)  # anybody on this host may ask: the kernel says who it is
            try:
                listener.bind(str(path))
            except OSError as error:
                raise ConfigError(f"cannot listen on {path}: {describe(error)}") from error
            finally:
                os.umask(old)
            listener.listen(BACKLOG)
            self._bound = path
        listener.setblocking(False)
        return listener

    def _rescan(self, *, everything: bool = False) -> None:
        """Adopt sessions that live and are not ours yet; have those looked after that died unseen.

        The start is one occasion (an earlier sshrecd left them); what a full disk kept from being sealed, or a
        housekeeper that died left undone, is another. `everything`: recordings of all days, not of the newest.
        """
        self._rescanned = time.monotonic()
        known = {worker.session for worker in self._workers.values()}
        try:
            run_dirs = [session for session in control.live(self._config.run_dir) if session not in known]
            adopted = {session for session in run_dirs if self._adopt(session)}
            self._housekeeper.scan(None if everything else DAYS, frozenset(known | adopted))
            self._housekeep(*({*run_dirs} - adopted), live=known | adopted)
        except (OSError, SshrecError):
            log.exception("cannot look for sessions that were left")

    def _adopt(self, session: str) -> bool:
        """Supervise a session whose worker answers; False where none does."""
        try:
            channel = control.connect(self._config.run_dir, session)
            channel.send(b"watch")
            pid, _ = peer(channel)
            pidfd = os.pidfd_open(pid)
        except (Unreachable, Denied, OSError):
            return False
        self._supervise(session, pid, -1, pidfd, channel, forked=False)
        log.info("%s: adopted", session)
        return True

    def _supervise(
        self, session: str, pid: int, uid: int, pidfd: int, channel: socket.socket, *, forked: bool
    ) -> None:
        channel.setblocking(False)
        self._workers[pidfd] = Supervised(session, pid, uid, pidfd, channel, forked, time.monotonic(), {})
        self._channels[channel.fileno()] = pidfd
        self._poll.register(pidfd, select.POLLIN)
        self._poll.register(channel, select.POLLIN)

    # ---- a gateway comes --------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            gateway, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                log.exception("cannot accept")
                time.sleep(0.1)  # the backlog keeps them; do not turn at full speed
                return
            raise
        with gateway:
            pid, uid = peer(gateway)
            try:
                self._fork(gateway, uid)
            except (SshrecError, OSError) as error:
                shown = error if isinstance(error, SshrecError) else SshrecError(f"no worker: {describe(error)}")
                log.warning("refused uid %d (process %d): %s", uid, pid, shown)
                handoff.finish(gateway, 255, complaint(shown))
                post(self._config.audit_socket, "session.rejected", {"account_uid": uid, "reason": str(shown)})

    def _fork(self, gateway: socket.socket, uid: int) -> None:
        others = self._make_room(uid)
        self._shipper.expect_required()
        self._refresh_inventory()
        session = new_session()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            self._become_worker(session, gateway, ours, theirs, others)
        theirs.close()
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._supervise(session, pid, uid, pidfd, ours, forked=True)

    def _make_room(self, uid: int) -> Counter[int]:
        """How many visits each uid has; Unreachable where one more of `uid` would be one too many."""
        limits = self._config.limits
        if len(self._workers) >= limits.sessions:
            raise Unreachable(f"there are {len(self._workers)} sessions, and no more are allowed at once")
        staying = [worker for worker in self._workers.values() if not worker.leaving]
        # A channel of a transparent connection comes as us, until its worker has found out whose it is. Whoever
        # has seen the end of a session may have another, before its worker has put the recording away.
        known = [
            worker
            for worker in staying
            if (worker.uid != os.geteuid() or "uid" in worker.status)
            and worker.status.get("state") not in control.OVER
        ]
        # A transparent connection has its sessions beside it; but it is a process, too.
        open_ = Counter(worker.uid for worker in known if worker.status.get("state") == "connection")
        others = Counter(worker.uid for worker in known) - open_
        if uid == self._login_uid:
            if others[uid] >= limits.logins:
                self._send_away([worker for worker in known if worker.uid == uid])
        elif others[uid] >= limits.sessions_per_user:
            raise Unreachable(f"you have {limits.sessions_per_user} sessions, and no more are allowed at once")
        elif uid != os.geteuid() and open_[uid] >= limits.sessions_per_user:
            raise Unreachable(f"you have {limits.sessions_per_user} connections, and no more are allowed at once")
        return others

    def _send_away(self, logins: list[Supervised]) -> None:
        """End one login for the next: or whoever keeps them all open from one source would keep everybody out."""
        sources = [source_key(worker.status.get("client", "").partition(" ")[0]) for worker in logins]
        source, count = Counter(sources).most_common(1)[0]
        if count == 1:
            raise Unreachable(
                f"{len(logins)} people are logging in, and no more are allowed at once",
                hint="try again in a minute",
            )
        longest = logins[sources.index(source)]
        longest.leaving = True
        log.warning("%s: must leave, for there are %d logins", longest.session, len(logins))
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(longest.pidfd, signal.SIGTERM)

    def _refresh_inventory(self) -> None:
        """Know the nodes that were enrolled since the last session; a broken file changes nothing."""
        if (seen := stamp(self._config.inventory)) != self._inventory:
            self._inventory = seen
            try:
                self._config = with_inventory(self._config)
                self._policy = Policy(self._config)
            except SshrecError as error:
                log.warning("%s; the nodes known before stay", error)
                post(self._config.audit_socket, "config.problem", {"problem": str(error), "refused": True})

    def _become_worker(
        self,
        session: str,
        gateway: socket.socket,
        ours: socket.socket,
        theirs: socket.socket,
        others: Counter[int],
    ) -> None:
        """In the child: keep nothing of the daemon's, conduct the session, end."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            os.setsid()
            ours.close()
            self._let_go()
            worker = Worker(self._config, session, gateway, theirs, others, self._policy)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda number, _: worker.kill(f"signal {number}"))
            worker.run()
            status = 0
        except BaseException:
            log.exception("%s: the worker failed", session)
        finally:
            os._exit(status)

    def _let_go(self) -> None:
        """Close every descriptor of the daemon's in a child."""
        for end in (self._listener, *self._wake):
            end.close()
        for worker in self._workers.values():
            worker.channel.close()
            os.close(worker.pidfd)
        for pidfd in (self._housekeeper.pidfd, *self._children):
            if pidfd is not None:
                os.close(pidfd)

    # ---- while they live --------------------------------------------------------------------------------

    def _hear(self, worker: Supervised) -> bool:
        """One message of a worker; False where there is none (any more)."""
        try:
            message = worker.channel.recv(handoff.MESSAGE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            message = b""
        if not message:  # the pidfd will tell when it has ended
            self._hang_up(worker)
            return False
        worker.beat = time.monotonic()
        if message != b"b":
            before = worker.status.get("state")
            with contextlib.suppress(msgspec.DecodeError):
                worker.status = msgspec.json.decode(message, type=dict[str, Any])
                worker.uid = worker.status.get("uid", worker.uid)
            if worker.status.get("state") != before:
                _log(worker)
        return True

    def _hang_up(self, worker: Supervised) -> None:
        if worker.channel.fileno() >= 0:
            self._poll.unregister(worker.channel)
            del self._channels[worker.channel.fileno()]
            worker.channel.close()

    def _check(self, now: float, *, slept: bool) -> None:
        """Kill the hop of a worker that is stuck (a hung disk): unrecorded, nothing may go on. Then the worker.

        `slept`: so were we ourselves (a suspended or frozen machine), and nobody could have beaten.
        """
        self._keep_children()
        if now - self._rescanned >= RESCAN_SECONDS:
            self._rescan()
        for worker in self._workers.values():
            if slept:
                worker.beat = now
            silent = now - worker.beat
            if silent >= STUCK_SECONDS and not worker.hop_killed and worker.channel.fileno() >= 0:
                worker.hop_killed = True
                log.error("%s: no heartbeat for %.0f s, its hop is killed", worker.session, silent)
                _kill_child(worker.pid, worker.status.get("hop"))
                cause.leave(Path(self._config.run_dir, worker.session), STUCK)
            if silent >= DEAD_SECONDS:
                with contextlib.suppress(ProcessLookupError):  # what the disk holds fast dies once it lets go
                    signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)

    # ---- when they end ----------------------------------------------------------------------------------

    def _reap(self, worker: Supervised) -> None:
        if worker.forked:
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid == 0:
                return  # the event was another's, who had the number before
            if status:
                log.error("%s: its worker died (%d)", worker.session, os.waitstatus_to_exitcode(status))
        while worker.channel.fileno() >= 0 and self._hear(worker):
            pass  # its last words
        self._hang_up(worker)
        self._poll.unregister(worker.pidfd)
        del self._workers[worker.pidfd]
        os.close(worker.pidfd)
        self._housekeep(worker.session)

    def _housekeep(self, *sessions: str, live: Iterable[str] = ()) -> None:
        """Have what these sessions left looked after, and those that live packed ahead where they are long."""
        before = self._housekeeper.pidfd
        self._housekeeper.add(sessions, live)
        if self._housekeeper.pidfd not in (None, before):
            self._poll.register(self._housekeeper.pidfd, select.POLLIN)

    def _housekept(self, pidfd: int) -> None:
        if self._housekeeper.ended():
            self._poll.unregister(pidfd)
            self._housekeep()

    def _keep_children(self) -> None:
        """See to it that somebody writes the audit log, takes it off the host, and ends locked sessions."""
        for child in (self._shipper, self._warden, self._log_writer):
            if child.check() and child.pidfd is not None:
                self._children[child.pidfd] = child
                self._poll.register(child.pidfd, select.POLLIN)

    def _childless(self, pidfd: int) -> None:
        if self._children[pidfd].ended():
            del self._children[pidfd]
            self._poll.unregister(pidfd)
            self._keep_children()

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stop = True


def _log(worker: Supervised) -> None:
    """What a worker tells of its session. (It has no log of its own: that would cost it half a megabyte.)"""
    status = worker.status
    if status["state"] == "connecting":
        log.info("%s: %s to %s", worker.session, status.get("user"), status.get("target"))
    elif status["state"] == "refused":
        log.warning("%s: refused %s: %s", worker.session, status.get("user", "a visit"), status.get("error"))
    elif status["state"] == "ended":
        quiet = status.get("reason") in ("exit", "client-disconnect")
        detail = f": {status['detail']}" if status.get("detail") else ""
        log.log(
            logging.INFO if quiet else logging.WARNING,
            "%s: %s, status %s%s",
            worker.session,
            status.get("reason"),
            status.get("status"),
            detail,
        )


def keep_heap() -> None:
    """Have glibc keep what a worker or a packer frees: each read of 64 KiB would grow the heap and trim it again.

    mallopt(3); measured as a quarter of a worker's CPU on bulk output. Idle sessions are not larger for it.
    """
    libc = ctypes.CDLL(None)
    for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        libc.mallopt(parameter, 4 * 1024 * 1024)


def notify(state: str) -> None:
    """Tell systemd, where it asked to be told: sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)


def _uid(account: str) -> int | None:
    try:
        return pwd.getpwnam(account).pw_uid
    except KeyError:
        return None


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody serves; ConfigError where somebody does."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            return
        else:
            raise ConfigError(f"another sshrecd serves {path}")


def _kill_child(parent: int, child: object) -> None:
    """Kill a process if it is that parent's child still."""
    if not isinstance(child, int):
        return
    with contextlib.suppress(OSError, IndexError, ValueError):
        pidfd = os.pidfd_open(child)
        try:
            status = Path(f"/proc/{child}/stat").read_text()
            if int(status[status.rindex(")") + 2 :].split()[1]) == parent:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
