"""A key bound to its destinations: good for the sessions that joe may have, and for no other, stolen or not.

Where a hop is not allowed at all, the agent does not show the key; where a login is not, it does not sign.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from sshrec.errors import SshrecError
from sshrec.openssh import destinations, public_key
from sshrec.openssh.agent import Agent, ConstraintsRefused
from sshrec.openssh.certificate import Certificate, read_certificate
from sshrec.openssh.destinations import Constrained, Host
from sshrec.openssh.public_key import PublicKey
from tests import agents
from tests.lab import PROMPT, Lab, Laptop
from tests.lab.people import make_key

COMMENT = "joe"  # of the lab's keys


def host_ca(lab: Lab) -> PublicKey:
    """The CA that certifies the lab's hosts."""
    (line,) = lab.known_hosts.read_bytes().splitlines()
    return public_key.parse(line.split(maxsplit=2)[2], "known_hosts")


def host_key(lab: Lab, name: str) -> PublicKey:
    return public_key.read(lab.directory / name / "host_key.pub")


def bound(
    lab: Lab, *pairs: tuple[str, str], bastion: str = "bastion", gateway: Sequence[PublicKey] = ()
) -> Constrained:
    """joe's constraints: the bastion, and these logins on nodes; certificates and plain host keys alike."""

    def host(name: str) -> Host:
        return Host(name, (host_key(lab, name),), (host_ca(lab),))

    found = destinations.constraints("joe", host(bastion), gateway, [(login, host(name)) for login, name in pairs])
    assert isinstance(found, Constrained), found
    return found


@contextlib.contextmanager
def laptop(lab: Lab) -> Iterator[Laptop]:
    """joe at another laptop, with an agent that holds nothing yet."""
    opened = lab.open_laptop("joe", name="bound")
    try:
        subprocess.run(["ssh-add", "-q", "-D"], env=opened.env, check=True, timeout=20)
        yield opened
    finally:
        lab.close_laptop(opened)


def certificate(laptop: Laptop) -> Certificate:
    path = laptop.directory / "key-cert.pub"
    return read_certificate(path.read_bytes(), str(path))


def load(laptop: Laptop, constrained: Constrained, forwarded: Path | None = None) -> None:
    """Into joe's agent, on the laptop or through a `forwarded` socket."""
    Agent(forwarded or Path(laptop.env["SSH_AUTH_SOCK"])).load(
        laptop.key,
        certificate(laptop),
        lifetime=600,
        comment=COMMENT,
        constraints=constrained.constraints,
        known_hosts=constrained.known_hosts,
        forwarded=forwarded is not None,
    )


@pytest.fixture
def joe(lab: Lab) -> Iterator[Laptop]:
    """joe, who may be root on web1, and nobody anywhere else."""
    with laptop(lab) as opened:
        load(opened, bound(lab, ("root", "web1")))
        yield opened


def refused(lab: Lab, joe: Laptop, *words: str) -> str:
    done = lab.ssh(*words, user=joe)
    assert (done.returncode, done.stdout) == (255, b"")
    return done.stderr.decode()


def test_the_sessions_that_joe_may_have(lab: Lab, joe: Laptop) -> None:
    assert lab.ssh("-A", "bastion", "root@web1", "echo", "$USER", user=joe).stdout == b"root\n"
    terminal = lab.spawn("-tA", "bastion", "root@web1", user=joe)
    terminal.expect(PROMPT)
    terminal.sendline("exit")
    terminal.wait()


def test_a_login_that_joe_may_not_have(lab: Lab, joe: Laptop) -> None:
    told = refused(lab, joe, "-A", "bastion", "deploy@web1", "id")
    assert "web1 does not let you in as deploy" in told


def test_a_node_that_joe_may_not_have(lab: Lab, joe: Laptop) -> None:
    assert "web2 does not let you in as root" in refused(lab, joe, "-A", "bastion", "root@web2", "id")


def test_no_way_past_the_bastion(lab: Lab, joe: Laptop) -> None:
    assert "Permission denied" in refused(lab, joe, "web1", "id")


def test_logins_are_left_out_where_there_are_too_many(lab: Lab) -> None:
    host = Host("web1", (), (host_ca(lab),))
    pairs = [(f"l{number}", host) for number in range(1100)]
    found = destinations.constraints("joe", Host("bastion", (), (host_ca(lab),)), [], pairs)
    assert isinstance(found, Constrained)
    assert not found.logins
    with laptop(lab) as joe:
        load(joe, found)
        for login in ("root", "deploy"):
            done = lab.ssh("-A", "bastion", f"{login}@web1", "echo", "$USER", user=joe)
            assert done.stdout == f"{login}\n".encode()
        assert "web2 does not let you in as root" in refused(lab, joe, "-A", "bastion", "root@web2", "id")


# ---- the host keys that hosts may prove themselves by --------------------------------------------------------


def test_a_bastion_known_by_its_plain_key(lab: Lab, joe: Laptop, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"bastion {host_key(lab, 'bastion').line}\n")
    options = ("-o", f"UserKnownHostsFile={known}", "-o", "HostKeyAlgorithms=ssh-ed25519")
    done = lab.ssh(*options, "-A", "bastion", "root@web1", "echo", "$USER", user=joe)
    assert done.stdout == b"root\n"


def test_a_target_known_by_its_plain_key(lab: Lab, joe: Laptop) -> None:
    known, config = lab.directory / "pinned", lab.directory / "web1" / "sshd_config"
    known.write_text(f"web1 {host_key(lab, 'web1').line}\n")
    lab.stop_sshrecd()
    lab.start_sshrecd({"known_hosts": [str(known)]})
    text = config.read_text()
    config.write_text("".join(line for line in text.splitlines(True) if not line.startswith("HostCertificate")))
    lab.sshds["web1"].reload()
    try:
        assert lab.ssh("-A", "bastion", "root@web1", "echo", "$USER", user=joe).stdout == b"root\n"
        assert "web2 does not let you in as root" in refused(lab, joe, "-A", "bastion", "root@web2", "id")
        assert "as deploy" in refused(lab, joe, "-A", "bastion", "deploy@web1", "id")
    finally:
        config.write_text(text)
        lab.sshds["web1"].reload()


def test_a_bastion_by_another_name_of_its_certificate(lab: Lab, joe: Laptop) -> None:
    """The agent asks whether the certificate has the constraint's name, not what the person typed."""
    known = joe.directory / "known_hosts"
    known.write_text(f"@cert-authority * {host_ca(lab).line}\n")
    ca = lab.authority_dir / "keys" / "host_ca"
    lab.start_bastion("other")
    try:
        key = lab.directory / "other" / "host_key"
        lab.authority.by_hand(ca, key, "other", ["other", "bastion"], host=True)
        lab.sshds["other"].reload()
        assert lab.ssh("-A", "other", "root@web1", "echo", "$USER", user=joe).stdout == b"root\n"
        lab.authority.by_hand(ca, key, "other", ["other"], host=True)
        lab.sshds["other"].reload()
        assert "Permission denied" in refused(lab, joe, "-A", "other", "root@web1", "id")
    finally:
        lab.stop_bastion("other")


# ---- theft from the bastion ----------------------------------------------------------------------------------


@contextlib.contextmanager
def stolen(lab: Lab, joe: Laptop) -> Iterator[dict[str, str]]:
    """What root on the bastion has of a live session: the environment with the socket of joe's forwarded agent."""
    terminal = lab.spawn("-tA", "bastion", "root@web1", user=joe)
    terminal.expect(PROMPT)
    (socket,) = [path for path in _forwarded() if _leads_to(path, certificate(joe))]
    try:
        yield {**joe.env, "SSH_AUTH_SOCK": str(socket)}
    finally:
        terminal.sendline("exit")
        terminal.wait()


def _forwarded() -> Iterator[Path]:
    """The sockets that sshds of this machine have made."""
    for pattern in ("tmp/ssh-*/agent.*", "tmp/sr-*/home/joe/.ssh/agent/*"):
        yield from Path("/").glob(pattern)


def _leads_to(path: Path, certificate: Certificate) -> bool:
    try:
        return any(one.blob == certificate.blob for one in Agent(path).identities())
    except SshrecError:  # another lab's, that ends
        return False


def as_thief(lab: Lab, env: dict[str, str], *words: str) -> subprocess.CompletedProcess[bytes]:
    """ssh from the bastion with the stolen socket, and nothing of sshrec's between."""
    return subprocess.run(lab.ssh_argv(*words, user="bound"), env=env, capture_output=True, timeout=60)


def test_theft_from_the_bastion(lab: Lab, joe: Laptop, tmp_path: Path) -> None:
    with stolen(lab, joe) as env:
        listed = subprocess.run(["ssh-add", "-L"], env=env, capture_output=True, timeout=20).stdout
        assert listed.split()[1].decode() == certificate(joe).blob
        for words in ("root@web2", "deploy@web2", "deploy@web1", "joe@web1", "joe@bastion"):
            done = as_thief(lab, env, words, "id")
            assert (done.returncode, done.stdout) == (255, b""), words
            assert b"Permission denied" in done.stderr, words
            assert (b"agent refused operation" in done.stderr) == words.endswith("@web1"), words
        (tmp_path / "message").write_bytes(b"joe said so")
        key = str(joe.directory / "key-cert.pub")
        argv = ["ssh-keygen", "-Y", "sign", "-n", "file", "-f", key, str(tmp_path / "message")]
        signed = subprocess.run(argv, env=env, capture_output=True, timeout=20)
        assert signed.returncode, "sign"
        assert b"agent refused operation" in signed.stderr
        assert not (tmp_path / "message.sig").exists()


def test_theft_and_what_joe_may_do_himself(lab: Lab, joe: Laptop) -> None:
    """What remains: for as long as joe is there, root on the bastion has the sessions that joe could have."""
    with stolen(lab, joe) as env:
        assert as_thief(lab, env, "root@web1", "echo", "$USER").stdout == b"root\n"


def test_theft_and_another_hop(lab: Lab, joe: Laptop) -> None:
    """A stolen agent that is forwarded on, as ssh does it, is of no use there."""
    with stolen(lab, joe) as env:
        words = ["-A", "root@web1", "ssh-add", "-L"]
        assert b"no identities" in as_thief(lab, env, *words).stdout


def test_theft_without_constraints(lab: Lab) -> None:
    """That the tests above can fail: the lab's own joe has a key without constraints."""
    with laptop(lab) as joe:
        Agent(Path(joe.env["SSH_AUTH_SOCK"])).load(joe.key, certificate(joe), lifetime=600, comment=COMMENT)
        with stolen(lab, joe) as env:
            assert as_thief(lab, env, "deploy@web2", "echo", "$USER").stdout == b"deploy\n"


# ---- loaded from the bastion, through the forwarded agent ----------------------------------------------------


_TELL = "echo $SSH_AUTH_SOCK; exec cat"


@contextlib.contextmanager
def forwarded(lab: Lab, joe: Laptop, agent: Path) -> Iterator[Path]:
    """The socket on the bastion `dialogue` that leads to this agent of joe's, who came with his plain key."""
    env = {"SSH_AUTH_SOCK": str(agent)}
    with lab.popen("-A", "-o", f"IdentityFile={joe.key}", "dialogue", user=joe, env=env) as client:
        assert client.stdin and client.stdout
        yield Path(client.stdout.readline().decode().strip())
        client.stdin.close()
        assert client.wait(20) == 0


def test_loaded_through_a_forwarded_agent(lab: Lab) -> None:
    lab.start_bastion("dialogue", force_command=_TELL, authorized_keys=True)
    try:
        with laptop(lab) as joe:
            lab.authorize(joe)
            _loaded_through_a_forwarded_agent(lab, joe)
    finally:
        lab.stop_bastion("dialogue")


def _loaded_through_a_forwarded_agent(lab: Lab, joe: Laptop) -> None:
    agent = Path(joe.env["SSH_AUTH_SOCK"])
    constrained = bound(lab, ("root", "web1"), bastion="dialogue")
    with forwarded(lab, joe, agent) as socket:
        load(joe, constrained, socket)
        (held,) = [one for one in Agent(socket).identities() if one.comment == COMMENT]
        assert held.blob == certificate(joe).blob
        env = {**joe.env, "SSH_AUTH_SOCK": str(socket)}
        assert as_thief(lab, env, "root@web1", "echo", "$USER").stdout == b"root\n"
        for target in ("deploy@web1", "root@web2"):
            done = as_thief(lab, env, target, "id")
            assert b"Permission denied" in done.stderr
            assert done.stdout == b""
    # At another bastion the key is not shown.
    assert "Permission denied" in refused(lab, joe, "-A", "bastion", "root@web1", "id")
    with forwarded(lab, joe, agent) as socket:
        assert Agent(socket).remove(COMMENT) == 1
    assert all(one.comment != COMMENT for one in Agent(agent).identities())


def test_an_ssh_that_tells_the_agent_nothing(lab: Lab) -> None:
    """Before 8.9: a key with constraints would be of no use, and so it is not loaded."""

    def extension(message: bytes) -> bytes | None:
        return agents.FAILURE if message[4] == 27 else None  # SSH_AGENTC_EXTENSION

    lab.start_bastion("dialogue", force_command=_TELL, authorized_keys=True)
    try:
        with laptop(lab) as joe, agents.between(extension, Path(joe.env["SSH_AUTH_SOCK"])) as old:
            lab.authorize(joe)
            with forwarded(lab, joe, old) as socket:
                with pytest.raises(ConstraintsRefused, match="your ssh does not tell your agent by which hosts"):
                    load(joe, bound(lab, ("root", "web1"), bastion="dialogue"), socket)
                assert not [one for one in Agent(socket).identities() if one.comment == COMMENT]
    finally:
        lab.stop_bastion("dialogue")


# ---- the transparent way in: a host that the gateway's own CA speaks for -------------------------------------


@pytest.fixture
def gateway_ca(lab: Lab, tmp_path: Path) -> Iterator[PublicKey]:
    """The CA of a stand-in for the gateway's inner sshd, `ssh inner`."""
    ca = tmp_path / "gateway_ca"
    make_key(ca, "gateway", lab.laptop("joe").env)
    lab.start_target("inner", ca, ["web1.sshrec", destinations.GATEWAY])
    yield public_key.read(f"{ca}.pub")
    lab.stop_target("inner")


def test_the_transparent_way_in(lab: Lab, gateway_ca: PublicKey, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"@cert-authority *.sshrec {gateway_ca.line}\n")
    as_gateway = ("-o", "HostKeyAlias=web1.sshrec", "-o", f"UserKnownHostsFile={known}", "-p")
    with laptop(lab) as joe:
        load(joe, bound(lab, ("root", "web1"), gateway=[gateway_ca]))
        port = str(lab.sshds["inner"].port)
        done = lab.ssh(*as_gateway, port, "root@inner", "echo", "$USER", user=joe)
        assert done.stdout == b"root\n", done.stderr
        # The real web1 stays shut, whose own CA says its name; and so does the bastion's way there.
        assert "Permission denied" in refused(lab, joe, "root@web1", "id")
        with stolen(lab, joe) as env:
            done = as_thief(lab, env, *as_gateway, port, "root@inner", "id")
            assert b"Permission denied" in done.stderr
            assert done.stdout == b""
        Agent(Path(joe.env["SSH_AUTH_SOCK"])).remove(COMMENT)
        load(joe, bound(lab, ("root", "web1")))
        assert "Permission denied" in refused(lab, joe, *as_gateway, port, "root@inner", "id")
