"""A certificate in an ssh-agent: put in, replaced, taken out; and agents that refuse, hang and lie."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pexpect
import pytest

from sshrec.errors import SshrecError
from sshrec.openssh import agent as module
from sshrec.openssh import keygen
from sshrec.openssh.agent import (
    Agent,
    AgentLied,
    AgentRefused,
    AgentSilent,
    ConstraintsRefused,
    NoAgent,
    NoCertificates,
    fresh_key,
    without_certificates,
)
from sshrec.openssh.certificate import Certificate, Terms
from sshrec.openssh.public_key import PublicKey
from sshrec.openssh.signer import KeyFile, Ready, unlocked
from tests import agents

COMMENT = "sshrec:joe"
KNOWN = "bastion ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4\n"


@pytest.fixture
def socket() -> Iterator[Path]:
    with agents.agent() as path:
        yield path


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[Ready]:
    with authority(tmp_path / "ca") as ready:
        yield ready


def authority(path: Path) -> AbstractContextManager[Ready]:
    return unlocked(KeyFile(path, keygen.make_key(path, "ca")), lambda _: "")


def certified(ca: Ready, key: PublicKey, serial: int = 1) -> Certificate:
    now = int(time.time())
    return keygen.sign(ca, key, Terms("user", "joe", ("sshrec:joe", "root"), now - 60, now + 600, serial))


def load(socket: Path, ca: Ready, serial: int = 1, comment: str = COMMENT, **options: str) -> Certificate:
    """Log in: a fresh key, its certificate, into the agent."""
    constraints = {"constraints": ["bastion"], "known_hosts": KNOWN} if options.pop("bound", "") else {}
    with fresh_key(comment) as (key, public):
        certificate = certified(ca, public, serial)
        Agent(socket).load(key, certificate, lifetime=60, comment=comment, **constraints)  # type: ignore[arg-type]
    assert not key.exists()
    return certificate


def held(socket: Path) -> list[tuple[str, str]]:
    """What ssh-add lists: type and comment."""
    lines = ssh_add(socket, "-L").stdout.splitlines()
    return [(words[0], words[2]) for line in lines if len(words := line.split()) == 3]


def ssh_add(socket: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"SSH_AUTH_SOCK": str(socket), "PATH": "/usr/bin:/bin"}
    return subprocess.run(["ssh-add", *arguments], env=environment, capture_output=True, text=True, timeout=20)


CERTIFICATE = ("ssh-ed25519-cert-v01@openssh.com", COMMENT)


def test_the_certificate_alone_is_there(socket: Path, ca: Ready) -> None:
    assert Agent(socket).identities() == []
    certificate = load(socket, ca)
    assert held(socket) == [CERTIFICATE]
    (found,) = Agent(socket).identities()
    assert isinstance(found, Certificate)
    assert (found.blob, found.comment, found.principals) == (certificate.blob, COMMENT, ("sshrec:joe", "root"))


def test_it_signs(socket: Path, ca: Ready, tmp_path: Path) -> None:
    (tmp_path / "c.pub").write_text(f"{load(socket, ca).line}\n")
    assert ssh_add(socket, "-T", str(tmp_path / "c.pub")).returncode == 0


def test_it_expires(socket: Path, ca: Ready) -> None:
    with fresh_key(COMMENT) as (key, public):
        Agent(socket).load(key, certified(ca, public), lifetime=5, comment=COMMENT)
    deadline = time.monotonic() + 20
    while held(socket) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert held(socket) == []


def test_a_new_one_replaces_the_old(socket: Path, ca: Ready, tmp_path: Path) -> None:
    keygen.make_key(tmp_path / "own", COMMENT)
    assert ssh_add(socket, str(tmp_path / "own")).returncode == 0
    load(socket, ca, 1)
    load(socket, ca, 2, comment="sshrec:alice")
    third = load(socket, ca, 3)
    assert [one.serial for one in Agent(socket).identities() if isinstance(one, Certificate)] == [2, 3]
    assert ("ssh-ed25519", COMMENT) in held(socket)  # a key of joe's own is none of ours
    assert Agent(socket).remove(COMMENT, third.ca) == 1
    assert Agent(socket).remove(COMMENT) == 0
    assert [kind for kind, _ in held(socket)] == ["ssh-ed25519", CERTIFICATE[0]]


def test_the_same_name_at_another_bastion_stays(socket: Path, ca: Ready, tmp_path: Path) -> None:
    load(socket, ca, 1)
    with authority(tmp_path / "other") as other:
        load(socket, other, 2)
    assert held(socket) == [CERTIFICATE, CERTIFICATE]
    assert Agent(socket).remove(COMMENT, ca.public) == 1
    assert Agent(socket).remove(COMMENT) == 1


def test_no_agent(tmp_path: Path, ca: Ready) -> None:
    for act in (lambda: Agent(tmp_path / "none").identities(), lambda: load(tmp_path / "none", ca)):
        with pytest.raises(NoAgent, match="does not answer: no such file or directory"):
            act()


def test_a_locked_agent_refuses(socket: Path, ca: Ready) -> None:
    load(socket, ca)
    locking = pexpect.spawn("ssh-add", ["-x"], env={"SSH_AUTH_SOCK": str(socket), "PATH": "/usr/bin"}, timeout=20)
    for prompt in ("Enter lock password: ", "Again: "):
        locking.expect(prompt)
        locking.sendline("secret")
    locking.expect(pexpect.EOF)
    with pytest.raises(AgentRefused, match="refuses"):
        load(socket, ca)


@pytest.mark.parametrize("bound", ["", "yes"])
def test_an_agent_that_takes_no_keys(socket: Path, ca: Ready, bound: str) -> None:
    old = load(socket, ca)
    with agents.between(agents.refusing(b""), socket) as path:
        with pytest.raises(ConstraintsRefused if bound else AgentRefused, match="refuses") as refused:
            load(path, ca, bound=bound)
        assert bound or type(refused.value) is AgentRefused
    assert [one.blob for one in Agent(socket).identities()] == [old.blob]


def test_an_agent_that_knows_no_constraints_takes_the_key_without(socket: Path, ca: Ready) -> None:
    with agents.between(agents.refusing(agents.CONSTRAINED), socket) as path:
        with pytest.raises(ConstraintsRefused, match="refuses a key with destination constraints"):
            load(path, ca, bound="yes")
        assert held(socket) == []
        load(path, ca)
    assert held(socket) == [CERTIFICATE]


def test_an_agent_that_holds_no_certificates(socket: Path, ca: Ready, tmp_path: Path) -> None:
    keygen.make_key(tmp_path / "own", "own")
    ssh_add(socket, str(tmp_path / "own"))
    refusing = agents.refusing(agents.CERTIFICATE)
    with agents.between(refusing, socket) as path, pytest.raises(NoCertificates, match="and not its certificate"):
        load(path, ca)
    assert held(socket) == [("ssh-ed25519", "own")]


def test_an_agent_that_keeps_the_plain_key(socket: Path, ca: Ready) -> None:
    old = load(socket, ca)

    def keeping(message: bytes) -> bytes | None:
        return agents.FAILURE if message[4] == 18 else None  # SSH2_AGENTC_REMOVE_IDENTITY

    with agents.between(keeping, socket) as path, pytest.raises(AgentRefused, match="keeps the key without"):
        load(path, ca, 2)
    assert old.blob in [one.blob for one in Agent(socket).identities()]  # both rather than nothing


def test_an_agent_of_gpg_is_known_by_its_name(ca: Ready) -> None:
    def never(message: bytes) -> bytes:
        raise AssertionError(message)

    with agents.between(never, name="S.gpg-agent.ssh") as path:
        assert without_certificates(path) == "gpg-agent"
        with pytest.raises(NoCertificates, match="gpg-agent holds no certificates"):
            load(path, ca)


def test_gnome_keyring_is_of_no_use_with_constraints(socket: Path, ca: Ready) -> None:
    with agents.between(lambda _: None, socket, name="keyring/ssh") as path:
        with pytest.raises(ConstraintsRefused, match="GNOME keyring cannot use"):
            load(path, ca, bound="yes")
        load(path, ca)


def test_a_key_that_is_over_before_it_is_looked_for_proves_nothing(socket: Path) -> None:
    """An agent far away, or a busy host: a key that has expired looks like one that is hidden."""
    late = [None]

    def slow(message: bytes) -> bytes | None:
        if message[4] == 11 and late:  # SSH_AGENTC_REQUEST_IDENTITIES
            late.pop()
            time.sleep(2.5)
        return None

    with agents.between(slow, socket) as path:
        refused = Agent(path).bound()
    assert not late
    assert str(refused) == "your ssh does not tell your agent by which hosts it is used"
    assert held(socket) == []


def test_an_agent_that_hangs(monkeypatch: pytest.MonkeyPatch, ca: Ready, tmp_path: Path) -> None:
    import socket

    monkeypatch.setattr(module, "_SECONDS", 0.3)
    monkeypatch.setattr(module, "_MEMORY", memory := tmp_path / "memory")
    memory.mkdir()
    with tempfile.TemporaryDirectory(prefix="sr-", dir="/tmp") as directory, socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(f"{directory}/agent")
        deaf.listen()
        for act in (Agent(Path(directory, "agent")).identities, lambda: load(Path(directory, "agent"), ca)):
            with pytest.raises(AgentSilent, match=r"did not answer within 0\.3 seconds"):
                act()
        assert list(memory.iterdir()) == []


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4) + data


def _listing(*keys: tuple[bytes, bytes]) -> bytes:
    body = b"".join(_string(key) + _string(comment) for key, comment in keys)
    return _string(b"\x0c" + len(keys).to_bytes(4) + body)


_KEY = _string(b"ssh-ed25519") + _string(b"x" * 32)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (agents.FAILURE, AgentRefused),
        (b"\0\0\0\5\x0c\0\0\0\7", AgentLied),
        (b"\0\0\0\3abc", AgentLied),
        (b"\xff\xff\xff\xff", AgentLied),
        (b"", NoAgent),
        (_listing((_KEY, b"a\nssh-ed25519 !!! \x1b[31m")), AgentLied),
        (_listing((_KEY, b"a\nb")), AgentLied),
    ],
)
def test_an_agent_that_lies(answer: bytes, kind: type[Exception]) -> None:
    with agents.between(lambda _: answer) as path, pytest.raises(kind) as told:
        Agent(path).identities()
    assert str(told.value).isprintable()


def test_a_key_of_an_unknown_type_is_passed_over() -> None:
    with agents.between(lambda _: _listing((_KEY, b"one"), (_string(b"ssh-new") + b"?", b"two"))) as path:
        assert [key.algorithm for key in Agent(path).identities()] == ["ssh-ed25519"]


def test_an_encrypted_key_is_not_asked_for(socket: Path, ca: Ready, tmp_path: Path) -> None:
    public = keygen.make_key(tmp_path / "key", COMMENT, "secret")
    with pytest.raises(SshrecError, match="ssh-add failed: Enter passphrase"):
        Agent(socket).load(tmp_path / "key", certified(ca, public), lifetime=60, comment=COMMENT)
    assert held(socket) == []
