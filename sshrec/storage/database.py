"""The database: SQLite in a file of our own, or PostgreSQL. Knows transactions and versions, not what is stored.

Writers take turns, on both engines: what a transaction has checked still holds when it commits. Every error
of a driver is said in one line that names the database and never its password.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self
from urllib.parse import quote

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, inspect, text
from sqlalchemy import exc as sql
from sqlalchemy.engine import URL, make_url

from sshrec.errors import ConfigError, NotFound, SshrecError, describe
from sshrec.session import printable

HEAD = "0003"  # the newest of migrations/versions; held here because importing alembic takes 0.2 s
BUSY_SECONDS = 5.0
CONNECT_SECONDS = 5

_SQLITE, _POSTGRESQL = "sqlite", "postgresql+psycopg"
_WRITER_LOCK = 0x73736872_65630001  # "sshrec", 1: PostgreSQL's advisory lock of the one writer
_BUSY_STATES = {"55P03", "40P01", "40001"}  # lock_not_available, deadlock_detected, serialization_failure
_INIT = "run: sshrec-ca init"


class DatabaseError(SshrecError):
    """The database cannot be read or written."""

    exit_code = os.EX_IOERR


class Busy(DatabaseError):
    """Somebody else has been writing for longer than we wait."""

    exit_code = os.EX_TEMPFAIL


class Unavailable(DatabaseError):
    """The database server does not answer, or not to us."""

    exit_code = os.EX_UNAVAILABLE


class Conflict(DatabaseError):
    """What must be unique is there already."""

    exit_code = os.EX_DATAERR


class Database:
    """An open database with the newest schema.

    Its connections are made when they are needed and kept for the next time. It may be used by many threads, but
    not on both sides of a fork: a child opens its own.
    """

    def __init__(self, url: URL, busy_seconds: float) -> None:
        self.name = _name(url)
        self._busy_seconds = busy_seconds
        self._path = Path(url.database or "") if url.drivername == _SQLITE else None
        if self._path is not None:
            self._file = _identity(self._path)
            # Through a URI: SQLite must never make the file, with the mode that the umask gives.
            self._engine = create_engine(
                "sqlite://",
                creator=_connecting(url, busy_seconds),
                poolclass=QueuePool,
                pool_timeout=busy_seconds,
                hide_parameters=True,
            )
            self._reader = self._engine
        else:
            self._engine = _postgresql(url, busy_seconds)
            # One snapshot for all of a reading, as SQLite has it; writers must see what the last one wrote.
            self._reader = self._engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        self._writer = self._engine.execution_options(sshrec_writes=True)
        event.listen(self._engine, "begin", self._begin)

    @classmethod
    def open(cls, url: str, *, create: bool = False, busy_seconds: float = BUSY_SECONDS) -> Database:
        """The database at an SQLAlchemy URL: sqlite:////PATH or postgresql+psycopg://…; migrated if it is older.

        `create`: make what is not there (the SQLite file, 0600, but no directory; PostgreSQL's tables, but no
        database). `busy_seconds`: how long to wait for another writer. Raises NotFound without `create`,
        ConfigError for a URL, a newer schema or another program's tables, else a DatabaseError.
        """
        parsed = _parse(url)
        if parsed.drivername == _SQLITE:
            _check_file(Path(parsed.database or ""), create)
        database = cls(parsed, busy_seconds)
        try:
            database._prepare(create)
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Let the connections go."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """To write: durable when it ends, undone when it raises. Nobody else writes meanwhile (or: Busy)."""
        with self._said(), self._writer.begin() as connection:
            if self._replaced():
                raise self._say_replaced()
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """To read, all from one moment; a write is refused."""
        with self._said(), self._reader.connect() as connection:
            if self._replaced():
                raise self._say_replaced()
            yield connection

    @property
    def current(self) -> bool:
        """Whether what is open is still what has that name: else it is to be opened again."""
        return not self._replaced()

    def _begin(self, connection: Connection) -> None:
        writes = connection.get_execution_options().get("sshrec_writes", False)
        if self._path is not None:
            connection.exec_driver_sql(f"PRAGMA query_only = {0 if writes else 1}")
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
        elif writes:
            timeout = max(1, round(self._busy_seconds * 1000))
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {timeout}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})")

    def _prepare(self, create: bool) -> None:
        """Bring the schema to HEAD."""
        with self.reading() as connection:
            found = self._version(connection)
        if found is None and not create:
            raise NotFound(f"{self.name} is empty", hint=_INIT)
        if found != HEAD:
            with self.transaction() as connection:
                # Another process may have done it while we waited for our turn.
                if self._version(connection) != HEAD:
                    self._migrate(connection)
        if self._path is not None:
            with self._said():
                self._write_ahead()

    def _version(self, connection: Connection) -> str | None:
        """The schema's version; empty before the first, None where there is nothing at all."""
        tables = inspect(connection)
        if not tables.has_table("alembic_version"):
            if tables.get_table_names():
                raise ConfigError(
                    f"{self.name} holds another program's tables", hint="give sshrec a database of its own"
                )
            return None
        found: str = connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or ""
        if found > HEAD:
            raise ConfigError(
                f"{self.name} has schema {found!r}; this sshrec knows none after {HEAD}",
                hint="a newer sshrec has migrated it: use that one",
            )
        return found

    def _migrate(self, connection: Connection) -> None:
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", "sshrec.storage:migrations")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, HEAD)
        except CommandError as error:
            raise ConfigError(f"{self.name} cannot be migrated to schema {HEAD}: {_line(error)}") from error

    def _write_ahead(self) -> None:
        """The file says that it is in WAL mode, so this is for new ones, and for copies (VACUUM INTO)."""
        connection = self._engine.raw_connection()
        try:
            cursor = connection.cursor()
            if cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",):
                return
            deadline = time.monotonic() + self._busy_seconds
            while True:
                # SQLite does not wait here for those who read.
                try:
                    cursor.execute("PRAGMA journal_mode = WAL")
                    return
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode == sqlite3.SQLITE_READONLY:
                        return  # somebody's copy, to read
                    if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
        finally:
            connection.close()

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """Say a driver's errors in our words."""
        try:
            yield
        except sql.DBAPIError as error:
            raise self._say(error.orig or error) from error
        except sqlite3.Error as error:
            raise self._say(error) from error
        except sql.TimeoutError as error:
            raise Busy(f"{self.name}: all connections are in use") from error

    def _say(self, error: BaseException) -> SshrecError:
        if isinstance(error, sqlite3.Error):
            return self._say_sqlite(error)
        state = getattr(error, "sqlstate", None)
        if state == "23505":
            return Conflict(f"{self.name}: {_line(error)}")
        if state in _BUSY_STATES:
            return self._busy()
        if state is None or state[:2] in ("08", "28", "57"):
            return Unavailable(f"{self.name}: {_line(error)}")
        return DatabaseError(f"{self.name}: {_line(error)}")

    def _replaced(self) -> bool:
        """Whether what we have open is no longer the file of that name: nobody would see what we write."""
        return self._path is not None and _identity(self._path) != self._file

    def _say_replaced(self) -> SshrecError:
        return DatabaseError(f"{self.name} was replaced while it was open", hint="restart what has it open")

    def _say_sqlite(self, error: sqlite3.Error) -> SshrecError:
        if self._replaced():
            return self._say_replaced()
        code = getattr(error, "sqlite_errorcode", 0)
        if code in (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY):
            return Conflict(f"{self.name}: {_line(error)}")
        primary = code & 0xFF  # what is above says where it happened
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return self._busy()
        if primary == sqlite3.SQLITE_CANTOPEN and self._path is not None:
            return _cannot_open(self._path)
        if primary == sqlite3.SQLITE_READONLY:
            return _read_only(self.name)
        if primary == sqlite3.SQLITE_NOTADB:
            return DatabaseError(f"{self.name} is not an SQLite database")
        if primary == sqlite3.SQLITE_CORRUPT:
            return DatabaseError(f"{self.name} is damaged: {_line(error)}", hint="restore it from a backup")
        if primary == sqlite3.SQLITE_FULL:
            return DatabaseError(f"{self.name} cannot grow: no space left on device")
        return DatabaseError(f"{self.name}: {_line(error)}")

    def _busy(self) -> Busy:
        return Busy(
            f"{self.name} is locked: another process has been writing for {self._busy_seconds:g} s",
            hint="nothing was written; try again",
        )


def _parse(url: str) -> URL:
    """ConfigError without the URL in it, which may have a password."""
    wanted = "want sqlite:////PATH or postgresql+psycopg://USER@HOST/NAME"
    try:
        parsed = make_url(url)
    except (sql.ArgumentError, ValueError) as error:
        raise ConfigError("database: not a URL", hint=wanted) from error
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername=_POSTGRESQL)
    if parsed.drivername not in (_SQLITE, _POSTGRESQL):
        raise ConfigError(f"database: cannot use {parsed.drivername!r}", hint=wanted)
    if parsed.drivername == _SQLITE and (
        not (parsed.database or "").startswith("/") or parsed.query or parsed.host or "\0" in url
    ):
        raise ConfigError("database: an SQLite database is an absolute path and nothing else", hint=wanted)
    return parsed


def _name(url: URL) -> str:
    """What errors call it."""
    if url.drivername == _SQLITE:
        return f"database {url.database}"
    hosts = url.host or url.query.get("host") or "the local socket"
    host = hosts if isinstance(hosts, str) else ",".join(hosts)
    return f"PostgreSQL database {url.database or url.username} at {host}"


def _check_file(path: Path, create: bool) -> None:
    """See that the file is there, or make it.

    An existing one is only looked at: closing a descriptor of it would drop this process's SQLite locks.
    """
    if create:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass
        except OSError as error:
            raise DatabaseError(f"database {path} cannot be made: {describe(error)}") from error
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _cannot_open(path) from error
    if not stat.S_ISREG(mode):
        raise DatabaseError(f"database {path} is not a file")


def _cannot_open(path: Path) -> SshrecError:
    """Why: SQLite does not tell."""
    try:
        path.stat()
    except FileNotFoundError:
        return NotFound(f"database {path} does not exist", hint=_INIT)
    except OSError as error:
        return DatabaseError(f"database {path} cannot be opened: {describe(error)}")
    if not os.access(path, os.R_OK, effective_ids=True):
        return DatabaseError(f"database {path} cannot be opened: permission denied")
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
        return _read_only(f"database {path}")
    return DatabaseError(f"database {path} cannot be opened", hint="see its -wal and -shm files")


def _read_only(name: str) -> DatabaseError:
    return DatabaseError(f"{name} cannot be written", hint="see who owns it, and its directory")


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode, or None: what SQLite has open may have another name by now, or none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _connecting(url: URL, busy_seconds: float) -> Callable[[], sqlite3.Connection]:
    """How to connect to the SQLite file. Transactions begin when we say so, not when the driver thinks."""

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{quote(url.database or '')}?mode=rw",
            uri=True,
            timeout=busy_seconds,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    return connect


def _postgresql(url: URL, busy_seconds: float) -> Engine:
    arguments = {"connect_timeout": CONNECT_SECONDS, "client_encoding": "utf8", "application_name": "sshrec"}
    try:
        return create_engine(
            url,
            connect_args={name: value for name, value in arguments.items() if name not in url.query},
            isolation_level="READ COMMITTED",
            pool_pre_ping=True,  # the server may have been restarted meanwhile
            pool_timeout=busy_seconds,
            hide_parameters=True,
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            "database: PostgreSQL needs the Python package psycopg", hint="pip install 'sshrec[postgres]'"
        ) from error


def _line(error: BaseException) -> str:
    """A driver's words: the first line, and nothing in it that a terminal acts on."""
    return printable((str(error).splitlines() or [type(error).__name__])[0], 300)
