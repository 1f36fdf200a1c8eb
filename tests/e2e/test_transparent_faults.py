"""The transparent way in, when something breaks: what the person is told, what goes on, and that nothing is left.

The last is what the fixture `lab` looks for after each of them: no process, socket, run directory or descriptor.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pexpect
import pytest

from tests.e2e.guarded import Guarded
from tests.e2e.recorded import Recorded, last, packed
from tests.e2e.registered import admin
from tests.e2e.transparent import Through
from tests.lab import PROMPT, Lab
from tests.lab.people import make_key
from tests.lab.processes import children

WEB1 = "root@web1"
BY_THEMSELVES = (("client-disconnect", None), ("exit", None))  # a command that reads sees the end, too

# ssh between two pipes, which is killed once so many bytes went up.
_CUT = """\
import os, select, subprocess, sys
limit, argv = int(sys.argv[1]), sys.argv[2:]
child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
while True:
    for fd in select.select([0, child.stdout], [], [])[0]:
        data = os.read(fd if fd == 0 else child.stdout.fileno(), min(65536, max(limit, 1)) if fd == 0 else 65536)
        if fd == 0:
            os.write(child.stdin.fileno(), data[:limit])
            limit -= len(data)
        else:
            os.write(1, data)
        if not data or limit <= 0:
            child.kill()
            child.wait()
            sys.exit()
"""


@pytest.fixture
def through(lab: Lab) -> Through:
    return Through(lab)


class Held:
    """A command that says what it is told, until it is told to end."""

    def __init__(self, through: Through, *options: str) -> None:
        self.child = through.popen(
            *options, WEB1, "echo here; while read line && [ $line != end ]; do echo $line; done"
        )
        assert self.child.stdin and self.child.stdout
        self.stdin, self.stdout = self.child.stdin, self.child.stdout
        assert self.stdout.readline() == b"here\n"

    def lives(self) -> None:
        self.stdin.write(b"again\n")
        self.stdin.flush()
        assert self.stdout.readline() == b"again\n"

    def over(self) -> tuple[int, str]:
        """Its status, and what it said at last, of one that somebody else ends."""
        self.child.wait(30)
        _, error = self.child.communicate(timeout=30)
        return self.child.returncode, error.decode()

    def end(self) -> None:
        self.child.communicate(b"end\n", timeout=30)
        assert self.child.returncode == 0


@contextlib.contextmanager
def master(through: Through, *more: str) -> Iterator[list[str]]:
    """The options by which ssh goes by a connection that stands already, made with `more`."""
    options = ["-o", f"ControlPath={through.lab.directory}/cm", *more]
    forever = [*options, "-o", "ControlMaster=yes", "-o", "ControlPersist=yes"]
    through.run("ssh", *forever, WEB1, "true").check_returncode()
    try:
        yield options
    finally:
        through.run("ssh", *options, "-O", "exit", WEB1)


def who(lab: Lab, *options: str) -> list[dict[str, Any]]:
    """What `sshrec who` says."""
    found: list[dict[str, Any]] = json.loads(lab.sshrec("who", "--json", *options).stdout)["sessions"]
    return found


def connection(lab: Lab) -> dict[str, Any]:
    """The one that there is."""
    (found,) = (one for one in who(lab, "--all") if one["state"] == "connection")
    return found


def reasons(lab: Lab, count: int) -> list[tuple[str, str | None]]:
    """Why the newest sessions ended."""
    return [(one.end["reason"], one.end.get("detail")) for one in map(Recorded, packed(lab, count))]


# ---- cut ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 20, 300, 1000, 1600, 1800, 2400, 2800, 3200])
def test_cut_after_so_many_bytes(lab: Lab, through: Through, count: int) -> None:
    """Of the inner connection: before its banner, in each message of the handshake, in the proof of the key."""
    program = through.laptop.directory / "cut.py"
    program.write_text(_CUT)
    outer = shlex.join(lab.ssh_argv("-A", "bastion", "sshrec-proxy", "root", "web1", "22"))
    done = through.run("ssh", "-o", f"ProxyCommand={sys.executable} {program} {count} {outer}", WEB1, "sleep 60")
    assert done.returncode == 255
    assert b"sshrec: error: " not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_outer_ssh_is_ended(lab: Lab, through: Through, number: int) -> None:
    held = Held(through)
    for pid in children(held.child.pid, "ssh"):
        os.kill(pid, number)
    assert held.over()[0] == 255
    assert reasons(lab, 1)[0] in BY_THEMSELVES


def test_the_inner_sshd_is_killed(lab: Lab, through: Through) -> None:
    held = Held(through)
    for pid in children(connection(lab)["pid"], "sshd"):
        os.kill(pid, signal.SIGKILL)
    assert held.over()[0] == 255
    assert reasons(lab, 1)[0] in BY_THEMSELVES
    lab.remove_sshd_files()  # nobody else can


def test_the_connections_worker_is_killed(lab: Lab, through: Through) -> None:
    """What it had under it goes with it, a connection without a session, too."""
    held = Held(through)
    os.kill(connection(lab)["pid"], signal.SIGKILL)
    assert held.over()[0] == 255
    with master(through):
        os.kill(connection(lab)["pid"], signal.SIGKILL)
        lab.wait(lambda: not who(lab, "--all"), "the connection to go")
    lab.remove_sshd_files()


def test_the_sessions_worker_is_killed(lab: Lab, through: Through) -> None:
    """One session ends, and its connection has room for the next."""
    with master(through) as options:
        held = Held(through, *options)
        (session,) = who(lab)
        os.kill(session["pid"], signal.SIGKILL)
        status, error = held.over()
        assert (status, "the recorder ended without a word" in error) == (255, True)
        assert through.run("ssh", *options, WEB1, "echo on").stdout == b"on\n"


# ---- the way to the target --------------------------------------------------------------------------------


def test_the_way_to_the_target_breaks(lab: Lab, through: Through) -> None:
    """Whoever goes by it is told; who comes later has one of their own."""
    with master(through) as options:
        held = Held(through, *options)
        (pid,) = children(connection(lab)["pid"], "ssh")
        os.kill(pid, signal.SIGKILL)
        status, error = held.over()
        assert (status, error) == (
            255,
            "sshrec: error: the connection to web1 was lost: ssh gave up without a word\n",
        )
        assert through.run("ssh", *options, WEB1, "echo on").stdout == b"on\n"


def test_a_command_that_a_signal_ends(lab: Lab, through: Through) -> None:
    done = through.run("ssh", WEB1, "kill -9 $$")
    assert (done.returncode, done.stderr) == (255, b"sshrec: error: the command on web1 was ended by a signal\n")
    assert last(lab).end["signal"] == "unknown"
    assert through.run("ssh", WEB1, "exit 255").stderr == b""


def test_more_sessions_than_the_target_lets_in(lab: Lab, through: Through) -> None:
    """MaxSessions: those past it go for themselves, as they would by ssh's own master."""
    config = lab.directory / "web1" / "sshd_config"
    text = config.read_text()
    config.write_text(f"MaxSessions 2\n{text}")
    lab.expect_nothing_left()
    lab.sshds["web1"].reload()
    try:
        with master(through) as options:
            several = [Held(through, *options) for _ in range(4)]
            done = through.run("ssh", "-tt", *options, WEB1, "tty; exit 3", input=b"")
            assert (done.returncode, b"/dev/pts/" in done.stdout) == (3, True)
            for held in several:
                held.lives()
                held.end()
    finally:
        config.write_text(text)
        lab.expect_nothing_left()  # an sshd that reads its configuration again forgets its children
        lab.sshds["web1"].reload()
    assert {Recorded(path).end["address"] for path in packed(lab, 5)} == {f"127.0.0.1:{lab.sshds['web1'].port}"}


def test_a_target_that_is_not_there(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    lab.stop_sshrecd()
    lab.start_sshrecd({"nodes": [{"name": "gone", "address": "127.0.0.1", "port": port}]})
    done = Through(lab).run("ssh", "root@gone", "id")
    told = f"sshrec: error: cannot reach gone: 127.0.0.1:{port}: connection refused\n"
    assert (done.returncode, done.stderr.decode()) == (255, told)


def test_a_target_that_lets_nobody_in(lab: Lab, through: Through) -> None:
    done = through.run("ssh", "alice@web1", "id") if lab.several_uids else through.run("ssh", "deploy9@web1", "id")
    assert done.returncode == 255
    assert b"web1 does not let you in as " in done.stderr


# ---- sshrecd, the auth service, locks -----------------------------------------------------------------------


def test_sshrecd_is_restarted(lab: Lab, through: Through) -> None:
    with master(through) as options:
        held = Held(through, *options)
        lab.stop_sshrecd(signal.SIGKILL)
        held.lives()
        away = through.run("ssh", *options, WEB1, "id")
        assert away.returncode == 255
        assert b"sshrecd does not answer, so no session can be recorded" in away.stderr
        lab.start_sshrecd()
        held.lives()
        assert through.run("ssh", *options, WEB1, "echo new").stdout == b"new\n"
        held.end()


def test_the_auth_service_is_away(lab: Lab, through: Through) -> None:
    with master(through) as options:
        held = Held(through, *options)
        lab.stop_authd()
        try:
            away = through.run("ssh", *options, WEB1, "id")
            assert away.returncode == 255
            assert b"hint: an administrator can start it: systemctl start sshrec-auth" in away.stderr
            other = through.run("ssh", WEB1, "id")
            assert (other.returncode, other.stdout) == (255, b"")
            assert b"hint: an administrator can start it: systemctl start sshrec-auth" in other.stderr
            held.lives()
        finally:
            lab.start_authd()
        assert through.run("ssh", *options, WEB1, "echo back").stdout == b"back\n"
        held.end()


@pytest.mark.parametrize(
    "words", [("user", "joe"), ("node", "web1"), ("login", "root")], ids=lambda words: words[0]
)
def test_a_lock(lab: Lab, through: Through, words: tuple[str, str]) -> None:
    """The connection ends, and all its sessions, which say why; nobody comes in anew."""
    with master(through) as options:
        several = [Held(through, *options) for _ in range(2)]
        admin(lab, "lock", *words, "--reason", "enough")
        try:
            for held in several:
                status, error = held.over()
                assert status == 255
                assert "sshrec: error: this session was ended by a lock: " in error
            lab.wait(lambda: not who(lab, "--all"), "the connection to end")
            done = through.run("ssh", WEB1, "id")
            assert (done.returncode, done.stdout) == (255, b"")
            assert b"is locked: enough" in done.stderr or words[0] == "user"  # whose certificate is revoked
        finally:
            admin(lab, "unlock", *words)
            if words[0] == "user":
                lab.close_laptop(lab.laptops["joe"])
                lab.open_laptop("joe")
    assert {reason for reason, _ in reasons(lab, 2)} == {"killed"}


# ---- an administrator ---------------------------------------------------------------------------------------


def test_who_is_there(lab: Lab, through: Through) -> None:
    with master(through) as options:
        assert who(lab) == []
        assert (connection(lab)["channels"], connection(lab)["target"]) == (0, "root@web1")
        held = Held(through, *options)
        (session,) = who(lab)
        assert session["connection"] == connection(lab)["session"]
        assert connection(lab)["channels"] == 1
        held.end()


def test_an_administrator_ends_the_connection(lab: Lab, through: Through) -> None:
    with master(through) as options:
        several = [Held(through, *options) for _ in range(3)]
        lab.sshrec("kill", connection(lab)["session"])
        for held in several:
            status, error = held.over()
            assert (status, "sshrec: error: this session was ended by " in error) == (255, True)
    assert {reason for reason, _ in reasons(lab, 3)} == {"killed"}


def test_an_administrator_ends_one_session(lab: Lab, through: Through) -> None:
    with master(through) as options:
        one, other = Held(through, *options), Held(through, *options)
        lab.sshrec("kill", who(lab)[0]["session"])
        assert "sshrec: error: this session was ended by " in one.over()[1]
        other.lives()
        other.end()


# ---- nobody wants a session ---------------------------------------------------------------------------------


def test_no_session_at_all(lab: Lab) -> None:
    lab.stop_sshrecd()
    lab.start_sshrecd({"limits": {"first_session": "1s"}})
    done = Through(lab).run("ssh", "-N", WEB1)
    assert done.returncode == 255
    assert done.stderr.startswith(b"sshrec: error: no session was asked for within 1s\nhint: ")


def test_a_master_that_nobody_uses(lab: Lab) -> None:
    lab.stop_sshrecd()
    lab.start_sshrecd({"limits": {"connection_idle": "1s"}})
    through = Through(lab)
    with master(through) as options:
        held = Held(through, *options)
        lab.wait(lambda: connection(lab)["channels"] == 1, "the session")
        held.end()
        lab.wait(lambda: not who(lab, "--all"), "the connection to end")


# ---- whoever else comes -------------------------------------------------------------------------------------


def test_a_second_client_on_the_same_descriptors(lab: Lab, through: Through) -> None:
    """One connection, and then there is nobody at the other end."""
    outer = subprocess.Popen(
        lab.ssh_argv("-A", "bastion", "sshrec-proxy root web1 22"),
        env=through.laptop.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    path = lab.directory / "second"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=_lend, args=(listener, outer, 2))
        thread.start()
        program = through.laptop.directory / "borrow.py"
        program.write_text(_BORROW)
        command = ["-o", f"ProxyCommand={sys.executable} {program} {path}"]
        assert through.run("ssh", *command, WEB1, "echo first").stdout == b"first\n"
        again = through.run("ssh", *command, WEB1, "echo second")
        thread.join(30)
    assert (again.returncode, again.stdout) == (255, b"")
    assert outer.wait(30) == 0


def _lend(listener: socket.socket, outer: subprocess.Popen[bytes], times: int) -> None:
    """The descriptors of one ssh, to one client after the other."""
    assert outer.stdin and outer.stdout
    for _ in range(times):
        client, _ = listener.accept()
        with client:
            up, down = client.fileno(), outer.stdout.fileno()
            while True:
                ready, _, _ = select.select([up, down], [], [])
                data = os.read(ready[0], 65536)
                if not data:
                    break
                with contextlib.suppress(BrokenPipeError):
                    os.write(outer.stdin.fileno() if ready[0] == up else up, data)
    outer.stdin.close()
    outer.stdout.close()


_BORROW = """\
import os, select, socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
while True:
    for fd in select.select([0, sock], [], [])[0]:
        data = os.read(0, 65536) if fd == 0 else sock.recv(65536)
        if not data:
            sys.exit()
        os.write(1, data) if fd is sock else sock.sendall(data)
"""


@pytest.mark.root
def test_another_persons_certificate(lab: Lab, through: Through) -> None:
    """alice's, on the connection that joe opened: it is no key of his."""
    alice = lab.laptop("alice")
    own = ["-o", "IdentitiesOnly=yes", "-o", f"IdentityFile={alice.key}", "-o", "IdentityAgent=none"]
    done = through.run("ssh", *own, WEB1, "id")
    assert done.returncode == 255
    assert b"Permission denied (publickey)" in done.stderr


def test_a_certificate_that_has_expired_since(lab: Lab, through: Through) -> None:
    key = through.laptop.directory / "expired"
    make_key(key, "expired", through.laptop.env)
    lab.authority.sign_user(key, "joe", ["sshrec:joe", "joe", "root"], "-2h:-1h")
    own = ["-o", "IdentitiesOnly=yes", "-o", f"IdentityFile={key}", "-o", "IdentityAgent=none"]
    done = through.run("ssh", *own, WEB1, "id")
    assert done.returncode == 255
    assert b"Permission denied (publickey)" in done.stderr


def test_a_code_for_each_session(several_uids: bool) -> None:
    """With a terminal it is asked for, on each channel; without one, the person is told how to come by."""
    with Lab(several_uids=several_uids) as lab:
        bastion = Guarded(lab)
        try:
            joe = bastion.person("joe")
            joe.register()
            through = Through(lab)
            refused = through.run("ssh", "deploy@web1", "id")
            assert refused.returncode == 255
            assert b"wants a code for each session, and there is no terminal to ask for it" in refused.stderr
            child = pexpect.spawn(
                "ssh", [*through.options, "deploy@web1"], env=dict(through.laptop.env), timeout=30
            )
            child.expect_exact("Code for deploy@web1: ")
            child.send(f"{joe.code()}\r")
            child.expect(PROMPT)
            child.sendline("exit 3")
            child.expect(pexpect.EOF)
            child.close()
            assert child.exitstatus == 3
        finally:
            bastion.close()
        lab.expect_nothing_left()


def test_languages_go_through(lab: Lab, through: Through) -> None:
    """LANG is each session's own, though they share the way to the target."""
    with master(through, "-o", "SendEnv=LANG") as options:
        for lang in ("C.UTF-8", "de_DE.UTF-8"):
            done = through.run("ssh", *options, WEB1, "echo $LANG", env={"LANG": lang})
            assert done.stdout.decode() == f"{lang}\n"


# ---- what is not installed ----------------------------------------------------------------------------------


def test_a_bastion_that_lacks_something(several_uids: bool) -> None:
    """The same installation, which looks for its programs where there is nothing."""
    with Lab(several_uids=several_uids, copy_installation=True) as lab:
        (server,) = lab.directory.glob("venv/**/sshrec/openssh/server.py")
        whole = server.read_text()
        for name, value, told in (
            (
                "SSHD",
                "/nonexistent/sshd",
                "/nonexistent/sshd: no such file or directory\nhint: Debian: openssh-server",
            ),
            ("WRAPPER", "libnowhere.so", "libnowhere.so cannot be loaded\nhint: Debian: libnss-wrapper"),
        ):
            text, count = re.subn(rf'(?m)^{name} = ".*"$', f'{name} = "{value}"', whole)
            assert count == 1
            server.write_text(text)
            lab.stop_sshrecd()
            lab.start_sshrecd()
            done = Through(lab).run("ssh", WEB1, "id")
            assert (done.returncode, done.stdout) == (255, b"")
            assert f"sshrec: error: {told}\n" in done.stderr.decode()
            lab.expect_nothing_left()
