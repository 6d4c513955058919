"""What is said of a job that the queue no longer shows as alive: every witness in its turn, and never a guess."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbpwf.cluster.backend import Entry
from bbpwf.cluster.causes import last_words, requeue_reason
from bbpwf.cluster.jobs import ExitRecord
from bbpwf.cluster.ledger import Live
from bbpwf.cluster.spool import Ended
from bbpwf.cluster.verdict import Evidence, verdict
from bbpwf.states import JobState
from tests.support.clock import ManualClock
from tests.support.scheduler import MemoryScheduler
from tests.unit.cluster.test_engine import Engine

LIVE = Live("j", "run", JobState.RUNNING, 1, 1, "b1", 0, 1, "101", False)
TIME_LIMIT = "slurmstepd-n1: error: *** JOB 4 ON n1 CANCELLED AT 2026-11-21T03:18:04 DUE TO TIME LIMIT ***\n"
MEMORY = (
    "slurmstepd-n1: error: Exceeded job memory limit\nslurmstepd-n1: error: *** JOB 1 ON n1 CANCELLED AT 2026 ***\n"
)
CGROUP = (
    "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.batch. Some of your processes may have been killed\n"
)
CANCEL = "slurmstepd-n1: error: *** JOB 9 ON n1 CANCELLED AT 2026-11-21T03:18:04 ***\n"
NODE = "slurmstepd-n1: error: *** JOB 2 ON n1 CANCELLED AT 2026-11-21T03:18:05 DUE TO NODE FAILURE, SEE SLURMCTLD LOG ***\n"
REQUEUE = "slurmstepd-n2: error: *** JOB 3 ON n2 CANCELLED AT 2026-11-21T03:18:18 DUE TO JOB REQUEUE ***\n"


def entry(state: JobState | None, reason: str = "") -> Entry:
    return Entry("b1", None, "101", state, str(state), reason)


def record(code: int, signal: int = 0, restart: int = 0) -> Ended:
    return Ended("b1", 0, "101", ExitRecord(code=code, signal=signal, started=1000, ended=1005, restart=restart))


def told(seen: Evidence, *, job: Live = LIVE, now: float = 1010.0) -> tuple[JobState, str, str] | None:
    said = verdict(job, seen, now, lost_after_s=600)
    return None if said is None else (said.state, said.witness, said.reason)


@pytest.mark.parametrize(
    ("log", "state"),
    [
        (TIME_LIMIT, JobState.TIMEOUT),
        (MEMORY, JobState.OUT_OF_MEMORY),
        (CGROUP, JobState.OUT_OF_MEMORY),
        (CANCEL, JobState.CANCELLED),
        (NODE, JobState.NODE_FAIL),
        ("out of memory\nDUE TO TIME LIMIT\n", None),
        ("", None),
    ],
)
def test_slurm_s_own_words_in_a_log_are_understood_and_a_script_s_are_not(log: str, state: JobState | None) -> None:
    assert last_words(log) is state


def test_why_a_job_was_requeued_is_told() -> None:
    assert requeue_reason(NODE) == "its node failed; Slurm put it back into the queue"
    assert requeue_reason(REQUEUE) == "requeued outside of bbpwf (scontrol requeue)"
    assert requeue_reason("") == "Slurm put it back into the queue"


def test_a_whole_exit_record_needs_nobody_else() -> None:
    seen = Evidence(entry(JobState.CANCELLED), record(3), entry(JobState.TIMEOUT), TIME_LIMIT)
    assert told(seen) == (JobState.FAILED, "record", "exit code 3")


def test_the_queue_s_word_on_a_signal_counts_before_accounting_and_log() -> None:
    seen = Evidence(entry(JobState.TIMEOUT), record(143, 15), entry(JobState.NODE_FAIL), CANCEL)
    assert told(seen) == (JobState.TIMEOUT, "queue", "reached its time limit")


def test_accounting_is_heard_where_the_queue_has_forgotten() -> None:
    for seen in (
        Evidence(None, record(143, 15), entry(JobState.NODE_FAIL)),
        Evidence(None, None, entry(JobState.NODE_FAIL)),
    ):
        assert told(seen) == (JobState.NODE_FAIL, "accounting", "its node failed")
    assert told(Evidence(None, None, entry(JobState.COMPLETED))) == (
        JobState.COMPLETED,
        "accounting",
        "its exit record is missing; accounting says that it completed",
    )
    failed = told(Evidence(None, None, entry(JobState.FAILED, "exit code 9")))
    assert failed is not None
    assert failed[:2] == (JobState.FAILED, "accounting")
    assert failed[2].startswith("exit code 9 according to accounting")
    assert told(Evidence(None, None, entry(JobState.RUNNING))) is None


def test_memory_that_slurm_itself_calls_a_failure_is_told_by_the_log() -> None:
    assert told(Evidence(entry(JobState.FAILED), None, log=MEMORY)) == (
        JobState.OUT_OF_MEMORY,
        "log",
        "used more memory than it asked for",
    )


def test_a_job_that_its_node_refused_to_start_is_the_platform_s_failure() -> None:
    """Seen with Slurm 22.05: "already killed, do not launch batch job", and the job is FAILED with exit code 1."""
    again = replace(LIVE, state=JobState.QUEUED, attempt=2)
    for seen in (Evidence(entry(JobState.FAILED), record(143, 15)), Evidence(None, None, entry(JobState.FAILED))):
        said = told(seen, job=again)
        assert said is not None
        assert said[0] is JobState.NODE_FAIL
        assert "its node did not start it" in said[2]
    began = told(Evidence(entry(JobState.FAILED)))
    assert began is not None
    assert began[0] is JobState.FAILED, "one that began was killed"


def test_silence_is_lost_and_only_when_everybody_was_asked() -> None:
    assert told(Evidence(None, absent_s=500.0)) is None
    assert told(Evidence(None, all_asked=False, absent_s=700.0)) is None
    lost = told(Evidence(None, absent_s=700.0))
    assert lost is not None
    assert lost[0] is JobState.LOST
    assert told(Evidence(None, all_asked=False, absent_s=1300.0)) == (
        JobState.LOST,
        "agent",
        lost[2].replace("12 min", "22 min"),
    )


def test_a_cancelled_job_is_cancelled_whoever_shows_it_ended() -> None:
    ours = replace(LIVE, cancel=True)
    assert told(Evidence(entry(JobState.FAILED)), job=ours) == (JobState.CANCELLED, "queue", "cancelled")
    assert told(Evidence(None, None, entry(JobState.CANCELLED)), job=ours) == (
        JobState.CANCELLED,
        "accounting",
        "cancelled",
    )
    assert told(Evidence(entry(JobState.CANCELLED), record(0)), job=ours) == (JobState.COMPLETED, "record", "")


def test_a_cancelled_job_in_a_state_that_nobody_knows_is_not_gone() -> None:
    unknown = Entry("b", 0, "101", None, "HIBERNATING")
    assert told(Evidence(unknown), job=replace(LIVE, cancel=True)) is None


states = st.none() | st.sampled_from(list(JobState)).map(entry)


@given(
    queue=states,
    accounted=states,
    record=st.none() | st.builds(record, st.integers(0, 255), st.sampled_from([0, 15]), st.integers(0, 1)),
    log=st.sampled_from(["", TIME_LIMIT, MEMORY, CANCEL, NODE, REQUEUE]),
    waited=st.floats(0, 100),
    absent=st.floats(0, 10_000),
    cancel=st.booleans(),
)
def test_nothing_is_called_completed_without_a_witness_who_says_so(
    queue: Entry | None,
    accounted: Entry | None,
    record: Ended | None,
    log: str,
    waited: float,
    absent: float,
    cancel: bool,
) -> None:
    said = told(Evidence(queue, record, accounted, log, waited, absent_s=absent), job=replace(LIVE, cancel=cancel))
    if said is not None and said[0] is JobState.COMPLETED:
        assert (record is not None and record.record.code == 0) or JobState.COMPLETED in {
            e.state for e in (queue, accounted) if e is not None
        }
    if said is not None:
        assert said[0].terminal


# -- through the monitor ------------------------------------------------------------------------------------------


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = Engine(database_url, MemoryScheduler(), ManualClock())
    yield made
    made.database.close()


def test_a_purged_job_s_end_is_learned_from_accounting(engine: Engine) -> None:
    batch_id = engine.submitted(escalations=0)
    engine.started(batch_id)
    engine.scheduler.purge()
    engine.scheduler.accounting = {"101": entry(JobState.TIMEOUT)}
    engine.monitor.poll()
    assert (engine.view().state, engine.view().reason) == (JobState.TIMEOUT, "reached its time limit")


def test_while_accounting_does_not_answer_nothing_is_said_for_longer(engine: Engine) -> None:
    batch_id = engine.submitted()
    engine.started(batch_id)
    engine.scheduler.purge()
    engine.scheduler.accounting = None
    engine.monitor.poll()
    engine.clock.advance(700)
    engine.monitor.poll()
    assert engine.view().state is JobState.RUNNING
    engine.clock.advance(600)
    engine.monitor.poll()
    assert engine.view().state is JobState.LOST


def test_a_requeue_is_the_next_attempt_of_the_same_job_and_its_cause_is_kept(engine: Engine) -> None:
    batch_id = engine.submitted()
    engine.started(batch_id)
    engine.ended(batch_id, 143, signal=15)
    engine.scheduler.records.logs = {(batch_id, 0): NODE}
    engine.scheduler.show(batch_id, JobState.QUEUED, "PENDING", reason="BeginTime")
    engine.monitor.poll()
    assert (engine.view().state, engine.view().attempt) == (JobState.QUEUED, 2)
    assert engine.view().reason == "its node failed; Slurm put it back into the queue"
    engine.monitor.poll()
    engine.monitor.poll()
    assert (engine.view().state, engine.view().attempt) == (JobState.QUEUED, 2), "one requeue is counted once"
    engine.started(batch_id, restart=1)
    engine.ended(batch_id, 0, restart=1)
    assert engine.view().state is JobState.COMPLETED
    assert "its node failed; Slurm put it back into the queue" in [
        h["reason"] for h in engine.ledger.history(engine.view().key)
    ]
