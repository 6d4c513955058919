"""Whole copies of the database, made while it is in use, and put back while nobody uses it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from bbpwf.errors import InvalidInput, LedgerError

LIMIT_S = 3600.0
"""How long PostgreSQL's own programs may take."""


def backup(url: str, target: Path) -> None:
    """Write a copy of the database as it is at one moment. The file appears when it is whole.

    Raises:
        InvalidInput: there is no database, or no place for the file.
        LedgerError: it cannot be read or written; PostgreSQL's programs are absent or failed.
    """
    draft = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        if (file := _sqlite_file(url)) is not None:
            if not file.is_file():
                raise InvalidInput(f"there is no database {file}")
            with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(draft)) as copy:
                source.backup(copy)
                copy.execute("PRAGMA journal_mode=DELETE")  # one file, whole by itself
        else:
            _program("pg_dump", url, "--format=custom", "--no-owner", "--no-privileges", f"--file={draft}")
        draft.replace(target)
    except sqlite3.Error as error:
        raise LedgerError(f"the database could not be copied: {error}", where=str(target)) from error
    except OSError as error:
        raise InvalidInput(f"the backup cannot be written: {error.strerror}", where=str(target)) from error
    finally:
        draft.unlink(missing_ok=True)


def restore(url: str, source: Path) -> None:
    """Put a backup in place of the database. The caller sees to it that no instance uses it.

    Raises:
        InvalidInput: the file is no backup of a database of this kind.
        LedgerError: PostgreSQL's programs are absent or failed; then the database is as it was.
    """
    if (file := _sqlite_file(url)) is None:
        if not _begins_with(source, b"PGDMP"):
            raise InvalidInput(f"{source} is no backup of a PostgreSQL database")
        options = ("--clean", "--if-exists", "--no-owner", "--no-privileges", "--single-transaction")
        _program("pg_restore", url, *options, f"--dbname={sa.make_url(url).database}", str(source))
        return
    _check_sqlite(source)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.restored")
    shutil.copyfile(source, draft)
    draft.chmod(0o600)
    for leftover in (f"{file.name}-wal", f"{file.name}-shm"):  # they belong to the database that goes
        file.with_name(leftover).unlink(missing_ok=True)
    draft.replace(file)


def _sqlite_file(url: str) -> Path | None:
    parsed = sa.make_url(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None


def _begins_with(source: Path, mark: bytes) -> bool:
    try:
        with source.open("rb") as file:
            return file.read(len(mark)) == mark
    except OSError:
        return False


def _check_sqlite(source: Path) -> None:
    try:
        with closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as copy:
            sound = copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            ours = copy.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
    except sqlite3.Error:
        sound = ours = False
    if not (sound and ours):
        raise InvalidInput(f"{source} is no whole backup of a bbpwf database")


def _program(name: str, url: str, *arguments: str) -> None:
    """One of PostgreSQL's programs; where to connect, and the password, go by its environment."""
    parsed = sa.make_url(url)
    socket = parsed.query.get("host")
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PGHOST": parsed.host or (socket if isinstance(socket, str) else ""),
        "PGPORT": str(parsed.port or ""),
        "PGUSER": parsed.username or "",
        "PGPASSWORD": str(parsed.password or ""),
        "PGDATABASE": parsed.database or "",
    }
    argv: Sequence[str] = (name, *arguments)
    try:
        done = subprocess.run(
            argv,
            env={key: value for key, value in env.items() if value},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
    except FileNotFoundError:
        raise LedgerError(f"{name} is not installed", hint="Install PostgreSQL's client programs.") from None
    except subprocess.TimeoutExpired:
        raise LedgerError(f"{name} took longer than {LIMIT_S:.0f} s") from None
    if done.returncode != 0:
        raise LedgerError(f"{name} failed: {done.stderr.decode(errors='replace').strip()[-1000:]}")
