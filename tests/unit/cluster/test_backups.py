"""A backup made in use, put back: what was there is there again. And an old database, brought to this version."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.config import Config
from typer.testing import CliRunner

from bbpwf.cli.main import app
from bbpwf.clock import SystemClock
from bbpwf.cluster import backups, migrating
from bbpwf.cluster.database import Database, open_database
from bbpwf.cluster.migrating import REVISION
from bbpwf.cluster.runs import Owner, RunRequest, RunStore
from bbpwf.errors import InvalidInput
from bbpwf.states import RunState
from service.children import Lock
from tests.support import postgres


def launch(database: Database, name: str) -> str:
    request = RunRequest(workflow_url="m:T", workflow_params={"name": name}, tags={"of": name})
    return RunStore(database, SystemClock()).create(request, Owner(sub="s")).run_id


@pytest.fixture(autouse=True)
def _programs(monkeypatch: pytest.MonkeyPatch) -> None:
    if (found := postgres.programs()) is not None:
        monkeypatch.setenv("PATH", str(found), prepend=":")


def test_what_was_there_at_the_backup_is_there_after_the_restore(database_url: str, tmp_path: Path) -> None:
    database = open_database(database_url)
    kept = launch(database, "kept")
    backups.backup(database_url, tmp_path / "backups" / "one")  # while it is open
    launch(database, "later")
    database.close()
    backups.restore(database_url, tmp_path / "backups" / "one")
    again = open_database(database_url)
    store = RunStore(again, SystemClock())
    page, _ = store.summaries()
    assert [(run.run_id, run.tags) for run in page] == [(kept, {"of": "kept"})]
    assert store.counts()[RunState.QUEUED] == 1
    assert launch(again, "new") != kept  # numbers go on
    again.close()


def test_what_is_no_backup_is_refused_and_changes_nothing(database_url: str, tmp_path: Path) -> None:
    database = open_database(database_url)
    run_id = launch(database, "kept")
    database.close()
    (tmp_path / "nonsense").write_text("no database")
    with pytest.raises(InvalidInput):
        backups.restore(database_url, tmp_path / "nonsense")
    again = open_database(database_url)
    assert RunStore(again, SystemClock()).state(run_id) is RunState.QUEUED
    again.close()


def test_the_commands_work_and_a_running_instance_is_not_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BBPWF_STATE_DIR", str(tmp_path / "state"))
    runner = CliRunner()
    assert REVISION in runner.invoke(app, ["db", "upgrade"]).output
    assert runner.invoke(app, ["backup", str(tmp_path / "copy")]).exit_code == 0
    held = Lock(tmp_path / "state" / "locks" / "service")
    assert runner.invoke(app, ["restore", str(tmp_path / "copy")]).exit_code != 0
    held.close()
    assert runner.invoke(app, ["restore", str(tmp_path / "copy")]).output == "restored\n"


NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade():
    op.add_column("runs", sa.Column("shown", sa.Text(), nullable=True))
    op.execute("UPDATE runs SET shown = 'run ' || run_id")
"""


def test_a_database_of_an_earlier_version_is_upgraded_with_its_data(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database(database_url)
    run_id = launch(database, "old")
    database.close()
    folder = tmp_path / "migrations"
    shutil.copytree(Path(migrating.__file__).parent / "migrations", folder)
    (folder / "versions" / "0002_next.py").write_text(NEXT)

    def config() -> Config:
        made = Config()
        made.set_main_option("script_location", str(folder))
        return made

    monkeypatch.setattr(migrating, "migrations_config", config)
    monkeypatch.setattr(migrating, "REVISION", "0002")
    for _ in range(2):  # the second time there is nothing to do
        again = open_database(database_url)
        with again.reading() as db:
            assert db.exec_driver_sql("SELECT run_id, shown FROM runs").all() == [(run_id, f"run {run_id}")]
            assert db.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "0002"
        assert RunStore(again, SystemClock()).state(run_id) is RunState.QUEUED
        again.close()


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = open_database(database_url)
    run_id = launch(database, "old")
    database.close()
    folder = tmp_path / "migrations"
    shutil.copytree(Path(migrating.__file__).parent / "migrations", folder)
    (folder / "versions" / "0002_next.py").write_text(NEXT + "    raise OSError('the power is gone')\n")

    def config() -> Config:
        made = Config()
        made.set_main_option("script_location", str(folder))
        return made

    with monkeypatch.context() as patched:
        patched.setattr(migrating, "migrations_config", config)
        patched.setattr(migrating, "REVISION", "0002")
        with pytest.raises(OSError, match="the power is gone"):
            open_database(database_url)
    again = open_database(database_url)
    assert RunStore(again, SystemClock()).state(run_id) is RunState.QUEUED
    with again.reading() as db:
        assert "shown" not in {column["name"] for column in sa.inspect(db).get_columns("runs")}
    again.close()
