"""Commands without a terminal: three streams of their own, byte for byte, and the exact exit status."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from sshrec.recording import events
from tests.e2e.recorded import fingerprint, last
from tests.lab import Lab


def test_streams_and_status(lab: Lab) -> None:
    done = lab.ssh("-A", "bastion", "root@web1", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    recorded = last(lab)
    facts = recorded.facts
    assert facts["user"] == "joe"
    assert facts["target"] == "root@web1"
    assert facts["kind"] == "exec"
    assert facts["command"] == "echo out; echo err >&2; exit 7"
    assert facts["key_id"] == "joe"
    assert recorded.streams() == {"stdout": b"out\n", "stderr": b"err\n"}
    assert recorded.end["status"] == 7
    assert recorded.coded(events.EXIT) == ["7"]


def test_the_login_defaults_to_the_account(lab: Lab) -> None:
    done = lab.ssh("-A", "bastion", "web1", "echo $USER")
    assert done.stdout == b"joe\n"
    assert last(lab).facts["target"] == "joe@web1"


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 3_000_000])
def test_binary_both_ways(lab: Lab, size: int) -> None:
    data = os.urandom(size)
    done = lab.ssh("-A", "bastion", "root@web1", "cat; exit 3", input=data)
    assert done.returncode == 3
    assert done.stdout == data
    assert done.stderr == b""
    recorded = last(lab)
    assert recorded.streams()["stdout"] == data
    assert recorded.counts() == {
        "stdin": fingerprint(data),
        "stdout": fingerprint(data),
        "stderr": fingerprint(b""),
    }


def test_what_is_beyond_the_limit_is_counted(lab: Lab) -> None:
    lab.stop_sshrecd()
    lab.start_sshrecd({"limits": {"stream_bytes": 100_000}})
    data = os.urandom(350_000)
    done = lab.ssh("-A", "bastion", "root@web1", "tee /dev/stderr", input=data)
    assert done.stdout == data
    assert done.stderr == data
    recorded = last(lab)
    assert recorded.streams() == {"stdout": data[:100_000], "stderr": data[:100_000]}
    assert recorded.counts()["stdout"] == fingerprint(data)
    assert recorded.counts()["stderr"] == fingerprint(data)


def test_half_close(lab: Lab) -> None:
    """The command sees the end of its input, while its output goes on."""
    done = lab.ssh("-A", "bastion", "root@web1", "wc -c; echo after", input=b"x" * 100_000)
    assert done.stdout.split() == [b"100000", b"after"]
    client = lab.popen("-A", "bastion", "root@web1", "echo first; cat >/dev/null; echo last; exit 5")
    assert client.stdout and client.stdin
    assert client.stdout.readline() == b"first\n"
    assert client.poll() is None
    client.stdin.close()
    assert client.stdout.read() == b"last\n"
    assert client.wait(20) == 5


def test_tar_both_ways(lab: Lab, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    for name, size in (("a", 10), ("b", 200_000), ("deep/ü", 0)):
        (tree / name).write_bytes(os.urandom(size))
    packed = subprocess.run(["tar", "-C", tree, "-cz", "."], capture_output=True, check=True).stdout
    there = "d=$(mktemp -d) && tar -C $d -xz && tar -C $d -c . && rm -r $d"
    back = lab.ssh("-A", "bastion", "root@web1", there, input=packed, check=True).stdout
    (tmp_path / "back").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "back", "-x"], input=back, check=True)
    assert not subprocess.run(["diff", "-r", tree, tmp_path / "back"], capture_output=True).stdout


def test_git_clone(lab: Lab, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    identity = ["-c", "user.name=joe", "-c", "user.email=joe@example.com"]
    subprocess.run(["git", "init", "-q", source], check=True)
    (source / "file").write_bytes(os.urandom(300_000))
    subprocess.run(["git", "-C", source, "add", "."], check=True)
    subprocess.run(["git", "-C", source, *identity, "commit", "-qm", "one"], check=True)
    bundle = subprocess.run(
        ["git", "-C", source, "bundle", "create", "-q", "-", "HEAD"], capture_output=True, check=True
    )
    setup = "rm -rf repo && cat > b && git clone -q --bare b repo && rm b"
    lab.ssh("-A", "bastion", "root@web1", setup, input=bundle.stdout, check=True)
    laptop = lab.laptop("joe")
    wrapper = tmp_path / "ssh"
    # git gives host and command: the host is the bastion's, the target goes in front of the command.
    wrapper.write_text(f'#!/bin/sh\nexec ssh -F {laptop.ssh_config} -A bastion root@web1 "$2"\n')
    wrapper.chmod(0o755)
    env = {**laptop.env, "GIT_SSH_COMMAND": str(wrapper), "GIT_SSH_VARIANT": "simple"}
    subprocess.run(["git", "clone", "-q", "web1:repo", copy], env=env, check=True, timeout=60)
    assert (copy / "file").read_bytes() == (source / "file").read_bytes()


def test_rsync_both_ways(lab: Lab, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.mkdir()
    for number in range(50):
        (source / str(number)).write_bytes(os.urandom(number * 1000))
    laptop = lab.laptop("joe")
    shell = tmp_path / "rsh"
    shell.write_text(f'#!/bin/sh\nshift\nexec ssh -F {laptop.ssh_config} -A bastion root@web1 "$*"\n')
    shell.chmod(0o755)
    for one, other in ((f"{source}/", "web1:copy/"), ("web1:copy/", f"{back}/")):
        subprocess.run(["rsync", "-a", "-e", str(shell), one, other], env=laptop.env, check=True, timeout=60)
    assert not subprocess.run(["diff", "-r", source, back], capture_output=True).stdout


def test_a_command_is_forwarded_byte_for_byte(lab: Lab) -> None:
    command = "printf '%s|' \"a  b\" 'c' \\$d *\\ é; printf '\\377'"
    direct = lab.ssh("web1", command)
    done = lab.ssh("-A", "bastion", f"root@web1 {command}")
    assert done.stdout == direct.stdout


def test_a_large_command(lab: Lab) -> None:
    filler = "x" * (60 * 1024)
    done = lab.ssh("-A", "bastion", "root@web1", f"echo {filler} | wc -c")
    assert done.stdout.strip() == str(len(filler) + 1).encode()


def test_a_shell_without_a_terminal(lab: Lab) -> None:
    done = lab.ssh("-A", "-T", "bastion", "root@web1", input=b"echo $((6*7)); tty; exit 4\n")
    assert done.returncode == 4
    assert done.stdout.splitlines()[-2:] == [b"42", b"not a tty"]
    assert last(lab).facts["kind"] == "shell"


def test_death_by_a_signal_says_so(lab: Lab) -> None:
    done = lab.ssh("-A", "bastion", "root@web1", "echo before; kill -9 $$")
    assert done.returncode == 255
    assert done.stdout == b"before\n"
    assert done.stderr == b"sshrec: error: the command on web1 was ended by a signal\n"


def test_status_255_is_passed_on_in_silence(lab: Lab) -> None:
    done = lab.ssh("-A", "bastion", "root@web1", "exit 255")
    assert (done.returncode, done.stderr) == (255, b"")


def test_a_reader_that_stops(lab: Lab) -> None:
    """`ssh … yes | head -1`: the command learns that nobody reads, as through one ssh."""
    client = lab.popen("-A", "bastion", "root@web1", "yes; echo $? >&2")
    assert client.stdout and client.stderr
    assert client.stdout.readline() == b"y\n"
    client.stdout.close()
    assert client.wait(20) is not None


def test_text_that_is_split_in_a_read(lab: Lab) -> None:
    text = "äöü€𝄞" * 40_000
    done = lab.ssh("-A", "bastion", "root@web1", "cat", input=text.encode())
    assert done.stdout.decode() == text
    recorded = last(lab)
    assert recorded.text == text
    assert not recorded.coded(events.BYTES)


def test_the_targets_environment(lab: Lab) -> None:
    env = {"LANG": "de_DE.UTF-8", "LC_EVIL": "x", "LD_PRELOAD": ""}
    done = lab.ssh("-A", "-o", "SendEnv=LANG LC_EVIL", "bastion", "root@web1", "env", env=env)
    seen = dict(line.split("=", 1) for line in done.stdout.decode().splitlines() if "=" in line)
    assert seen["LANG"] == "de_DE.UTF-8"
    assert not {"LC_EVIL", "SSH_AUTH_SOCK", "SSHREC_SESSION"} & set(seen)
