"""What the auth service answers to people: the same words, and the same work, whatever was wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from sshrec.access import totp
from sshrec.access.protocol import Authenticate, Authenticated, Failed, Redeem, Register, Registration, SignKey
from sshrec.access.rules import Rules
from sshrec.authority.certificates import Asker
from sshrec.authority.people import People, Visitor
from sshrec.authority.users import Users
from sshrec.config import load
from sshrec.duration import Duration
from sshrec.errors import Denied, UsageError
from sshrec.storage.database import Database
from tests.e2e.registered import app_code

WORD = "nine brown foxes"
HERE = "192.0.2.7"
NOW = 1_800_000_000.0


class Bastion:
    """People on a database of their own, at a time of the test's."""

    def __init__(self, directory: Path) -> None:
        path = directory / "sshrec.yaml"
        path.write_text(f"data_dir: {directory}/data\nauthority:\n  directory: {directory}/auth\n")
        (directory / "auth" / "keys").mkdir(parents=True, mode=0o700)
        config = load(path)
        self.database = Database.open(config.database_url, create=True)
        self.now = NOW
        self.people = People(config, Rules(config), lambda: self.database, lambda: self.now)
        self.visitor = Visitor()

    def invite(self, name: str) -> str:
        users = Users(self.database)
        return users.add(name, ["root"], Duration(3600), Asker("root", HERE), int(self.now * 1000)).token

    def redeem(self, token: str) -> Registration:
        begun = self.people.answer(Redeem(token, HERE), self.visitor)
        assert isinstance(begun, Registration)
        return begun

    def code(self, steps: int = 0) -> str:
        """Of the registration that was begun, so many steps away."""
        assert self.visitor.seed is not None
        return app_code(self.visitor.seed, int(self.now) // totp.STEP_SECONDS + steps)


@pytest.fixture
def bastion(tmp_path: Path) -> Iterator[Bastion]:
    made = Bastion(tmp_path)
    yield made
    made.database.close()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parameters and lengths of all hashes that are computed, as they really are."""
    seen: list[str] = []
    real = Argon2id.verify_phc_encoded

    def verify(plain: bytes, kept: str, secret: bytes | None = None) -> None:
        seen.append(kept.rpartition("$")[0].rpartition("$")[0] + f" {len(kept)}")
        real(plain, kept, secret)

    monkeypatch.setattr(Argon2id, "verify_phc_encoded", staticmethod(verify))
    return seen


def test_one_hash_whoever_it_is(bastion: Bastion, hashed: list[str]) -> None:
    bastion.redeem(bastion.invite("joe"))
    seed_code = bastion.code()
    assert isinstance(bastion.people.answer(Register(WORD, seed_code), bastion.visitor), Authenticated)
    bastion.invite("invited")
    work = []
    for number, (name, word, code) in enumerate(
        [
            ("joe", "something else", "000000"),
            ("joe", WORD, "000000"),
            ("joe", WORD, seed_code),  # used before
            ("nobody-there", WORD, "000000"),
            ("invited", WORD, "000000"),
            ("jоe", WORD, "000000"),
            ("", "", ""),
            ("x" * 10_000, "x" * 100_000, "x" * 10_000),
        ]
    ):
        failed = bastion.people.answer(Authenticate(name, word, code, f"10.0.0.{number}"), Visitor())
        assert failed == Failed("wrong name, password or code")
        work.append(tuple(hashed))
        hashed.clear()
    assert set(work) == {work[0]}
    assert len(work[0]) == 1
    assert work[0][0].startswith("$argon2id$v=19$m=65536,t=3,p=1")


def test_what_is_of_no_use_to_try_again_is_told(bastion: Bastion) -> None:
    token = bastion.invite("joe")
    bastion.redeem(token)
    again = bastion.people.answer(Register(WORD, "000000"), bastion.visitor)
    assert isinstance(again, Failed)
    assert again.again
    bastion.now += 3601
    over = bastion.people.answer(Register(WORD, bastion.code()), bastion.visitor)
    assert isinstance(over, Failed)
    assert not over.again
    assert not bastion.people.answer(Redeem(token, HERE), Visitor()).again  # type: ignore[union-attr]


def test_who_used_a_recovery_code_is_told_how_many_are_left(bastion: Bastion) -> None:
    bastion.redeem(bastion.invite("joe"))
    done = bastion.people.answer(Register(WORD, bastion.code(-1)), bastion.visitor)
    assert isinstance(done, Authenticated)
    assert len(done.recovery) == 10
    used = bastion.people.answer(Authenticate("joe", WORD, done.recovery[0], HERE), Visitor())
    assert used == Authenticated("joe", ("root",), codes_left=9)


def test_nothing_is_signed_for_nobody(bastion: Bastion) -> None:
    with pytest.raises(Denied, match="nobody has logged in on this connection"):
        bastion.people.answer(SignKey("ssh-ed25519 AAAA"), Visitor())
    with pytest.raises(UsageError, match="no registration was begun"):
        bastion.people.answer(Register(WORD, "000000"), Visitor())
    # A begun registration proves nothing, and a failed login takes what was proved.
    token = bastion.invite("joe")
    bastion.redeem(token)
    code = bastion.code()
    with pytest.raises(Denied, match="nobody has logged in"):
        bastion.people.answer(SignKey("ssh-ed25519 AAAA"), bastion.visitor)
    bastion.people.answer(Register(WORD, code), bastion.visitor)
    bastion.people.answer(Authenticate("joe", "wrong", "000000", HERE), bastion.visitor)
    with pytest.raises(Denied, match="nobody has logged in"):
        bastion.people.answer(SignKey("ssh-ed25519 AAAA"), bastion.visitor)
