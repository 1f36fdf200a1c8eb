"""Both engines: SQLite in a file, and PostgreSQL in a throw-away cluster (one for each pytest-xdist worker)."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from sshrec.storage.database import Database

_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}


class Cluster:
    """A PostgreSQL server on a Unix socket in a directory of its own, under an account that is not root."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._numbers = itertools.count()
        self._user = _account() if os.geteuid() == 0 else None
        # Not tmp_path: a socket's path has at most 107 bytes, and the account must get there.
        self.directory = Path(tempfile.mkdtemp(prefix="sshrec-pg-"))
        if self._user is not None:
            shutil.chown(self.directory, self._user)
        data = self.directory / "data"
        self._run("initdb", "-D", data, "-U", "sshrec", "-A", "trust", "-N", "--encoding=UTF8", "--locale=C")
        (data / "pg_hba.conf").write_text("local all locked scram-sha-256\nlocal all all trust\n")
        settings = ("fsync=off", "listen_addresses=", f"unix_socket_directories={self.directory}")
        options = [argument for setting in settings for argument in ("-c", setting)]
        self._log = (self.directory / "log").open("wb")
        self._server = subprocess.Popen(
            # It ends with us, however we end.
            ["setpriv", "--pdeathsig", "INT", binaries / "postgres", "-D", data, *options],
            user=self._user,
            env=_ENVIRONMENT,
            cwd=self.directory,
            stdout=self._log,
            stderr=self._log,
        )
        deadline = time.monotonic() + 60
        while subprocess.run([binaries / "pg_isready", "-q", "-h", self.directory], env=_ENVIRONMENT).returncode:
            assert self._server.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL does not answer"
            time.sleep(0.02)

    def _run(self, program: str, *arguments: str | Path) -> None:
        subprocess.run(
            [self._binaries / program, *arguments],
            user=self._user,
            env=_ENVIRONMENT,
            cwd=self.directory,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )

    def url(self, database: str, user: str = "sshrec") -> str:
        return f"postgresql+psycopg://{user}@/{database}?host={self.directory}"

    def execute(self, statement: str, *names: str, database: str = "postgres") -> None:
        """A statement of the administrator's, with names for its {}."""
        address = f"host={self.directory} user=sshrec dbname={database}"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def new_database(self) -> str:
        """The URL of an empty one."""
        name = f"test{next(self._numbers)}"
        self.execute("CREATE DATABASE {}", name)
        return self.url(name)

    def stop(self) -> None:
        self._server.send_signal(2)  # fast: connections are cut
        self._server.wait(30)
        self._log.close()
        shutil.rmtree(self.directory)


def _account() -> int:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    pytest.skip("initdb refuses root, and there is neither a postgres nor a nobody")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    if not _BINARIES:
        pytest.skip("no PostgreSQL in /usr/lib/postgresql (Debian: postgresql)")
    cluster = Cluster(_BINARIES[-1])
    yield cluster
    cluster.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where no database is yet, on each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sshrec.db"
    cluster: Cluster = request.getfixturevalue("postgres")
    return cluster.new_database()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with Database.open(url, create=True) as database:
        yield database
