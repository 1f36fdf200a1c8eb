"""A session's steps, gone through before the first session, in the process that workers are forked from.

Python 3.11 and later rewrite a function's bytecode while they learn what it does, and fill caches on the way.
A worker that is the first to do so turns pages that it shared with sshrecd into its own: 0.6 MiB a session,
and some milliseconds of its start.
"""

from __future__ import annotations

import os
import pty
import socket
import termios
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from sshrec.access import protocol
from sshrec.access.decision import Case, Place, Subject, Terms
from sshrec.access.policy import Policy
from sshrec.access.protocol import Allowed
from sshrec.audit.client import Sender
from sshrec.config import Config
from sshrec.gateway import handoff, network, request, terminal
from sshrec.gateway.hop import under_pty, with_pipes
from sshrec.gateway.judge import AuthServiceJudge
from sshrec.gateway.relay import Loop, Pump
from sshrec.gateway.trail import Trail
from sshrec.gateway.visit import Visit
from sshrec.openssh import certificate, client
from sshrec.recording import asciicast
from sshrec.recording.recorder import Recorder
from sshrec.recording.seal import Outcome
from sshrec.session import Credential, Target, Winsize

TIMES = 10  # bytecode is settled after eight
_AUTH = b"publickey ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n"
_TRUE = [b"/bin/true"]


class _Nowhere:
    """A sink that keeps nothing."""

    def write(self, data: bytes) -> None:
        pass

    def sync(self) -> None:
        pass


def rehearse(config: Config) -> None:
    """Go through the steps. Leaves no thread, no process, no descriptor and no file."""
    for _ in range(TIMES):
        _arrive()
        _decide(config)
        _relay()
        _log()
    for _ in range(3):
        _hop()


def _arrive() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    master, slave = pty.openpty()
    facts = (
        b"Hcommand=root@web1 id\0connection=192.0.2.1 1 192.0.2.2 22\0term=xterm\0lang=C\0agent=1\0auth=" + _AUTH
    )
    with ours, theirs:
        socket.send_fds(theirs, [facts], [slave, slave, slave])
        visit = Visit(handoff.receive_hello(ours))
        assert visit.modes is not None
        visit.modes.raw()
        terminal.copy_winsize(visit.stdin, master)
        visit.close()
    os.close(master)
    os.close(slave)


def _decide(config: Config) -> None:
    wanted = request.parse(b"root@web1 id", terminal=False, login="root")
    policy = Policy(config)
    policy.locate(Target("root", "web1"))
    address = network.resolve("192.0.2.1", 22, 1, Loop(), lambda _: None)
    place = Place("web1", "192.0.2.1", 22, named=True)
    network.is_own(address[0])
    case = Case(
        subject=Subject(user="root"),
        login="root",
        kind=wanted.kind,
        place=place,
        addresses=address,
        own=frozenset(),
        when=datetime.now(),
    )
    policy.authorise(case)
    credential = certificate.accepted(_AUTH)
    assert credential is not None
    _ask(case, credential)
    run = client.Run(Path("/run/sshrec/rehearsal"))
    client.configuration(config, run, login="root", name="web1", port=22, terminal=True, lang=b"C")
    client.arguments(run, "web1", b"id")
    log = client.Log()
    log.feed(b"debug1: Entering interactive session.\r\nAuthenticated to web1\r\n")


def _ask(case: Case, credential: Credential) -> None:
    """The question to the auth service, whose part we play."""
    loop, askers = Loop(), list[socket.socket]()
    with socket.socket(socket.AF_UNIX) as service:
        service.bind("")  # an abstract name that nobody else has: unix(7)
        service.listen()

        def until(condition: Callable[[], bool]) -> None:
            if not askers:
                askers.append(service.accept()[0])
                protocol.receive_question(askers[0])
                protocol.send(askers[0], Allowed("rehearsal", ("192.0.2.1",), Terms()))
            loop.run(condition, lambda: 1.0)

        judge = AuthServiceJudge(Path(os.fsdecode(service.getsockname())), loop, until)
        judge.authorise(case, Target("root", "web1"), credential)
        judge.close()
    for asker in askers:
        asker.close()


def _relay() -> None:
    header = asciicast.header_line(
        width=80, height=24, timestamp=0, title="", command=None, env={"TERM": "xterm"}, facts={"terminal": True}
    )
    recorder = Recorder(_Nowhere(), "0" * 26, header, wall_ms=0, terminal=True, stream_limit=0)
    loop = Loop()
    source, sink = os.pipe(), os.pipe()
    pump = Pump(loop, source[0], sink[1], lambda data: recorder.output(0, data) if data else b"")
    os.write(source[1], "naïve\r\n".encode())
    turns = iter(range(3))
    loop.run(lambda: next(turns, None) is None, lambda: 0.0)
    pump.stop()
    recorder.input(1, memoryview(b"x"), keep=False)
    recorder.tick(1, 0)
    recorder.close(2, 0, Outcome("exit", status=0))
    for fd in (*source, *sink):
        os.close(fd)


def _log() -> None:
    facts = {
        "session": "0" * 26,
        "user": "root",
        "uid": 0,
        "login": "root",
        "host": "web1",
        "client": "192.0.2.1 1",
    }
    facts |= {"target": "root@web1", "kind": "exec", "terminal": False, "rule": "nodes", "recording": "proxy"}
    sender = Sender(Path("/nonexistent"))
    trail = Trail(sender, Loop(), facts)
    size = Winsize(80, 24)
    trail.started(size, "192.0.2.2 22")
    trail.resized(size)
    trail.synced((1, "0" * 64), 1, 1)
    trail.tick()
    sender.close()


def _hop() -> None:
    master, slave = pty.openpty()
    modes = termios.tcgetattr(slave)
    for hop in (under_pty(_TRUE, {}, modes, Winsize(80, 24), quiet=True), with_pipes(_TRUE, {})):
        hop.reap()
        hop.close()
    os.close(master)
    os.close(slave)
