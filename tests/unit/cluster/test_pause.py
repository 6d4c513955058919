"""A paused run: nothing of it is submitted, what is with the scheduler goes on, and other runs do not notice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bbpwf.cluster.backend import PutOff
from bbpwf.cluster.jobs import JobSpec, job_key
from bbpwf.cluster.runs import Owner, RunRequest, RunStore
from bbpwf.errors import Conflict
from bbpwf.states import JobState, RunState
from tests.support.clock import ManualClock
from tests.support.scheduler import MemoryScheduler
from tests.unit.cluster.test_engine import Engine


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = Engine(database_url, MemoryScheduler(), ManualClock())
    yield made
    made.database.close()


@pytest.fixture
def store(engine: Engine) -> RunStore:
    return RunStore(engine.database, engine.clock)


def launched(store: RunStore) -> str:
    run_id = store.create(RunRequest(workflow_url="m:T"), Owner(sub="s")).run_id
    store.move(run_id, RunState.INITIALIZING)
    store.move(run_id, RunState.RUNNING)
    return run_id


def want(engine: Engine, run_id: str, **more: object) -> str:
    key = job_key(run_id, "T")
    spec = {"key": key, "run_id": run_id, "task_id": "T", "script": "true"} | more
    engine.ledger.plan([JobSpec.model_validate(spec)], 1)
    return key


def test_nothing_of_a_paused_run_is_submitted_until_it_is_resumed(engine: Engine, store: RunStore) -> None:
    paused, other = launched(store), launched(store)
    store.move(paused, RunState.PAUSED)
    keys = [want(engine, paused), want(engine, other)]
    engine.submitter.round()
    assert [engine.ledger.job(key)[0].state for key in keys] == [JobState.PLANNED, JobState.QUEUED]
    assert store.resume(paused).state is RunState.QUEUED
    engine.submitter.round()
    assert engine.ledger.job(keys[0])[0].state is JobState.QUEUED
    assert store.get(paused).incarnation == 1, "it goes on: what failed is not tried anew"


def test_a_submission_that_was_put_off_waits_too(engine: Engine, store: RunStore) -> None:
    run_id = launched(store)
    key = want(engine, run_id)
    engine.scheduler.answers = [PutOff("too many jobs")]
    engine.submitter.round()
    store.move(run_id, RunState.PAUSED)
    engine.clock.advance(60)
    engine.submitter.round()
    assert engine.scheduler.jobs == {}
    store.resume(run_id)
    engine.submitter.round()
    assert engine.ledger.job(key)[0].state is JobState.QUEUED


def test_jobs_that_the_scheduler_has_go_on_and_their_retries_wait(engine: Engine, store: RunStore) -> None:
    run_id = launched(store)
    key = want(engine, run_id, retries=1)
    engine.submitter.round()
    (batch_id,) = engine.scheduler.jobs
    store.move(run_id, RunState.PAUSED)
    engine.started(batch_id)
    engine.ended(batch_id, 1)
    engine.submitter.round()
    view = engine.ledger.job(key)[0]
    assert (view.state, view.attempt, len(engine.scheduler.jobs)) == (JobState.PLANNED, 2, 1)


def test_the_jobs_of_a_task_and_of_an_element_are_found(engine: Engine, store: RunStore) -> None:
    run_id = launched(store)
    specs = [
        {"key": job_key(run_id, "A", i), "run_id": run_id, "task_id": "A", "script": "true", "index": i}
        for i in range(3)
    ]
    engine.ledger.plan([JobSpec.model_validate(each) for each in specs], 1)
    assert store.job_keys(run_id, "A") == [each["key"] for each in specs]
    assert store.job_keys(run_id, "A.1") == [specs[1]["key"]]
    with pytest.raises(Conflict):
        store.resume(run_id)
