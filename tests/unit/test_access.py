"""`sshrec access`: what it says about roles, users and locks, and what it exits with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sshrec.authority import locks
from sshrec.authority.certificates import Asker
from sshrec.authority.locks import Lock
from sshrec.authority.users import Users
from sshrec.duration import Duration
from sshrec.storage.database import Database

SSHREC = str(Path(sys.executable).with_name("sshrec"))
CONFIG = """
data_dir: {path}/data
nodes:
- {{name: web1, address: 10.2.0.11, labels: {{env: prod}}}}
- {{name: db1, address: 10.2.0.21}}
roles:
- name: dba
  users: [alice]
  logins: [postgres]
  nodes: ["db*", 10.2.0.0/16]
  mfa: session
  mfa_grace: 15m
- name: contractors
  users: ["ext-*"]
  nodes: [env=prod]
  kinds: [shell]
  hours: [mon-fri 08:00-18:00]
  sources: [192.0.2.0/24]
  sessions: 2
  require_sk: yes
  verify_required: yes
  session_length: 4h
- name: staff
  nodes: ["web*"]
"""
KEY = "with a FIDO security key; with a certificate that has verify-required"
MONDAY = ("--at", "2026-11-23 12:00")


class Bastion:
    """A configuration with those roles, and what the command says of them."""

    def __init__(self, path: Path) -> None:
        self._config = path / "sshrec.yaml"
        self._config.write_text(CONFIG.format(path=path))
        self._authority = path / "data-auth"

    def database(self) -> Database:
        self._authority.mkdir(exist_ok=True)
        return Database.open(f"sqlite:///{self._authority}/sshrec.db", create=True)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [SSHREC, "--config", str(self._config), "access", *arguments]
        env = {**os.environ, "TZ": "UTC"}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)

    def access(self, *arguments: str) -> list[str]:
        """Its lines; the last is the status."""
        done = self.run(*arguments, *MONDAY)
        return [*(done.stdout + done.stderr).splitlines(), str(done.returncode)]


@pytest.fixture
def bastion(tmp_path: Path) -> Bastion:
    return Bastion(tmp_path)


@pytest.fixture
def people(bastion: Bastion) -> Bastion:
    """Joe, who was given root and joe, and alice, who is locked."""
    asker = Asker("admin", "local")
    with bastion.database() as database:
        for name, logins in (("joe", ["joe", "root"]), ("alice", ["alice"]), ("ext-bob", ["app"])):
            Users(database).add(name, logins, Duration.parse("1h"), asker, 0)
        with database.transaction() as connection:
            lock = Lock(
                kind="user", name="alice", reason="laptop stolen", made_ms=0, made_by="admin", until_ms=None
            )
            locks.add(connection, lock, "local")
    return bastion


def test_each_role_says_why_and_the_first_that_allows_decides(bastion: Bastion) -> None:
    assert bastion.access("alice", "postgres@db1") == [
        "alice wants a shell as postgres@db1 at 10.2.0.21, mon 2026-11-23 12:00",
        '  yes  role "dba"          a code for each session, if none was given for 15m',
        '  no   role "contractors"  user alice is not among ext-*',
        '  no   role "staff"        db1, at 10.2.0.21, is not among web*',
        'allowed by role "dba"',
        "0",
    ]


def test_a_refusal_names_the_role_that_came_nearest(people: Bastion) -> None:
    assert people.access("joe", "postgres@web1", "--kind", "exec") == [
        "joe wants a command as postgres@web1 at 10.2.0.11, mon 2026-11-23 12:00",
        '  no   role "dba"          user joe is not among alice',
        '  no   role "contractors"  user joe is not among ext-*',
        '  no   role "staff"        login postgres is not among joe, root',
        'denied: role "staff": login postgres is not among joe, root',
        "1",
    ]


def test_what_is_not_said_is_told_as_a_condition(people: Bastion) -> None:
    *_, said, _, verdict, status = people.access("ext-bob", "app@web1")
    conditions = f"from 192.0.2.0/24; {KEY}; with fewer than 2 sessions"
    assert said == f'  yes  role "contractors"  {conditions}; 4h at most'
    assert (verdict, status) == (f'allowed by role "contractors", {conditions}', "0")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--from", "198.51.100.1"], "the address 198.51.100.1 is not among 192.0.2.0/24"),
        (["--kind", "download"], "downloads are not served"),
        (["--at", "2026-11-22 12:00"], "sun 12:00 is not within mon-fri 08:00-18:00"),
    ],
)
def test_what_is_said_is_held_against_the_roles(people: Bastion, arguments: list[str], reason: str) -> None:
    done = people.run("ext-bob", "app@web1", *(MONDAY if "--at" not in arguments else ()), *arguments)
    assert f'  no   role "contractors"  {reason}\n' in done.stdout


def test_a_lock_comes_first(people: Bastion) -> None:
    *_, verdict, status = people.access("alice", "postgres@db1")
    assert (verdict, status) == ("denied: lock: user alice is locked: laptop stolen", "1")


def test_a_node_that_is_not_there(bastion: Bastion) -> None:
    assert bastion.access("joe", "web9") == ["joe@web9:", "denied: nodes: there is no node web9", "1"]


def test_who_may(people: Bastion) -> None:
    assert people.access("--who", "app@web1", "--from", "192.0.2.9") == [
        f'ext-bob  role "contractors"  {KEY}; with fewer than 2 sessions; 4h at most',
        "0",
    ]
    assert people.access("--who", "postgres@db1") == [
        "nobody may have a shell as postgres@db1 at 10.2.0.21, mon 2026-11-23 12:00",  # alice is locked
        "1",
    ]


def test_who_may_cannot_be_told_without_users(bastion: Bastion) -> None:
    done = bastion.run("--who", "root@web1")
    assert (done.returncode, done.stdout) == (os.EX_NOINPUT, "")
    assert "there is no database of users" in done.stderr


def test_json(people: Bastion) -> None:
    document = json.loads(people.run("joe", "root@web1", *MONDAY, "--json").stdout)
    assert document["schema"] == 1
    assert (document["allowed"], document["rule"], document["dialled"]) == (True, 'role "staff"', ["10.2.0.11"])
    assert (document["user"], document["logins"], document["at"]) == ("joe", ["joe", "root"], "2026-11-23T12:00")
    assert [role["allowed"] for role in document["roles"]] == [False, False, True]
    document = json.loads(people.run("--who", "root@web1", *MONDAY, "--json").stdout)
    assert [user["user"] for user in document["users"]] == ["joe"]
    denied = people.run("joe", "root@web9", "--json")
    assert (json.loads(denied.stdout)["reason"], denied.returncode) == ("there is no node web9", 1)


def test_a_user_who_is_none_is_told(people: Bastion) -> None:
    assert "sshrec: warning: there is no user jo\n" in people.run("jo", "root@web1").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["joe"], "name a user and a target"),
        (["--who", "joe", "root@web1"], "name the target"),
        (["--who", "web1"], "name one: login@host"),
        (["joe", "root@web1 id"], "a target has no control characters"),
        (["joe", "root@web1", "--from", "10.0.0.0/8"], "'10.0.0.0/8' is no IP address"),
        (["joe", "root@web1", "--at", "noon"], "'noon' does not match the formats"),
        (["joe", "root@web1", "--kind", "sftp"], "'sftp' is not one of"),
    ],
)
def test_mistakes(bastion: Bastion, arguments: list[str], said: str) -> None:
    done = bastion.run(*arguments)
    assert (done.returncode, done.stdout) == (os.EX_USAGE, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
