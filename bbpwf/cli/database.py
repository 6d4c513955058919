"""``bbpwf backup``, ``bbpwf restore``, ``bbpwf db upgrade``: the instance's database in an operator's hands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bbpwf.errors import Conflict

database_app = typer.Typer(name="db", help="The instance's database.", no_args_is_help=True)


@database_app.command()
def upgrade() -> None:
    """Bring the database to this version; an instance does so when it starts."""
    from bbpwf import settings
    from bbpwf.cluster.database import open_database
    from bbpwf.cluster.migrating import REVISION

    open_database(settings.load().database).close()
    typer.echo(f"the database is at {REVISION}")


def backup(file: Annotated[Path, typer.Argument(help="Where to; replaced when the copy is whole.")]) -> None:
    """Copy the instance's database while it is in use."""
    from bbpwf import settings
    from bbpwf.cluster import backups

    backups.backup(settings.load().database, file)
    typer.echo(f"{file}: {file.stat().st_size} bytes")


def restore(
    file: Annotated[Path, typer.Argument(help="What `bbpwf backup` wrote.", exists=True, dir_okay=False)],
) -> None:
    """Put a backup in place of the instance's database; the instance must be stopped."""
    from bbpwf import settings
    from bbpwf.cluster import backups

    configured = settings.load()
    with _nobody_else(configured.state):
        backups.restore(configured.database, file)
    typer.echo("restored")


@contextmanager
def _nobody_else(state: Path) -> Iterator[None]:
    """Hold what a service and its agent hold while they run. Raises Conflict while one does."""
    import os

    from bbpwf.cluster.server import lock_state
    from service.children import Lock

    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        service = Lock(state / "locks" / "service")
    except Conflict:
        raise Conflict("an instance runs on this state folder", where=str(state), hint="Stop it first.") from None
    try:
        agent = lock_state(state)
        try:
            yield
        finally:
            os.close(agent)
    finally:
        service.close()
