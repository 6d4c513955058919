"""What is tried again, with what, how often: decided by cause, and carried out with resources of its own."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbpwf.cluster.jobs import Resources
from bbpwf.cluster.retries import NO_LIMITS, Ended, PartitionLimits, Retry, decide
from bbpwf.states import JobState
from tests.support.clock import ManualClock
from tests.support.scheduler import MemoryScheduler
from tests.unit.cluster.test_engine import Engine

NONE = {"infrastructure_retries": 0, "retries": 0, "escalations": 0}
SOME = {"infrastructure_retries": 3, "retries": 2, "escalations": 2}
DEBUG = PartitionLimits("debug", timedelta(hours=1), 4000)


def after(state: JobState, limits: PartitionLimits = DEBUG, *, elapsed: float | None = None, **asked: object) -> object:
    return decide(Ended(state, Resources.model_validate(asked), elapsed), NONE, SOME, limits)


def resources(verdict: object) -> Resources:
    assert isinstance(verdict, Retry), verdict
    return verdict.resources


def test_memory_that_ran_out_is_doubled_up_to_what_a_node_has() -> None:
    assert resources(after(JobState.OUT_OF_MEMORY, memory_mb=1000)).memory_mb == 2000
    assert resources(after(JobState.OUT_OF_MEMORY, memory_mb=3000)).memory_mb == 4000
    assert resources(after(JobState.OUT_OF_MEMORY, memory_per_cpu_mb=900, cpus_per_task=3)).memory_per_cpu_mb == 1333
    assert resources(after(JobState.OUT_OF_MEMORY)).memory_mb == 0, "nothing was asked for: all of a node's"
    assert "4000 MiB per node is the most that partition 'debug' has" in str(
        after(JobState.OUT_OF_MEMORY, memory_mb=4000)
    )
    assert "all of a node's memory" in str(after(JobState.OUT_OF_MEMORY, memory_mb=0))


def test_time_that_ran_out_is_doubled_up_to_the_partition_s_limit() -> None:
    minutes = timedelta(minutes=1)
    assert resources(after(JobState.TIMEOUT, time_limit=20 * minutes)).time_limit == 40 * minutes
    assert resources(after(JobState.TIMEOUT, time_limit=40 * minutes)).time_limit == 60 * minutes
    assert resources(after(JobState.TIMEOUT, elapsed=61)).time_limit == 4 * minutes, "the default, as long as it ran"
    assert "1:00:00 is the longest that partition 'debug' allows" in str(
        after(JobState.TIMEOUT, time_limit=60 * minutes)
    )
    assert resources(after(JobState.TIMEOUT, NO_LIMITS, time_limit=90 * minutes)).time_limit == 180 * minutes
    assert "not known" in str(after(JobState.TIMEOUT))


@pytest.mark.parametrize("state", [JobState.NODE_FAIL, JobState.BOOT_FAIL, JobState.PREEMPTED, JobState.FAILED])
def test_other_causes_ask_for_the_same_again(state: JobState) -> None:
    assert resources(after(state, memory_mb=5)) == Resources(memory_mb=5)


@pytest.mark.parametrize("state", [JobState.LOST, JobState.REJECTED, JobState.CANCELLED, JobState.DEADLINE])
def test_some_ends_are_final(state: JobState) -> None:
    assert after(state) == ""


@given(
    state=st.sampled_from([s for s in JobState if s.terminal and not s.succeeded]),
    memory=st.none() | st.integers(0, 10_000),
    minutes=st.none() | st.integers(1, 10_000),
    used=st.integers(0, 10),
    allowed=st.integers(0, 10),
)
def test_no_attempt_asks_for_less_for_more_than_is_there_or_too_often(
    state: JobState, memory: int | None, minutes: int | None, used: int, allowed: int
) -> None:
    asked = Resources(memory_mb=memory, time_limit=None if minutes is None else timedelta(minutes=minutes))
    verdict = decide(
        Ended(state, asked, 300.0), dict.fromkeys(NONE, used), dict.fromkeys(NONE, allowed), PartitionLimits("p")
    )
    limited = decide(Ended(state, asked, 300.0), dict.fromkeys(NONE, used), dict.fromkeys(NONE, allowed), DEBUG)
    assert isinstance(verdict, str) or used < allowed
    if isinstance(limited, Retry) and limited.resources != asked:
        assert (limited.resources.memory_mb or 0) <= 4000 or limited.resources.memory_mb == memory
        assert (limited.resources.time_limit or timedelta()) <= timedelta(hours=1) or state is JobState.OUT_OF_MEMORY
    if isinstance(verdict, Retry) and memory:
        assert (verdict.resources.memory_mb or 0) >= memory


# -- carried out --------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = Engine(database_url, MemoryScheduler(), ManualClock())
    made.ledger.know_limits("default", lambda _: DEBUG)
    yield made
    made.database.close()


def end(engine: Engine, batch_id: str, state: JobState) -> None:
    engine.started(batch_id)
    engine.ended(batch_id, 137)
    alone = len(engine.scheduler.jobs[batch_id].scripts) == 1
    engine.scheduler.show(batch_id, state, state.value, position=None if alone else 0)
    engine.monitor.poll()


def next_batch(engine: Engine) -> str:
    before = set(engine.scheduler.jobs)
    engine.submitter.round()
    (batch_id,) = set(engine.scheduler.jobs) - before
    return batch_id


def test_a_job_that_ran_out_of_memory_goes_on_in_a_submission_of_its_own_with_more(engine: Engine) -> None:
    asked = {"memory_mb": 1500, "time_limit": "PT10M"}
    first = engine.submitted(3, resources=asked)
    end(engine, first, JobState.OUT_OF_MEMORY)
    assert "attempt 1 ended OUT_OF_MEMORY" in engine.view().reason
    assert "trying again with 3000 MiB" in engine.view().reason
    second = next_batch(engine)
    assert len(engine.scheduler.jobs[second].scripts) == 1
    assert engine.scheduler.jobs[second].resources.memory_mb == 3000
    assert engine.scheduler.jobs[first].resources.memory_mb == 1500
    end(engine, second, JobState.OUT_OF_MEMORY)
    third = next_batch(engine)
    assert engine.scheduler.jobs[third].resources.memory_mb == 4000, "no node has more"
    end(engine, third, JobState.OUT_OF_MEMORY)
    view = engine.view()
    assert (view.state, view.attempt) == (JobState.OUT_OF_MEMORY, 3)
    assert view.reason == "used more memory than it asked for; not tried again: escalations are used up (2)"


def test_every_cause_has_a_counter_of_its_own(engine: Engine) -> None:
    batch_id = engine.submitted(resources={"memory_mb": 500}, infrastructure_retries=1, retries=1, escalations=1)
    end(engine, batch_id, JobState.NODE_FAIL)
    end(engine, next_batch(engine), JobState.OUT_OF_MEMORY)
    last = next_batch(engine)
    engine.started(last)
    engine.ended(last, 3)
    last = next_batch(engine)
    assert engine.scheduler.jobs[last].resources.memory_mb == 1000, "what it needs is not forgotten"
    engine.started(last)
    engine.ended(last, 3)
    assert (engine.view().state, engine.view().attempt) == (JobState.FAILED, 4)
    assert engine.view().reason == "exit code 3; not tried again: retries are used up (1)"


def test_a_resumed_run_begins_with_what_its_task_asks_for(engine: Engine) -> None:
    first = engine.submitted(resources={"memory_mb": 500}, escalations=1)
    end(engine, first, JobState.OUT_OF_MEMORY)
    end(engine, next_batch(engine), JobState.OUT_OF_MEMORY)
    _, spec = engine.ledger.job(engine.view().key)
    engine.ledger.plan([spec], 2)
    assert engine.scheduler.jobs[next_batch(engine)].resources.memory_mb == 500
