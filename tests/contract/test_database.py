"""One contract on SQLite and PostgreSQL: transactions, versions, and what is said when something is wrong."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, insert, inspect, select, text

import sshrec.storage
from sshrec.errors import ConfigError, NotFound, SshrecError
from sshrec.storage.database import HEAD, Busy, Conflict, Database, DatabaseError, Unavailable
from sshrec.storage.schema import counters, metadata
from tests.contract.conftest import Cluster
from tests.contract.processes import at_once

MIGRATIONS = Path(sshrec.storage.__path__[0]) / "migrations"


def _put(database: Database, name: str, value: int = 1) -> None:
    with database.transaction() as connection:
        connection.execute(insert(counters).values(name=name, value=value))


def _names(database: Database) -> list[str]:
    with database.reading() as connection:
        return list(connection.scalars(select(counters.c.name).order_by(counters.c.name)))


def _sqlite_path(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


# ---- transactions ------------------------------------------------------------------------------------------


def test_what_was_committed_is_there_for_the_next(url: str) -> None:
    with Database.open(url, create=True) as database:
        _put(database, "one")
    with Database.open(url) as database:
        assert _names(database) == ["one"]


def test_an_exception_undoes_all_of_it(database: Database) -> None:
    with pytest.raises(KeyboardInterrupt), database.transaction() as connection:
        connection.execute(insert(counters).values(name="one", value=1))
        connection.execute(insert(counters).values(name="two", value=2))
        raise KeyboardInterrupt
    assert _names(database) == []
    _put(database, "three")
    assert _names(database) == ["three"]


def test_a_double_is_a_conflict_that_names_the_database(database: Database) -> None:
    _put(database, "one")
    with pytest.raises(Conflict) as raised:
        _put(database, "one")
    assert str(raised.value).startswith(f"{database.name}: ")
    assert "\n" not in str(raised.value)
    assert _names(database) == ["one"]


def test_a_broken_rule_is_no_conflict(database: Database) -> None:
    with pytest.raises(DatabaseError) as raised, database.transaction() as connection:
        connection.execute(insert(counters).values(name="one", value=None))
    assert not isinstance(raised.value, Conflict)


def test_a_write_while_reading_is_refused(database: Database) -> None:
    with pytest.raises(DatabaseError), database.reading() as connection:
        connection.execute(insert(counters).values(name="one", value=1))
    _put(database, "two")
    assert _names(database) == ["two"]


def test_a_reading_sees_one_moment_and_waits_for_nobody(url: str, database: Database) -> None:
    with Database.open(url) as other, database.reading() as connection:
        wanted = select(counters.c.name)
        assert list(connection.scalars(wanted)) == []
        _put(other, "one")
        assert list(connection.scalars(wanted)) == []
    assert _names(database) == ["one"]


def test_a_second_writer_is_told_to_try_again(url: str, database: Database) -> None:
    with Database.open(url, busy_seconds=0.05) as impatient:
        with database.transaction() as connection:
            connection.execute(insert(counters).values(name="one", value=1))
            with pytest.raises(Busy, match=r"is locked: another process has been writing for 0\.05 s$") as raised:
                _put(impatient, "two")
        assert raised.value.exit_code == os.EX_TEMPFAIL
        assert _names(impatient) == ["one"]
        _put(impatient, "two")
    assert _names(database) == ["one", "two"]


def _count(url: str, times: int) -> None:
    """Read, add, write: lost updates would show."""
    with Database.open(url, busy_seconds=60) as database:
        for _ in range(times):
            with database.transaction() as connection:
                value = connection.execute(select(counters.c.value)).scalar_one()
                connection.execute(counters.update().values(value=value + 1))


def test_writers_take_turns(url: str, database: Database) -> None:
    _put(database, "sum", 0)
    at_once([_count] * 3, url, 50)
    with database.reading() as connection:
        assert connection.execute(select(counters.c.value)).scalar_one() == 150


# ---- versions ----------------------------------------------------------------------------------------------


def test_head_is_the_newest_migration() -> None:
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(MIGRATIONS))
    revisions = [revision.revision for revision in script.walk_revisions()][::-1]
    assert script.get_heads() == [HEAD]
    assert revisions == [f"{number:04}" for number in range(1, len(revisions) + 1)]


def _definitions(url: str) -> list[tuple[object, ...]]:
    """All tables, columns, constraints and indexes, in the engine's own words."""
    if url.startswith("sqlite"):
        wanted = "SELECT name, sql FROM sqlite_master WHERE tbl_name != 'alembic_version' AND sql IS NOT NULL"
    else:
        wanted = """
            SELECT conrelid::regclass || '.' || conname, pg_get_constraintdef(oid) FROM pg_constraint
             WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text != 'alembic_version'
            UNION ALL SELECT indexname, indexdef FROM pg_indexes
             WHERE schemaname = 'public' AND tablename != 'alembic_version'
            UNION ALL SELECT table_name || '.' || ordinal_position, concat_ws(' ', column_name, data_type,
                             is_nullable, is_identity, identity_generation, column_default)
              FROM information_schema.columns WHERE table_schema = 'public' AND table_name != 'alembic_version'"""
    engine = create_engine(url)
    with engine.connect() as connection:
        found = sorted(tuple(row) for row in connection.exec_driver_sql(wanted))
    engine.dispose()
    return found


def test_the_migrations_make_the_schema(url: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with Database.open(url, create=True) as database, database.reading() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []

    # alembic looks at neither checks nor what a partial index is about.
    if url.startswith("sqlite"):
        other = f"sqlite:///{tmp_path}/straight.db"
    else:
        other = request.getfixturevalue("postgres").new_database()
    straight = create_engine(other)
    metadata.create_all(straight)
    straight.dispose()
    assert _definitions(url) == _definitions(other)
    assert len(_definitions(url)) > 10


def _open(url: str, create: bool) -> bool:
    """Whether it took alembic."""
    with Database.open(url, create=create) as database:
        assert _names(database) == []
    return "alembic" in sys.modules


def test_the_newest_schema_is_opened_without_alembic(url: str) -> None:
    assert at_once([_open], url, True) == [True]
    assert at_once([_open], url, False) == [False]


def test_made_by_several_processes_at_once(url: str) -> None:
    at_once([_open] * 3, url, True)
    if url.startswith("sqlite"):
        assert _pragma(_sqlite_path(url), "journal_mode") == "wal"


def test_an_older_schema_is_migrated_once_by_two_processes(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    engine.dispose()
    at_once([_open] * 2, url, False)
    with Database.open(url) as database, database.reading() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [HEAD]


def test_a_migration_that_fails_leaves_nothing(url: str) -> None:
    """The schema's last table is in the way, so all before it must go again."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
        connection.execute(text("CREATE TABLE counters (name TEXT)"))
    with pytest.raises(DatabaseError, match=r"already exists$"):
        Database.open(url)
    assert sorted(inspect(engine).get_table_names()) == ["alembic_version", "counters"]
    engine.dispose()


@pytest.mark.parametrize("version", ["0000", "9999", "ffff"])
def test_an_unknown_schema_is_left_alone(url: str, version: str) -> None:
    with Database.open(url, create=True) as database, database.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :version"), {"version": version})
    before = _sqlite_path(url).read_bytes() if url.startswith("sqlite") else b""
    with pytest.raises(ConfigError, match=f"{version}'"):
        Database.open(url, create=True)
    if before:
        assert _sqlite_path(url).read_bytes() == before


def test_another_programs_database_is_left_alone(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE bookmarks (place TEXT)"))
    before = _sqlite_path(url).read_bytes() if url.startswith("sqlite") else b""
    with pytest.raises(ConfigError, match=r"holds another program's tables$"):
        Database.open(url, create=True)
    assert inspect(engine).get_table_names() == ["bookmarks"]
    engine.dispose()
    if before:
        assert _sqlite_path(url).read_bytes() == before


def test_nothing_there_and_nothing_made(url: str) -> None:
    with pytest.raises(NotFound, match=r"(sshrec\.db does not exist|is empty)$") as raised:
        Database.open(url)
    assert raised.value.hint == "run: sshrec-ca init"
    if url.startswith("sqlite"):
        assert not _sqlite_path(url).exists()


# ---- the file of SQLite ------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sshrec.db"


def _pragma(path: Path, name: str) -> object:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _refused(path: Path, *, create: bool = False) -> SshrecError:
    with pytest.raises(SshrecError) as raised:
        Database.open(f"sqlite:///{path}", create=create)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    return raised.value


def test_making_it_was_cut_short(path: Path) -> None:
    path.touch()
    error = _refused(path)
    assert (str(error), error.hint) == (f"database {path} is empty", "run: sshrec-ca init")
    with Database.open(f"sqlite:///{path}", create=True) as database:
        _put(database, "one")


def test_the_file_is_for_its_owner_alone(path: Path) -> None:
    mask = os.umask(0)
    try:
        with Database.open(f"sqlite:///{path}", create=True) as database:
            _put(database, "one")
            files = sorted(path.parent.iterdir())
            assert [file.name for file in files] == ["sshrec.db", "sshrec.db-shm", "sshrec.db-wal"]
            assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3
    finally:
        os.umask(mask)


def test_nothing_is_lost_with_the_power(path: Path) -> None:
    with Database.open(f"sqlite:///{path}", create=True) as database, database.transaction() as connection:
        settings = ("journal_mode", "synchronous", "foreign_keys")
        assert [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in settings] == ["wal", 2, 1]


def test_a_name_of_odd_characters(tmp_path: Path) -> None:
    path = tmp_path / "50% of it#1 ü"
    with Database.open(f"sqlite:///{path}", create=True) as database:
        _put(database, "one")
    assert path.stat().st_size


def test_a_lock_of_another_program(path: Path) -> None:
    with Database.open(f"sqlite:///{path}", create=True, busy_seconds=0.05) as database:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(Busy, match=f"^database {path} is locked"):
            _put(database, "one")
        holder.close()
        assert _names(database) == []


def test_the_directory_must_be_there(tmp_path: Path) -> None:
    error = _refused(tmp_path / "none" / "sshrec.db", create=True)
    assert str(error).endswith("cannot be made: no such file or directory")


def test_a_directory_is_no_database(tmp_path: Path) -> None:
    assert str(_refused(tmp_path)).endswith("is not a file")


def test_not_a_database(path: Path) -> None:
    path.write_bytes(b"root:x:0:0:root:/root:/bin/bash\n" * 200)
    error = _refused(path)
    assert str(error).endswith("is not an SQLite database")
    assert error.exit_code == os.EX_IOERR


def test_a_damaged_database(path: Path) -> None:
    with Database.open(f"sqlite:///{path}", create=True) as database:
        _put(database, "one")
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 2000)
    assert "is damaged: " in str(_refused(path))


def test_a_full_disk_is_said_and_nothing_is_half_there(path: Path) -> None:
    with Database.open(f"sqlite:///{path}", create=True) as database:
        _put(database, "one")
        with database.transaction() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with (
            pytest.raises(DatabaseError, match=r"cannot grow: no space left on device$"),
            database.transaction() as connection,
        ):
            rows = [{"name": f"{number:05}", "value": number} for number in range(5000)]
            connection.execute(insert(counters), rows)
        assert _names(database) == ["one"]
        with database.transaction() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 100000")
        _put(database, "two")
        assert _names(database) == ["one", "two"]


@pytest.mark.parametrize("instead", ["nothing", "another"])
def test_what_is_open_is_not_written_when_it_lost_its_name(path: Path, instead: str) -> None:
    with Database.open(f"sqlite:///{path}", create=True) as database:
        path.rename(path.with_suffix(".old"))
        if instead == "another":
            Database.open(f"sqlite:///{path}", create=True).close()
        with pytest.raises(DatabaseError, match=r"was replaced while it was open$"):
            _put(database, "one")


@contextlib.contextmanager
def _nobody() -> Iterator[None]:
    """Without root's rights."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(mine)


@pytest.fixture
def public() -> Iterator[Path]:
    """A database that all may read and nobody may write, in a directory where nobody may write either."""
    directory = Path(tempfile.mkdtemp(prefix="sshrec-db-"))
    path = directory / "sshrec.db"
    with Database.open(f"sqlite:///{path}", create=True) as database:
        _put(database, "one")
    path.chmod(0o444)
    directory.chmod(0o555)
    yield path
    directory.chmod(0o700)
    shutil.rmtree(directory)


def test_a_file_that_only_others_may_write(public: Path) -> None:
    with _nobody():
        assert str(_refused(public)).endswith("cannot be written")


def test_a_file_that_only_others_may_read(public: Path) -> None:
    public.chmod(0o000)
    with _nobody():
        assert str(_refused(public)).endswith("cannot be opened: permission denied")


def test_a_copy_can_be_read_where_it_cannot_be_written(public: Path) -> None:
    public.parent.chmod(0o755)
    copy = public.parent / "copy.db"
    with contextlib.closing(sqlite3.connect(public)) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    copy.chmod(0o444)
    public.parent.chmod(0o555)
    with _nobody(), Database.open(f"sqlite:///{copy}") as database:
        assert _names(database) == ["one"]
        with pytest.raises(DatabaseError, match=f"^database {copy} cannot be written$"):
            _put(database, "two")


# ---- PostgreSQL's server -----------------------------------------------------------------------------------


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=rf"^PostgreSQL database sshrec at {tmp_path}: .*") as raised:
        Database.open(f"postgresql+psycopg://sshrec:hunter2@/sshrec?host={tmp_path}")
    assert raised.value.exit_code == os.EX_UNAVAILABLE
    assert "\n" not in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_a_wrong_password(postgres: Cluster) -> None:
    postgres.execute("CREATE ROLE {} LOGIN PASSWORD 'right'", "locked")
    with pytest.raises(Unavailable, match="password authentication failed") as raised:
        Database.open(postgres.url("postgres", user="locked:hunter2"))
    assert "hunter2" not in str(raised.value)


def test_a_database_that_is_not_there(postgres: Cluster) -> None:
    with pytest.raises(Unavailable, match='database "none" does not exist'):
        Database.open(postgres.url("none"), create=True)


_CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sshrec'"


def test_a_server_that_was_restarted(postgres: Cluster) -> None:
    with Database.open(url := postgres.new_database(), create=True) as database:
        _put(database, "one")
        postgres.execute(f"{_CUT} AND datname = current_database()", database=_database(url))
        _put(database, "two")
        assert _names(database) == ["one", "two"]


def test_a_server_that_goes_in_the_middle(postgres: Cluster) -> None:
    with Database.open(url := postgres.new_database(), create=True) as database:
        with pytest.raises(Unavailable), database.transaction() as connection:
            connection.execute(insert(counters).values(name="one", value=1))
            postgres.execute(f"{_CUT} AND datname = current_database()", database=_database(url))
            connection.execute(insert(counters).values(name="two", value=2))
        assert _names(database) == []


def _database(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]


# ---- URLs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "sshrec.db",
        "/var/lib/sshrec/sshrec.db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///sshrec.db",
        "sqlite:////tmp/sshrec.db?mode=memory",
        "sqlite:////tmp/sshrec\0.db",
        "mysql://joe:hunter2@db/sshrec",
        "postgresql+psycopg://joe:hunter2@db:port/sshrec",
        "postgresql+asyncpg://joe:hunter2@db/sshrec",
    ],
)
def test_an_url_that_cannot_be(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^database: ") as raised:
        Database.open(url, create=True)
    assert "hunter2" not in str(raised.value)
    assert "sqlite:////PATH" in (raised.value.hint or "")
