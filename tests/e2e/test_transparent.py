"""`ssh root@web1` with one block in ~/.ssh/config: as if the bastion were not there, and recorded."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sshrec.recording import reader
from tests.e2e.recorded import last, packed
from tests.e2e.transparent import Through
from tests.lab import Lab
from tests.lab.people import make_key
from tests.tokens import token


def facts_of(path: Path) -> dict[str, Any]:
    """What the header of a recording says, live or finished."""
    with reader.open_path(path) as recording:
        return dict(recording.header.facts)


def said(done: subprocess.CompletedProcess[bytes]) -> tuple[int, bytes, bytes]:
    return done.returncode, done.stdout, done.stderr


# ---- as if the bastion were not there ------------------------------------------------------------------


def test_a_command(lab: Lab, through: Through) -> None:
    done = through.run("ssh", "root@web1", "id -un; hostname; echo wrong >&2; exit 3")
    assert said(done) == (3, b"root\nweb1\n", b"wrong\n")
    facts = last(lab).facts
    assert facts["target"] == "root@web1"
    assert facts["user"] == "joe"
    assert re.fullmatch("[0-9A-Z]{26}", facts["connection"])
    assert facts["client"].startswith("127.0.0.1 ")


def test_standard_input_and_binary_bytes(through: Through) -> None:
    data = os.urandom(3_000_000)
    done = through.run("ssh", "root@web1", "cat", input=data)
    assert (done.returncode, done.stdout == data, done.stderr) == (0, True, b"")


def test_a_terminal(lab: Lab, through: Through) -> None:
    done = through.run("ssh", "-tt", "deploy@web2", "tty; stty size; echo I am $USER", input=b"")
    assert done.returncode == 0
    assert b"/dev/pts/" in done.stdout
    assert b"I am deploy\r\n" in done.stdout
    assert last(lab).facts["terminal"] is True


def test_a_shell_without_a_command(through: Through) -> None:
    assert through.run("ssh", "-T", "root@web1", input=b"id -un\nexit 7\n").returncode == 7


def test_sftp(through: Through, tmp_path: Path, scratch: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(os.urandom(2_000_000))
    remote = scratch / "remote"
    batch = f"put {source} {remote}\nls -l {remote}\nget {remote} {copy}\n".encode()
    done = through.run("sftp", "-b", "-", "root@web1", input=batch)
    assert done.returncode == 0, done.stderr
    assert copy.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("options", [[], ["-O"]], ids=["sftp", "rcp"])
def test_scp(through: Through, tmp_path: Path, scratch: Path, options: list[str]) -> None:
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "a file").write_bytes(os.urandom(300_000))
    (tree / "below" / "b").write_bytes(b"")
    done = through.run("scp", *options, "-r", "-p", str(tree), f"root@web1:{scratch}/up")
    assert said(done)[0] == 0, done.stderr
    done = through.run("scp", *options, "-r", "-p", f"root@web1:{scratch}/up", str(tmp_path / "down"))
    assert said(done)[0] == 0, done.stderr
    assert (tmp_path / "down" / "a file").read_bytes() == (tree / "a file").read_bytes()
    assert (tmp_path / "down" / "below" / "b").read_bytes() == b""


def test_sessions_on_one_connection(lab: Lab, through: Through, tmp_path: Path) -> None:
    """ControlMaster: each channel is a session and a recording of its own, tied by the connection's id."""
    before = len(lab.recordings())
    master = ["-o", f"ControlPath={lab.directory}/cm", "-o", "ControlMaster=auto", "-o", "ControlPersist=60"]
    try:
        for number in range(3):
            done = through.run("ssh", *master, "root@web1", f"echo {number}")
            assert said(done)[:2] == (0, f"{number}\n".encode())
        both = [through.popen(*master, "root@web1", "read line; echo $line") for _ in range(2)]
        for number, one in enumerate(both):
            assert one.communicate(f"both {number}\n".encode(), timeout=30)[0] == f"both {number}\n".encode()
    finally:
        through.run("ssh", *master, "-O", "exit", "root@web1")
    assert len(lab.recordings()) == before + 5
    assert len({facts_of(path)["connection"] for path in packed(lab, 5)}) == 1


def test_the_host_proves_itself_as_what_was_asked_for(lab: Lab, through: Through) -> None:
    """The certificate has the name of that node, as the gateway calls it, and no other node's."""
    options = ["-o", f"UserKnownHostsFile={lab.authority_dir}/public/gateway_known_hosts"]
    through.run("ssh", "-o", "HostKeyAlias=web1.sshrec", *options, "root@web1", "true").check_returncode()
    done = through.run("ssh", "-o", "HostKeyAlias=web2.sshrec", *options, "root@web1", "true")
    assert done.returncode == 255
    assert b"Host key verification failed" in done.stderr or b"name is not a listed principal" in done.stderr


# ---- refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "why"),
    [
        (b"bastion", b"no node bastion"),
        (b"*.corp", b"not a host name"),
        (b"web1,web2", b"not a host name"),
        (b"127.0.0.1", b"no node 127.0.0.1"),
        (b"0x7f000001", b"not a host name"),
        (b"-oProxyCommand=id", b"not a host name"),
    ],
)
def test_names_that_lead_nowhere(lab: Lab, host: bytes, why: bytes) -> None:
    done = lab.ssh("-A", "bastion", f"sshrec-proxy root {host.decode()} 22")
    assert (done.returncode, done.stdout) == (255, b"")
    assert why in done.stderr


@pytest.mark.parametrize("words", ["", "root", "root web1", "root web1 22 more", "root web1 x", "root web1 0"])
def test_words_that_are_no_connection(lab: Lab, words: str) -> None:
    done = lab.ssh("-A", "bastion", f"sshrec-proxy {words}".strip())
    assert (done.returncode, done.stdout) == (255, b"")
    assert done.stderr.startswith(b"sshrec: error: ")


def test_another_key_on_the_inner_connection(lab: Lab, through: Through) -> None:
    """Somebody else's, the same person's other certificate, and none at all."""
    key = through.laptop.directory / "other"
    make_key(key, "other", through.laptop.env)
    own = ["-o", "IdentitiesOnly=yes", "-o", f"IdentityFile={key}", "-o", "IdentityAgent=none"]
    assert b"Permission denied" in through.run("ssh", *own, "root@web1", "id").stderr
    lab.authority.sign_user(key, "joe", ["sshrec:joe", "joe", "root"])
    done = through.run("ssh", *own, "root@web1", "id")
    assert (done.returncode, done.stdout) == (255, b"")
    assert b"another key than the one that opened the connection" in done.stderr
    none = through.run("ssh", "-o", "PubkeyAuthentication=no", "root@web1", "id")
    assert b"Permission denied" in none.stderr


def test_a_security_key(lab: Lab, through: Through) -> None:
    with token(lab, "joe", "root", "--verify-required") as (held, env):
        assert said(through.run("ssh", "root@web1", "echo in", env=env)) == (0, b"in\n", b"")
        held.verifies = False
        assert b"Permission denied" in through.run("ssh", "root@web1", "echo in", env=env).stderr


@pytest.mark.parametrize(
    "options",
    [
        ["-L", "0:127.0.0.1:22"],
        ["-R", "0:127.0.0.1:22"],
        ["-D", "0"],
        ["-W", "127.0.0.1:22"],
        ["-w", "0:0"],
    ],
    ids=lambda options: options[0],
)
def test_no_forwarding_on_the_inner_connection(through: Through, options: list[str]) -> None:
    done = through.run("ssh", "-o", "ExitOnForwardFailure=yes", *options, "root@web1", "sleep 1")
    if options[0] in ("-L", "-D"):
        return  # refused when it is used: the next test
    assert done.returncode == 255, done


def test_a_login_that_may_not_be(lab: Lab, through: Through) -> None:
    done = through.run("ssh", "nobody1@web1", "id")
    assert done.returncode == 255
    assert b"nobody1" in done.stderr


def test_how_many(lab: Lab, through: Through) -> None:
    """Of sessions on one connection, and of connections without any."""
    lab.stop_sshrecd()
    lab.start_sshrecd({"limits": {"sessions_per_user": 1}})
    master = ["-o", f"ControlPath={lab.directory}/cm", "-o", "ControlMaster=auto", "-o", "ControlPersist=60"]
    first = through.popen(*master, "root@web1", "echo here; read line")
    assert first.stdout is not None
    assert first.stdout.readline() == b"here\n"
    done = through.run("ssh", *master, "root@web1", "id")
    assert said(done)[:2] == (255, b"")
    assert b"you have 1 sessions, and no more are allowed at once" in done.stderr
    first.communicate(b"\n", timeout=30)
    if lab.several_uids:  # else a connection and its channels come as one
        done = through.run("ssh", "root@web1", "id")
        assert said(done)[:2] == (255, b"")
        assert b"you have 1 connections, and no more are allowed at once" in done.stderr
    through.run("ssh", *master, "-O", "exit", "root@web1")


# ---- cut off -------------------------------------------------------------------------------------------


def test_the_client_is_killed(lab: Lab, through: Through) -> None:
    """Neither the connection nor its sessions outlive it: `lab` looks."""
    child = through.popen("root@web1", "echo here; exec cat")
    assert child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    child.kill()
    child.wait(20)
    for stream in (child.stdin, child.stdout, child.stderr):
        assert stream is not None
        stream.close()


def test_an_administrator_ends_the_connection(lab: Lab, through: Through) -> None:
    child = through.popen("root@web1", "echo here; exec cat")
    assert child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    connection = facts_of(lab.recordings()[-1])["connection"]
    lab.sshrec("kill", connection)
    assert child.wait(20) == 255
    child.communicate(timeout=20)


def test_nothing_of_a_connection_is_readable_to_others(lab: Lab, through: Through) -> None:
    child = through.popen("root@web1", "echo here; read line")
    assert child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    connection = facts_of(lab.recordings()[-1])["connection"]
    directory = lab.run_dir / connection
    assert directory.stat().st_mode & 0o777 == 0o700
    assert not (directory / "sshd" / "host").exists()
    assert not (directory / "sshd" / "host-cert.pub").exists()
    child.communicate(b"\n", timeout=20)
