"""The auth service away, hung, killed and besieged; its database locked, full, gone, or of another version.

New sessions are refused with one clear line and live ones go on; then it works again, and only it was restarted.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from sshrec.access.protocol import (
    MESSAGE_MAX,
    Advance,
    Allowed,
    Authenticated,
    CheckFactor,
    FactorNeeded,
    Failed,
    Forbidden,
    packed,
)
from sshrec.errors import DataError, Denied
from tests.disks import disk, fill
from tests.e2e.guarded import PASSWORD, Guarded, errors, question, source
from tests.e2e.recorded import last
from tests.lab import PROMPT, Lab

HINT = "hint: an administrator can start it: systemctl start sshrec-auth; root's own login is not affected\n"
ONE = ("-A", "bastion", "root@web1", "echo in")


@pytest.fixture(scope="module")
def whole(several_uids: bool) -> Iterator[Guarded]:
    with Lab(several_uids=several_uids) as lab:
        bastion = Guarded(lab)
        yield bastion
        bastion.close()


@pytest.fixture
def bastion(whole: Guarded) -> Iterator[Guarded]:
    """It serves a session before the test, and after it."""
    assert whole.lab.ssh(*ONE).stdout == b"in\n"
    yield whole
    whole.lab.end_sessions()
    assert whole.lab.ssh(*ONE).stdout == b"in\n"
    whole.lab.expect_nothing_left()


@pytest.fixture
def lab(bastion: Guarded) -> Lab:
    return bastion.lab


def refused(lab: Lab) -> str:
    """What somebody is told who comes now."""
    done = lab.ssh(*ONE)
    assert (done.returncode, done.stdout) == (255, b"")
    assert b"Traceback" not in done.stderr
    return errors(done.stderr)


def asking(bastion: Guarded) -> None:
    """Wait until a worker is at its question."""
    bastion.wait_for(state="starting", user="joe", host="web1", addresses=["127.0.0.1"])


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# ---- away, and back -----------------------------------------------------------------------------------------


def test_away_and_back(lab: Lab) -> None:
    child = lab.spawn("-tA", "bastion", "root@web1")
    child.expect(PROMPT)
    lab.stop_authd()
    try:
        assert refused(lab).endswith(f"run-auth/auth.sock does not answer: no such file or directory\n{HINT}")
        child.sendline("echo sti''ll; exit")
        child.expect_exact("still\r\n")
        child.expect(pexpect.EOF)
        recorded = last(lab)
        assert "still\r\n" in recorded.text
        assert recorded.end["reason"] == "exit"
    finally:
        lab.start_authd()


def test_a_restart_is_waited_for(bastion: Guarded, lab: Lab) -> None:
    """Which lasts for a moment: the socket is not there."""
    path = lab.directory / "run-auth" / "auth.sock"
    away = path.with_name("away")
    path.rename(away)
    try:
        one = lab.popen(*ONE)
        asking(bastion)
    finally:
        away.rename(path)
    assert one.communicate(timeout=30)[0] == b"in\n"


def test_a_person_does_not_wait_for_it_in_vain(bastion: Guarded, lab: Lab) -> None:
    """Who hangs up meanwhile is gone at once."""
    with stopped(lab.authd_pid):
        child = lab.spawn("-tA", "bastion", "root@web1")
        asking(bastion)
        child.close(force=True)
        lab.wait(lambda: not list(lab.run_dir.glob("*/control")), "the visit to be over", timeout=8)


def test_killed_in_the_middle_of_a_start(bastion: Guarded, lab: Lab) -> None:
    os.kill(lab.authd_pid, signal.SIGSTOP)
    one = lab.popen(*ONE)
    asking(bastion)
    os.kill(lab.authd_pid, signal.SIGKILL)
    lab.stop_authd()
    error = errors(one.communicate(timeout=30)[1])
    assert re.search("run-auth/auth.sock (does not answer: connection .*|has hung up)\n", error)
    assert error.endswith(HINT)
    lab.start_authd()


def test_hung(bastion: Guarded, lab: Lab) -> None:
    """Answers nothing, while its socket takes connections. Live sessions and the audit log go on."""
    child = lab.spawn("-tA", "bastion", "root@web1")
    child.expect(PROMPT)
    with stopped(lab.authd_pid):
        assert refused(lab).endswith(f"run-auth/auth.sock does not answer in time\n{HINT}")
        bastion.rejected("does not answer in time")
        child.sendline("echo sti''ll; exit")
        child.expect_exact("still\r\n")
        child.expect(pexpect.EOF)
        assert last(lab).end["reason"] == "exit"
    assert "its hop is killed" not in (lab.directory / "sshrecd.log").read_text()


def test_restarted_at_the_code(bastion: Guarded, lab: Lab) -> None:
    joe = bastion.person("joe")
    joe.register()
    child = lab.spawn("-tA", "bastion", "deploy@web1")
    child.expect_exact("Code for deploy@web1: ")
    lab.stop_authd()
    lab.start_authd()
    child.send(f"{joe.recovery_code()}\r")
    child.expect(PROMPT)


def test_many_come_at_once(bastion: Guarded, lab: Lab) -> None:
    answers: list[object] = []

    def ask() -> None:
        with bastion.service(30) as service:
            answers.append(service.authorise(question(lab)))

    threads = [threading.Thread(target=ask) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(answer) for answer in answers] == [Allowed] * 200
    many = [lab.popen(*ONE) for _ in range(15)]
    assert [one.communicate(timeout=60)[0] for one in many] == [b"in\n"] * 15


# ---- the database -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(bastion: Guarded) -> Iterator[None]:
    """Somebody is writing, and does not end."""
    code = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('BEGIN EXCLUSIVE')\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    account = bastion.lab.account("sshrec-auth")
    own: dict[str, Any] = {"user": account.uid, "group": account.gid} if bastion.lab.several_uids else {}
    path = str(bastion.lab.authority_dir / "sshrec.db")
    argv = [str(bastion.lab.installation.programs / "python"), "-c", code, path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", **own) as process:
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        yield
        process.communicate()


def test_locked_by_another_writer(bastion: Guarded, lab: Lab) -> None:
    """Who needs no code needs no writing; a code that was not looked at is good afterwards."""
    joe = bastion.person("joe")
    joe.register()
    code = joe.recovery_code()
    with writing(bastion):
        assert lab.ssh(*ONE).stdout == b"in\n"
        child = lab.spawn("-tA", "bastion", "deploy@web1")
        child.expect_exact("Code for deploy@web1: ")
        child.send(f"{code}\r")
        child.expect_exact("sshrec.db is locked: another process has been writing for 3 s")
        child.expect_exact("hint: nothing was written; try again")
        child.expect(pexpect.EOF)
    child = lab.spawn("-tA", "bastion", "deploy@web1")
    child.expect_exact("Code for deploy@web1: ")
    child.send(f"{code}\r")
    child.expect(PROMPT)


def files_of(path: Path) -> tuple[Path, ...]:
    """A database's files."""
    return tuple(Path(f"{path}{end}") for end in ("", "-wal", "-shm"))


@contextlib.contextmanager
def replaced(lab: Lab, make: Callable[[Path], None] | None) -> Iterator[None]:
    """Another database, or none, while the service runs."""
    path = lab.authority_dir / "sshrec.db"
    files = [(file, file.with_name(f"kept{file.name}")) for file in files_of(path) if file.exists()]
    for file, kept in files:
        file.rename(kept)
    try:
        if make is not None:
            make(path)
        yield
    finally:
        for file in files_of(path):
            file.unlink(missing_ok=True)
        for file, kept in files:
            if kept.exists():  # the last to read the database takes its -wal in
                kept.rename(file)


def test_missing(lab: Lab) -> None:
    with replaced(lab, None):
        said = "the auth service refuses: database .*/sshrec.db does not exist\nhint: run: sshrec-ca init\n"
        assert re.fullmatch(f"sshrec: error: {said}", refused(lab))


def made(bastion: Guarded, statements: str) -> Callable[[Path], None]:
    """A database of the auth service's, after these statements."""

    def make(path: Path) -> None:
        code = (
            "import sqlite3, sys\n"
            "source, made = sqlite3.connect(sys.argv[1]), sqlite3.connect(sys.argv[2])\n"
            "source.backup(made)\n"
            "made.executescript(sys.argv[3])\n"
        )
        bastion.in_authority(code, str(path.with_name(f"kept{path.name}")), str(path), statements)

    return make


def test_a_newer_schema(bastion: Guarded, lab: Lab) -> None:
    with replaced(lab, made(bastion, "UPDATE alembic_version SET version_num = '9999'")):
        said = errors(lab.ssh(*ONE).stderr)
        assert "sshrec.db has schema '9999'; this sshrec knows none after" in said
        assert "hint: a newer sshrec has migrated it: use that one\n" in said


def test_an_older_schema(bastion: Guarded, lab: Lab) -> None:
    """It is migrated; what that one did not have is not there, and what it says is done."""

    def make(path: Path) -> None:
        code = (
            "import sys\n"
            "from sshrec.storage import database\n"
            "database.HEAD = '0001'\n"
            "database.Database.open(sys.argv[1], create=True).close()\n"
        )
        bastion.in_authority(code, f"sqlite:///{path}")

    with replaced(lab, make):
        assert "login root is not among" in refused(lab)  # nobody is in it yet
        with bastion.service() as service:
            assert service.locks() == ()


def test_no_database_at_all(bastion: Guarded, lab: Lab) -> None:
    def make(path: Path) -> None:
        path.write_bytes(b"This is no database. " * 100)
        path.chmod(0o644)

    with replaced(lab, make):
        assert "sshrec.db is not an SQLite database\n" in refused(lab)


@pytest.mark.root
def test_nobody_may_read_it(lab: Lab) -> None:
    path = lab.authority_dir / "sshrec.db"
    owner = path.stat()

    def make(path: Path) -> None:
        path.touch(0o600)  # root's

    with replaced(lab, make):
        assert "sshrec.db cannot be opened: permission denied\n" in refused(lab)
    assert path.stat().st_uid == owner.st_uid


@pytest.mark.root
def test_a_full_disk(bastion: Guarded, lab: Lab) -> None:
    """Who needs no code gets in; a code is not looked at, and good once there is room."""
    joe, account = bastion.person("joe"), lab.account("sshrec-auth")
    with disk(lab.directory / "small", 4 << 20, owner=(account.uid, account.gid)) as small:
        code = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).backup(sqlite3.connect(sys.argv[2]))"
        bastion.in_authority(code, str(lab.authority_dir / "sshrec.db"), str(small / "sshrec.db"))
        try:
            bastion.restart({"database": f"sqlite:///{small}/sshrec.db"})
            joe.register()
            code = joe.recovery_code()
            filler = fill(small)
            assert lab.ssh(*ONE).stdout == b"in\n"
            child = lab.spawn("-tA", "bastion", "deploy@web1")
            child.expect_exact("Code for deploy@web1: ")
            for _ in range(100):  # until what there was of room in its files is used up, too
                with bastion.service() as service:
                    try:
                        service.check_factor(CheckFactor("", f"user{time.monotonic_ns()}", "1", source()))
                    except Denied:
                        break
            child.send(f"{code}\r")
            child.expect_exact("cannot grow: no space left on device")
            child.expect(pexpect.EOF)
            filler.unlink()
            child = lab.spawn("-tA", "bastion", "deploy@web1")
            child.expect_exact("Code for deploy@web1: ")
            child.send(f"{code}\r")
            child.expect(PROMPT)
            child.sendline("exit")
            child.expect(pexpect.EOF)
        finally:
            bastion.restart()


# ---- a siege ----------------------------------------------------------------------------------------------


@pytest.mark.root
def test_strangers_are_told_and_go(lab: Lab) -> None:
    code = (
        "import socket, sys\n"
        "socks = []\n"
        "for _ in range(1000):\n"
        "    sock = socket.socket(socket.AF_UNIX)\n"
        "    sock.connect(sys.argv[1])\n"
        "    socks.append(sock)\n"
        "print(*{sock.recv(1000)[4:] for sock in socks})\n"
    )
    path = str(lab.directory / "run-auth" / "auth.sock")
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, path],
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        timeout=60,
    )
    assert done.stdout.count(b"you are not one of those who may ask") == 1, done.stderr
    assert lab.ssh(*ONE).stdout == b"in\n"


def test_a_thousand_who_say_nothing(bastion: Guarded, lab: Lab) -> None:
    """As a worker could be made to. Whoever has most connections loses the oldest; others are served."""
    path = str(lab.directory / "run-auth" / "auth.sock")
    with contextlib.ExitStack() as stack, bastion.service() as service:
        code = (
            "import socket, sys\n"
            "socks = []\n"
            "for _ in range(1000):\n"
            "    sock = socket.socket(socket.AF_UNIX)\n"
            "    sock.connect(sys.argv[1])\n"
            "    socks.append(sock)\n"
            "print(flush=True)\n"
            "sys.stdin.read()\n"
        )
        argv = ["prlimit", "--nofile=2000", sys.executable, "-I", "-c", code, path]
        process = stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        stack.callback(process.kill)
        service.locks()
        assert process.stdout is not None and process.stdout.readline() == b"\n"
        assert lab.ssh(*ONE).stdout == b"in\n"
        assert service.locks() == ()  # on the very connection of before


def test_rubbish(bastion: Guarded, lab: Lab) -> None:
    path = str(lab.directory / "run-auth" / "auth.sock")
    long = packed(Advance(b"x" * (MESSAGE_MAX // 2)))
    for data in (
        b"\0\0\0\2{}",
        b"\xff\xff\xff\xff",
        (MESSAGE_MAX + 1).to_bytes(4) + b"x" * 1000,
        b"\0\0\0\x20[[[[",
        b"GET / HTTP/1.1\r\n\r\n",
        long[:-1],
        os.urandom(100_000),
    ):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(20)
            peer.connect(path)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                peer.sendall(data)
                peer.shutdown(socket.SHUT_WR)
                assert peer.recv(100) == b""
    with pytest.raises(DataError):
        packed(Advance(b"x" * MESSAGE_MAX))
    # What has the form of a question and makes no sense is refused, and the connection stays.
    with bastion.service() as service:
        for wrong in (
            question(lab, source="nowhere"),
            question(lab, addresses=("10.0.0.1", "\0")),
            question(lab, own=("x" * 100_000,)),
        ):
            with pytest.raises(Denied, match="not an address"):
                service.authorise(wrong)
        assert isinstance(service.authorise(question(lab, serial=2**64 - 1)), Allowed)
        assert isinstance(service.authorise(question(lab, serial=-1)), Allowed)
        for name in ("", "\0", "joe\n", "jоe", "x" * 10_000):
            assert isinstance(service.authorise(question(lab, user=name)), Forbidden)
        assert isinstance(service.authorise(question(lab, host="\0")), Forbidden)
    assert "Traceback" not in (lab.directory / "authd.log").read_text()


def test_what_a_worker_may_ask_gives_it_nothing(bastion: Guarded, lab: Lab) -> None:
    """It may claim to be anybody's: yes or no is all that it learns, and no certificate without a password."""
    key = (lab.laptops["joe"].key.with_suffix(".pub")).read_text()
    with bastion.service() as service:
        with pytest.raises(Denied, match="nobody has logged in on this connection"):
            service.sign_key(key)
        assert isinstance(service.authorise(question(lab)), Allowed)
        with pytest.raises(Denied, match="nobody has logged in on this connection"):
            service.sign_key(key)
        # A right code opens the session that it was shown for, and nothing else.
        joe = bastion.person("joe")
        joe.register()
        asked = question(lab, "deploy")
        assert isinstance(service.authorise(asked), FactorNeeded)
        right = CheckFactor(asked.session, "joe", joe.recovery_code(), source())
        assert service.check_factor(right) is None
        assert isinstance(service.authorise(asked), Allowed)
        assert isinstance(service.authorise(question(lab, "deploy", session="another")), FactorNeeded)
        alice = question(lab, "deploy", "web2", user="alice", key_id=None, serial=None)
        assert isinstance(service.authorise(alice), Forbidden)
        with pytest.raises(Denied, match="nobody has logged in on this connection"):
            service.sign_key(key)
        assert isinstance(service.redeem("x" * 26, source()), Failed)
    with bastion.service() as another:
        assert isinstance(another.authorise(asked), FactorNeeded)


def test_who_dawdles_gets_what_is_theirs_by_then(bastion: Guarded, lab: Lab) -> None:
    """Between password and certificate an administrator takes a login away, and then all that was shown."""
    key = (lab.laptops["joe"].key.with_suffix(".pub")).read_text()
    joe = bastion.person("joe")
    joe.register()
    bastion.admin("users", "update", "joe", "root,extra")
    with bastion.service() as service:
        assert isinstance(service.authenticate("joe", PASSWORD, joe.recovery_code(), source()), Authenticated)
        bastion.admin("users", "update", "joe", "root")
        assert service.sign_key(key).logins == ("root",)
        with pytest.raises(Denied, match="no time that a certificate"):
            service.sign_key(key, -1)
        joe.register()
        with pytest.raises(Denied, match="the account of joe was reset or removed meanwhile"):
            service.sign_key(key)
