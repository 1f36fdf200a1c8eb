"""The lab itself: what the other tests take for granted. sshrec is not needed here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import PROMPT, Lab, LabError
from tests.lab.processes import every
from tests.lab.sshd import PrivsepDirectory


@pytest.fixture(scope="module")
def bare(several_uids: bool) -> Iterator[Lab]:
    """A lab without sshrecd, whose bastion tells what sshd gave it."""
    with Lab(several_uids=several_uids, sshrecd=False, force_command="id -u; env; exit 7") as lab:
        yield lab


def test_a_certificate_opens_a_target(bare: Lab) -> None:
    done = bare.ssh("web1", "hostname; echo $USER; exit 3")
    assert (done.stdout, done.stderr, done.returncode) == (b"web1\nroot\n", b"", 3)
    assert bare.ssh("deploy@web2", "hostname; echo $USER", check=True).stdout == b"web2\ndeploy\n"
    assert f"ID joe (serial {bare.laptops['joe'].serial})" in bare.sshds["web1"].log_text()


def test_a_login_that_the_certificate_does_not_name_is_refused(bare: Lab) -> None:
    guest = bare.open_laptop("joe", name="guest", principals=["sshrec:joe", "deploy"])
    try:
        assert bare.ssh("root@web1", "true", user=guest).returncode == 255
        assert bare.ssh("deploy@web1", "true", user=guest).returncode == 0
    finally:
        bare.close_laptop(guest)


def test_the_host_ca_vouches_for_the_hosts(bare: Lab) -> None:
    assert "HostKeyAlias web1" in bare.laptops["joe"].ssh_config.read_text()
    wrong = bare.ssh("-o", "HostKeyAlias=web2", "web1", "true")
    assert wrong.returncode == 255
    assert b"Certificate invalid: name is not a listed principal" in wrong.stderr


def test_the_bastion_runs_its_force_command(bare: Lab) -> None:
    done = bare.ssh("-A", "bastion", "root@web1 'a  b'")
    uid, *variables = done.stdout.decode().splitlines()
    assert done.returncode == 7
    assert int(uid) == bare.account("joe").uid
    environment = dict(line.split("=", 1) for line in variables)
    assert environment["SSH_ORIGINAL_COMMAND"] == "root@web1 'a  b'"
    assert environment["USER"] == "joe"
    assert environment["SHELL"] == "/bin/sh"
    assert environment["HOME"] == str(bare.account("joe").home)
    assert {"SSH_AUTH_SOCK", "SSH_USER_AUTH", "SSH_CONNECTION"} <= environment.keys()
    assert "LD_PRELOAD" not in environment
    bare.expect_nothing_left()


def test_nothing_else_is_forwarded_by_the_bastion(bare: Lab) -> None:
    port = bare.sshds["web1"].port
    done = bare.ssh("-W", f"127.0.0.1:{port}", "bastion")
    assert done.returncode == 255
    assert b"administratively prohibited" in done.stderr


def test_only_a_certificate_for_the_bastion_opens_it(bare: Lab) -> None:
    target_only = bare.open_laptop("joe", name="target-only", principals=["joe", "root"])
    key_only = bare.open_laptop("joe", name="key-only", holds="key")
    try:
        bare.authorize(key_only)
        for laptop in (target_only, key_only):
            assert b"Permission denied (publickey)" in bare.ssh("bastion", user=laptop).stderr
        bare.start_bastion("keys", authorized_keys=True)
        assert bare.ssh("keys", user=key_only).returncode == 7
        assert bare.ssh("root@web1", "true", user=key_only).returncode == 0
    finally:
        bare.stop_bastion("keys")
        bare.close_laptop(target_only)
        bare.close_laptop(key_only)


def test_bastions_can_differ(bare: Lab) -> None:
    bare.start_bastion("other", login_shell="/bin/bash", force_command="", extra=["PermitTTY no"])
    try:
        assert bare.ssh("other", "echo $SHELL $0", check=True).stdout == b"/bin/bash bash\n"
        assert b"PTY allocation request failed" in bare.ssh("other", "true", tty=True).stderr
    finally:
        bare.stop_bastion("other")


def test_an_agent_holds_what_was_asked_for(bare: Lab) -> None:
    def kinds(holds: str) -> list[str]:
        laptop = bare.open_laptop("joe", name=holds, holds=holds)  # type: ignore[arg-type]
        try:
            listed = subprocess.run(["ssh-add", "-L"], env=laptop.env, capture_output=True, check=True).stdout
            return sorted(line.split()[0] for line in listed.decode().splitlines())
        finally:
            bare.close_laptop(laptop)

    certificate, key = "ssh-ed25519-cert-v01@openssh.com", "ssh-ed25519"
    assert kinds("certificate") == [certificate]
    assert kinds("both") == [key, certificate]
    assert kinds("key") == [key]


def test_a_shell_has_a_terminal_and_is_seen_while_it_lives(bare: Lab) -> None:
    shell = bare.spawn("web2", dimensions=(30, 100))
    shell.expect(PROMPT)
    shell.sendline("stty size; echo done")
    shell.expect(b"30 100\r\ndone\r\n")
    assert any("bash" in line for line in bare.leftovers())
    with pytest.raises(LabError, match="left are:\nprocess"):
        bare.expect_nothing_left(timeout=0)
    shell.sendline("exit")
    shell.expect(b"closed")
    bare.expect_nothing_left()


@pytest.mark.root
def test_everybody_has_a_uid(bare: Lab) -> None:
    uids = {name: int(bare.ssh("bastion", user=name).stdout.split()[0]) for name in ("joe", "alice")}
    for login in ("root", "deploy"):
        uids[login] = int(bare.ssh(f"{login}@web1", "id -u", check=True).stdout)
    assert len({0, bare.account("sshrec").uid, *uids.values()}) == 6
    assert uids["joe"] == bare.account("joe").uid


@pytest.mark.root
def test_other_uids_can_use_a_copy_of_the_installation() -> None:
    with Lab(copy_installation=True) as lab:
        assert lab.directory in lab.installation.package.parents
        assert lab.ssh("-A", "bastion", "root@web1", "echo there", check=True).stdout == b"there\n"
        lab.expect_nothing_left()
        # As uid sshrec, in an interpreter of its own.
        assert lab.recordings()[0].name.partition(".")[0] in lab.sshrec("ls").stdout.decode()


_SCRIPT = """
import sys, time
from tests.lab import Lab
with Lab(several_uids={several_uids}, sshrecd=False) as lab:
    shell = lab.spawn("web1")
    shell.expect(b"web1")
    print(lab.directory, flush=True)
    {then}
"""


@pytest.mark.parametrize(
    ("then", "number", "code"),
    [
        ("pass", None, 0),
        ("raise ValueError", None, 1),
        ("time.sleep(60)", signal.SIGINT, -2),
        ("time.sleep(60)", signal.SIGTERM, 143),
        ("time.sleep(60)", signal.SIGHUP, 129),
    ],
    ids=["end", "exception", "SIGINT", "SIGTERM", "SIGHUP"],
)
def test_nothing_is_left_of_a_lab(several_uids: bool, then: str, number: signal.Signals | None, code: int) -> None:
    script = _SCRIPT.format(several_uids=several_uids, then=then)
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    directory = process.stdout.readline().decode().strip()
    assert directory.startswith("/tmp/sr-")
    if number:
        process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert not Path(directory).exists()
    assert [process for process in every() if directory in process.words] == []


def test_what_a_killed_sshd_left_goes_with_the_lab(several_uids: bool) -> None:
    with Lab(
        several_uids=several_uids, sshrecd=False, force_command="echo $SSH_AUTH_SOCK $SSH_USER_AUTH; cat"
    ) as lab:
        client = lab.popen("-A", "bastion")
        assert client.stdout is not None
        socket, credential = map(Path, client.stdout.readline().decode().split())
        for process in lab.processes():
            if process.words.startswith("sshd"):
                os.kill(process.pid, signal.SIGKILL)
        client.communicate(timeout=30)
        assert socket.is_socket()
        assert credential.is_file()
    assert not socket.exists()
    assert not credential.exists()
    assert not socket.parent.exists() or socket.parent.name == "agent"


def test_the_last_lab_removes_the_directory_that_a_lab_made(tmp_path: Path) -> None:
    path = tmp_path / "sshd"
    first, second = PrivsepDirectory(path), PrivsepDirectory(path)
    first.open()
    second.open()
    first.close()
    assert path.is_dir()
    second.close()
    assert not path.exists()


def test_a_directory_that_was_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "sshd"
    path.mkdir()
    directory = PrivsepDirectory(path)
    directory.open()
    directory.close()
    assert list(path.iterdir()) == []
