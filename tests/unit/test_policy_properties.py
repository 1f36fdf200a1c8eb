"""What holds for every configuration: deny by default, order, and addresses that only a word for them opens."""

from __future__ import annotations

import fnmatch
import ipaddress
from dataclasses import replace
from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st

from sshrec.access.addresses import never_meant
from sshrec.access.decision import Allow, Case, Lock, Place, Subject
from sshrec.access.policy import Policy
from sshrec.config import Config
from sshrec.hours import Hours, minute_of_week
from sshrec.patterns import Address
from sshrec.role import Role
from sshrec.session import Kind

KINDS: tuple[Kind, ...] = ("shell", "exec", "upload", "download")
BROAD = [
    "web*",
    "*",
    "db1",
    "env=prod",
    "*.prod",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "::/0",
    "160.0.0.0/3",
    "192.0.2.0/24",
]
NARROW = ["127.0.0.1", "127.0.0.0/8", "::1", "169.254.169.254", "fe80::/10", "192.0.2.7"]
OWN = frozenset({ipaddress.ip_address("192.0.2.7")})

users = st.sampled_from(["joe", "ann", "ext-bob", "dba-eve"])
logins = st.sampled_from(["joe", "root", "postgres", "joe-adm"])
addresses = st.sampled_from(
    [
        "10.2.0.1", "192.0.2.8", "2001:db8::1", "192.0.2.7", "127.0.0.1", "127.1.2.3", "::1", "169.254.169.254",
        "169.254.1.1", "fe80::1", "::ffff:127.0.0.1", "100.100.100.200", "0.0.0.0", "224.0.0.1",  # noqa: S104
    ]
).map(ipaddress.ip_address)  # fmt: skip


def some(*texts: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(texts), min_size=1, max_size=3, unique=True).map(tuple)


def roles(*nodes: str) -> st.SearchStrategy[Role]:
    return st.builds(
        Role,
        name=st.uuids().map(str),
        users=some("*", "joe", "ext-*", "dba-*", "j?e"),
        logins=some("{allowed}", "{user}", "{user}-adm", "root", "post*"),
        nodes=some(*nodes),
        kinds=st.none() | st.lists(st.sampled_from(KINDS), min_size=1, unique=True).map(tuple),
        require_sk=st.booleans(),
        verify_required=st.booleans(),
        hours=st.sampled_from([(), (Hours.parse("mon-fri 08:00-18:00"),), (Hours.parse("22:00-06:00"),)]),
        sources=st.sampled_from([(), ("10.0.0.0/8",), ("2001:db8::/32", "192.0.2.1")]),
        sessions=st.none() | st.integers(1, 3),
        mfa=st.sampled_from(["login", "session"]),
    )


configs = st.lists(roles(*BROAD, *NARROW), max_size=4).map(lambda found: Config(roles=tuple(found)))
subjects = st.builds(
    Subject,
    user=users,
    logins=st.none() | st.frozensets(logins),
    source=st.none()
    | st.sampled_from(["10.0.0.9", "192.0.2.1", "2001:db8::5", "8.8.8.8"]).map(ipaddress.ip_address),
    algorithm=st.sampled_from([None, "ssh-ed25519", "sk-ssh-ed25519-cert-v01@openssh.com"]),
    verify_required=st.booleans(),
    live=st.none() | st.integers(0, 3),
)
places = st.builds(
    Place,
    name=st.sampled_from(["web1", "web1.prod", "web1.elsewhere", "db1"]),
    lookup=st.just("a.name"),
    port=st.just(22),
    named=st.just(False),
    labels=st.sampled_from([{}, {"env": "prod"}, {"env": "test"}]),
)
cases = st.builds(
    Case,
    subject=subjects,
    login=logins,
    kind=st.sampled_from(KINDS),
    place=places,
    addresses=st.lists(addresses, min_size=1, max_size=4, unique=True).map(tuple),
    own=st.just(OWN),
    when=st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31)),
)


def within(address: Address, texts: tuple[str, ...]) -> bool:
    nets = [ipaddress.ip_network(text) for text in texts if "=" not in text and (":" in text or text[0].isdigit())]
    return any(address in net for net in nets)


def serves(kind: Kind, kinds: tuple[Kind, ...]) -> bool:
    """One kind of transfers lets in a session that may want the other."""
    either = {"upload", "download"}
    return kind in kinds or (kind in either and bool(either & set(kinds)))


def allows(role: Role, config: Config, case: Case) -> bool:
    """A role's settings read slowly, with the standard library; addresses and the names of hosts aside."""
    who, given_logins = case.subject, case.subject.logins or ()
    meant = {text.replace("{user}", who.user) for text in role.logins if text != "{allowed}"}
    meant |= set(given_logins) if "{allowed}" in role.logins else set()
    source = who.source
    minute = minute_of_week(case.when)
    return (
        any(fnmatch.fnmatchcase(who.user, pattern) for pattern in role.users)
        and any(fnmatch.fnmatchcase(case.login, pattern) for pattern in meant)
        and serves(case.kind, role.kinds or config.kinds)
        and (not role.sources or (source is not None and within(source, role.sources)))
        and (not role.hours or any(minute in span for hours in role.hours for span in hours.spans()))
        and (not role.require_sk or (who.algorithm or "").startswith("sk-"))
        and (not role.verify_required or who.verify_required)
        and (role.sessions is None or (who.live is not None and who.live < role.sessions))
    )


@given(configs.filter(lambda config: bool(config.roles)), cases)
def test_what_is_allowed_a_role_allows_and_what_is_denied_none_does(config: Config, case: Case) -> None:
    decision = Policy(config).authorise(case)
    if isinstance(decision, Allow):
        (role,) = [role for role in config.roles if f'role "{role.name}"' == decision.rule]
        assert allows(role, config, case)
        assert decision.addresses and set(decision.addresses) <= set(case.addresses)
        if not any(text[0] in "webd*" for text in role.nodes):
            assert all(within(address, role.nodes) for address in decision.addresses)
        assert (decision.mfa is not None) == (role.mfa == "session")
    else:
        open_to_all = replace(case, addresses=(ipaddress.ip_address("203.0.113.1"),))
        for role in config.roles:
            if "*" in role.nodes and allows(role, config, case):
                assert isinstance(Policy(config).authorise(open_to_all), Allow)  # it was the addresses
                assert all(never_meant(address, OWN) for address in case.addresses)


@given(st.lists(roles(*BROAD), max_size=4), cases)
def test_no_name_and_no_broad_network_opens_what_is_never_meant(found: list[Role], case: Case) -> None:
    decision = Policy(Config(roles=tuple(found))).authorise(case)
    if isinstance(decision, Allow):
        assert not any(never_meant(address, OWN) for address in decision.addresses)


@given(roles(*BROAD, *NARROW), cases)
def test_what_is_never_meant_is_opened_by_its_own_word_alone(role: Role, case: Case) -> None:
    decision = Policy(Config(roles=(role,))).authorise(case)
    for address in decision.addresses if isinstance(decision, Allow) else ():
        if never_meant(address, OWN):
            assert within(address, tuple(text for text in role.nodes if text in NARROW))


@given(configs.filter(lambda config: bool(config.roles)), roles(*BROAD, *NARROW), st.integers(0, 4), cases)
def test_one_role_more_takes_nothing_away(config: Config, role: Role, at: int, case: Case) -> None:
    before = Policy(config).authorise(case)
    more = replace(config, roles=(*config.roles[:at], role, *config.roles[at:]))
    after = Policy(more).authorise(case)
    if isinstance(before, Allow):
        assert isinstance(after, Allow)
        if at >= len(config.roles):
            assert after == before


@given(configs, cases)
def test_the_order_decides_by_whom_and_not_whether(config: Config, case: Case) -> None:
    decision = Policy(config).authorise(case)
    other = Policy(replace(config, roles=tuple(reversed(config.roles))))
    assert isinstance(other.authorise(case), Allow) == isinstance(decision, Allow)
    first = next((one for one in Policy(config).weigh(case) if isinstance(one, Allow)), None)
    assert (first or decision) == decision


@given(configs, cases, st.sampled_from(["user", "login", "node"]), st.sampled_from(["joe", "root", "web*", "*"]))
def test_a_lock_takes_away_and_gives_nothing(config: Config, case: Case, kind: str, name: str) -> None:
    lock = Lock(kind, name, "seized")  # type: ignore[arg-type]
    before = Policy(config).authorise(case)
    after = Policy(config).authorise(replace(case, subject=replace(case.subject, locks=(lock,))))
    assert after == before or (not isinstance(after, Allow) and after.rule == "lock")
