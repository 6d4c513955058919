"""How often the scheduler is asked, and how long it is left alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bbpwf.cluster.backend import Entry, Unclear
from bbpwf.cluster.budget import LONGEST_REST_S, Budget
from bbpwf.cluster.jobs import JobSpec, job_key
from bbpwf.errors import SlurmBusy
from tests.support.clock import ManualClock
from tests.support.scheduler import MemoryScheduler
from tests.unit.cluster.test_engine import Engine


def test_a_query_that_took_long_is_followed_by_a_rest() -> None:
    clock = ManualClock()
    budget = Budget(clock)
    with budget.spend("queue"):
        clock.advance(2)
    assert budget.rest() == pytest.approx(18)
    clock.advance(17)
    assert budget.rest() == pytest.approx(1)
    clock.advance(5)
    assert budget.rest() == 0
    with budget.spend("queue"):
        clock.advance(100)
    assert budget.rest() == LONGEST_REST_S


def test_calls_are_counted_also_when_they_fail() -> None:
    budget = Budget(ManualClock())
    with budget.spend("submit", 50):
        pass
    with pytest.raises(SlurmBusy), budget.spend("queue"):
        raise SlurmBusy("no answer")
    assert budget.calls() == {"submit": 50, "queue": 1}
    assert budget.rest() == 0


class CountedScheduler(MemoryScheduler):
    """Counts the queries of its queue."""

    queries = 0

    def queue(self) -> list[Entry]:
        self.queries += 1
        return super().queue()


@pytest.fixture
def scheduler() -> CountedScheduler:
    return CountedScheduler()


@pytest.fixture
def engine(database_url: str, scheduler: CountedScheduler) -> Iterator[Engine]:
    made = Engine(database_url, scheduler, ManualClock())
    yield made
    made.database.close()


def test_many_unclear_answers_of_one_trip_are_looked_up_in_one_query(
    engine: Engine, scheduler: CountedScheduler
) -> None:
    names = [f"n{i}" for i in range(5)]  # jobs of different names share no array
    specs = [JobSpec(key=job_key("run", name), run_id="run", task_id=name, script="true", name=name) for name in names]
    engine.ledger.plan(specs, 1)
    scheduler.answers = [Unclear("timed out")] * 5
    engine.submitter.round()
    assert (scheduler.trips, scheduler.queries) == (1, 1)
    engine.clock.advance(60)
    scheduler.answers = [Unclear("timed out")] * 5
    engine.submitter.round()
    assert scheduler.queries == 2, "an old look is no answer to a new question"
