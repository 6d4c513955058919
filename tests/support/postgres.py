"""A real PostgreSQL for tests: a server of its own on a Unix socket, with a database for each test."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from bbpwf.cluster.database import open_database
from sandbox.process import Process, start, stop

_TEMPLATE = "migrated"


@dataclass
class Postgres:
    """A running server."""

    socket: Path
    bin: Path
    account: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def url(self, database: str) -> str:
        return f"postgresql://{self.account}@/{database}?host={self.socket}"

    def empty(self) -> str:
        """URL of a new database without a table."""
        name = f"t{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def fresh(self) -> str:
        """URL of a new database as this version makes it."""
        name = f"t{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        return self.url(name)

    def answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except sa.exc.OperationalError:
            return False
        return True

    def execute(self, statement: str) -> None:
        engine = sa.create_engine(
            sa.make_url(self.url("postgres")).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()


def programs() -> Path | None:
    """The folder of PostgreSQL's programs: Debian keeps them off PATH."""
    debians = max((each.parent for each in Path("/usr/lib/postgresql").glob("*/bin/postgres")), default=None)
    elsewhere = shutil.which("postgres")
    return debians or (Path(elsewhere).parent if elsewhere else None)


@contextmanager
def running() -> Iterator[Postgres]:
    """Start a server, and end it with all that it holds. It refuses to run as root, and then runs as ``postgres``."""
    found = programs()
    assert found is not None, "PostgreSQL is not installed: sandbox/setup.sh database"
    folder = Path(tempfile.mkdtemp(prefix="bbpwf-pg-", dir="/tmp"))
    account = pwd.getpwuid(os.getuid()).pw_name
    become: tuple[str, ...] = ()
    if os.getuid() == 0:
        account = "postgres"
        become = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--")
        shutil.chown(folder, account)
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(folder), "TZ": "UTC"}
    data = folder / "data"
    made = (*become, str(found / "initdb"), "-D", str(data), "-U", account, "-A", "trust", "-E", "UTF8", "-N")
    subprocess.run(made, env=env, cwd="/", check=True, capture_output=True, timeout=120)
    options = ("-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200", "-c", "log_timezone=UTC")
    argv = (*become, str(found / "postgres"), "-D", str(data), "-k", str(folder), *options)
    made_here = Postgres(folder, found, account)
    process = Process(
        "postgres",
        argv,
        env,
        folder / "server.log",
        made_here.answers,
        ready_within=60.0,
        cwd=Path("/"),
        stop_signal=signal.SIGINT,  # at once, without waiting for clients
    )
    server = start(process)
    try:
        made_here.execute(f"CREATE DATABASE {_TEMPLATE}")
        open_database(made_here.url(_TEMPLATE)).close()
        yield made_here
    finally:
        stop(server, grace=20)
        shutil.rmtree(folder, ignore_errors=True)
