"""The rules of certificates: what is asked for, what comes of it, and what never does."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshrec.authority.certificates import Asker, Request, for_host, for_user, issue
from sshrec.authority.ledger import Ledger
from sshrec.config import Authority
from sshrec.duration import Duration
from sshrec.errors import SshrecError, UsageError
from sshrec.openssh import keygen
from sshrec.openssh.public_key import PublicKey
from sshrec.openssh.signer import KeyFile, Ready, unlocked
from sshrec.storage.database import Database

SETTINGS = Authority()
KEY = PublicKey("ssh-ed25519", "AAAAC3NzaC1lZDI1NTE5AAAAIGQ3Z8tzt6tIw0v0qtq0bTq3sC1Zc0m6yOTlkGdwGvfS")
FIDO = PublicKey("sk-ssh-ed25519@openssh.com", KEY.blob)
JOE = Asker("joe", "192.0.2.1")
# What no certificate of ours may name, whichever way the words come.
PLAIN = re.compile(r"[A-Za-z0-9_.:@+-]+")


def test_a_person() -> None:
    request = for_user(SETTINGS, KEY, "joe", ["joe", "root", "joe"])
    assert request.kind == "user"
    assert request.key_id == "joe"
    assert request.principals == ("sshrec:joe", "joe", "root")
    assert request.ttl == SETTINGS.user_ttl
    assert request.critical_options == {}
    assert request.extensions == ("permit-agent-forwarding", "permit-pty")


def test_a_person_with_conditions() -> None:
    request = for_user(
        SETTINGS,
        FIDO,
        "joe",
        ["root"],
        Duration(60),
        source_addresses=["10.0.0.5", "2001:DB8:0::/32"],
        force_command="uptime; echo 'é'",
        verify_required=True,
    )
    assert request.ttl == 60
    assert request.critical_options == {
        "force-command": "uptime; echo 'é'",
        "source-address": "10.0.0.5/32,2001:db8::/32",
        "verify-required": "",
    }


def test_a_host() -> None:
    request = for_host(SETTINGS, KEY, ["web1", "web1.example.com", "10.0.0.5", "2001:DB8::0:1", "web1"])
    assert (request.kind, request.key_id) == ("host", "web1")
    assert request.principals == ("web1", "web1.example.com", "10.0.0.5", "2001:db8::1")
    assert (request.critical_options, request.extensions) == ({}, ())


@given(st.text(max_size=80), st.lists(st.text(max_size=70), max_size=4))
def test_no_words_make_a_name_that_ssh_would_read_otherwise(user: str, principals: list[str]) -> None:
    try:
        request = for_user(SETTINGS, KEY, user, principals)
    except UsageError:
        return
    assert request.principals[0] == f"sshrec:{request.key_id}"
    for name in request.principals:
        assert PLAIN.fullmatch(name)
        assert not name.startswith("-")
    assert not any(":" in name for name in request.principals[1:])


@given(st.lists(st.text(max_size=70) | st.sampled_from(["web1", "10.0.0.1", "::1", "*"]), max_size=4))
def test_no_words_make_a_host_that_ssh_would_read_otherwise(names: list[str]) -> None:
    try:
        request = for_host(SETTINGS, KEY, names)
    except UsageError:
        return
    assert request.principals
    for name in request.principals:
        assert PLAIN.fullmatch(name)
        assert name == name.lower()


@pytest.mark.parametrize(
    "address", ["fe80::1%eth0", "::1%\n*", "10.0.0.1%x", "127.1", "0x7f000001", "2130706433", "010.0.0.1"]
)
def test_an_address_has_one_form(address: str) -> None:
    """What ssh, a resolver and we could take for different hosts is no name."""
    with pytest.raises(UsageError, match="cannot be a hostname"):
        for_host(SETTINGS, KEY, [address])


def test_the_limits() -> None:
    names = [f"l{number}" for number in range(129)]
    assert len(for_user(SETTINGS, KEY, "joe", names[:128]).principals) == 129
    with pytest.raises(UsageError, match="129 names are more than a certificate may have, 128"):
        for_user(SETTINGS, KEY, "joe", names)
    with pytest.raises(UsageError, match="129 names are more than a certificate may have, 128"):
        for_host(SETTINGS, KEY, names)
    with pytest.raises(UsageError, match="a certificate needs a principal"):
        for_user(SETTINGS, KEY, "joe", [])
    with pytest.raises(UsageError, match="a certificate needs a hostname"):
        for_host(SETTINGS, KEY, [])
    assert for_user(SETTINGS, KEY, "joe", ["root"], SETTINGS.user_ttl_limit).ttl == 86400
    with pytest.raises(UsageError, match="1d1s is longer than a user's certificate may be good for, 1d"):
        for_user(SETTINGS, KEY, "joe", ["root"], Duration(86401))
    with pytest.raises(UsageError, match="is longer than a host's certificate may be good for, 5y"):
        for_host(SETTINGS, KEY, ["web1"], Duration(5 * 365 * 86400 + 1))


@pytest.mark.parametrize(
    "address", ["fe80::1%eth0", "::1%\n*", "10.0.0.5/24", "10.0.0.0/33", "!10.0.0.1", "web1", ""]
)
def test_where_nobody_comes_from(address: str) -> None:
    with pytest.raises(UsageError, match="is no address and no network"):
        for_user(SETTINGS, KEY, "joe", ["root"], source_addresses=["10.0.0.1", address])


# ---- issuing them -------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Database.open(f"sqlite:///{tmp_path}/sshrec.db", create=True) as database:
        yield Ledger(database)


@pytest.fixture
def ready(tmp_path: Path) -> Iterator[Ready]:
    def never(prompt: str) -> str:
        raise AssertionError(prompt)

    public = keygen.make_key(tmp_path / "ca", "the CA")
    with unlocked(KeyFile(tmp_path / "ca", public), never) as ready:
        yield ready


def requests(count: int) -> list[Request]:
    return [for_user(SETTINGS, KEY, "joe", [f"l{number}"]) for number in range(count)]


def test_what_is_issued_is_what_the_ledger_has(ledger: Ledger, ready: Ready) -> None:
    now = time.time()
    issued = list(issue(ledger, ready, requests(3), JOE, now, jobs=2))
    assert [certificate.principals for _, certificate in issued] == [("sshrec:joe", f"l{n}") for n in range(3)]
    for entry, certificate in issued:
        assert ledger.entry(certificate.serial) == entry
        assert (entry.asked_by, entry.asked_from, entry.withdrawn) == ("joe", "192.0.2.1", None)
        assert (certificate.valid_after, certificate.valid_before) == (
            int(now) - 300,
            int(now) + SETTINGS.user_ttl,
        )
        assert certificate.ca == ready.public


def test_a_row_is_there_before_the_signature(ledger: Ledger, ready: Ready) -> None:
    """Where ssh-keygen cannot sign, nothing leaves, and the ledger says why."""
    Path(ready.name).unlink()
    with pytest.raises(SshrecError, match="ssh-keygen did not sign"):
        list(issue(ledger, ready, requests(2), JOE, time.time()))
    rows = ledger.entries(withdrawn=True)
    assert len(rows) == 2
    assert all((row.withdrawn or "").startswith("ssh-keygen did not sign") for row in rows)
    assert ledger.entries() == []


def test_whoever_stops_taking_them_leaves_none_unaccounted_for(ledger: Ledger, ready: Ready) -> None:
    with closing(issue(ledger, ready, requests(5), JOE, time.time())) as issued:
        taken = [next(issued)[0].serial, next(issued)[0].serial]
    assert {row.serial for row in ledger.entries()} == set(taken)
    assert len(ledger.entries(withdrawn=True)) == 5


def test_a_revoked_person_gets_none(ledger: Ledger, ready: Ready) -> None:
    ledger.revoke_key_id("user", "joe", "root", "gone", 1)
    with pytest.raises(
        SshrecError, match="user key id 'joe' was revoked by root on 1970-01-01 00:00:00 UTC: gone"
    ):
        list(issue(ledger, ready, requests(1), JOE, time.time()))
    assert ledger.entries(withdrawn=True) == []
    host = for_host(SETTINGS, KEY, ["joe"])
    assert len(list(issue(ledger, ready, [host], JOE, time.time()))) == 1


def test_what_would_never_end_is_not_signed(ledger: Ledger, ready: Ready) -> None:
    endless = replace(requests(1)[0], ttl=Duration(10**12))
    with pytest.raises(UsageError, match="not within the years 1970 and 9999"):
        list(issue(ledger, ready, [endless], JOE, time.time()))
    assert ledger.entries() == []
