"""Every program that speaks ssh, by the transparent way in: byte for byte, with its exit status, no line of ours.

All of it once with the certificate alone in the agent, and once with one that is
bound to its destinations. What this machine has not, is skipped with a word.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from sshrec.openssh import public_key
from tests.e2e import test_destinations as bound
from tests.e2e.test_audit import newest, of
from tests.e2e.transparent import Through
from tests.lab import PROMPT, Lab, parts

FILES = int(os.environ.get("SSHREC_TEST_FILES", "2000"))  # of the tree that rsync carries; `make many` has more
WEB1 = "root@web1"


@pytest.fixture(params=["certificate", "constrained"])
def through(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Through]:
    """A laptop with the block, joe's; `constrained`: as `ssh login@bastion` loads the certificate."""
    if request.param == "certificate":
        yield Through(lab)
        return
    (line,) = (lab.authority_dir / "public" / "gateway_known_hosts").read_bytes().splitlines()
    gateway = public_key.parse(line.split(maxsplit=2)[2], "the gateway's CA")
    with bound.laptop(lab) as laptop:
        bound.load(laptop, bound.bound(lab, ("root", "web1"), ("root", "web2"), gateway=[gateway]))
        yield Through(lab, laptop)


@pytest.fixture
def scratch(lab: Lab) -> Iterator[Path]:
    """A directory that everybody, on every machine, can write in."""
    path = lab.directory / "scratch"
    path.mkdir()
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def needs(name: str, package: str) -> None:
    """Skip where Debian's package is not installed."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not here (Debian: {package})")


def clean(done: subprocess.CompletedProcess[bytes], status: int = 0) -> bytes:
    """Its standard output, of a program that succeeded; what it and ssh say besides has no line of ours."""
    assert done.returncode == status, (done.stdout[-2000:], done.stderr[-2000:])
    assert b"sshrec: " not in done.stdout + done.stderr
    assert b"Connection to web1 closed" not in done.stdout + done.stderr  # it is web1.sshrec to ssh
    return done.stdout


def tree(root: Path) -> dict[str, tuple[int, int, str]]:
    """What is in a directory: mode, seconds of modification, and contents, by name."""
    found = {}
    for path in sorted(root.rglob("*")):
        stat = path.lstat()
        if path.is_symlink():
            content = f"-> {path.readlink()}"
        else:
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(root))] = (stat.st_mode, int(stat.st_mtime) if path.is_file() else 0, content)
    return found


@pytest.fixture
def source(lab: Lab) -> Iterator[Path]:
    """A little of everything, for everybody to read."""
    root = lab.directory / "source"
    (root / "below" / "deeper").mkdir(parents=True)
    (root / "with a 'quote' and ünïcödé").write_bytes(b"x")
    (root / "empty").write_bytes(b"")
    (root / "large").write_bytes(os.urandom(3_000_000))
    (root / "below" / "program").write_bytes(b"#!/bin/sh\n")
    (root / "below" / "program").chmod(0o755)
    (root / "below" / "deeper" / "text").write_text("line\n" * 1000)
    os.utime(root / "large", (1_500_000_000, 1_500_000_000))
    yield root
    shutil.rmtree(root)


# ---- ssh -----------------------------------------------------------------------------------------------


def test_ssh_status_and_streams(through: Through) -> None:
    done = through.run("ssh", WEB1, "cat; echo no >&2; exit 42", input=b"\x00\xff\r\n")
    assert clean(done, 42) == b"\x00\xff\r\n"
    assert done.stderr == b"no\n"


def test_ssh_without_standard_input(through: Through) -> None:
    assert clean(through.run("ssh", "-n", WEB1, "cat; echo over", input=b"never read\n")) == b"over\n"


# A shell's trap could be told before the shell waits for what it runs, and then waits for that.
_INTERRUPTED = (
    "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [2]); print('rea' + 'dy', flush=True); "
    "signal.sigwait([2]); print('cau' + 'ght')"
)


def test_ssh_with_a_terminal(lab: Lab, through: Through) -> None:
    child = pexpect.spawn("ssh", [*through.options, WEB1], env=dict(through.laptop.env), timeout=30)
    try:
        child.expect(PROMPT)
        child.sendline(f"stty size; python3 -c {shlex.quote(_INTERRUPTED)}")
        child.expect(b"24 80")
        child.expect(b"ready")
        child.sendintr()
        child.expect(b"caught")
        child.expect(PROMPT)
        child.setwinsize(50, 132)  # ssh sends it when it sees the signal, perhaps after what is typed next
        child.sendline('until [ "$(stty size)" = "50 132" ]; do sleep 0.05; done; stty size; exit 5')
        child.expect(rb"[\r\n]50 132\r\n")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 5
    finally:
        child.close(force=True)


def test_ssh_remote_command(through: Through) -> None:
    done = through.run("ssh", "-tt", "-o", "RemoteCommand=tty; exit 4", WEB1, input=b"")
    assert b"/dev/pts/" in clean(done, 4)


def test_ssh_multiplexed(lab: Lab, through: Through) -> None:
    """A master that stays: programs come and go on its connection, scp and sftp too."""
    control = ["-o", f"ControlPath={lab.directory}/cm-%C", "-o", "ControlMaster=auto", "-o", "ControlPersist=60"]
    try:
        assert clean(through.run("ssh", *control, WEB1, "echo first")) == b"first\n"
        children = [through.popen(*control, WEB1, f"cat; exit {number}") for number in range(5)]
        for number, child in enumerate(children):
            data = os.urandom(100_000)
            assert child.communicate(data, timeout=60) == (data, b"")
            assert child.returncode == number
        clean(through.run("sftp", *control, "-b", "-", WEB1, input=b"pwd\n"))
    finally:
        through.run("ssh", *control, "-O", "exit", WEB1)


def test_tar(through: Through, source: Path, scratch: Path, tmp_path: Path) -> None:
    pack = subprocess.run(["tar", "-C", source, "-c", "."], capture_output=True, check=True).stdout
    clean(through.run("ssh", WEB1, f"mkdir {scratch}/up; tar -C {scratch}/up -xp", input=pack))
    assert tree(scratch / "up") == tree(source)
    back = clean(through.run("ssh", WEB1, f"tar -C {scratch}/up -c ."))
    (tmp_path / "back").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "back", "-xp"], input=back, check=True)
    assert tree(tmp_path / "back") == tree(source)


def test_tmux(lab: Lab, through: Through, scratch: Path) -> None:
    """A session in tmux outlives the one that it was begun in."""
    needs("tmux", "tmux")
    tmux = f"env -u TMUX tmux -S {scratch}/tmux -f /dev/null"
    clean(through.run("ssh", WEB1, f"{tmux} new-session -d -x 80 -y 24 cat \\; set -g assume-paste-time 0"))
    try:
        child = pexpect.spawn(
            "ssh", [*through.options, "-t", WEB1, f"{tmux} attach"], env=dict(through.laptop.env), timeout=30
        )
        child.sendline("typed here")
        child.expect(b"typed here")
        child.expect(b"typed here")
        child.send(b"\x02d")  # detach
        child.expect(b"detached")
        child.expect(pexpect.EOF)
        child.close()
        assert b"typed here" in clean(through.run("ssh", WEB1, f"{tmux} capture-pane -p"))
    finally:
        through.run("ssh", WEB1, f"{tmux} kill-server")


def test_mosh(through: Through) -> None:
    """It would go on over UDP, past us: it is told so. (By itself it does not even take the ProxyCommand.)"""
    needs("mosh", "mosh")
    argv = [f"--ssh=ssh {shlex.join(through.options)}", "--experimental-remote-ip=remote", "--no-init", WEB1]
    done = through.run("mosh", *argv)
    assert done.returncode != 0
    assert b"mosh cannot be recorded" in done.stdout + done.stderr


# ---- scp and sftp --------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [[], ["-O"]], ids=["sftp", "rcp"])
def test_scp(through: Through, source: Path, scratch: Path, tmp_path: Path, protocol: list[str]) -> None:
    assert clean(through.run("scp", *protocol, "-r", "-p", source, f"{WEB1}:{scratch}/up")) == b""
    assert tree(scratch / "up") == tree(source)
    assert clean(through.run("scp", *protocol, "-r", "-p", f"{WEB1}:{scratch}/up", tmp_path / "down")) == b""
    assert tree(tmp_path / "down") == tree(source)


@pytest.mark.parametrize("protocol", [[], ["-O"]], ids=["sftp", "rcp"])
def test_scp_between_two(through: Through, source: Path, scratch: Path, protocol: list[str]) -> None:
    done = through.run(
        "scp", *protocol, "-3", "-r", "-p", f"{WEB1}:{source}", f"root@web2:{scratch}/there", timeout=120
    )
    clean(done)
    assert tree(scratch / "there") == tree(source)


@pytest.mark.parametrize("protocol", [[], ["-O"]], ids=["sftp", "rcp"])
def test_scp_of_nothing(through: Through, scratch: Path, tmp_path: Path, protocol: list[str]) -> None:
    done = through.run("scp", *protocol, f"{WEB1}:{scratch}/nothing", tmp_path)
    clean(done, 1)
    assert b"No such file or directory" in done.stderr


def test_sftp_batch(through: Through, source: Path, scratch: Path, tmp_path: Path) -> None:
    batch = f"""\
        cd {scratch}
        mkdir below
        put -p {source}/large below/large
        ls -l below
        rename below/large moved
        chmod 600 moved
        ln -s moved link
        get moved {tmp_path}/moved
        rm link
        rmdir below
        -rm nothing
        df -h
        """
    said = clean(through.run("sftp", "-b", "-", WEB1, input=textwrap.dedent(batch).encode()))
    assert re.search(rb"-rw-r--r-- .* 3000000 .* below/large", said)
    assert (tmp_path / "moved").read_bytes() == (source / "large").read_bytes()
    assert [path.name for path in scratch.iterdir()] == ["moved"]
    assert (scratch / "moved").stat().st_mode & 0o777 == 0o600
    failed = through.run("sftp", "-b", "-", WEB1, input=f"rm {scratch}/nothing\n".encode())
    clean(failed, 1)


def test_sftp_goes_on(through: Through, source: Path, scratch: Path, tmp_path: Path) -> None:
    """reget and reput: what is there of a file already stays, and the rest follows."""
    whole = (source / "large").read_bytes()
    (tmp_path / "half").write_bytes(whole[:1_000_000])
    clean(through.run("sftp", "-b", "-", WEB1, input=f"reget {source}/large {tmp_path}/half\n".encode()))
    assert (tmp_path / "half").read_bytes() == whole
    clean(through.run("ssh", WEB1, f"head -c 1000000 {source}/large > {scratch}/half"))
    clean(through.run("sftp", "-b", "-", WEB1, input=f"reput {source}/large {scratch}/half\n".encode()))
    assert (scratch / "half").read_bytes() == whole


def test_sftp_by_hand(through: Through, scratch: Path) -> None:
    child = pexpect.spawn("sftp", [*through.options, WEB1], env=dict(through.laptop.env), timeout=30)
    try:
        child.expect_exact(b"sftp> ")
        child.sendline(f"cd {scratch}")
        child.expect_exact(b"sftp> ")
        child.sendline("mkdir made")
        child.expect_exact(b"sftp> ")
        child.sendline("ls -la")
        child.expect(rb"drwx.* made")
        child.sendline("bye")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0
    finally:
        child.close(force=True)


def test_lftp(through: Through, source: Path, scratch: Path, tmp_path: Path) -> None:
    needs("lftp", "lftp")
    program = f"ssh {shlex.join(through.options)} -a -x"
    script = (
        f"set sftp:connect-program '{program}'; open sftp://{WEB1}; mirror -R {source} {scratch}/up; "
        f"mirror {scratch}/up {tmp_path}/down; rm -r {scratch}/up"
    )
    clean(through.run("lftp", "-c", script))
    contents = {name: content for name, (_, _, content) in tree(source).items()}
    assert {name: content for name, (_, _, content) in tree(tmp_path / "down").items()} == contents
    assert not (scratch / "up").exists()


def test_sshfs(through: Through, source: Path, scratch: Path, tmp_path: Path) -> None:
    needs("sshfs", "sshfs")
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    sshfs = subprocess.Popen(
        [parts.program("sshfs"), "-f", *through.options, f"{WEB1}:{scratch}", mounted],
        env=through.laptop.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        through.lab.wait(lambda: mounted.is_mount() or sshfs.poll() is not None, "the mount")
        if sshfs.poll() is None:
            shutil.copytree(source, mounted / "copy")
            assert tree(scratch / "copy") == tree(mounted / "copy")
            shutil.rmtree(mounted / "copy")
            assert not list(scratch.iterdir())
    finally:
        # Not by fusermount -u alone: another lab's mount namespace may have the mount, too.
        sshfs.terminate()
        said = sshfs.communicate(timeout=20)
    if b"fuse: " in said[1]:
        pytest.skip(f"no FUSE here: {said[1].decode().strip()}")
    assert said == (b"", b"")
    assert not mounted.is_mount()


# ---- rsync and git -------------------------------------------------------------------------------------


def test_rsync(through: Through, source: Path, scratch: Path, tmp_path: Path) -> None:
    many(source / "many", FILES)
    flags = ["-a", "--delete", "--partial"]
    seconds = 90 + FILES / 100
    clean(through.run("rsync", *flags, f"{source}/", f"{WEB1}:{scratch}/up/", timeout=seconds))
    assert tree(scratch / "up") == tree(source)
    (source / "large").unlink()
    (source / "many" / "0" / "7").write_bytes(b"another")
    clean(through.run("rsync", *flags, f"{source}/", f"{WEB1}:{scratch}/up/", timeout=seconds))
    assert tree(scratch / "up") == tree(source)
    clean(through.run("rsync", *flags, f"{WEB1}:{scratch}/up/", tmp_path / "back", timeout=seconds))
    assert tree(tmp_path / "back") == tree(source)
    failed = through.run("rsync", *flags, f"{WEB1}:{scratch}/nothing/", tmp_path / "none")
    assert failed.returncode == 23
    assert b"No such file" in failed.stderr
    assert asked(through.lab) == ("download", [f"{scratch}/nothing/"])


def asked(lab: Lab) -> tuple[str, list[str]]:
    """Which way the newest command carried something, and what, as the audit log has it."""
    (event,) = [event for event in of(lab, newest(lab)) if event["event"] == "exec"]
    return event["direction"], event["paths"]


def many(root: Path, count: int) -> None:
    """Small files, a thousand in a directory."""
    for number in range(count):
        if number % 1000 == 0:
            (root / str(number // 1000)).mkdir(parents=True)
        (root / str(number // 1000) / str(number % 1000)).write_bytes(b"%d\n" % number * (number % 50))


def test_git(through: Through, scratch: Path, tmp_path: Path) -> None:
    def git(*words: str | Path, cwd: Path = tmp_path) -> subprocess.CompletedProcess[bytes]:
        identity = dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "joe")
        identity |= dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "joe@example.com")
        return through.run("git", *words, env=identity, cwd=cwd)

    clean(through.run("ssh", WEB1, f"git init -q --bare -b main {scratch}/r.git"))
    for name in ("one", "two"):
        git("clone", "-q", f"{WEB1}:{scratch}/r.git", name)
    (tmp_path / "one" / "file").write_bytes(os.urandom(500_000))
    for line in ("checkout -q -B main", "add .", "commit -qm first", "push -q origin main"):
        clean(git(*line.split(), cwd=tmp_path / "one"))
    clean(git("pull", "-q", "origin", "main", cwd=tmp_path / "two"))
    assert (tmp_path / "two" / "file").read_bytes() == (tmp_path / "one" / "file").read_bytes()
    clean(git("fetch", "-q", "origin", cwd=tmp_path / "one"))
    refused = git("clone", "-q", f"{WEB1}:{scratch}/none.git", "three")
    assert refused.returncode == 128
    assert b"does not appear to be a git repository" in refused.stderr
    assert asked(through.lab) == ("download", [f"{scratch}/none.git"])


# ---- ansible -------------------------------------------------------------------------------------------

_PLAYBOOK = """\
- hosts: all
  tasks:
    - ansible.builtin.copy: {src: "%(source)s/large", dest: "%(scratch)s/{{ inventory_hostname }}", mode: "0600"}
    - ansible.builtin.template: {src: template.j2, dest: "%(scratch)s/{{ inventory_hostname }}.conf"}
    - ansible.builtin.fetch: {src: "%(scratch)s/{{ inventory_hostname }}.conf", dest: "%(fetched)s/", flat: true}
    - ansible.builtin.command: id -un
      register: who
    - ansible.builtin.assert: {that: "who.stdout == 'root'"}
"""


@pytest.mark.parametrize("pipelining", [False, True], ids=["files", "pipelining"])
def test_ansible(through: Through, source: Path, scratch: Path, tmp_path: Path, pipelining: bool) -> None:
    needs("ansible-playbook", "ansible-core")
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    (tmp_path / "hosts").write_text("web1\nweb2\n")
    (tmp_path / "template.j2").write_text("host {{ inventory_hostname }}\n")
    (tmp_path / "play.yml").write_text(_PLAYBOOK % {"source": source, "scratch": scratch, "fetched": fetched})
    env = {
        "ANSIBLE_HOME": str(tmp_path / "ansible"),
        "ANSIBLE_LOCAL_TEMP": str(tmp_path / "ansible"),
        "ANSIBLE_REMOTE_TEMP": f"{scratch}/tmp",
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(through.lab.directory / "cp"),
        "ANSIBLE_SSH_PIPELINING": str(pipelining),
        "ANSIBLE_SSH_ARGS": f"{shlex.join(through.options)} -o ControlMaster=auto -o ControlPersist=60s",
        "ANSIBLE_REMOTE_USER": "root",
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        "ANSIBLE_GATHERING": "explicit",
        "ANSIBLE_NOCOLOR": "1",
    }
    inventory = ["-i", str(tmp_path / "hosts")]
    try:
        said = clean(through.run("ansible", *inventory, "all", "-m", "ping", env=env, timeout=110))
        assert said.count(b'"ping": "pong"') == 2
        said = clean(through.run("ansible-playbook", *inventory, tmp_path / "play.yml", env=env, timeout=110))
        assert re.findall(rb"failed=(\d+)", said) == [b"0", b"0"]
        assert (scratch / "web2").read_bytes() == (source / "large").read_bytes()
        assert (fetched / "web1.conf").read_text() == "host web1\n"
    finally:
        for path in (through.lab.directory / "cp").iterdir():
            through.run("ssh", "-o", f"ControlPath={path}", "-O", "exit", WEB1)
        shutil.rmtree(through.lab.directory / "cp")


# ---- other implementations of the protocol ---------------------------------------------------------------

_ASYNCSSH = """\
import asyncio, sys, asyncssh

async def main(command, known, scratch):
    async with asyncssh.connect(
        "web1", 22, username="root", proxy_command=command, host_key_alias="web1.sshrec", known_hosts=known,
        config=None
    ) as connection:
        done = await connection.run("cat; echo no >&2; exit 3", input=b"\\xff" * 100000, encoding=None)
        assert (done.stdout, done.stderr, done.returncode) == (b"\\xff" * 100000, b"no\\n", 3), done
        both = await asyncio.gather(connection.run("echo one"), connection.run("echo two"))
        assert [one.stdout for one in both] == ["one\\n", "two\\n"]
        async with connection.start_sftp_client() as sftp:
            async with sftp.open(scratch + "/file", "wb") as file:
                await file.write(b"z" * 1000000)
            assert (await sftp.stat(scratch + "/file")).size == 1000000
            await sftp.remove(scratch + "/file")

asyncio.run(main(sys.argv[1].split(), sys.argv[2], sys.argv[3]))
"""

_PARAMIKO = """\
import sys, paramiko

client = paramiko.SSHClient()
client.set_missing_host_key_policy(paramiko.WarningPolicy())  # it knows no CAs; ssh has checked the bastion
client.connect("web1", username="root", sock=paramiko.ProxyCommand(sys.argv[1]), look_for_keys=False)
stdin, stdout, stderr = client.exec_command("cat; echo no >&2; exit 3")
stdin.write(b"\\xff" * 100000)
stdin.channel.shutdown_write()
assert stdout.read() == b"\\xff" * 100000
assert stderr.read() == b"no\\n"
assert stdout.channel.recv_exit_status() == 3
sftp = client.open_sftp()
with sftp.open(sys.argv[3] + "/file", "wb") as file:
    file.write(b"z" * 1000000)
assert sftp.stat(sys.argv[3] + "/file").st_size == 1000000
sftp.remove(sys.argv[3] + "/file")
shell = client.invoke_shell()
shell.send(b"exit 4\\n")
assert shell.recv_exit_status() == 4
client.close()
"""


@pytest.mark.parametrize(("module", "program"), [("asyncssh", _ASYNCSSH), ("paramiko", _PARAMIKO)])
def test_python(lab: Lab, through: Through, scratch: Path, module: str, program: str) -> None:
    """They tell the agent of no host, so one that asks for it does not sign."""
    pytest.importorskip(module)
    command = f"ssh -F {through.laptop.ssh_config} -A bastion sshrec-proxy root web1 22"
    known = str(through.laptop.directory / "gateway_known_hosts")
    done = through.run(sys.executable, "-W", "ignore", "-c", program, command, known, str(scratch))
    if through.laptop is lab.laptop("joe"):
        assert done.returncode == 0, done.stderr.decode()
    else:
        assert re.search(b"Permission denied|key cannot be used for signing", done.stderr)
    assert not list(scratch.iterdir())
