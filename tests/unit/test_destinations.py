"""Destination constraints: which are made of whom, and that ssh-add and ssh-agent take them, however many."""

from __future__ import annotations

import time
from base64 import b64encode
from pathlib import Path

import pytest

from sshrec.openssh import keygen
from sshrec.openssh.agent import Agent, fresh_key
from sshrec.openssh.certificate import Terms
from sshrec.openssh.destinations import Constrained, Host, Unconstrained, constraints
from sshrec.openssh.public_key import PublicKey, wire_string
from sshrec.openssh.signer import KeyFile, unlocked
from tests import agents


def key(number: int) -> PublicKey:
    blob = wire_string(b"ssh-ed25519") + wire_string(number.to_bytes(32))
    return PublicKey("ssh-ed25519", b64encode(blob).decode())


def rsa(number: int) -> PublicKey:
    modulus = b"\0" + ((1 << 4095) + 2 * number + 1).to_bytes(512)
    blob = wire_string(b"ssh-rsa") + wire_string(b"\1\0\1") + wire_string(modulus)
    return PublicKey("ssh-rsa", b64encode(blob).decode())


CA, GATEWAY_CA = key(1), key(2)
BASTION = Host("bastion", (key(3),), (CA,))


def node(name: str) -> Host:
    return Host(name, (), (CA,))


def made(found: Constrained | Unconstrained) -> Constrained:
    assert isinstance(found, Constrained), found
    return found


def test_the_bastion_then_each_login_on_each_node() -> None:
    allowed = [("root", node("web1")), ("joe", Host("old", (key(4), key(5)))), ("root", node("web2"))]
    found = made(constraints("joe", BASTION, [GATEWAY_CA], allowed))
    assert found.logins
    assert found.constraints == (
        "joe@bastion",
        "sshrec",
        "bastion>root@web1",
        "bastion>joe@old",
        "bastion>root@web2",
    )
    assert found.known_hosts.splitlines() == [
        f"bastion ssh-ed25519 {key(3).blob}",
        f"old ssh-ed25519 {key(4).blob}",
        f"old ssh-ed25519 {key(5).blob}",
        f"@cert-authority bastion,web1,web2 ssh-ed25519 {CA.blob}",
        f"@cert-authority sshrec ssh-ed25519 {GATEWAY_CA.blob}",
    ]


def test_a_ca_of_all_hosts_is_not_one_of_the_gateways_names() -> None:
    found = made(constraints("joe", BASTION, [GATEWAY_CA], [("root", node("web1")), ("joe", node("web1"))]))
    assert found.known_hosts.splitlines()[1:] == [
        f"@cert-authority *,!sshrec ssh-ed25519 {CA.blob}",
        f"@cert-authority sshrec ssh-ed25519 {GATEWAY_CA.blob}",
    ]


def test_without_a_transparent_way_in() -> None:
    found = made(constraints("joe", BASTION, [], [("root", node("web1"))]))
    assert found.constraints == ("joe@bastion", "bastion>root@web1")


def test_nobody_is_allowed_anything() -> None:
    found = made(constraints("joe", BASTION, [], []))
    assert found.constraints == ("joe@bastion", "bastion>joe@bastion")


def test_too_many_pairs_lose_their_logins() -> None:
    allowed = [(login, node(f"n{number}")) for number in range(600) for login in ("root", "joe")]
    found = made(constraints("joe", BASTION, [], allowed))
    assert not found.logins
    assert len(found.constraints) == 601
    assert found.constraints[:2] == ("joe@bastion", "bastion>n0")


def test_too_many_nodes() -> None:
    most = [("root", node(f"n{number}")) for number in range(1023)]
    assert made(constraints("joe", BASTION, [], most)).logins
    found = constraints("joe", BASTION, [], [*most, ("root", node("n1023"))])
    assert found == Unconstrained("1024 nodes are more than an agent has constraints for")


def test_long_keys_fill_the_message() -> None:
    bastion = Host("bastion", (), (rsa(1),))
    nodes = [("root", Host(f"n{number}", (), (rsa(1),))) for number in range(300)]
    assert made(constraints("joe", bastion, [], nodes[:200])).logins
    assert isinstance(constraints("joe", bastion, [], nodes), Unconstrained)


@pytest.mark.parametrize("name", ["web*", "web1,web2", "a>b", "a@b", "-h", "web1 x", "", "!web1", "a\nb", "Web1"])
def test_a_host_that_cannot_be_named(name: str) -> None:
    assert isinstance(constraints("joe", BASTION, [], [("root", node(name))]), Unconstrained)
    assert isinstance(constraints("joe", Host(name, (), (CA,)), [], []), Unconstrained)


@pytest.mark.parametrize("login", ["*", "r?ot", "a@b", "-x", "", "!root", "a>b", "ro ot"])
def test_a_login_that_would_be_a_pattern(login: str) -> None:
    assert isinstance(constraints("joe", BASTION, [], [(login, node("web1"))]), Unconstrained)
    assert isinstance(constraints(login, BASTION, [], []), Unconstrained)


def test_what_cannot_be_told() -> None:
    assert constraints("joe", BASTION, [], None) == Unconstrained("the nodes that you may use cannot be listed")
    unknown = constraints("joe", BASTION, [], [("root", Host("web1"))])
    assert unknown == Unconstrained("the host key of web1 is not known")
    for taken in ("sshrec", "bastion"):
        assert isinstance(constraints("joe", BASTION, [], [("root", node(taken))]), Unconstrained)


@pytest.mark.parametrize("keys", ["many", "long"])
def test_the_agent_takes_the_most_there_can_be(keys: str, tmp_path: Path) -> None:
    ca = KeyFile(tmp_path / "ca", keygen.make_key(tmp_path / "ca", "ca"))
    now = int(time.time())
    if keys == "many":
        found = made(constraints("joe", BASTION, [], [("root", node(f"n{n}.example.com")) for n in range(1023)]))
    else:
        plain = [("root", Host(f"n{n}", (rsa(n),), ())) for n in range(205)]
        found = made(constraints("joe", Host("bastion", (rsa(999),)), [], plain))
        more = [("root", Host(f"m{n}", (rsa(n),), ())) for n in range(25)]
        assert isinstance(constraints("joe", Host("bastion", (rsa(999),)), [], plain + more), Unconstrained)
    with agents.agent() as socket, unlocked(ca, lambda _: "") as ready, fresh_key("sshrec:joe") as (path, public):
        certificate = keygen.sign(ready, public, Terms("user", "joe", ("root",), now, now + 600, 1))
        Agent(socket).load(
            path,
            certificate,
            lifetime=60,
            comment="sshrec:joe",
            constraints=found.constraints,
            known_hosts=found.known_hosts,
        )
        assert [one.blob for one in Agent(socket).identities()] == [certificate.blob]
