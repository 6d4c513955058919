"""What is told of a job: why it is where it is, each attempt with what it asked for, and its exact submission."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bbpwf.cluster.backend import Refused
from bbpwf.cluster.explanation import Explanations
from bbpwf.cluster.jobs import job_key
from bbpwf.errors import NotFound
from bbpwf.states import JobState
from tests.support.clock import ManualClock
from tests.support.scheduler import MemoryScheduler
from tests.unit.cluster.test_engine import Engine


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = Engine(database_url, MemoryScheduler(), ManualClock())
    yield made
    made.database.close()


def why(engine: Engine, position: int = 0) -> str:
    return Explanations(engine.database).job(job_key("run", f"t{position}")).why


def test_at_every_stage_there_is_a_reason(engine: Engine) -> None:
    engine.want()
    assert why(engine).startswith("is not submitted: it will be")
    engine.submitter.round()
    assert why(engine) == "waits in the queue as 101: the scheduler has not said why"
    (batch_id,) = engine.scheduler.jobs
    engine.scheduler.show(batch_id, JobState.QUEUED, "PENDING", reason="(Resources)")
    engine.monitor.poll()
    assert why(engine) == "waits in the queue as 101: waiting for free nodes (Resources)"
    engine.started(batch_id)
    assert why(engine) == "runs as 101"
    engine.ended(batch_id, 17)
    assert why(engine) == "ended FAILED: exit code 17"


def test_a_refusal_is_told_in_the_scheduler_s_words(engine: Engine) -> None:
    engine.scheduler.answers = [Refused("invalid partition specified: nowhere")]
    engine.want()
    engine.submitter.round()
    assert why(engine) == "ended REJECTED: invalid partition specified: nowhere"


def test_each_attempt_has_its_resources_its_command_and_its_record(engine: Engine) -> None:
    first = engine.submitted(resources={"memory_mb": 500})
    engine.started(first)
    engine.ended(first, 137)
    engine.scheduler.show(first, JobState.OUT_OF_MEMORY, "OUT_OF_MEMORY")
    engine.monitor.poll()
    engine.submitter.round()
    second = next(batch for batch in engine.scheduler.jobs if batch != first)
    engine.started(second)
    engine.ended(second, 0)
    told = Explanations(engine.database).job(job_key("run", "t0"))
    assert told.why == "ended COMPLETED in attempt 2"
    assert told.script == "echo 0"
    assert [a.asked for a in told.attempts] == [{"memory_mb": 500}, {"memory_mb": 1000}]
    assert [a.command for a in told.attempts] == [f"submit {first}", f"submit {second}"]
    assert [a.exit.code for a in told.attempts if a.exit] == [137, 0]
    ends = [(c.state, c.witness) for a in told.attempts for c in a.history if c.state.terminal]
    assert ends == [(JobState.OUT_OF_MEMORY, "queue"), (JobState.COMPLETED, "event")]


def test_a_requeue_has_the_submission_of_the_attempt_before(engine: Engine) -> None:
    batch_id = engine.submitted()
    engine.started(batch_id)
    engine.started(batch_id, restart=1)
    told = Explanations(engine.database).job(job_key("run", "t0"))
    assert [a.command for a in told.attempts] == [f"submit {batch_id}"] * 2


def test_many_jobs_are_explained_by_reason(engine: Engine) -> None:
    batch_id = engine.submitted(8)
    for position in range(3):
        engine.started(batch_id, position=position)
    engine.ended(batch_id, 3, position=0)
    reasons = Explanations(engine.database).reasons("run", [job_key("run", f"t{i}") for i in range(8)])
    assert [(r.state, r.jobs) for r in reasons] == [
        (JobState.QUEUED, 5),
        (JobState.RUNNING, 2),
        (JobState.FAILED, 1),
    ]
    assert reasons[2].why == "ended FAILED: exit code 3"
    assert reasons[2].examples == ("t0",)


def test_an_unknown_job_is_not_found(engine: Engine) -> None:
    with pytest.raises(NotFound):
        Explanations(engine.database).job("j" * 20)
