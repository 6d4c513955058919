"""Opening the database: SQLite (WAL, embedded) by default, PostgreSQL by URL; migrated to this version.

A database that a newer bbpwf wrote is refused rather than misread.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite as sqlite_dialect

from bbpwf.cluster.migrating import migrate
from bbpwf.errors import LedgerError

_NAMED = sqlite_dialect.dialect(paramstyle="named")
_BUSY_MS = 30_000
"""How long a writer waits for another process's transaction."""
_WRITERS = 0x62627077
"""The advisory lock of PostgreSQL that whoever writes holds; each database has its own."""
CONNECT_S = 10
"""Limit for opening a connection to PostgreSQL."""


class Database:
    """An engine whose transactions begin as writers where that matters, with errors in our words."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.embedded = engine.dialect.name == "sqlite"
        """Whether a read takes microseconds and never waits, so that an event loop may do it by itself."""
        self._lookers = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._mine = threading.local()
        self._looking: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._texts: dict[int, tuple[str, dict[str, Any], sa.Select[Any]]] = {}

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """One transaction: committed when the block ends well, rolled back otherwise.

        Raises:
            LedgerError: the database cannot be used, e.g. locked for too long, full disk, connection gone.
        """
        with self._refusals(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One transaction that only reads, and never waits for a writer. Raises LedgerError."""
        with self._refusals(), self.engine.connect().execution_options(reading=True) as connection:
            yield connection

    def look(self, statement: sa.Select[Any], values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """The rows of one statement that only reads, as the driver gives them: embedded, JSON is still text then.

        For what is asked for hundreds of times a second: SQLite answers in 10 microseconds, and a transaction of
        SQLAlchemy's around that takes 300. ``statement`` is to be a constant, with ``values`` for its parameters.

        Raises:
            LedgerError: the database cannot be used.
        """
        with self._refusals():
            if not self.embedded:
                with self._lookers.connect() as connection:
                    return connection.execute(statement, values).all()
            try:
                text, own, _ = self._compiled(statement)
                return self._looker().execute(text, {**own, **values}).fetchall()
            except sqlite3.Error as error:
                raise sa.exc.DBAPIError(None, None, error) from error

    def version(self) -> tuple[int, int] | None:
        """Something that differs whenever the database may have changed since this thread asked last.

        ``None`` where that cannot be told without asking for everything (PostgreSQL).
        """
        if not self.embedded:
            return None
        (version,) = self._looker().execute("PRAGMA data_version").fetchone()
        return threading.get_ident(), version

    def _looker(self) -> sqlite3.Connection:
        """This thread's own connection for looking; outside any transaction."""
        kept: sqlite3.Connection | None = getattr(self._mine, "connection", None)
        if kept is None:
            made = self.engine.raw_connection()
            kept = self._mine.connection = cast(sqlite3.Connection, made.driver_connection)
            made.detach()  # it is ours from now on, and takes no place in the pool
            with self._guard:
                self._looking.append(kept)
        return kept

    def _compiled(self, statement: sa.Select[Any]) -> tuple[str, dict[str, Any], sa.Select[Any]]:
        """SQL, the values that the statement brings itself, and the statement, which must live as long as its id."""
        found = self._texts.get(id(statement))
        if found is None:
            made = statement.compile(dialect=_NAMED)
            own = {name: value for name, value in made.params.items() if value is not None}
            found = self._texts[id(statement)] = str(made), own, statement
        return found

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.IntegrityError:
            raise
        except sa.exc.DBAPIError as error:
            raise LedgerError(
                f"the database refused: {str(error.orig).strip()}",
                where=self.engine.url.render_as_string(hide_password=True),
                retryable=True,
            ) from error

    def close(self) -> None:
        """Close all connections."""
        with self._guard:
            while self._looking:
                self._looking.pop().close()
        self.engine.dispose()


def open_database(url: str) -> Database:
    """Open, and bring the schema to this version.

    Raises:
        LedgerError: it cannot be opened, or was written by a newer version.
    """
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(url, connect_args={"timeout": _BUSY_MS / 1000, "check_same_thread": False})
        _make_sqlite_transactional(engine)
    else:
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        limits = {"options": f"-c lock_timeout={_BUSY_MS}", "connect_timeout": CONNECT_S}
        engine = sa.create_engine(parsed, pool_pre_ping=True, pool_size=10, max_overflow=30, connect_args=limits)
        _make_writers_queue(engine)
    database = Database(engine)
    try:
        with database.begin() as connection:
            migrate(connection)
    except BaseException:
        database.close()
        raise
    return database


def _make_writers_queue(engine: sa.Engine) -> None:
    """Let one transaction write at a time, as in SQLite: what it read at its beginning still holds at its end."""

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        options = connection.get_execution_options()
        if not options.get("reading", False) and options.get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")


def _make_sqlite_transactional(engine: sa.Engine) -> None:
    """Take BEGIN into our own hands: Python's sqlite3 delays it, so that a read could not become a write."""

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: sa.engine.interfaces.DBAPIConnection, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # an intent must survive a power cut before sbatch is called
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
