"""Invitations and recovery codes: long enough, read back however they are typed; names that people may bear."""

from __future__ import annotations

import re

import pytest

from sshrec.access import invitation, names, recovery, spelled
from sshrec.duration import Duration
from sshrec.errors import UsageError


def test_an_invitation_is_150_bits_in_groups() -> None:
    tokens = {invitation.new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch(r"[0-9a-hjkmnp-tv-z]{5}(-[0-9a-hjkmnp-tv-z]{5}){5}", token) for token in tokens)


def test_recovery_codes_are_ten_of_80_bits() -> None:
    codes = recovery.new_codes()
    assert len(set(codes)) == 10
    assert all(recovery.is_code(code) and len(code) == 19 for code in codes)
    assert recovery.digest("joe", codes[0]) != recovery.digest("alice", codes[0])


@pytest.mark.parametrize(
    "typed", ["0123-abcd-1100-wxyz", "0123 ABCD lioO WXYZ", " 0123abcd1100wxyz\n", "O123-abcd-IL00-wxyz"]
)
def test_however_it_was_typed(typed: str) -> None:
    assert spelled.canonical(typed) == "0123abcd1100wxyz"
    assert recovery.digest("joe", typed) == recovery.digest("joe", "0123-abcd-1100-wxyz")


@pytest.mark.parametrize(
    "typed", ["", "---", "u", "é", "0123-abcd-1100-wxy!", "\x1b[A", "a" * 10_000, "\udcff", "０"]
)
def test_what_is_no_secret(typed: str) -> None:
    assert spelled.canonical(typed) == ""
    assert not recovery.is_code(typed)


def test_what_is_kept_tells_nothing_and_fits_no_other_purpose() -> None:
    token = "01234-56789-abcde-fghjk-mnpqr-stvwx"
    kept = invitation.digest(token)
    assert re.fullmatch("[0-9a-f]{64}", kept)
    assert kept != spelled.digest("recovery code of joe", token)


def test_two_days_at_most() -> None:
    assert invitation.check_ttl(Duration.parse("48h")) == 2 * 86400
    with pytest.raises(UsageError, match="2d1h is longer"):
        invitation.check_ttl(Duration.parse("49h"))


# ---- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["joe", "_joe", "j", "jane.doe", "jane-doe", "joe2", "a" * 32])
def test_a_name(name: str) -> None:
    assert names.check_user(name) == name
    assert names.check_logins([name, "root", name]) == (name, "root")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Joe",
        "2joe",
        "-joe",
        ".joe",
        "joe ",
        "joe\n",
        "joe\0",
        "joe\x1b[2J",
        "joe,root",
        "joe:x",
        "../joe",
        "joe/..",
        "jöe",
        "jоe",  # the o is Cyrillic
        "ｊoe",
        "jo\u200be",
        "\u202ejoe",
        "joe\udcff",
        "*",
        "a" * 33,
        "a" * 10_000,
    ],
)
def test_not_a_name(name: str) -> None:
    for check in (lambda: names.check_user(name), lambda: names.check_logins(["root", name])):
        with pytest.raises(UsageError) as raised:
            check()
        assert "cannot be a " in str(raised.value)
        assert len(str(raised.value)) < 200
        assert str(raised.value).isprintable()


@pytest.mark.parametrize("name", ["root", "sshrec", "sshrec-auth", "nobody", "login", "knock"])
def test_not_a_persons_name(name: str) -> None:
    if name in ("login", "knock"):
        names.check_user(name, "other")
    with pytest.raises(UsageError, match="the account is the system's"):
        names.check_user(name, "knock" if name == "knock" else "login")
    assert names.check_logins([name]) == (name,)


def test_how_many_logins() -> None:
    with pytest.raises(UsageError, match="needs a login"):
        names.check_logins([])
    with pytest.raises(UsageError, match="101 logins"):
        names.check_logins(f"a{n}" for n in range(101))
