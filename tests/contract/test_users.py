"""People's accounts on SQLite and PostgreSQL: invited, registered, logged in, reset, removed, and locked."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.twofactor.hotp import HOTP
from sqlalchemy import select, text, update

from sshrec.access import password, totp
from sshrec.access.addresses import source_key
from sshrec.access.password import Passwords
from sshrec.authority import locks
from sshrec.authority.certificates import Asker
from sshrec.authority.failures import TooMany
from sshrec.authority.ledger import Draft, Ledger
from sshrec.authority.locks import Lock
from sshrec.authority.login import Logins, Wrong
from sshrec.authority.registration import Registrations
from sshrec.authority.seeds import Seeds
from sshrec.authority.users import Users
from sshrec.duration import Duration
from sshrec.errors import ConfigError, DataError, Denied, NotFound, SshrecError, UsageError
from sshrec.storage import schema
from sshrec.storage.database import Conflict, Database
from tests.contract.processes import at_once

NOW = 1_700_000_010_000  # the beginning of a step, in milliseconds
STEP, MINUTE, HOUR, DAY = 30_000, 60_000, 3_600_000, 86_400_000
TTL = Duration.parse("1h")
ROOT = Asker("root", "10.0.0.1")
SECRET, HERE, ELSEWHERE = "nine brown foxes", "10.0.0.7", "10.0.0.8"


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a guess costs is not what is tried here, hundreds of times: tests/unit/test_password.py."""
    monkeypatch.setattr(password, "_MEMORY_KIB", 1024)
    monkeypatch.setattr(password, "_PARAMETERS", "$argon2id$v=19$m=1024,t=3,p=1$")


class Accounts:
    """All of it on one database; its clock is the caller's."""

    def __init__(self, database: Database, keys: Path) -> None:
        self.database = database
        self.users = Users(database)
        self.ledger = Ledger(database)
        passwords, self.seeds = Passwords(), Seeds(keys)
        self.registrations = Registrations(database, self.seeds, passwords)
        self.logins = Logins(database, self.seeds, passwords)

    def add(self, name: str = "joe", now: int = NOW) -> str:
        """The token of an invitation."""
        return self.users.add(name, [name, "root"], TTL, ROOT, now).token

    def register(self, name: str = "joe", now: int = NOW) -> tuple[bytes, tuple[str, ...]]:
        """The seed and the recovery codes of a new user, whose first code was that of the step before `now`."""
        seed, token = totp.new_seed(), self.add(name, now)
        return seed, self.registrations.redeem(token, SECRET, seed, code(seed, now - STEP), HERE, now)

    def certificate(self, name: str, *principals: str, now: int = NOW) -> int:
        draft = Draft(
            kind="user",
            key_id=name,
            principals=(f"sshrec:{name}", *principals),
            valid_after=now // 1000 - 300,
            valid_before=now // 1000 + 3600,
            key_fingerprint="SHA256:key",
            ca_fingerprint="SHA256:ca",
            critical_options={},
            extensions=(),
            asked_by=name,
            asked_from=HERE,
        )
        return self.ledger.reserve([draft], now)[0].serial

    def revoked(self) -> list[int]:
        return sorted(entry.serial for entry in self.ledger.entries() if entry.revoked)

    def lock(self, kind: locks.Kind, name: str, until: int | None = None, now: int = NOW) -> None:
        with self.database.transaction() as connection:
            made = Lock(kind=kind, name=name, reason="stolen", made_ms=now, made_by="root", until_ms=until)
            locks.add(connection, made, HERE)

    def unlock(self, kind: locks.Kind, name: str, now: int = NOW) -> None:
        with self.database.transaction() as connection:
            locks.lift(connection, kind, name, "root", HERE, now)

    def told(self, *names: str) -> list[dict[str, object]]:
        """What the audit log is told, of these names of events."""
        with self.database.reading() as connection:
            said = [json.loads(row) for row in connection.scalars(select(schema.outbox.c.said))]
        return [event for event in said if not names or event["event"] in names]

    def everything(self) -> str:
        """All that any table holds, as text."""
        with self.database.reading() as connection:
            return "\n".join(
                repr(tuple(row))
                for table in schema.metadata.sorted_tables
                for row in connection.execute(select(table))
            )


def code(seed: bytes, now: int) -> str:
    return HOTP(seed, 6, SHA1()).generate(now // STEP).decode()  # noqa: S303


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir(mode=0o700)
    return tmp_path / "keys"


@pytest.fixture
def accounts(database: Database, keys: Path) -> Accounts:
    return Accounts(database, keys)


# ---- added, listed, removed --------------------------------------------------------------------------------


def test_from_the_invitation_to_the_login(accounts: Accounts) -> None:
    made = accounts.users.add("joe", ["joe", "root", "ec2-user"], TTL, ROOT, NOW)
    assert (made.user, made.purpose, made.expires_ms) == ("joe", "registration", NOW + HOUR)
    (joe,) = accounts.users.all(NOW)
    assert (joe.status, joe.logins, joe.made_by) == ("invited", ("joe", "root", "ec2-user"), "root")
    assert (joe.invited_ms, joe.factors, joe.recovery) == (NOW + HOUR, (), 0)

    invited = accounts.registrations.start(made.token.upper().replace("-", " "), HERE, NOW)
    assert (invited.user, invited.logins, invited.purpose) == ("joe", joe.logins, "registration")
    seed = totp.new_seed()
    codes = accounts.registrations.redeem(made.token, SECRET, seed, code(seed, NOW), HERE, NOW)
    assert len(codes) == 10

    proved = accounts.logins.login("joe", SECRET, code(seed, NOW + STEP), HERE, NOW + STEP)
    assert (proved.user, proved.logins, proved.factor, proved.recovery) == ("joe", joe.logins, "totp", 10)
    joe = accounts.users.user("joe", NOW + STEP)
    assert (joe.status, joe.invited_ms, joe.login_ms, joe.recovery) == ("active", None, NOW + STEP, 10)
    assert [(factor.kind, factor.added_ms, factor.used_ms) for factor in joe.factors] == [
        ("totp", NOW, NOW + STEP)
    ]
    assert [(event["event"], event["code"], event["user"]) for event in accounts.told()] == [
        ("user.create", "T1002I", "root"),
        ("reset_password_token.create", "T6000I", "root"),
        ("user.password_change", "T1005I", "joe"),
        ("mfa.add", "T1006I", "joe"),
        ("recovery_code.generated", "T1008I", "joe"),
        ("user.login", "T1000I", "joe"),
    ]


def test_nothing_that_opens_an_account_is_kept_in_the_clear(accounts: Accounts, keys: Path) -> None:
    seed, codes = accounts.register()
    token = accounts.add("alice")
    accounts.logins.login("joe", SECRET, codes[0], HERE, NOW)
    with pytest.raises(Wrong):
        accounts.logins.login("hunter2-is-my-password", "hunter2-is-my-password", "123456", HERE, NOW)
    kept = accounts.everything()
    secrets = [SECRET, totp.spelled(seed).replace(" ", ""), seed.hex(), token, *codes, "hunter2"]
    for secret in secrets:
        for shown in (secret, secret.replace("-", ""), secret.upper()):
            assert shown not in kept
    assert repr(seed)[2:-1] not in kept
    assert stat.S_IMODE((keys / "factors").stat().st_mode) == 0o600
    assert [path.name for path in keys.iterdir()] == ["factors"]


def test_a_user_twice(accounts: Accounts) -> None:
    accounts.add()
    with pytest.raises(Conflict, match="there is a user joe already"):
        accounts.add()
    assert len(accounts.told("user.create")) == 1


@pytest.mark.parametrize("name", ["root", "login", "Joe", "joe\x1b[2J", "jоe", "a" * 10_000, ""])
def test_who_cannot_be_a_user(accounts: Accounts, name: str) -> None:
    with pytest.raises(UsageError):
        accounts.users.add(name, ["joe"], TTL, ROOT, NOW)
    with pytest.raises(UsageError):
        accounts.users.add("joe", ["joe", "r\0ot"], TTL, ROOT, NOW)
    with pytest.raises(UsageError, match="invitation may be good for"):
        accounts.users.add("joe", ["joe"], Duration.parse("3d"), ROOT, NOW)
    for of in (
        lambda: accounts.users.user(name, NOW),
        lambda: accounts.users.remove(name, ROOT, NOW),
        lambda: accounts.users.reset(name, TTL, ROOT, NOW),
        lambda: accounts.users.update(name, ["joe"], ROOT, NOW),
    ):
        with pytest.raises(NotFound, match="there is no user"):
            of()
    assert accounts.users.all(NOW) == []
    assert accounts.told() == []


def test_logins_that_are_taken_away_are_gone_at_once(accounts: Accounts) -> None:
    accounts.add()
    with_root, without = accounts.certificate("joe", "joe", "root"), accounts.certificate("joe", "joe")
    joe, revoked = accounts.users.update("joe", ["joe", "git"], ROOT, NOW)
    assert joe.logins == ("joe", "git")
    assert [entry.serial for entry in revoked] == [with_root]
    assert accounts.revoked() == [with_root]
    assert not accounts.ledger.entry(without).revoked
    (told,) = accounts.told("user.update")
    assert (told["logins"], told["logins_before"]) == (["joe", "git"], ["joe", "root"])
    accounts.certificate("joe", "joe")


def test_a_reset_leaves_nothing_that_was_known(accounts: Accounts) -> None:
    seed, codes = accounts.register()
    made = accounts.users.reset("joe", TTL, ROOT, NOW)
    joe = accounts.users.user("joe", NOW)
    assert (joe.status, joe.factors, joe.recovery, joe.password_ms) == ("invited", (), 0, None)
    for shown in (code(seed, NOW), codes[0]):
        with pytest.raises(Wrong):
            accounts.logins.login("joe", SECRET, shown, HERE, NOW)
    assert accounts.registrations.start(made.token, HERE, NOW).purpose == "reset"
    assert [event["mfa_device_type"] for event in accounts.told("mfa.delete")] == ["totp"]
    # What was failed with what is void counts no more, once there is a new password.
    _fail(accounts, NOW)
    again = accounts.users.reset("joe", TTL, ROOT, NOW)
    accounts.registrations.redeem(again.token, SECRET, seed, code(seed, NOW), ELSEWHERE, NOW)
    for n in range(4):
        _fail(accounts, NOW, f"10.0.1.{n}")
    accounts.logins.login("joe", SECRET, code(seed, NOW + STEP), ELSEWHERE, NOW + STEP)


def test_a_reset_voids_the_invitation_of_before(accounts: Accounts) -> None:
    accounts.register()
    made = accounts.users.reset("joe", TTL, ROOT, NOW)
    # A second reset voids the invitation of the first.
    accounts.users.reset("joe", TTL, ROOT, NOW)
    with pytest.raises(Denied, match="not valid, was used, or has expired"):
        accounts.registrations.start(made.token, HERE, NOW)


def test_who_is_removed_has_nothing_any_more_and_may_come_back_with_nothing(accounts: Accounts) -> None:
    seed, codes = accounts.register()
    serial = accounts.certificate("joe", "joe")
    number = accounts.ledger.krl_number()
    assert [entry.serial for entry in accounts.users.remove("joe", ROOT, NOW)] == [serial]
    assert accounts.users.all(NOW) == []
    assert accounts.ledger.krl_number() > number
    with pytest.raises(Denied, match=r"was revoked by root on .*: the user was removed"):
        accounts.certificate("joe", "joe")
    with pytest.raises(Wrong):
        accounts.logins.login("joe", SECRET, code(seed, NOW), HERE, NOW)

    accounts.add()
    assert accounts.revoked() == [serial]
    for shown in (code(seed, NOW), codes[0]):
        with pytest.raises(Wrong):
            accounts.logins.login("joe", SECRET, shown, HERE, NOW)
    accounts.certificate("joe", "joe")
    assert [
        event["event"] for event in accounts.told("user.create", "user.delete", "cert.revoke", "cert.unrevoke")
    ] == [
        "user.create",
        "user.delete",
        "cert.revoke",
        "cert.unrevoke",
        "user.create",
    ]


def test_who_was_cut_off_does_not_come_back_by_being_added(accounts: Accounts) -> None:
    accounts.add()
    accounts.ledger.revoke_key_id("user", "joe", "root", "laptop stolen", NOW)
    accounts.users.remove("joe", ROOT, NOW)
    with pytest.raises(Denied, match="were revoked by root: laptop stolen") as raised:
        accounts.add()
    assert raised.value.hint == "to allow new ones: sshrec-ca revoke --undo joe"
    assert accounts.users.all(NOW) == []
    accounts.ledger.lift_key_id("user", "joe", "root", NOW)
    accounts.add()


# ---- invitations -------------------------------------------------------------------------------------------


def test_an_invitation_is_good_once_and_until_its_end(accounts: Accounts) -> None:
    token = accounts.add()
    with pytest.raises(Denied) as never:
        accounts.registrations.start("0" * 30, HERE, NOW)
    with pytest.raises(Denied) as late:
        accounts.registrations.start(token, HERE, NOW + HOUR)
    with pytest.raises(Denied) as too_early:
        accounts.registrations.redeem(token, SECRET, None, None, HERE, NOW - HOUR)
    assert accounts.registrations.start(token, HERE, NOW + HOUR - 1).user == "joe"
    assert accounts.registrations.redeem(token, SECRET, None, None, HERE, NOW + HOUR - 1) == ()
    with pytest.raises(Denied) as used:
        accounts.registrations.redeem(token, SECRET, None, None, HERE, NOW + HOUR - 1)
    assert len({str(error.value) for error in (never, late, too_early, used)}) == 1


def test_whoever_is_interrupted_has_the_invitation_still(accounts: Accounts) -> None:
    token, seed = accounts.add(), totp.new_seed()
    for _ in range(20):
        accounts.registrations.start(token, HERE, NOW)
    for bad, shown, said in (
        ("short", code(seed, NOW), "at least 10 characters"),
        ("joe joe joe joe", code(seed, NOW), "the user's name"),
        (SECRET, code(seed, NOW - 2 * STEP), "the code does not fit"),
        (SECRET, code(seed, NOW + 2 * STEP), "the code does not fit"),
        (SECRET, "", "the code does not fit"),
    ):
        with pytest.raises(UsageError, match=said):
            accounts.registrations.redeem(token, bad, seed, shown, HERE, NOW)
    assert accounts.users.user("joe", NOW).status == "invited"
    assert len(accounts.registrations.redeem(token, SECRET, seed, code(seed, NOW), HERE, NOW)) == 10


def test_a_registration_that_fails_at_its_very_end_leaves_nothing(accounts: Accounts, keys: Path) -> None:
    token, seed = accounts.add(), totp.new_seed()
    keys.rmdir()
    with pytest.raises(SshrecError, match="cannot make"):
        accounts.registrations.redeem(token, SECRET, seed, code(seed, NOW), HERE, NOW)
    joe = accounts.users.user("joe", NOW)
    assert (joe.status, joe.password_ms, joe.factors) == ("invited", None, ())
    assert accounts.told("user.password_change") == []
    keys.mkdir(mode=0o700)
    accounts.registrations.redeem(token, SECRET, seed, code(seed, NOW), HERE, NOW)


def _redeem(url: str, keys: Path, token: str, number: int) -> str:
    seed = totp.new_seed()
    with Database.open(url, busy_seconds=60) as database:
        accounts = Accounts(database, keys)
        try:
            accounts.registrations.redeem(token, f"{SECRET} {number}", seed, code(seed, NOW), HERE, NOW)
        except Denied:
            return ""
        return f"{SECRET} {number} {seed.hex()}"


def test_of_those_who_come_with_one_invitation_one_wins(url: str, accounts: Accounts, keys: Path) -> None:
    token = accounts.add()
    won = [found for found in at_once([_redeem] * 3, url, keys, token, 7) if found]
    assert len(won) == 1
    secret, _, seed = won[0].rpartition(" ")
    joe = accounts.users.user("joe", NOW)
    assert (len(joe.factors), joe.recovery) == (1, 10)
    later = NOW + STEP
    accounts.logins.login("joe", secret, code(bytes.fromhex(seed), later), HERE, later)


# ---- logging in --------------------------------------------------------------------------------------------


def test_each_code_once_neither_early_nor_late(accounts: Accounts) -> None:
    seed, _ = accounts.register()
    now = NOW + 10 * STEP
    for off in (-2, 2):
        with pytest.raises(Wrong):
            accounts.logins.login("joe", SECRET, code(seed, now + off * STEP), HERE, now)
    for off in (-1, 0, 1):
        shown = code(seed, now + off * STEP)
        accounts.logins.login("joe", SECRET, shown, HERE, now)
        with pytest.raises(Wrong):
            accounts.logins.login("joe", SECRET, shown, ELSEWHERE, now)
    reasons = [event["error"] for event in accounts.told("user.login") if not event["success"]]
    assert reasons == ["wrong code"] * 2 + ["a code that was used before, or the clock went back"] * 3


def test_recovery_codes_once_each(accounts: Accounts) -> None:
    _, codes = accounts.register()
    proved = accounts.logins.login("joe", SECRET, codes[3].upper().replace("-", ""), HERE, NOW)
    assert (proved.factor, proved.recovery) == ("recovery", 9)
    with pytest.raises(Wrong):
        accounts.logins.login("joe", SECRET, codes[3], HERE, NOW)
    assert accounts.logins.check_factor("joe", codes[4], HERE, NOW, "S1") == "recovery"
    assert [event["codes_left"] for event in accounts.told("recovery_code.used")] == [9, 8]


def test_codes_are_ones_own(accounts: Accounts) -> None:
    joes, codes = accounts.register("joe")
    accounts.register("alice")
    for shown in (code(joes, NOW), codes[0]):
        with pytest.raises(Wrong):
            accounts.logins.login("alice", SECRET, shown, HERE, NOW)
    accounts.logins.login("joe", SECRET, code(joes, NOW), ELSEWHERE, NOW)


def test_a_seed_that_was_put_under_another_name_opens_to_nobody(accounts: Accounts) -> None:
    joes, _ = accounts.register("joe")
    accounts.register("alice")
    factors = schema.factors
    with accounts.database.transaction() as connection:
        sealed = connection.scalar(select(factors.c.seed).where(factors.c.user_name == "joe"))
        connection.execute(update(factors).where(factors.c.user_name == "alice").values(seed=sealed))
    with pytest.raises(DataError, match="the second factor of alice in the database is damaged"):
        accounts.logins.login("alice", SECRET, code(joes, NOW), HERE, NOW)


def test_the_same_answer_whatever_was_wrong(accounts: Accounts) -> None:
    seed, _ = accounts.register()
    accounts.add("invited")
    good = code(seed, NOW)
    tries = [
        ("joe", "wrong", good),
        ("joe", SECRET, "000000"),
        ("joe", SECRET, None),
        ("joe", "x" * 100_000, good),
        ("joe", SECRET, "1" * 100_000),
        ("nobody-there", SECRET, good),
        ("invited", SECRET, good),
        ("joe\x1b[2J", SECRET, good),
        ("a" * 10_000, SECRET, good),
        ("jоe", SECRET, good),
        ("joe\0", SECRET, good),
        ("joe'; DROP TABLE users; --", SECRET, good),
        ("joe\udcff", "\udcff", "\udcff"),
        ("", "", ""),
    ]
    said = set()
    for number, (name, secret, shown) in enumerate(tries):
        with pytest.raises(Wrong) as raised:
            accounts.logins.login(name, secret, shown, f"10.1.0.{number}", NOW)
        said.add((str(raised.value), raised.value.hint))
    assert said == {("wrong name, password or code", None)}
    told = accounts.told("user.login")
    assert {event["code"] for event in told} == {"T1000W"}
    assert [event.get("user") for event in told] == ["joe"] * 5 + [None, "invited"] + [None] * 7
    # What was wrong with the code used it up for nobody.
    with pytest.raises(TooMany):
        accounts.logins.login("joe", SECRET, good, HERE, NOW)
    later = NOW + HOUR
    accounts.logins.login("joe", SECRET, code(seed, later), HERE, later)


def test_without_a_second_factor_the_password_is_enough(accounts: Accounts) -> None:
    accounts.registrations.redeem(accounts.add(), SECRET, None, None, HERE, NOW)
    proved = accounts.logins.login("joe", SECRET, None, HERE, NOW, second_factor=False)
    assert (proved.factor, proved.recovery) == (None, 0)
    with pytest.raises(Wrong, match="wrong name or password"):
        accounts.logins.login("joe", "wrong", None, HERE, NOW, second_factor=False)
    # Asked for, it is not there.
    with pytest.raises(Wrong):
        accounts.logins.login("joe", SECRET, "123456", HERE, NOW)
    assert accounts.told("user.login")[-1]["error"] == "the user has no second factor"


def test_a_hash_of_before_is_made_anew(accounts: Accounts) -> None:
    seed, _ = accounts.register()
    cheap = Argon2id(salt=bytes(16), length=32, iterations=1, lanes=1, memory_cost=64)
    users = schema.users
    with accounts.database.transaction() as connection:
        old = cheap.derive_phc_encoded(SECRET.encode())
        connection.execute(update(users).values(password=old))
    accounts.logins.login("joe", SECRET, code(seed, NOW), HERE, NOW)
    with accounts.database.reading() as connection:
        kept = connection.scalar(select(users.c.password))
    assert kept
    assert kept.startswith("$argon2id$v=19$m=1024,")
    accounts.logins.login("joe", SECRET, code(seed, NOW + STEP), HERE, NOW + STEP)


def test_a_code_for_a_session_begins_a_grace_period_where_it_was_shown(accounts: Accounts) -> None:
    seed, _ = accounts.register()
    assert accounts.logins.since_factor("joe", HERE, NOW) is None
    assert accounts.logins.check_factor("joe", code(seed, NOW), HERE, NOW, "01SESSION") == "totp"
    assert accounts.logins.since_factor("joe", HERE, NOW + 5000) == 5
    assert accounts.logins.since_factor("joe", ELSEWHERE, NOW + 5000) is None
    assert accounts.logins.since_factor("alice", HERE, NOW + 5000) is None
    assert accounts.logins.since_factor("joe", HERE, NOW - 1) is None  # the clock went back
    with pytest.raises(Wrong, match="wrong code"):
        accounts.logins.check_factor("joe", code(seed, NOW), HERE, NOW, "02SESSION")
    told = accounts.told("mfa_auth_challenge.validate")
    assert [(event["code"], event["sid"]) for event in told] == [("T1016I", "01SESSION"), ("T1016W", "02SESSION")]
    # A login's code counts as well.
    accounts.logins.login("joe", SECRET, code(seed, NOW + STEP), ELSEWHERE, NOW + STEP)
    assert accounts.logins.since_factor("joe", ELSEWHERE, NOW + STEP) == 0


def _check(url: str, keys: Path, shown: str) -> bool:
    with Database.open(url, busy_seconds=60) as database:
        try:
            return bool(Accounts(database, keys).logins.check_factor("joe", shown, HERE, NOW))
        except Denied:
            return False


@pytest.mark.parametrize("kind", ["totp", "recovery"])
def test_one_code_at_the_same_moment_counts_once(url: str, accounts: Accounts, keys: Path, kind: str) -> None:
    seed, codes = accounts.register()
    assert sorted(at_once([_check] * 4, url, keys, code(seed, NOW) if kind == "totp" else codes[0])) == [
        False,
        False,
        False,
        True,
    ]


# ---- failing -----------------------------------------------------------------------------------------------


def _fail(accounts: Accounts, now: int, source: str = HERE, name: str = "joe") -> None:
    with pytest.raises(Wrong):
        accounts.logins.login(name, "wrong", "000000", source, now)


def test_five_failures_of_an_account_from_anywhere(accounts: Accounts) -> None:
    seed, _ = accounts.register()
    for number in range(5):
        _fail(accounts, NOW, f"10.0.1.{number}")
    for name, secret, shown in (("joe", SECRET, code(seed, NOW)), ("joe", "wrong", "000000")):
        with pytest.raises(TooMany, match="too many failures: try again in 15m") as raised:
            accounts.logins.login(name, secret, shown, "10.0.2.1", NOW)
        assert raised.value.seconds == 900
    later = NOW + 15 * MINUTE
    accounts.logins.login("joe", SECRET, code(seed, later), "10.0.2.1", later)


def test_who_fails_at_the_door_ends_no_session(accounts: Accounts) -> None:
    """Nor does who fails before a session keep its owner from logging in; each has five tries for itself."""
    seed, _ = accounts.register()
    for number in range(5):
        _fail(accounts, NOW, f"10.0.1.{number}")
    assert accounts.logins.check_factor("joe", code(seed, NOW), ELSEWHERE, NOW) == "totp"
    for number in range(5):
        with pytest.raises(Wrong):
            accounts.logins.check_factor("joe", "000000", f"10.0.3.{number}", NOW)
    with pytest.raises(TooMany):
        accounts.logins.check_factor("joe", code(seed, NOW + STEP), "10.0.2.1", NOW)
    later = NOW + 15 * MINUTE
    accounts.logins.login("joe", SECRET, code(seed, later), "10.0.2.1", later)


def test_five_failures_of_a_source_at_whatever_accounts(accounts: Accounts) -> None:
    accounts.register()
    for name in ("joe", "alice", "bob", "carol", "x\0y"):
        _fail(accounts, NOW, HERE, name)
    with pytest.raises(TooMany):
        accounts.logins.check_factor("dave", "000000", HERE, NOW)
    with pytest.raises(TooMany):
        accounts.registrations.start("0" * 30, HERE, NOW)
    _fail(accounts, NOW, ELSEWHERE, "dave")
    # Who was refused by one limit was not charged to the other.
    for _ in range(4):
        _fail(accounts, NOW, ELSEWHERE, "joe")


def test_users_who_are_not_there_wait_like_others(accounts: Accounts) -> None:
    for number in range(5):
        _fail(accounts, NOW, f"10.0.1.{number}", "not-there")
    with pytest.raises(TooMany, match="15m"):
        accounts.logins.login("not-there", SECRET, "000000", HERE, NOW)


def test_whoever_guesses_elsewhere_keeps_nobody_out_at_home(accounts: Accounts) -> None:
    """Where a right code came from lately, failures of other places do not count; those there still do."""
    seed, _ = accounts.register()
    accounts.logins.login("joe", SECRET, code(seed, NOW), HERE, NOW)
    for number in range(5):
        _fail(accounts, NOW, f"10.0.1.{number}")
    with pytest.raises(TooMany):
        accounts.logins.login("joe", SECRET, code(seed, NOW + MINUTE), "10.0.2.1", NOW + MINUTE)
    assert accounts.logins.login("joe", SECRET, code(seed, NOW + MINUTE), HERE, NOW + MINUTE).user == "joe"
    for _ in range(5):
        _fail(accounts, NOW + MINUTE, HERE)
    with pytest.raises(TooMany):
        accounts.logins.login("joe", SECRET, code(seed, NOW + 2 * MINUTE), HERE, NOW + 2 * MINUTE)


def test_a_wait_survives_a_restart_and_a_clock_that_is_set_back(url: str, accounts: Accounts, keys: Path) -> None:
    seed, _ = accounts.register()
    for number in range(5):
        _fail(accounts, NOW, f"10.0.1.{number}")
    with Database.open(url) as database:
        again = Accounts(database, keys)
        with pytest.raises(TooMany) as raised:
            again.logins.login("joe", SECRET, code(seed, NOW), HERE, NOW + MINUTE)
        assert raised.value.seconds == 14 * 60
        for back in (HOUR, DAY, 365 * DAY):
            with pytest.raises(TooMany) as raised:
                again.logins.login("joe", SECRET, code(seed, NOW), HERE, NOW - back)
            assert raised.value.seconds <= 15 * 60


def _guess(url: str, keys: Path, times: int) -> int:
    """How many tries were looked at."""
    looked = 0
    with Database.open(url, busy_seconds=60) as database:
        logins = Accounts(database, keys).logins
        for number in range(times):
            try:
                logins.check_factor("joe", "000000", f"10.9.8.{number}", NOW)
            except Wrong:
                looked += 1
            except TooMany:
                pass
    return looked


def test_tries_at_the_same_moment_are_charged_each(url: str, accounts: Accounts, keys: Path) -> None:
    accounts.register()
    assert sum(at_once([_guess] * 3, url, keys, 10)) == 5


def test_strangers_names_do_not_stay(accounts: Accounts) -> None:
    _fail(accounts, NOW, HERE, "stranger")
    _fail(accounts, NOW + 2 * DAY, HERE, "another")
    with accounts.database.reading() as connection:
        kept = list(connection.scalars(text("SELECT name FROM attempts WHERE kind = 'account'")))
    assert kept == [accounts.seeds.tag("another")]


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3::7", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        (None, "unknown"),
        ("", "unknown"),
        ("/dev/pts/3", "/dev/pts/3"),
        ("\x1b[2J" + "x" * 1000, "\\x1b[2J" + "x" * 56 + "…"),
    ],
)
def test_what_is_one_source(source: str | None, key: str) -> None:
    assert source_key(source) == key


# ---- locks -------------------------------------------------------------------------------------------------


def test_a_locked_user_gets_nothing_however_right_it_is(accounts: Accounts) -> None:
    seed, _ = accounts.register()
    accounts.lock("user", "joe", NOW + HOUR)
    with pytest.raises(Denied, match=r"^user 'joe' is locked until 2023-11-14 23:13:30 UTC: stolen$"):
        accounts.logins.login("joe", SECRET, code(seed, NOW), HERE, NOW)
    with pytest.raises(Wrong):
        accounts.logins.login("joe", "wrong", code(seed, NOW + STEP), HERE, NOW)
    with pytest.raises(Denied, match="'joe' is locked until") as raised:
        accounts.certificate("joe", "joe")
    assert raised.value.hint == "to lift it: sshrec unlock user joe"
    accounts.certificate("alice", "joe")
    accounts.logins.login("joe", SECRET, code(seed, NOW + HOUR), HERE, NOW + HOUR)
    accounts.certificate("joe", "joe", now=NOW + HOUR)


def test_a_lock_that_is_lifted_or_replaced(accounts: Accounts) -> None:
    def held(now: int = NOW) -> list[tuple[str, str, int | None]]:
        with accounts.database.reading() as connection:
            return [(lock.kind, lock.name, lock.until_ms) for lock in locks.active(connection, now)]

    accounts.lock("node", "web1")
    accounts.lock("login", "root", NOW + HOUR)
    accounts.lock("session", "01SESSION", NOW + MINUTE)
    assert held() == [
        ("node", "web1", None),
        ("login", "root", NOW + HOUR),
        ("session", "01SESSION", NOW + MINUTE),
    ]
    accounts.lock("login", "root", NOW + DAY)
    assert held(NOW + HOUR) == [("node", "web1", None), ("login", "root", NOW + DAY)]
    accounts.unlock("node", "web1")
    assert held(NOW + HOUR) == [("login", "root", NOW + DAY)]
    with pytest.raises(NotFound, match="node 'web1' is not locked"):
        accounts.unlock("node", "web1")
    with pytest.raises(NotFound):
        accounts.unlock("user", "root")
    accounts.lock("session", "01SESSION", now=NOW + HOUR)  # over, and locked again
    assert [(event["event"], event["target"], event["name"]) for event in accounts.told()] == [
        ("lock.created", "node", "web1"),
        ("lock.created", "login", "root"),
        ("lock.created", "session", "01SESSION"),
        ("lock.created", "login", "root"),
        ("lock.deleted", "node", "web1"),
        ("lock.created", "session", "01SESSION"),
    ]


# ---- the key of the seeds ----------------------------------------------------------------------------------


def _ensure(keys: Path) -> bytes:
    Seeds(keys).ensure()
    return (keys / "factors").read_bytes()


def test_one_key_however_many_make_it(keys: Path) -> None:
    assert len(set(at_once([_ensure] * 4, keys))) == 1
    assert [path.name for path in keys.iterdir()] == ["factors"]


def test_a_key_that_is_gone_or_another_is_said_and_not_made_anew(accounts: Accounts, keys: Path) -> None:
    seed, _ = accounts.register()
    token = accounts.add("alice")
    kept = keys / "factors.away"
    (keys / "factors").rename(kept)
    with pytest.raises(NotFound, match="factors does not exist"):
        accounts.logins.login("joe", SECRET, code(seed, NOW), HERE, NOW)
    with pytest.raises(NotFound, match="which sealed the second factors"):
        accounts.registrations.redeem(token, SECRET, seed, code(seed, NOW), HERE, NOW)
    assert not (keys / "factors").exists()
    accounts.seeds.ensure()
    with pytest.raises(ConfigError, match="is not the key that sealed"):
        accounts.logins.login("joe", SECRET, code(seed, NOW), HERE, NOW)
    kept.rename(keys / "factors")
    accounts.logins.login("joe", SECRET, code(seed, NOW), HERE, NOW)


@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_a_key_that_others_could_have_written(accounts: Accounts, keys: Path, mode: int) -> None:
    seed, _ = accounts.register()
    (keys / "factors").chmod(mode)
    with pytest.raises(ConfigError, match="can be changed by others"):
        accounts.logins.login("joe", SECRET, code(seed, NOW), HERE, NOW)
