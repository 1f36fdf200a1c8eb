"""Which passwords are taken, and that what is kept of one opens to it alone."""

from __future__ import annotations

import threading

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from sshrec.access import password
from sshrec.errors import UsageError

GOOD = "nine brown foxes"


@pytest.mark.parametrize(
    "good", [GOOD, "пароль из слов", "x7!kd0-qq2", "a" + "ü" * 3 + "bcdefg", "é" * 4 + "1234xyz"]
)
def test_taken(good: str) -> None:
    password.check(good, "joe")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("short", "at least 10 characters"),
        ("９chars!!", "at least 10 characters"),
        ("", "at least 10 characters"),
        ("nine brown joes", "contain the user's name"),
        ("JOE is my name!", "contain the user's name"),
        ("Password2026!", "first that anybody would try"),
        ("!!letmein123", "first that anybody would try"),
        ("1234567890", "first that anybody would try"),
        ("0987654321", "first that anybody would try"),
        ("qwertyuiop", "first that anybody would try"),
        ("aaaaaaaaaaaa", "first that anybody would try"),
        ("hunter2hunter2", "first that anybody would try"),
        ("Ｐａｓｓｗｏｒｄ１２３４", "first that anybody would try"),
        ("x" * 1025, "at most 1024 bytes"),
        ("ü" * 513, "at most 1024 bytes"),
        ("x" * 10_000_000, "at most 1024 bytes"),
        ("nine brown\x1b[2Jfoxes", "no control characters"),
        ("nine brown foxes\n", "no control characters"),
        ("nine brown foxes\0", "no control characters"),
        ("nine brown \udcff foxes", "no control characters"),
    ],
)
def test_not_taken(bad: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        password.check(bad, "joe")
    assert said in str(raised.value)
    assert not bad or bad not in str(raised.value)


def test_what_is_kept_opens_to_it_alone() -> None:
    kept = password.make_hash(GOOD)
    assert kept.startswith("$argon2id$v=19$m=65536,t=3,p=1$")
    assert GOOD not in kept
    assert password.make_hash(GOOD) != kept
    assert password.verify(GOOD, kept)
    for other in ("nine brown foxe", GOOD + " ", GOOD.upper(), "", GOOD + "\0", "x" * 2000, "\udcff"):
        assert not password.verify(other, kept)


def test_composed_and_decomposed_are_one() -> None:
    assert password.verify("cafe\u0301 au lait", password.make_hash("café au lait"))
    assert password.verify("ﬁne brown foxes", password.make_hash("fine brown foxes"))


def test_a_user_that_is_not_there_costs_a_hash_and_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = Argon2id.verify_phc_encoded

    def counted(key_material: bytes, phc: str) -> None:
        asked.append(phc)
        real(key_material, phc)

    kept = password.make_hash(GOOD)
    monkeypatch.setattr(Argon2id, "verify_phc_encoded", staticmethod(counted))
    assert not password.verify(GOOD, None)
    assert not password.verify("x" * 2000, kept)
    # The same work: all but salt and result are alike.
    assert [phc.split("$")[:4] for phc in asked] == [kept.split("$")[:4]] * 2
    assert [len(phc) for phc in asked] == [len(kept)] * 2


def test_several_at_once() -> None:
    """OpenSSL's threads for lanes wait for each other."""
    kept, right = password.make_hash(GOOD), []
    passwords = password.Passwords()
    threads = [
        threading.Thread(target=lambda: right.append(passwords.verify(GOOD, kept)), daemon=True) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert right == [True] * 4


@pytest.mark.parametrize("damaged", ["", "*", "$argon2id$v=19$", "$2b$12$abc"])
def test_a_damaged_hash_opens_to_nobody(damaged: str) -> None:
    assert not password.verify(GOOD, damaged or "-")


def test_other_parameters_are_outdated() -> None:
    cheap = Argon2id(salt=bytes(16), length=32, iterations=1, lanes=1, memory_cost=64)
    kept = cheap.derive_phc_encoded(GOOD.encode())
    assert password.verify(GOOD, kept)
    assert password.is_outdated(kept)
    assert not password.is_outdated(password.make_hash(GOOD))
