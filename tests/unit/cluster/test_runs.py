"""Runs: created once, moved only as allowed, listed newest first, resumed on request."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import SecretStr

from bbpwf.clock import SystemClock
from bbpwf.cluster import migrating
from bbpwf.cluster.agent import Agent
from bbpwf.cluster.database import Database, open_database
from bbpwf.cluster.jobs import JobSpec, TaskReport, job_key
from bbpwf.cluster.ledger import Ledger
from bbpwf.cluster.runs import Owner, RunRequest, RunStore
from bbpwf.cluster.schema import metadata
from bbpwf.cluster.tokens import Tokens
from bbpwf.errors import Conflict, InvalidInput, LedgerError, NotFound
from bbpwf.redact import Redactor
from bbpwf.states import RunState
from tests.support.clock import ManualClock

ALICE = Owner(sub="alice-sub", username="alice")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = open_database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def store(database: Database) -> RunStore:
    return RunStore(database, ManualClock())


def request(url: str = "tasks.simulation:SimulationCampaign", **tags: str) -> RunRequest:
    return RunRequest(workflow_url=url, tags=tags)


def test_the_same_idempotency_key_is_the_same_run(store: RunStore) -> None:
    first = store.create(request(), ALICE, "k1")
    assert store.create(request(), ALICE, "k1").run_id == first.run_id
    assert store.create(request(), Owner(sub="other"), "k1").run_id != first.run_id
    assert store.create(request(), ALICE).run_id != first.run_id
    with pytest.raises(Conflict, match=first.run_id):
        store.create(request("other:Task"), ALICE, "k1")


def test_a_run_moves_only_as_its_state_allows(store: RunStore) -> None:
    run = store.create(request(), ALICE)
    store.move(run.run_id, RunState.INITIALIZING)
    running = store.move(run.run_id, RunState.RUNNING)
    assert running.started_at is not None
    done = store.move(run.run_id, RunState.COMPLETE, "all done", outcome={"state": "COMPLETE"})
    assert (done.reason, done.outcome) == ("all done", {"state": "COMPLETE"})
    assert done.ended_at is not None
    with pytest.raises(Conflict, match="COMPLETE and cannot become RUNNING"):
        store.move(run.run_id, RunState.RUNNING)
    with pytest.raises(Conflict, match="nothing to resume"):
        store.resume(run.run_id)


def test_resume_starts_the_next_incarnation(store: RunStore) -> None:
    run = store.create(request(), ALICE)
    with pytest.raises(Conflict, match="only a finished or paused run"):
        store.resume(run.run_id)
    store.move(run.run_id, RunState.SYSTEM_ERROR, "no cluster")
    again = store.resume(run.run_id)
    assert (again.state, again.incarnation, again.ended_at) == (RunState.QUEUED, 2, None)
    assert [r.run_id for r in store.unfinished()] == [run.run_id]


def test_pages_are_stable_while_runs_arrive(store: RunStore) -> None:
    made = [store.create(request(n=str(i)), ALICE).run_id for i in range(5)]
    first, token = store.page(limit=2)
    store.create(request(), ALICE)
    second, token = store.page(limit=2, token=token)
    last, end = store.page(limit=2, token=token)
    assert [r.run_id for r in first + second + last] == made[::-1]
    assert end == ""
    tagged, _ = store.page(limit=10, tags={"n": "3"})
    assert [r.run_id for r in tagged] == [made[3]]
    with pytest.raises(InvalidInput, match="page token"):
        store.page(token="'; drop table runs")
    with pytest.raises(InvalidInput, match="1 to 1000"):
        store.page(limit=0)


def test_counts_tell_every_state(store: RunStore) -> None:
    store.create(request(), ALICE)
    counts = store.counts()
    assert counts[RunState.QUEUED] == 1
    assert set(counts) == set(RunState)


def test_what_tasks_say_is_kept_without_the_token_that_they_were_given(store: RunStore, database: Database) -> None:
    clock, redactor = ManualClock(), Redactor()
    run = store.create(request(), ALICE)
    bound = Agent(Ledger(database, clock), store, {}, Tokens(clock, redactor), clock).for_run(
        run.run_id, token=SecretStr("opaque-token-of-alice")
    )
    said = "Nexus refused opaque-token-of-alice"
    bound.report([TaskReport(task_id="Gen_1", family="Gen", state="FAILED", message=said)])
    (task,), _ = store.tasks(run.run_id)
    assert task.reason == "Nexus refused [redacted]"


def test_tasks_show_luigi_s_view_and_each_element_of_an_array(store: RunStore, database: Database) -> None:
    run = store.create(request(), ALICE)
    store.report(run.run_id, [TaskReport(task_id="Gen_1", family="Gen", state="RUNNING", started_at=1.0)])
    store.report(
        run.run_id,
        [
            TaskReport(task_id="Gen_1", family="Gen", state="DONE", started_at=1.0, ended_at=2.0),
            TaskReport(task_id="Run_1", family="Run", state="RUNNING"),
        ],
    )
    ledger = Ledger(database, ManualClock())
    ledger.claim()
    ledger.plan(
        [
            JobSpec(
                key=job_key(run.run_id, "Run_1", i),
                run_id=run.run_id,
                task_id="Run_1",
                index=i,
                script="true",
                label=f"p{i}",
            )
            for i in range(3)
        ],
        1,
    )
    rows, token = store.tasks(run.run_id, limit=3)
    rest, end = store.tasks(run.run_id, limit=3, token=token)
    assert [r.id for r in rows + rest] == ["Gen_1", "Run_1", "Run_1.0", "Run_1.1", "Run_1.2"]
    assert [r.state for r in rows[:3]] == [RunState.COMPLETE, RunState.RUNNING, RunState.QUEUED]
    assert end == ""
    assert store.task(run.run_id, "Run_1.2").name == "p2"
    with pytest.raises(NotFound, match="no task"):
        store.task(run.run_id, "Run_1.7")
    with pytest.raises(NotFound, match="no run"):
        store.tasks("r-none")


def test_families_count_tasks_and_elements_by_state(store: RunStore, database: Database) -> None:
    run = store.create(request(), ALICE)
    reports = [TaskReport(task_id=f"One_{n}", family="One", state="RUNNING" if n else "DONE") for n in range(3)]
    store.report(run.run_id, [*reports, TaskReport(task_id="All_1", family="All", state="PENDING")])
    ledger = Ledger(database, ManualClock())
    ledger.claim()
    keys = [("One_2", None), ("All_1", 0), ("All_1", 1)]
    ledger.plan(
        [
            JobSpec(key=job_key(run.run_id, task, index), run_id=run.run_id, task_id=task, index=index, script="true")
            for task, index in keys
        ],
        1,
    )
    assert sorted(store.families(run.run_id)) == [
        ("All", RunState.QUEUED, 2),
        ("One", RunState.COMPLETE, 1),
        ("One", RunState.QUEUED, 1),
        ("One", RunState.RUNNING, 1),
    ]


def test_a_database_of_a_newer_version_is_refused(database_url: str) -> None:
    database = open_database(database_url)
    with database.begin() as db:
        db.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(LedgerError, match="newer version"):
        open_database(database_url)


def test_migrations_make_exactly_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'm.db'}")
    with engine.begin() as connection:
        migrating.upgrade(connection)
        state = MigrationContext.configure(connection)
        assert compare_metadata(state, metadata) == []
        assert state.get_current_revision() == migrating.REVISION
    engine.dispose()


def test_a_new_database_is_what_migrations_would_make(tmp_path: Path) -> None:
    found = []
    for make in (migrating.migrate, migrating.upgrade):
        engine = sa.create_engine(f"sqlite:///{tmp_path / make.__name__}.db")
        with engine.begin() as connection:
            make(connection)
            found.append(connection.exec_driver_sql("SELECT name FROM sqlite_master ORDER BY name").all())
            found.append(connection.exec_driver_sql("SELECT version_num FROM alembic_version").all())
        engine.dispose()
    assert found[:2] == found[2:]


def test_launches_at_one_moment_are_each_made_once(database: Database) -> None:
    store = RunStore(database, SystemClock())
    request = RunRequest(workflow_url="m:T", tags={"of": "crowd"})

    def launch(number: int) -> str:
        return store.create(request, Owner(sub="s"), "same" if number % 2 else "").run_id

    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(launch, range(64)))
    assert len(set(made[1::2])) == 1
    assert len(set(made[0::2])) == 32
    listed, _ = store.summaries(100)
    assert {run.run_id for run in listed} == set(made)
    assert all(run.tags == {"of": "crowd"} for run in listed)
