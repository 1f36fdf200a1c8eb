"""The CAs' phases while several commands change them: each step is whole, and goes by what there really is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sshrec.authority.keys import Keys
from sshrec.authority.ledger import AuthorityRow, Ledger
from sshrec.config import Config, parse
from sshrec.duration import Duration
from sshrec.errors import Denied
from sshrec.storage.database import Conflict, Database
from tests.contract.processes import at_once

NOW = 1_700_000_000
GRACE = Duration(3600)


def _config(directory: Path | str) -> Config:
    text = f"data_dir: {directory}/data\nrun_dir: /run/nowhere\nauthority: {{directory: {directory}/ca}}"
    return parse(text)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = _config(tmp_path)
    config.authority_dir.mkdir(mode=0o700)
    return config


class Between(Ledger):
    """A ledger at which another command comes first, when this one has looked already."""

    other: Callable[[], object] | None = None

    def change_authorities(self, *arguments: Any) -> list[AuthorityRow]:
        other, self.other = self.other, None
        if other is not None:
            other()
        return super().change_authorities(*arguments)


@pytest.fixture
def ledger(database: Database) -> Between:
    return Between(database)


@pytest.fixture
def keys(config: Config, ledger: Between) -> Keys:
    keys = Keys(config, ledger, "root")
    keys.init(NOW, None)
    return keys


def check(keys: Keys, config: Config) -> list[str]:
    """The phases of the user CAs, after seeing that one of them signs, and that each has its key, or none."""
    assert len(keys.rows("user", "current")) == 1
    assert keys.signer("user").public == keys.trusted("user")[0]
    assert len(keys.rows("user", "next")) <= 1
    kept = {path.name for path in (config.authority_dir / "keys").glob("user_ca*") if path.suffix != ".pub"}
    assert kept == {row.file for row in keys.rows("user", "current", "next", "old")}
    return [row.phase for row in keys.rows("user")]


def test_who_switches_first_switches(keys: Keys, config: Config, ledger: Between) -> None:
    first = keys.introduce("user", NOW + 1, None)
    ledger.other = lambda: keys.switch("user", NOW + 2, GRACE)
    with pytest.raises(Denied, match="there is no next user CA"):
        keys.switch("user", NOW + 3, GRACE)
    assert keys.rows("user", "current")[0].fingerprint == first.fingerprint
    assert check(keys, config) == ["current", "old"]


def test_a_key_that_signs_by_now_is_not_forgotten(keys: Keys, config: Config, ledger: Between) -> None:
    """One forgets the next CA while another has it sign: then that is undone, and nobody is without a CA."""
    old = keys.rows("user", "current")[0]
    keys.introduce("user", NOW + 1, None)
    ledger.other = lambda: keys.switch("user", NOW + 2, GRACE)
    assert keys.roll_back("user", NOW + 3).fingerprint == old.fingerprint
    assert check(keys, config) == ["current", "next"]


def test_one_that_signs_again_is_not_retired(keys: Keys, config: Config, ledger: Between) -> None:
    keys.introduce("user", NOW + 1, None)
    keys.switch("user", NOW + 2, GRACE)
    ledger.other = lambda: keys.roll_back("user", NOW + 3)
    with pytest.raises(Denied, match="there is no old user CA"):
        keys.retire("user", NOW + 4)
    assert check(keys, config) == ["current", "next"]


def test_nor_where_its_time_is_over_meanwhile(keys: Keys, config: Config, ledger: Between) -> None:
    keys.introduce("user", NOW + 1, None)
    keys.switch("user", NOW + 2, GRACE)
    ledger.other = lambda: keys.roll_back("user", NOW + 3)
    assert keys.settle(NOW + 2 + GRACE) == []
    assert check(keys, config) == ["current", "next"]


def _rotate(url: str, directory: str, steps: Sequence[str]) -> int:
    config, done = _config(directory), 0
    with Database.open(url, busy_seconds=60) as database:
        keys = Keys(config, Ledger(database), "root")
        for turn, step in enumerate(steps):
            now = NOW + 10 * turn
            with contextlib.suppress(Denied, Conflict):
                if step == "introduce":
                    keys.introduce("user", now, None)
                elif step == "switch":
                    keys.switch("user", now, Duration(25))
                elif step == "roll back":
                    keys.roll_back("user", now)
                elif step == "retire":
                    keys.retire("user", now)
                else:
                    keys.settle(now)
                done += 1
    return done


def _forwards(url: str, directory: str) -> int:
    return _rotate(url, directory, ["introduce", "switch", "settle"] * 12)


def _backwards(url: str, directory: str) -> int:
    return _rotate(url, directory, ["introduce", "roll back", "switch", "retire"] * 9)


def test_two_rotations_at_once(url: str, keys: Keys, config: Config, tmp_path: Path) -> None:
    done = at_once([_forwards, _backwards], url, str(tmp_path))
    assert min(done) > 5
    keys.settle(NOW + 1000)
    check(keys, config)
