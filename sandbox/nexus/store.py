"""Every revision of every resource, file and storage, in one SQLite file."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sandbox.nexus.errors import Refused, incorrect_rev, not_found

_SCHEMA = """
CREATE TABLE IF NOT EXISTS revisions (
  id TEXT NOT NULL, rev INTEGER NOT NULL, kind TEXT NOT NULL, schema TEXT NOT NULL, source TEXT NOT NULL,
  attributes TEXT NOT NULL, deprecated INTEGER NOT NULL, at TEXT NOT NULL, by TEXT NOT NULL,
  PRIMARY KEY (id, rev));
CREATE TABLE IF NOT EXISTS tags (id TEXT NOT NULL, tag TEXT NOT NULL, rev INTEGER NOT NULL, PRIMARY KEY (id, tag));
"""
_COLUMNS = "id, rev, kind, schema, source, attributes, deprecated, at, by"


@dataclass(frozen=True)
class Revision:
    """One state of one entity. ``source`` is what the client sent, ``attributes`` what Delta found out."""

    id: str
    rev: int
    kind: str  # "resource", "file" or "storage"
    schema: str
    source: dict[str, Any]
    attributes: dict[str, Any]
    deprecated: bool
    at: str
    by: str
    created_at: str = ""
    created_by: str = ""


class Store:
    """The entities of one project. Ids are unique across kinds, as in Delta. Thread-safe."""

    def __init__(self, path: Path, project: str) -> None:
        self.project = project
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def find(self, id_: str, *, rev: int | None = None) -> Revision | None:
        """The newest or the given revision, whatever its kind."""
        with self._lock:
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM revisions WHERE id = ? ORDER BY rev",  # noqa: S608 -- constant columns
                (id_,),
            ).fetchall()
        if not rows or (rev is not None and not 1 <= rev <= len(rows)):
            return None
        found = _revision(rows[-1 if rev is None else rev - 1])
        return replace(found, created_at=rows[0][7], created_by=rows[0][8])

    def fetch(self, kind: str, id_: str, *, rev: int | None = None, tag: str | None = None) -> Revision:
        """The newest revision, or the one asked for by number or tag.

        Raises:
            Refused: ResourceNotFound, RevisionNotFound or TagNotFound.
        """
        newest = self.find(id_)
        if newest is None or (kind and newest.kind != kind):
            raise not_found(kind.capitalize() or "Resource", id_, self.project)
        if tag is not None:
            with self._lock:
                row = self._db.execute("SELECT rev FROM tags WHERE id = ? AND tag = ?", (id_, tag)).fetchone()
            if row is None:
                raise Refused(404, "TagNotFound", f"Tag requested '{tag}' not found.")
            rev = int(row[0])
        if rev is None:
            return newest
        found = self.find(id_, rev=rev)
        if found is None:
            reason = f"Revision requested '{rev}' not found, last known revision is '{newest.rev}'."
            raise Refused(404, "RevisionNotFound", reason, provided=rev, current=newest.rev)
        return found

    def create(
        self, kind: str, id_: str, schema: str, source: dict[str, Any], attributes: dict[str, Any], by: str
    ) -> Revision:
        """Revision 1.

        Raises:
            Refused: ResourceAlreadyExists.
        """
        with self._transaction():
            if self.find(id_):
                reason = f"Resource '{id_}' already exists in project '{self.project}'."
                raise Refused(409, "ResourceAlreadyExists", reason)
            return self._insert(Revision(id_, 1, kind, schema, source, attributes, False, "", by))

    def change(
        self,
        kind: str,
        id_: str,
        rev: int,
        by: str,
        *,
        schema: str | None = None,
        source: dict[str, Any] | None = None,
        attributes: dict[str, Any] | None = None,
        deprecated: bool | None = None,
        tag: tuple[str, int] | None = None,
    ) -> Revision:
        """The next revision, from the current one, which must be ``rev``. An update that changes nothing makes none.

        Raises:
            Refused: ResourceNotFound, IncorrectRev, or an update of what is deprecated.
        """
        with self._transaction():
            now = self.fetch(kind, id_)
            if now.rev != rev:
                raise incorrect_rev(rev, now.rev)
            if now.deprecated and tag is None and deprecated is not False:
                raise Refused(400, f"{kind.capitalize()}IsDeprecated", f"{kind.capitalize()} '{id_}' is deprecated.")
            if now.deprecated is deprecated:
                raise Refused(400, f"{kind.capitalize()}IsNotDeprecated", f"'{id_}' is not deprecated.")
            new = replace(
                now,
                rev=rev + 1,
                schema=now.schema if schema is None else schema,
                source=now.source if source is None else source,
                attributes=now.attributes if attributes is None else attributes,
                deprecated=now.deprecated if deprecated is None else deprecated,
                by=by,
            )
            if tag is not None:
                self.fetch(kind, id_, rev=tag[1])
                self._db.execute("INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", (id_, *tag))
            elif deprecated is None and replace(new, rev=rev, by=now.by) == now:
                return now
            return self._insert(new)

    def newest(self, kind: str = "") -> list[Revision]:
        """Every entity's newest revision, oldest entity first."""
        with self._lock:
            ids = self._db.execute("SELECT id FROM revisions WHERE rev = 1 ORDER BY at, id").fetchall()
        found = (self.find(row[0]) for row in ids)
        return [each for each in found if each and (not kind or each.kind == kind)]

    def tags(self, id_: str) -> list[tuple[str, int]]:
        """Tags of an entity with their revisions."""
        with self._lock:
            return self._db.execute("SELECT tag, rev FROM tags WHERE id = ? ORDER BY rev, tag", (id_,)).fetchall()

    def _insert(self, new: Revision) -> Revision:
        at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        new = replace(new, at=at, created_at=new.created_at or at, created_by=new.created_by or new.by)
        self._db.execute(
            f"INSERT INTO revisions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 -- constant columns
            (
                new.id,
                new.rev,
                new.kind,
                new.schema,
                json.dumps(new.source),
                json.dumps(new.attributes),
                int(new.deprecated),
                new.at,
                new.by,
            ),
        )
        return new


def _revision(row: tuple[Any, ...]) -> Revision:
    id_, rev, kind, schema, source, attributes, deprecated, at, by = row
    return Revision(id_, rev, kind, schema, json.loads(source), json.loads(attributes), bool(deprecated), at, by)
