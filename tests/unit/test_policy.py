"""Decisions: values in, a decision out."""

from __future__ import annotations

import ipaddress

import pytest

from sshrec.access.policy import Allow, Deny, Place, authorise, locate
from sshrec.config import Config, Node
from sshrec.session import Request, Target, User

JOE = User("joe", 1001)
SHELL = Request(Target("root", "web1"), None, terminal=True)
NODES = (Node(name="web1", address="127.0.0.1", port=2222), Node(name="db1"))


def decide(config: Config, host: str, *addresses: str, request: Request = SHELL, own: str = "") -> Allow | Deny:
    place = locate(config, Target("root", host))
    if isinstance(place, Deny):
        return place
    found = tuple(map(ipaddress.ip_address, addresses))
    return authorise(config, JOE, request, place, found, frozenset(map(ipaddress.ip_address, own.split())))


def test_without_an_inventory_any_host_goes() -> None:
    decision = decide(Config(), "web1", "192.0.2.1")
    assert isinstance(decision, Allow)
    assert decision.rule == "any host"


def test_with_one_its_nodes_alone() -> None:
    config = Config(nodes=NODES)
    assert isinstance(decide(config, "db1", "192.0.2.1"), Allow)
    assert decide(config, "db2", "192.0.2.1") == Deny("nodes", "there is no node db2")


@pytest.mark.parametrize(("port", "allowed"), [(None, True), (2222, True), (22, False)])
def test_a_node_has_one_port(port: int | None, allowed: bool) -> None:
    place = locate(Config(nodes=NODES), Target("root", "web1", port))
    if allowed:
        assert place == Place("web1", "127.0.0.1", 2222, named=True)
    else:
        assert place == Deny("nodes", "web1 is reached on port 2222, not 22")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "::1", "169.254.169.254", "fe80::1", "::", "224.0.0.1", "ff02::1",
        "0.0.0.0",  # noqa: S104
        "255.255.255.255", "240.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "100.100.100.200",
        "fd00:ec2::254", "2002:7f00:1::",
    ],
)  # fmt: skip
def test_addresses_that_no_name_should_lead_to(address: str) -> None:
    assert isinstance(decide(Config(), "web1", address), Deny)
    assert isinstance(decide(Config(nodes=NODES), "db1", address), Deny)  # known by name, not by address


def test_an_address_in_the_inventory_may_be_any() -> None:
    assert isinstance(decide(Config(nodes=NODES), "web1", "127.0.0.1"), Allow)


def test_a_name_in_the_inventory_may_not() -> None:
    """DNS decides where it leads, not the inventory."""
    config = Config(nodes=(Node(name="web1", address="web1.example.com"),))
    assert isinstance(decide(config, "web1", "127.0.0.1"), Deny)
    assert isinstance(decide(config, "web1", "192.0.2.1"), Allow)


def test_the_bastions_own_addresses() -> None:
    decision = decide(Config(), "web1", "192.0.2.7", own="192.0.2.7")
    assert decision == Deny("addresses", "web1, at 192.0.2.7, is where no session may go")


def test_only_allowed_addresses_are_dialled() -> None:
    decision = decide(Config(), "web1", "::1", "192.0.2.1", "169.254.169.254")
    assert isinstance(decision, Allow)
    assert decision.addresses == (ipaddress.ip_address("192.0.2.1"),)


def test_kinds_of_request() -> None:
    config = Config(kinds=("shell",))
    assert isinstance(decide(config, "web1", "192.0.2.1"), Allow)
    command = Request(Target("root", "web1"), b"id", terminal=False)
    assert decide(config, "web1", "192.0.2.1", request=command) == Deny(
        "kinds", "requests for a command are not served"
    )


def test_what_a_session_may_record() -> None:
    decision = decide(Config(record_input=True), "web1", "192.0.2.1")
    assert isinstance(decision, Allow)
    assert decision.record_input
