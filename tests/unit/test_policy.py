"""Decisions: values in, a decision out. Without roles first, then with them."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from datetime import datetime

import pytest

from sshrec.access.decision import Allow, Case, Deny, Lock, Place, SessionMfa, Subject, Terms, Unmet
from sshrec.access.explain import Explainer
from sshrec.access.policy import Policy
from sshrec.config import Config, Node, parse
from sshrec.patterns import Address
from sshrec.session import Kind, Target

JOE = Subject(user="joe", logins=frozenset({"joe", "ec2-user"}), source=ipaddress.ip_address("10.0.0.7"), live=0)
NODES = (Node(name="web1", address="127.0.0.1", port=2222), Node(name="db1"))
NOON = datetime(2026, 11, 23, 12, 0)  # a Monday, by the bastion's clock


def addresses(text: str) -> tuple[Address, ...]:
    return tuple(map(ipaddress.ip_address, text.split()))


def decide(
    config: Config,
    target: str,
    at: str = "192.0.2.1",
    *,
    subject: Subject = JOE,
    kind: Kind = "shell",
    own: str = "",
    when: datetime = NOON,
) -> Allow | Deny:
    login, _, host = target.rpartition("@")
    policy = Policy(config)
    place = policy.locate(Target(login, host))
    if isinstance(place, Deny):
        return place
    return policy.authorise(
        Case(
            subject=subject,
            login=login,
            kind=kind,
            place=place,
            addresses=addresses(at),
            own=frozenset(addresses(own)),
            when=when,
        )
    )


def said(answer: Allow | Deny) -> str:
    """A decision on a line."""
    if isinstance(answer, Deny):
        return f"no: {answer.rule}: {answer.reason}"
    mfa = "" if answer.mfa is None else f", a code, {answer.mfa.grace:.0f} s"
    return f"yes: {answer.rule} at {' '.join(map(str, answer.addresses))}{mfa}"


# ---- without roles ----------------------------------------------------------------------------------------


def test_without_an_inventory_any_host_goes() -> None:
    assert said(decide(Config(), "joe@web1")) == 'yes: role "everyone" at 192.0.2.1'


def test_with_one_its_nodes_alone() -> None:
    config = Config(nodes=NODES)
    assert isinstance(decide(config, "joe@db1"), Allow)
    assert decide(config, "joe@db2") == Deny("nodes", "there is no node db2")


@pytest.mark.parametrize(("port", "allowed"), [(None, True), (2222, True), (22, False)])
def test_a_node_has_one_port(port: int | None, allowed: bool) -> None:
    place = Policy(Config(nodes=NODES)).locate(Target("root", "web1", port))
    if allowed:
        assert place == Place("web1", "127.0.0.1", 2222, named=True)
    else:
        assert place == Deny("nodes", "web1 is reached on port 2222, not 22")


NEVER_MEANT = [
    "127.0.0.1", "127.9.9.9", "::1", "169.254.169.254", "fe80::1", "::", "224.0.0.1", "ff02::1",
    "0.0.0.0",  # noqa: S104
    "255.255.255.255", "240.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "100.100.100.200",
    "fd00:ec2::254", "2002:7f00:1::",
]  # fmt: skip


@pytest.mark.parametrize("address", NEVER_MEANT)
def test_addresses_that_no_name_should_lead_to(address: str) -> None:
    assert isinstance(decide(Config(), "joe@web1", address), Deny)
    assert isinstance(decide(Config(nodes=NODES), "joe@db1", address), Deny)  # known by name, not by address


def test_an_address_in_the_inventory_may_be_any() -> None:
    assert isinstance(decide(Config(nodes=NODES), "joe@web1", "127.0.0.1"), Allow)


def test_a_name_in_the_inventory_may_not() -> None:
    """DNS decides where it leads, not the inventory."""
    config = Config(nodes=(Node(name="web1", address="web1.example.com"),))
    assert isinstance(decide(config, "joe@web1", "127.0.0.1"), Deny)
    assert isinstance(decide(config, "joe@web1", "192.0.2.1"), Allow)


def test_the_bastions_own_addresses() -> None:
    decision = decide(Config(), "joe@web1", "192.0.2.7", own="192.0.2.7")
    assert decision == Deny('role "everyone"', "web1, at 192.0.2.7, is where no session may go")


def test_only_allowed_addresses_are_dialled() -> None:
    decision = decide(Config(), "joe@web1", "::1 192.0.2.1 169.254.169.254")
    assert isinstance(decision, Allow)
    assert decision.addresses == addresses("192.0.2.1")


def test_kinds_of_request() -> None:
    config = Config(kinds=("shell",))
    assert isinstance(decide(config, "joe@web1"), Allow)
    assert said(decide(config, "joe@web1", kind="exec")) == (
        'no: role "everyone": requests for a command are not served'
    )


def test_logins_are_those_that_were_given_where_that_is_known() -> None:
    assert said(decide(Config(), "root@web1")) == ('no: role "everyone": login root is not among ec2-user, joe')
    assert isinstance(decide(Config(), "root@web1", subject=Subject(user="joe")), Allow)


def test_what_a_session_may_record() -> None:
    decision = decide(Config(record_input=True), "joe@web1")
    assert isinstance(decision, Allow)
    assert decision.terms.record_input


# ---- with roles -------------------------------------------------------------------------------------------

COMPANY = parse("""
nodes:
- {name: db1.prod, address: 10.2.0.21, labels: {env: prod}}
- {name: db1.test, address: 10.3.0.21, labels: {env: test}}
- {name: web1, address: 10.2.0.11, labels: {env: prod}}
- {name: web2, address: 10.2.0.12, labels: {env: prod}}
- {name: self, address: 127.0.0.1}
roles:
- name: dba
  users: [alice, "dba-*"]
  logins: [postgres]
  nodes: ["db*.prod", "db*.test"]
  mfa: session
  mfa_grace: 15m
  require_sk: yes
- name: night
  users: [ext-bob]
  nodes: [env=test]
  kinds: [shell]
  hours: ["mon-fri 22:00-06:00"]
  sources: [10.0.0.0/8]
  sessions: 2
- name: staff
  logins: ["{user}", "{user}-adm"]
  nodes: ["web*"]
""")
ALICE = Subject(user="alice", logins=frozenset({"root"}), algorithm="sk-ssh-ed25519-cert-v01@openssh.com")
BOB = Subject(user="ext-bob", logins=frozenset({"bob"}), source=ipaddress.ip_address("10.0.0.9"), live=1)


@pytest.mark.parametrize(
    ("who", "target", "at", "answer"),
    [
        (ALICE, "postgres@db1.prod", "10.2.0.21", 'yes: role "dba" at 10.2.0.21, a code, 900 s'),
        (ALICE, "root@db1.prod", "10.2.0.21", 'no: role "dba": login root is not among postgres'),
        (ALICE, "postgres@web1", "10.2.0.11", 'no: role "staff": login postgres is not among alice, alice-adm'),
        (ALICE, "alice-adm@web1", "10.2.0.11", 'yes: role "staff" at 10.2.0.11'),
        (ALICE, "alice@self", "127.0.0.1", 'no: role "dba": self, at 127.0.0.1, is not among db*.prod, db*.test'),
        (JOE, "joe@web2", "10.2.0.12", 'yes: role "staff" at 10.2.0.12'),
        (JOE, "joe@db1.prod", "10.2.0.21", 'no: role "staff": db1.prod, at 10.2.0.21, is not among web*'),
        (JOE, "joe@db9", "10.2.0.21", "no: nodes: there is no node db9"),
        (BOB, "bob@db1.test", "10.3.0.21", 'no: role "night": mon 12:00 is not within mon-fri 22:00-06:00'),
    ],
)
def test_the_first_role_that_allows_the_whole_request_decides(
    who: Subject, target: str, at: str, answer: str
) -> None:
    assert said(decide(COMPANY, target, at, subject=who)) == answer


BOB_FROM = {text: replace(BOB, source=ipaddress.ip_address(text)) for text in ("192.0.2.1", "::ffff:10.0.0.9")}


@pytest.mark.parametrize(
    ("hour", "who", "kind", "reason"),
    [
        (23, BOB, "shell", None),
        (23, BOB, "exec", "requests for a command are not served"),
        (21, BOB, "shell", "mon 21:00 is not within mon-fri 22:00-06:00"),
        (23, BOB_FROM["192.0.2.1"], "shell", "the address 192.0.2.1 is not among 10.0.0.0/8"),
        (23, BOB_FROM["::ffff:10.0.0.9"], "shell", None),
        (23, replace(BOB, source=None), "shell", "an unknown address is not among 10.0.0.0/8"),
        (23, replace(BOB, logins=None), "shell", "which logins ext-bob was given is not known here"),
        (23, replace(BOB, logins=frozenset()), "shell", "ext-bob was given no login"),
        (23, replace(BOB, live=2), "shell", "ext-bob has 2 sessions already"),
        (23, replace(BOB, live=None), "shell", "how many sessions ext-bob has is not known here"),
    ],
)
def test_each_condition_says_what_it_wants(hour: int, who: Subject, kind: Kind, reason: str | None) -> None:
    answer = decide(COMPANY, "bob@db1.test", "10.3.0.21", subject=who, kind=kind, when=NOON.replace(hour=hour))
    assert said(answer) == ('yes: role "night" at 10.3.0.21' if reason is None else f'no: role "night": {reason}')


@pytest.mark.parametrize("algorithm", [None, "ssh-ed25519", "ssh-ed25519-cert-v01@openssh.com", "ssh-sk-", ""])
def test_a_security_key_is_told_by_its_algorithm(algorithm: str | None) -> None:
    subject = Subject(user="alice", algorithm=algorithm)
    answer = decide(COMPANY, "postgres@db1.prod", "10.2.0.21", subject=subject)
    assert said(answer) == ('no: role "dba": the key that opened the bastion is not held by a FIDO security key')


def test_a_certificate_that_has_its_key_verify_its_holder() -> None:
    config = parse("roles: [{name: dba, nodes: [web1], verify_required: yes}]")
    refused = 'no: role "dba": the certificate that opened the bastion is not one with verify-required'
    assert said(decide(config, "joe@web1", "10.2.0.11", subject=JOE)) == refused
    verified = replace(JOE, verify_required=True)
    assert said(decide(config, "joe@web1", "10.2.0.11", subject=verified)) == 'yes: role "dba" at 10.2.0.11'


def test_whom_no_role_is_for_is_denied() -> None:
    config = parse("roles: [{name: dba, users: [alice]}]")
    assert decide(config, "joe@web1") == Deny("roles", "no role is for user joe")


@pytest.mark.parametrize(
    ("nodes", "host", "at", "allowed"),
    [
        ("[web*]", "web1", "192.0.2.1", "192.0.2.1"),
        ("[web*]", "web1", "127.0.0.1", ""),
        ("[web*]", "web1.elsewhere.example", "192.0.2.1", ""),
        ("[web?]", "web1", "192.0.2.1", "192.0.2.1"),
        ("[web?]", "web", "192.0.2.1", ""),
        ('["*.prod"]', "a.b.prod", "192.0.2.1", "192.0.2.1"),
        ('["*.prod"]', "a.prod.example", "192.0.2.1", ""),
        ('["web*.prod"]', "web1.evil.prod", "192.0.2.1", ""),
        ('["*"]', "192.0.2.1", "192.0.2.1", "192.0.2.1"),
        ('["*"]', "web1", "192.0.2.1 127.0.0.1", "192.0.2.1"),
        ('["*", 127.0.0.0/8]', "web1", "192.0.2.1 127.0.0.1", "192.0.2.1 127.0.0.1"),
        ("[10.2.0.0/16]", "web1", "10.3.0.1 10.2.0.1", "10.2.0.1"),
        ("[10.2.0.0/16]", "10.2.0.1", "10.2.0.1", "10.2.0.1"),
        ("[10.2.0.5]", "web1", "10.2.0.5 10.2.0.6", "10.2.0.5"),
        ("[0.0.0.0/0, '::/0']", "web1", "127.0.0.1 169.254.1.1 ::1 fe80::1 192.0.2.7 8.8.8.8", "8.8.8.8"),
        ("[0.0.0.0/0]", "web1", "169.254.169.254", ""),
        ("[192.0.2.0/24]", "web1", "192.0.2.7 192.0.2.8", "192.0.2.8"),
        ("[192.0.2.7]", "web1", "192.0.2.7", "192.0.2.7"),
        ("[169.254.0.0/16]", "web1", "169.254.1.1 169.254.169.254", "169.254.1.1"),
        ("[169.254.169.254]", "web1", "169.254.169.254", "169.254.169.254"),
        ("['::1']", "web1", "::1 127.0.0.1", "::1"),
        ("['fe80::/10']", "web1", "fe80::2", "fe80::2"),
        ("['::ffff:127.0.0.0/104']", "web1", "::ffff:127.0.0.1", ""),
        ("[env=prod]", "web1", "192.0.2.1", ""),
        ('["*1"]', "192.0.2.1", "192.0.2.1", ""),
        ('["fd*"]', "fd00::1", "fd00::1", ""),
    ],
)  # fmt: skip
def test_where_a_role_reaches(nodes: str, host: str, at: str, allowed: str) -> None:
    """`own` is 192.0.2.7; what no network but a narrow one may name stays out."""
    config = parse(f"roles: [{{name: a, nodes: {nodes}, logins: [joe]}}]")
    answer = decide(config, f"joe@{host}", at, own="192.0.2.7")
    assert (answer.addresses if isinstance(answer, Allow) else ()) == addresses(allowed)


def test_a_network_of_link_local_addresses_does_not_mean_the_bastions_own() -> None:
    config = parse("roles: [{name: a, nodes: ['fe80::/10'], logins: [joe]}]")
    answer = decide(config, "joe@web1", "fe80::7 fe80::8", own="fe80::7")
    assert said(answer) == 'yes: role "a" at fe80::8'


def test_the_inventorys_address_may_be_any_for_whoever_may_have_the_node() -> None:
    config = parse("""
nodes: [{name: lab, address: 127.0.0.1, labels: {env: lab}}]
roles: [{name: a, nodes: [env=l*], logins: [joe]}, {name: b, nodes: [127.0.0.1], logins: [root]}]
""")
    assert said(decide(config, "joe@lab", "127.0.0.1")) == 'yes: role "a" at 127.0.0.1'
    assert said(decide(config, "root@lab", "127.0.0.1", own="127.0.0.1")) == 'yes: role "b" at 127.0.0.1'


def test_a_roles_terms_come_before_the_others_settings() -> None:
    config = parse("""
record_input: yes
limits: {stream_bytes: 1000}
roles:
- {name: a, users: [joe], logins: ["*"]}
- name: b
  logins: ["*"]
  record_input: no
  recording: best_effort
  session_length: 8h
  idle: 10m
  session_bytes: 1GiB
  stream_bytes: 0
  mfa: session
""")
    joe, ann = decide(config, "root@web1"), decide(config, "root@web1", subject=Subject(user="ann"))
    assert isinstance(joe, Allow) and isinstance(ann, Allow)
    assert joe.terms == Terms(record_input=True, stream_bytes=1000)
    assert (joe.mfa, ann.mfa) == (None, SessionMfa(0))
    assert ann.terms == Terms(
        record_input=False, recording="best_effort", stream_bytes=0, longest=28800, idle=600, size=1 << 30
    )


def test_uploads_and_downloads_are_terms_of_a_session() -> None:
    """A session of sftp may want either: one of them is enough to let it in, and the other is denied within."""
    text = "roles: [{name: a, logins: [joe], kinds: [shell, upload], file_bytes: 7}]"
    config = parse(text)
    for kind in ("shell", "upload", "download"):
        decision = decide(config, "joe@web1", kind=kind)
        assert isinstance(decision, Allow)
        assert decision.terms == Terms(upload=True, download=False, file_bytes=7)
    neither = parse("roles: [{name: a, logins: [joe], kinds: [shell, exec]}]")
    assert said(decide(neither, "joe@web1", kind="download")) == 'no: role "a": downloads are not served'
    asked = Case(
        subject=Subject(user="joe"),
        login="joe",
        kind="download",
        place=Place("web1", "web1", 22, named=False),
        addresses=addresses("192.0.2.1"),
        own=frozenset(),
        when=datetime(2026, 11, 23, 12),
    )
    explained = Explainer(config, anywhere=True).explain(asked)
    assert explained.verdict == Deny('role "a"', "downloads are not served")
    assert explained.by is None
    (answer,) = explained.answers
    assert answer.decision == Unmet('role "a"', "downloads are not served", 4)


def test_the_order_of_roles_decides_whose_terms_hold() -> None:
    text = "roles: [{name: a, logins: [joe], kinds: [exec]}, {name: b, logins: [joe], mfa: session}]"
    assert said(decide(parse(text), "joe@web1")) == 'yes: role "b" at 192.0.2.1, a code, 0 s'
    assert said(decide(parse(text), "joe@web1", kind="exec")) == 'yes: role "a" at 192.0.2.1'


# ---- locks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lock", "answer"),
    [
        (Lock("user", "joe", "left the company"), "no: lock: user joe is locked: left the company"),
        (Lock("user", "jo?", ""), "no: lock: user joe is locked"),
        (Lock("user", "jo", ""), None),
        (Lock("login", "joe", "x"), "no: lock: login joe is locked: x"),
        (Lock("login", "root", "x"), None),
        (Lock("node", "web*", "x"), "no: lock: node web1 is locked: x"),
        (Lock("node", "env=prod", "x"), "no: lock: node web1 is locked: x"),
        (Lock("node", "10.2.0.0/24", "x"), "no: lock: node web1 is locked: x"),
        (Lock("node", "10.2.0.12", "x"), None),
        (Lock("session", "01KARVVVZ0B9GPPM3T5V7PZW0Q", "x"), None),
        (
            Lock("user", "joe", "x", 1_800_000_000_000),
            "no: lock: user joe is locked until 2027-01-15 08:00:00 UTC: x",
        ),
        (Lock("node", "[web", "x", kept=True), None),
    ],
)
def test_locks_come_before_every_role(lock: Lock, answer: str | None) -> None:
    subject = Subject(user="joe", locks=(Lock("user", "ann", "z"), lock))
    decision = decide(COMPANY, "joe@web1", "10.2.0.11", subject=subject)
    assert said(decision) == (answer or 'yes: role "staff" at 10.2.0.11')


def test_who_is_locked_out_of_a_node_does_not_come_by_its_address() -> None:
    config = Config(enrolled=(Node(name="web1", address="192.0.2.1"), Node(name="web2", address="FD00:0::2")))
    subject = Subject(user="joe", locks=(Lock("node", "web1", "seized"),))
    assert said(decide(config, "joe@192.0.2.1", subject=subject)) == "no: lock: node web1 is locked: seized"
    assert said(decide(config, "joe@alias.example", subject=subject)) == "no: lock: node web1 is locked: seized"
    subject = Subject(user="joe", locks=(Lock("node", "web2", "seized"),))
    assert (
        said(decide(config, "joe@fd00::2", "fd00::2", subject=subject)) == "no: lock: node web2 is locked: seized"
    )


def test_a_lock_that_means_nobody_cannot_be_made() -> None:
    for kind, name in (("user", "a b"), ("node", "10.2.*"), ("login", "")):
        with pytest.raises(ValueError, match="is no"):
            Lock(kind, name, "")  # type: ignore[arg-type]


def test_a_lock_that_was_made_by_another_version() -> None:
    """What is no pattern here is for just what is called so."""
    subject = Subject(user="dom\\joe", locks=(Lock("user", "a b", "", kept=True),))
    assert said(decide(COMPANY, "joe@web1", "10.2.0.11", subject=subject)) != "no: lock: user a b is locked"
    subject = Subject(user="a b", locks=subject.locks)
    assert said(decide(COMPANY, "joe@web1", "10.2.0.11", subject=subject)) == "no: lock: user a b is locked"


def test_two_nodes_at_one_address_are_two() -> None:
    """But whoever types the address comes to either."""
    nodes = (Node(name="web1", address="192.0.2.1", port=2201), Node(name="web2", address="192.0.2.1", port=2202))
    subject = Subject(user="joe", locks=(Lock("node", "web1", ""),))
    assert said(decide(Config(enrolled=nodes), "joe@web2", subject=subject)).startswith("yes")
    assert said(decide(Config(enrolled=nodes), "joe@192.0.2.1", subject=subject)).startswith("no: lock: node web1")


def test_the_limits_of_the_configuration_hold_where_a_role_has_none() -> None:
    limits = "limits: {session_length: 8h, idle: 10m, session_bytes: 1GiB}"
    everyone = decide(parse(limits), "joe@db1")
    assert isinstance(everyone, Allow)
    assert (everyone.terms.longest, everyone.terms.idle, everyone.terms.size) == (28800, 600, 1 << 30)
    role = decide(parse(f"{limits}\nroles: [{{name: short, idle: 1m}}]"), "joe@db1")
    assert isinstance(role, Allow)
    assert (role.terms.longest, role.terms.idle, role.terms.size) == (28800, 60, 1 << 30)
