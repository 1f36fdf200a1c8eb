"""Signatures of data: the judge is ssh-keygen, and what it says of forgeries."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from sshrec.errors import DataError, SshrecError
from sshrec.openssh import keygen, public_key
from sshrec.openssh.signer import AgentKey, KeyFile
from sshrec.openssh.sshsig import sign_data, verify_data
from tests.lab.parts import program, start, stop, wait

WHO, WHAT = "audit@bastion", "test-v1"


@pytest.fixture
def key(tmp_path: Path) -> KeyFile:
    path = tmp_path / "audit"
    return KeyFile(path, keygen.make_key(path, "audit"))


@pytest.fixture
def allowed(tmp_path: Path, key: KeyFile) -> Path:
    path = tmp_path / "allowed_signers"
    path.write_text(f'{WHO} namespaces="{WHAT}" {key.public.line}\n')
    return path


def test_what_was_signed_is_good_and_nothing_else(key: KeyFile, allowed: Path) -> None:
    signature = sign_data(key, b"a line", WHAT)
    assert "\n" not in signature
    verify_data(allowed, WHO, WHAT, b"a line", signature)
    other = sign_data(key, b"a line", "file")
    flipped = signature[:-20] + ("A" if signature[-20] != "A" else "B") + signature[-19:]
    for identity, namespace, data, wrong in (
        (WHO, WHAT, b"a line\n", signature),
        (WHO, WHAT, b"a Line", signature),
        (WHO, "file", b"a line", signature),
        (WHO, "file", b"a line", other),  # signed so, but nobody allowed it
        (WHO, WHAT, b"a line", other),
        ("mallory", WHAT, b"a line", signature),
        (WHO, WHAT, b"a line", flipped),
        (WHO, WHAT, b"a line", ""),
        (WHO, WHAT, b"a line", "not base64!" * 9),
    ):
        with pytest.raises(DataError):
            verify_data(allowed, identity, namespace, data, wrong)


def test_another_key_is_not_ours(key: KeyFile, allowed: Path, tmp_path: Path) -> None:
    stranger = KeyFile(tmp_path / "stranger", keygen.make_key(tmp_path / "stranger", "stranger"))
    with pytest.raises(DataError, match="is not audit@bastion's"):
        verify_data(allowed, WHO, WHAT, b"x", sign_data(stranger, b"x", WHAT))


def test_a_certified_key_counts_while_its_certificate_does(key: KeyFile, tmp_path: Path) -> None:
    ca = keygen.make_key(tmp_path / "audit_ca", "audit CA")
    argv = [
        program("ssh-keygen"),
        "-q",
        "-s",
        str(tmp_path / "audit_ca"),
        "-I",
        "epoch",
        "-n",
        WHO,
        "-V",
        "-2h:-1h",
    ]
    subprocess.run([*argv, f"{key.path}.pub"], check=True)
    allowed = tmp_path / "allowed_by_ca"
    allowed.write_text(f'{WHO} cert-authority,namespaces="{WHAT}" {ca.line}\n')
    signature = sign_data(key, b"x", WHAT, Path(f"{key.path}-cert.pub"))
    now = int(time.time())
    verify_data(allowed, WHO, WHAT, b"x", signature, now - 5400)
    for at in (now, now - 3 * 3600):
        with pytest.raises(DataError):
            verify_data(allowed, WHO, WHAT, b"x", signature, at)


def test_an_agent_signs(key: KeyFile, allowed: Path, tmp_path: Path) -> None:
    socket = tmp_path / "agent"
    env = {"PATH": "/usr/bin:/bin", "SSH_AUTH_SOCK": str(socket)}
    agent = start([program("ssh-agent"), "-D", "-a", socket], env, tmp_path / "agent.log")
    try:
        wait(socket.exists, "ssh-agent")
        subprocess.run([program("ssh-add"), "-q", str(key.path)], env=env, check=True)
        public = public_key.read(f"{key.path}.pub")
        verify_data(allowed, WHO, WHAT, b"x", sign_data(AgentKey(public, socket), b"x", WHAT))
        subprocess.run([program("ssh-add"), "-q", "-D"], env=env, check=True)
        with pytest.raises(SshrecError, match="did not sign"):
            sign_data(AgentKey(public, socket), b"x", WHAT)
    finally:
        stop(agent)
