"""Bringing a database that an earlier version made to this one, by Alembic; a new one is made as this version has it.

Alembic takes a tenth of a second to import: only a database that is to be changed pays for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from bbpwf.cluster.schema import metadata
from bbpwf.errors import LedgerError

if TYPE_CHECKING:
    from alembic.config import Config

REVISION = "0001"
"""The newest migration; a test holds it to what is in ``migrations/versions``."""
_STAMP = sa.Table(
    "alembic_version",
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def migrate(connection: sa.Connection) -> None:
    """Bring the database to this version, in the connection's transaction.

    Raises:
        LedgerError: a newer version wrote it.
    """
    if sa.inspect(connection).has_table(_STAMP.name):
        if connection.execute(sa.select(_STAMP.c.version_num)).scalars().all() != [REVISION]:
            upgrade(connection)
        return
    _STAMP.create(connection)
    metadata.create_all(connection)
    connection.execute(_STAMP.insert(), {"version_num": REVISION})


def upgrade(connection: sa.Connection) -> None:
    """Apply the migrations that the database lacks. Raises LedgerError when it has one that we do not know."""
    from alembic import command
    from alembic.util import CommandError

    config = migrations_config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise LedgerError(
            "the database was written by a newer version of bbpwf",
            where=connection.engine.url.render_as_string(hide_password=True),
            hint="Upgrade bbpwf, or restore a backup made before the upgrade.",
        ) from error


def migrations_config(url: str = "") -> Config:
    """Alembic's configuration of our migrations; for :func:`upgrade` and ``alembic`` itself."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config
