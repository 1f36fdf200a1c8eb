"""The outbox on both engines: what is told in a transaction gets to the audit log, in order, sooner or later."""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from sshrec.audit.log import Line
from sshrec.authority import outbox
from sshrec.config import Config
from sshrec.errors import DataError
from sshrec.storage.database import Database
from sshrec.storage.schema import outbox as table
from tests.auditing import running, whole

NOW_MS = 1_763_900_000_000


@pytest.fixture
def config() -> Iterator[Config]:
    """A bastion's directories, with short names: sockets must fit below them."""
    with tempfile.TemporaryDirectory(prefix="sr-", dir="/tmp") as directory:
        config = Config(data_dir=Path(directory) / "data", run_dir=Path(directory) / "run")
        for path in (config.data_dir, config.run_dir, config.authority_dir):
            path.mkdir(parents=True, exist_ok=True)
        yield config


def _tell(database: Database, *names: str) -> None:
    with database.transaction() as connection:
        for name in names:
            outbox.tell(connection, "user.create", {"name": name, "roles": ["dev"]}, NOW_MS)


def _names(lines: list[Line]) -> list[str]:
    return [line.fields["name"] for line in lines]


def test_what_is_told_gets_to_the_log_in_order(database: Database, config: Config) -> None:
    _tell(database, "joe", "ann")
    _tell(database, "eve")
    assert outbox.waiting(database) == 3
    with running(config.audit_dir, config.audit_socket):
        assert outbox.deliver(database, config) == 0
        _tell(database, "kim")
        assert outbox.deliver(database, config) == 0
    lines = whole(config.audit_dir)
    assert _names(lines) == ["joe", "ann", "eve", "kim"]
    assert lines[0].event == "user.create"
    assert lines[0].fields["code"] == "T1002I"
    assert lines[0].fields["roles"] == ["dev"]
    assert lines[0].fields["occurred"] == "2025-11-23T12:13:20.000Z"


def test_nothing_is_told_of_what_did_not_happen(database: Database) -> None:
    with pytest.raises(KeyboardInterrupt), database.transaction() as connection:
        outbox.tell(connection, "user.create", {"name": "joe"}, NOW_MS)
        raise KeyboardInterrupt
    assert outbox.waiting(database) == 0


def test_what_is_no_event_cannot_be_told(database: Database) -> None:
    with pytest.raises(DataError, match="no event of that name"), database.transaction() as connection:
        outbox.tell(connection, "user.creation", {"name": "joe"}, NOW_MS)
    with pytest.raises(DataError, match=r"user\.create has no such code"), database.transaction() as connection:
        outbox.tell(connection, "user.create", {"name": "joe"}, NOW_MS, code="T1003I")
    assert outbox.waiting(database) == 0


def test_without_a_writer_nobody_waits_and_nothing_is_lost(database: Database, config: Config) -> None:
    _tell(database, "joe")
    assert outbox.deliver(database, config, seconds=3600) == 1
    with running(config.audit_dir, config.audit_socket):
        assert outbox.deliver(database, config) == 0
    assert _names(whole(config.audit_dir)) == ["joe"]


def test_what_is_sent_again_is_known_by_its_uid(database: Database, config: Config) -> None:
    _tell(database, "joe")
    with database.reading() as connection:
        ((_, uid, said),) = connection.execute(table.select()).all()
    with running(config.audit_dir, config.audit_socket):
        assert outbox.deliver(database, config) == 0
        with database.transaction() as connection:  # as if we had died before we could forget it
            connection.execute(insert(table).values(uid=uid, said=said))
        assert outbox.deliver(database, config) == 0
    (line,) = whole(config.audit_dir)
    assert line.fields["uid"] == uid


def test_another_version_s_event_stays_and_holds_nobody_up(
    database: Database, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    _tell(database, "joe")
    with database.transaction() as connection:
        said = '{"event":"user.rename","code":"T9999I","uid":"01234567-89ab","name":"bob"}'
        connection.execute(insert(table).values(uid="01234567-89ab", said=said))
    _tell(database, "ann")
    with running(config.audit_dir, config.audit_socket):
        assert outbox.deliver(database, config) == 1
    assert _names(whole(config.audit_dir)) == ["joe", "ann"]
    assert "waits for another version of sshrec: no event of that name is known" in caplog.text


def test_a_list_that_is_too_long_loses_its_end(database: Database, config: Config) -> None:
    with database.transaction() as connection:
        outbox.tell(
            connection, "user.update", {"name": "joe", "roles": [f"role{n:06}" for n in range(1000)]}, NOW_MS
        )
    with running(config.audit_dir, config.audit_socket):
        assert outbox.deliver(database, config) == 0
    (line,) = whole(config.audit_dir)
    roles = line.fields["roles"]
    assert roles[0] == "role000000"
    assert line.fields["cut"] == {"roles": 1000 - len(roles)}


def test_many_deliver_at_once_and_each_event_is_there_once(database: Database, config: Config) -> None:
    def work(name: str) -> None:
        for n in range(20):
            _tell(database, f"{name}{n:03}")
            outbox.deliver(database, config, seconds=60)

    with running(config.audit_dir, config.audit_socket):
        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outbox.deliver(database, config) == 0
    names = _names(whole(config.audit_dir))
    assert len(names) == len(set(names)) == 80
    for name in "abcd":
        own = [each for each in names if each.startswith(name)]
        assert own == sorted(own)


def test_the_service_delivers_what_others_told(url: str, config: Config) -> None:
    """It looks again once there is a database, and once there is a writer."""
    stopping = threading.Event()
    thread = threading.Thread(
        target=outbox.keep_delivering, args=(dataclasses.replace(config, database=url), stopping)
    )
    thread.start()
    try:
        with Database.open(url, create=True) as database:
            _tell(database, "joe", "ann")
            with running(config.audit_dir, config.audit_socket):
                deadline = time.monotonic() + 60
                while outbox.waiting(database):
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
    finally:
        stopping.set()
        thread.join(20)
    assert not thread.is_alive()
    assert _names(whole(config.audit_dir)) == ["joe", "ann"]
