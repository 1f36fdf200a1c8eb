"""How sshd may start the gateway, what it refuses, and that there is no way around it."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.e2e.recorded import Recorded, last, packed
from tests.lab import PROMPT, Lab

Child = Any  # pexpect.spawn[bytes]

USAGE = "ssh -A bastion [login@]host[:port] [command…]".encode()


def refused(lab: Lab, *args: str, **options: Any) -> str:
    """What a person is told; nothing was recorded, nothing was shown, and the status is ssh's own for that."""
    before = len(lab.recordings())
    done = lab.ssh(*args, **options)
    assert (done.returncode, done.stdout) == (255, b"")
    assert len(lab.recordings()) == before
    return done.stderr.decode()


# ---- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["root@web1;id", "x"], "not a host name: 'web1;id'"),
        (["root@web1\x1b[31m"], "a target has no control characters: 'root@web1\\x1b[31m'"),
        (["-oProxyCommand=touch /tmp/x"], "not a host name: '-oproxycommand=touch'"),
        (["root@nowhere", "id"], "there is no node nowhere"),
        (["root@web1:1", "id"], "web1 is reached on port "),
        (["scp -t /tmp/x; bash"], "'scp' is not a target, and nothing runs on the bastion itself"),
        (["sshrec", "users"], "the bastion answers: sshrec login, logout, status, ls, config, help"),
        (["/bin/sh"], "'/bin/sh' is not a target"),
        (["x" * 65537], "the command has 65537 bytes, and 65536 is the most"),
    ],
)
def test_refused_requests(lab: Lab, words: list[str], said: str) -> None:
    told = refused(lab, "-A", "bastion", "--", *words)
    assert f"sshrec: error: {said}" in told
    assert told.replace("\n", "").isprintable()


def test_no_target_and_no_terminal(lab: Lab) -> None:
    told = refused(lab, "-AT", "bastion")
    assert told == f"sshrec: error: no target was named\nhint: name one: {USAGE.decode()}\n"


def test_without_a_forwarded_agent(lab: Lab) -> None:
    told = refused(lab, "-a", "bastion", "root@web1", "id")
    assert "sshrec: error: no agent came with you" in told
    assert "hint: connect with -A" in told


def test_an_unreachable_target(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lab.stop_sshrecd()
    lab.start_sshrecd({"nodes": [{"name": "down", "address": "127.0.0.1", "port": port}]})
    done = lab.ssh("-A", "bastion", "root@down", "id")
    assert done.returncode == 255
    assert done.stderr.decode() == f"sshrec: error: cannot reach down: 127.0.0.1:{port}: connection refused\n"
    assert last(lab).end["reason"] == "unreachable"


def test_a_name_that_does_not_resolve(lab: Lab) -> None:
    lab.stop_sshrecd()
    lab.start_sshrecd({"nodes": []})
    assert "the name web1.invalid cannot be resolved" in refused(lab, "-A", "bastion", "root@web1.invalid", "id")
    assert "127.0.0.1 is where no session may go" in refused(lab, "-A", "bastion", "root@127.0.0.1", "id")
    assert "localhost, at " in refused(lab, "-A", "bastion", "root@localhost", "id")


def test_a_login_that_the_target_does_not_let_in(lab: Lab) -> None:
    done = lab.ssh("-A", "bastion", "nobody@web1", "id")
    assert done.returncode == 255
    assert "sshrec: error: web1 does not let you in as nobody\n" in done.stderr.decode()


@contextlib.contextmanager
def without_host_ca(lab: Lab) -> Iterator[str]:
    """The bastion does not know the CA of hosts; the option by which a laptop does."""
    aside = lab.known_hosts.rename(lab.directory / "known_hosts")
    try:
        yield f"-oUserKnownHostsFile={aside}"
    finally:
        aside.rename(lab.known_hosts)


def test_an_unknown_host_key(lab: Lab) -> None:
    with without_host_ca(lab) as known:
        done = lab.ssh("-A", known, "bastion", "root@web1", "id")
    assert (done.returncode, done.stdout) == (255, b"")
    assert "sshrec: error: the host key of web1 is not known: ssh-ed25519-cert-v01@" in done.stderr.decode()


def test_a_changed_host_key(lab: Lab) -> None:
    other = lab.directory / "other_known_hosts"
    other.write_text(f"web1 {lab.user_ca.read_text()}")
    lab.stop_sshrecd()
    lab.start_sshrecd({"known_hosts": [str(other)]})
    with without_host_ca(lab) as known:
        done = lab.ssh("-A", known, "bastion", "root@web1", "id")
    assert (done.returncode, done.stdout) == (255, b"")
    assert "sshrec: error: the host key of web1 has changed: " in done.stderr.decode()


def test_a_host_certificate_for_another_name(lab: Lab) -> None:
    port = lab.sshds["web1"].port
    lab.stop_sshrecd()
    lab.start_sshrecd({"nodes": [{"name": "web9", "address": "127.0.0.1", "port": port}]})
    done = lab.ssh("-A", "bastion", "root@web9", "id")
    assert (done.returncode, done.stdout) == (255, b"")
    assert "web9" in done.stderr.decode()


def test_a_host_whose_certificate_was_revoked(lab: Lab) -> None:
    shown = lab.sshrec_ca("show", lab.directory / "web2" / "host_key-cert.pub", "--json").stdout
    lab.sshrec_ca("revoke", str(json.loads(shown)["certificate"]["serial"]), "--reason", "key stolen")
    try:
        done = lab.ssh("-A", "bastion", "root@web2", "id")
        assert (done.returncode, done.stdout) == (255, b"")
        assert b"sshrec: error: the host key of web2 is revoked" in done.stderr
        assert lab.ssh("-A", "bastion", "root@web1", "true").returncode == 0
    finally:
        lab.authority.sign_host(lab.directory / "web2" / "host_key", "web2")
        lab.sshds["web2"].reload()


def test_an_unchecked_host_key_is_recorded(lab: Lab) -> None:
    lab.stop_sshrecd()
    lab.start_sshrecd({"known_hosts": [], "proxy_checks_host_keys": False})
    done = lab.ssh("-A", "bastion", "root@web1", "echo there; exit 255")
    assert (done.returncode, done.stdout, done.stderr) == (255, b"there\n", b"")
    key = next((lab.directory / "web1").glob("*host*.pub"))
    shown = subprocess.run(["ssh-keygen", "-lf", key], capture_output=True, check=True).stdout.split()[1].decode()
    assert last(lab).end["host_key"] == f"ssh-ed25519 {shown}"


# ---- no way around ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["-W", "127.0.0.1:{port}", "bastion"],
        ["-J", "bastion", "web1"],
        ["-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:22", "bastion"],
    ],
)
def test_no_forwarding(lab: Lab, args: list[str]) -> None:
    filled = [arg.format(port=lab.sshds["web1"].port) for arg in args]
    done = lab.ssh("-A", *filled, input=b"")
    assert done.returncode == 255
    assert b"SSH-2.0" not in done.stdout
    assert b"administratively prohibited" in done.stderr or b"forwarding failed" in done.stderr


def test_no_forwarding_to_our_own_socket(lab: Lab) -> None:
    """Even with sshd's switch forgotten: a forwarded stream socket cannot speak to one of packets."""
    local = lab.laptop("joe").directory / "forwarded"
    client = lab.popen("-A", "-L", f"{local}:{lab.socket}", "bastion", "root@web1", "echo up; cat")
    assert client.stdout and client.stdin
    assert client.stdout.readline() == b"up\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(local))
        with contextlib.suppress(ConnectionError):  # closed at once, before or after our bytes
            sock.sendall(b"Hcommand=root@web1 id\0")
            assert sock.recv(100) == b""
    client.communicate()


def test_no_subsystem_and_no_transfer_to_the_bastion(lab: Lab, tmp_path: Path) -> None:
    laptop = lab.laptop("joe")
    file = tmp_path / "file"
    file.write_text("x")
    config = ["-F", str(laptop.ssh_config)]
    for argv in (
        ["sftp", "-b", "/dev/null", *config, "bastion"],
        ["scp", *config, str(file), "bastion:/tmp/sshrec-test"],
        ["scp", "-O", *config, str(file), "bastion:/tmp/sshrec-test"],
        ["rsync", "-e", shlex.join(["ssh", *config]), str(file), "bastion:/tmp/sshrec-test"],
        ["ssh", *config, "-s", "bastion", "netconf"],
    ):
        done = subprocess.run(argv, env=laptop.env, capture_output=True, stdin=subprocess.DEVNULL, timeout=30)
        assert done.returncode != 0, argv
    assert not Path("/tmp/sshrec-test").exists()


def test_no_second_channel(lab: Lab) -> None:
    control = lab.laptop("joe").directory / "mux"
    master = lab.popen("-A", "-M", "-S", str(control), "bastion", "root@web1", "echo up; cat")
    assert master.stdout
    assert master.stdout.readline() == b"up\n"
    second = lab.ssh("-A", "-S", str(control), "-o", "ControlMaster=no", "bastion", "root@web1", "echo second")
    assert second.stdout == b"second\n"  # by a connection of its own, so a recording of its own
    master.communicate()
    commands = [Recorded(path).facts["command"] for path in packed(lab, 2)]
    assert commands == ["echo up; cat", "echo second"]


def test_nothing_of_the_clients_environment_reaches_the_gateway(lab: Lab) -> None:
    """Even where an administrator lets everything through: the gateway is isolated, the worker not its child."""
    lab.start_bastion("open", extra=["AcceptEnv *"])
    try:
        env = {
            "PYTHONPATH": str(lab.directory),
            "PYTHONSTARTUP": "/nonexistent",
            "BASH_ENV": "/nonexistent",
            "SSH_ASKPASS": "/nonexistent",
            "SSH_ORIGINAL_COMMAND": "root@web2 hostname",
            "LC_ALL": "C\x1b]0;x\x07",
            "TERM": "\x1b]0;x\x07",
        }
        options = [f"-oSendEnv={name}" for name in env]
        done = lab.ssh("-A", *options, "open", "root@web1", "env", env=env)
        assert done.returncode == 0
        seen = done.stdout.decode()
        assert not [name for name in env if f"\n{name}=" in f"\n{seen}" and name != "TERM"]
        assert "\x1b" not in seen
    finally:
        lab.stop_bastion("open")


# ---- login shells -----------------------------------------------------------------------------------------


@pytest.fixture(params=["", "{shell}", "exec {shell}"], ids=["shell", "shell-and-forced", "shell-and-exec"])
def shell_bastion(lab: Lab, request: pytest.FixtureRequest) -> Iterator[str]:
    """A bastion whose accounts have the gateway as their shell, with and without a ForceCommand beside it."""
    wrapper = lab.directory / "gateway-shell"
    wrapper.write_text(f'#!/bin/sh\nexec {lab.gateway} "$@"\n')
    wrapper.chmod(0o755)
    forced = request.param.format(shell=wrapper)
    lab.start_bastion("shelled", login_shell=str(wrapper), force_command=forced)
    yield "shelled"
    lab.stop_bastion("shelled")


def test_as_a_login_shell(lab: Lab, shell_bastion: str) -> None:
    done = lab.ssh("-A", shell_bastion, "root@web1", "echo out; exit 7")
    assert (done.returncode, done.stdout) == (7, b"out\n")
    child: Child = lab.spawn("-A", shell_bastion)
    child.expect_exact("Connect to: ")
    child.send("root@web1\r")
    child.expect(PROMPT)
    child.sendline("exit")
    child.expect(pexpect.EOF)
    child.close()


@pytest.mark.parametrize("words", ["--embedded", "--socket /tmp/x", "-c id", "--config=/tmp/x"])
def test_what_comes_behind_c_is_a_request(lab: Lab, shell_bastion: str, words: str) -> None:
    told = refused(lab, "-A", shell_bastion, "--", words)
    assert "sshrec: error: " in told


def test_no_startup_file_runs(lab: Lab, shell_bastion: str) -> None:
    home = lab.account("joe").home
    files = [
        home / name for name in (".bashrc", ".profile", ".bash_profile", ".zshenv", ".ssh/rc", ".ssh/environment")
    ]
    try:
        for file in files:
            file.write_text("echo EVIL; exit 0\n")
        done = lab.ssh("-A", shell_bastion, "root@web1", "echo fine")
        assert (done.stdout, done.stderr) == (b"fine\n", b"")
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def test_the_gateway_wants_its_flags(lab: Lab) -> None:
    program = lab.gateway.split()[0]
    done = subprocess.run(["python3", program], capture_output=True)
    assert done.returncode == 255
    assert done.stderr.startswith(b"sshrec: error: started without -I and -S\n")


# ---- embedded ---------------------------------------------------------------------------------------------


def test_embedded() -> None:
    """Without a daemon: the gateway starts the worker, as the person, with a configuration of theirs.

    In a lab of one uid, for ssh wants its own to be in the real passwd.
    """
    with Lab(several_uids=False, sshrecd=False) as lab:
        directory = lab.directory / "own"
        directory.mkdir()
        config = directory / "sshrec.yaml"
        port = lab.sshds["web1"].port
        config.write_text(
            f"data_dir: {directory}/data\nrun_dir: {directory}/run\nknown_hosts: [{lab.known_hosts}]\n"
            f"nodes: [{{name: web1, address: 127.0.0.1, port: {port}}}]\n"
        )
        # The accounts of the lab are in nobody's passwd: this interpreter is told of them, as sshrecd is.
        python = directory / "python"
        accounts = " ".join(f"{name}={value}" for name, value in lab.sshrec_env().items())
        python.write_text(f'#!/bin/sh\nexec env {accounts} {lab.installation.programs}/python "$@"\n')
        python.chmod(0o755)
        program = lab.gateway.split()[0]
        lab.start_bastion("embedded", force_command=f"{program} --embedded --config {config} --python {python}")
        waiting: Child = lab.spawn("-A", "embedded")  # has no recording yet, while others come and go
        waiting.expect_exact("Connect to: ")
        done = lab.ssh("-A", "embedded", "root@web1", "echo out; echo err >&2; exit 7")
        assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
        child: Child = lab.spawn("-tA", "embedded", "root@web1")
        child.expect(PROMPT)
        child.sendline("echo $((40 + 2)); exit 3")
        child.expect_exact("42")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 3
        lab.wait(lambda: len(list(directory.glob("data/recordings/*/*.zst"))) == 2, "both to be packed")
        waiting.send("root@web1\r")
        waiting.expect(PROMPT)
        waiting.sendline("exit")
        waiting.expect(pexpect.EOF)
        waiting.close()
        assert waiting.exitstatus == 0
        lab.wait(lambda: len(list(directory.glob("data/recordings/*/*.zst"))) == 3, "all to be packed")
        lab.wait(lambda: not list(directory.glob("run/*")), "the run directories to go")


# ---- identity ---------------------------------------------------------------------------------------------


@pytest.mark.root
def test_each_person_is_who_the_kernel_says(lab: Lab) -> None:
    lab.ssh("-A", "bastion", "root@web1", "true", user="alice", check=True)
    assert last(lab).facts["user"] == "alice"
    done = lab.ssh("-A", "-l", "alice", "bastion", "root@web1", "true", user="joe")
    assert done.returncode == 255
    assert b"Permission denied" in done.stderr


def test_a_certificate_of_somebody_else_is_refused(lab: Lab) -> None:
    """sshd lets it in (it has the account's principal), the worker does not: its key id names another."""
    laptop = lab.open_laptop("joe", name="stolen", key_id="mallory")
    try:
        told = refused(lab, "-A", "bastion", "root@web1", "id", user=laptop)
        assert "the certificate of 'mallory' opened the account joe" in told
    finally:
        lab.close_laptop(laptop)


def test_people_with_plain_keys(lab: Lab) -> None:
    """The snippet's variant with authorized_keys: the key that opened the first hop opens the second."""
    laptop = lab.open_laptop("joe", name="keyed", holds="key")
    try:
        lab.authorize(laptop)
        lab.start_bastion("keyed", authorized_keys=True)
        done = lab.ssh("-A", "keyed", "root@web1", "echo in", user=laptop)
        assert done.stdout == b"in\n"
        facts = last(lab).facts
        shown = subprocess.run(["ssh-keygen", "-lf", laptop.key], capture_output=True, check=True).stdout
        assert facts["key"] == f"ssh-ed25519 {shown.split()[1].decode()}"
        assert "key_id" not in facts
    finally:
        lab.stop_bastion("keyed")
        lab.close_laptop(laptop)
