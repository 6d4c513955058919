"""Alembic's entry: migrates over the connection it is handed, or over a URL when run from a shell."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from bbpwf.cluster.schema import metadata


def _run(connection: sa.Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


_given = context.config.attributes.get("connection")
if _given is not None:
    _run(_given)
else:
    _engine = sa.create_engine(context.config.get_main_option("sqlalchemy.url") or "")
    with _engine.connect() as _connection:
        _run(_connection)
