"""An agent whose database refuses goes on when it is well again; one that was fenced off ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from bbpwf.clock import SystemClock
from bbpwf.cluster.database import Database, open_database
from bbpwf.cluster.jobs import JobSpec, JobView, job_key
from bbpwf.cluster.ledger import Ledger
from bbpwf.cluster.monitor import Monitor
from bbpwf.cluster.submission import Submitter
from bbpwf.errors import LedgerError
from bbpwf.states import JobState
from tests.support.scheduler import MemoryScheduler

KEY = job_key("run", "t")
SPEC = JobSpec(key=KEY, run_id="run", task_id="t", script="true")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = open_database(f"sqlite:///{tmp_path / 'l.db'}")
    yield made
    made.close()


@contextmanager
def refusing(database: Database) -> Iterator[None]:
    """Every statement on jobs fails, as all of them do on a disk that is full."""
    with database.engine.begin() as db:
        db.execute(sa.text("ALTER TABLE jobs RENAME TO elsewhere"))
    yield
    with database.engine.begin() as db:
        db.execute(sa.text("ALTER TABLE elsewhere RENAME TO jobs"))


@contextmanager
def running(loop: Callable[[], None], stop: Callable[[], None]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=loop)
    thread.start()
    yield thread
    stop()
    thread.join(30)
    assert not thread.is_alive()


def reached(ledger: Ledger, state: JobState) -> JobView:
    seen = ledger.observe("run", 0, 0.0)
    for _ in range(20):
        if seen.jobs and seen.jobs[0].state is state:
            return seen.jobs[0]
        seen = ledger.observe("run", seen.version, 1.0)
    raise AssertionError(f"the job is {ledger.job(KEY)[0].state}, not {state}")


def test_the_loops_outlive_a_database_that_refuses(database: Database) -> None:
    clock, scheduler = SystemClock(), MemoryScheduler()
    ledger = Ledger(database, clock)
    ledger.claim()
    ledger.plan([SPEC], 1)
    submitter = Submitter(ledger, scheduler, clock, cluster="default", spool="/s", data_root="/d", software="")
    monitor = Monitor(ledger, scheduler, clock, cluster="default", spool="/s", poll_s=0.1, lost_after_s=600)
    with ExitStack() as stack:
        with refusing(database):
            with pytest.raises(LedgerError) as trouble:
                ledger.planned("default", 1)
            assert trouble.value.retryable
            threads = [
                stack.enter_context(running(loop, part.stop))
                for part, loop in ((submitter, submitter.loop), (monitor, monitor.poll_loop))
            ]
            submitter.wake()
            monitor.poll_soon()
            for thread in threads:
                thread.join(0.3)
                assert thread.is_alive()
        reached(ledger, JobState.QUEUED)
        scheduler.show(next(iter(scheduler.jobs)), JobState.RUNNING, "RUNNING")
        monitor.poll_soon()
        reached(ledger, JobState.RUNNING)


def test_an_agent_with_nothing_to_write_can_see_that_it_was_fenced_off(database: Database) -> None:
    first, second = Ledger(database, SystemClock()), Ledger(database, SystemClock())
    told = threading.Event()
    first.when_fenced = told.set
    first.claim()
    first.check_claim()
    assert not told.is_set()
    second.claim()
    first.check_claim()
    assert told.is_set()
    assert first.fenced


def test_an_agent_that_was_fenced_off_is_told_and_its_loops_end(database: Database) -> None:
    clock, scheduler = SystemClock(), MemoryScheduler()
    first, second = Ledger(database, clock), Ledger(database, clock)
    told = threading.Event()
    first.when_fenced = told.set
    first.claim()
    first.plan([SPEC], 1)
    second.claim()
    submitter = Submitter(first, scheduler, clock, cluster="default", spool="/s", data_root="/d", software="")
    thread = threading.Thread(target=submitter.loop)
    thread.start()
    submitter.wake()
    thread.join(30)
    assert not thread.is_alive()
    assert told.is_set()
    assert scheduler.jobs == {}
