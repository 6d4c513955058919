"""Submitting and watching against a scheduler that loses answers, forgets jobs and hides states."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bbpwf.cluster.backend import Entry, PutOff, Refused, Unclear
from bbpwf.cluster.database import open_database
from bbpwf.cluster.jobs import ExitRecord, JobSpec, JobView, job_key
from bbpwf.cluster.ledger import Ledger
from bbpwf.cluster.monitor import Monitor
from bbpwf.cluster.spool import Ended, Folder, Started, job_script, manifest
from bbpwf.cluster.submission import AMBIGUITY_S, Submitter
from bbpwf.errors import ConnectionLost
from bbpwf.states import JobState
from bbpwf.transport.local import LocalTransport
from tests.support.clock import ManualClock
from tests.support.scheduler import MemoryScheduler


class Engine:
    """Ledger, submitter and monitor of one cluster, driven step by step."""

    def __init__(self, url: str, scheduler: MemoryScheduler, clock: ManualClock) -> None:
        self.scheduler = scheduler
        self.clock = clock
        self.database = open_database(url)
        self.ledger = Ledger(self.database, clock)
        self.ledger.claim()
        self.submitter = Submitter(
            self.ledger, scheduler, clock, cluster="default", spool="/spool", data_root="/data", software=""
        )
        self.wakes = 0
        self.monitor = Monitor(
            self.ledger,
            scheduler,
            clock,
            cluster="default",
            spool="/spool",
            poll_s=30,
            lost_after_s=600,
            on_change=self._woken,
        )

    def _woken(self) -> None:
        self.wakes += 1

    def want(self, count: int = 1, **more: object) -> list[str]:
        specs = [
            JobSpec.model_validate(
                {"key": job_key("run", f"t{i}"), "run_id": "run", "task_id": f"t{i}", "script": f"echo {i}"} | more
            )
            for i in range(count)
        ]
        self.ledger.plan(specs, 1)
        return [spec.key for spec in specs]

    def submitted(self, count: int = 1, **more: object) -> str:
        """Want jobs and submit them; answers the id of the one submission."""
        self.want(count, **more)
        self.submitter.round()
        (batch_id,) = self.scheduler.jobs
        return batch_id

    def view(self, position: int = 0) -> JobView:
        return self.ledger.job(job_key("run", f"t{position}"))[0]

    def started(self, batch_id: str, position: int = 0, restart: int = 0) -> None:
        scheduler_id = self.scheduler.id_of(batch_id, position)
        self.monitor.take([Started(batch_id, position, scheduler_id, restart, self.clock.now(), "n1")])

    def ended(self, batch_id: str, code: int, *, signal: int = 0, position: int = 0, restart: int = 0) -> None:
        self.monitor.take([self.record(batch_id, code, signal=signal, position=position, restart=restart)])

    def record(self, batch_id: str, code: int, *, signal: int = 0, position: int = 0, restart: int = 0) -> Ended:
        now = self.clock.now()
        record = ExitRecord(code=code, signal=signal, started=now - 5, ended=now, node="n1", restart=restart)
        return Ended(batch_id, position, "101", record)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = Engine(database_url, MemoryScheduler(), ManualClock())
    yield made
    made.database.close()


def test_an_end_leads_to_a_submission_at_once_if_the_job_is_to_be_tried_again(engine: Engine) -> None:
    first = engine.submitted(2, retries=1)
    engine.started(first)
    engine.ended(first, 0)
    assert engine.wakes == 0, "there is nothing new to submit"
    engine.ended(first, 1, position=1)
    assert engine.wakes == 1
    assert [each.key for each in engine.ledger.planned("default", 10)] == [job_key("run", "t1")]


# -- submitting ---------------------------------------------------------------------------------------------------


def test_many_jobs_go_in_one_round_trip_as_one_array(engine: Engine) -> None:
    batch_id = engine.submitted(200)
    assert engine.scheduler.trips == 1
    assert len(engine.scheduler.jobs[batch_id].scripts) == 200
    assert engine.view(7).scheduler_id == "101_7"


def test_an_answer_lost_after_acceptance_leads_to_no_second_job(engine: Engine) -> None:
    engine.scheduler.answers = ["lose after"]
    engine.want()
    with pytest.raises(ConnectionLost):
        engine.submitter.round()
    assert engine.view().state is JobState.SUBMITTING
    engine.submitter.round()
    assert len(engine.scheduler.jobs) == 1
    assert (engine.view().state, engine.view().scheduler_id) == (JobState.QUEUED, "101")


def test_a_submission_cut_before_the_scheduler_is_sent_again(engine: Engine) -> None:
    engine.scheduler.answers = ["lose before"]
    engine.want()
    with pytest.raises(ConnectionLost):
        engine.submitter.round()
    assert engine.scheduler.jobs == {}
    engine.submitter.round()
    assert len(engine.scheduler.jobs) == 1


def test_an_unclear_answer_is_looked_up_before_anything_is_sent_again(engine: Engine) -> None:
    engine.scheduler.answers = ["lose after", Unclear("Socket timed out on send/recv operation")]
    engine.want()
    with pytest.raises(ConnectionLost):
        engine.submitter.round()
    engine.submitter.round()
    assert (engine.view().state, engine.view().scheduler_id) == (JobState.QUEUED, "101")
    assert engine.scheduler.trips == 2


def test_an_unclear_submission_that_stays_absent_is_made_after_the_wait_and_not_before(engine: Engine) -> None:
    engine.want()
    spent = 0.0
    engine.scheduler.answers = [Unclear("Socket timed out") for _ in range(50)]
    while "submitting again" not in engine.view().reason:
        engine.submitter.round()
        engine.clock.advance(5)
        spent += 5
        assert engine.scheduler.jobs == {}
    assert spent > AMBIGUITY_S
    engine.scheduler.answers = []
    engine.submitter.round()
    assert len(engine.scheduler.jobs) == 1
    (submission,) = engine.scheduler.jobs.values()
    assert submission.fresh


def test_a_limit_of_the_site_means_waiting(engine: Engine) -> None:
    engine.scheduler.answers = [PutOff("Job violates accounting/QOS policy (job submit limit)")]
    engine.want()
    engine.submitter.round()
    assert engine.view().state is JobState.SUBMITTING
    assert "job submit limit" in engine.view().reason
    engine.submitter.round()
    assert engine.scheduler.trips == 1, "it is not asked again at once"
    engine.clock.advance(60)
    engine.submitter.round()
    assert engine.view().state is JobState.QUEUED


def test_a_refusal_ends_the_job_with_the_scheduler_s_words(engine: Engine) -> None:
    engine.scheduler.answers = [Refused("Invalid partition name specified")]
    engine.want()
    engine.submitter.round()
    assert (engine.view().state, engine.view().reason) == (JobState.REJECTED, "Invalid partition name specified")


def test_a_new_agent_finishes_what_the_old_one_had_begun(engine: Engine, database_url: str) -> None:
    engine.scheduler.answers = ["lose after"]
    engine.want(3)
    with pytest.raises(ConnectionLost):
        engine.submitter.round()
    successor = Engine(database_url, engine.scheduler, engine.clock)
    successor.submitter.round()
    assert len(successor.scheduler.jobs) == 1
    assert successor.view(2).state is JobState.QUEUED
    successor.database.close()


# -- watching -----------------------------------------------------------------------------------------------------


def test_pushed_events_alone_bring_a_job_home(engine: Engine) -> None:
    batch_id = engine.submitted()
    engine.started(batch_id)
    assert engine.view().state is JobState.RUNNING
    engine.ended(batch_id, 0)
    assert engine.view().state is JobState.COMPLETED
    assert engine.monitor.queries == 0


def test_a_lost_end_event_is_found_in_the_exit_record(engine: Engine) -> None:
    batch_id = engine.submitted()
    engine.started(batch_id)
    engine.scheduler.show(batch_id, JobState.COMPLETED, "COMPLETED")
    engine.scheduler.records.records = [f"X {batch_id} 0 101 0 0 0 5.0 6.0 n1 ."]
    engine.monitor.poll()
    view = engine.view()
    assert view.state is JobState.COMPLETED
    assert view.exit is not None
    assert view.exit.ended == 6.0


def test_absence_from_the_queue_is_no_success_and_ends_as_lost(engine: Engine) -> None:
    batch_id = engine.submitted()
    engine.started(batch_id)
    engine.scheduler.purge()
    engine.monitor.poll()
    assert engine.view().state is JobState.RUNNING
    engine.clock.advance(601)
    engine.monitor.poll()
    assert engine.view().state is JobState.LOST
    assert "no exit record" in engine.view().reason


@pytest.mark.parametrize(
    ("raw", "state"),
    [
        ("TIMEOUT", JobState.TIMEOUT),
        ("OUT_OF_MEMORY", JobState.OUT_OF_MEMORY),
        ("CANCELLED", JobState.CANCELLED),
        ("DEADLINE", JobState.DEADLINE),
    ],
)
def test_an_end_by_a_signal_is_named_by_the_queue(engine: Engine, raw: str, state: JobState) -> None:
    batch_id = engine.submitted(escalations=0)
    engine.started(batch_id)
    engine.ended(batch_id, 143, signal=15)
    assert engine.view().state is JobState.RUNNING, "nobody knows yet who sent the signal"
    engine.scheduler.show(batch_id, state, raw)
    engine.monitor.poll()
    assert engine.view().state is state
    assert engine.view().exit is not None


def test_a_clock_that_is_set_loses_no_job(engine: Engine) -> None:
    batch_id = engine.submitted()
    engine.started(batch_id)
    engine.scheduler.purge()
    engine.monitor.poll()
    engine.clock.jump(86_400)
    engine.monitor.poll()
    assert engine.view().state is JobState.RUNNING
    engine.clock.jump(-7 * 86_400)
    engine.clock.advance(601)
    engine.monitor.poll()
    assert engine.view().state is JobState.LOST


def test_one_wrong_answer_of_the_queue_after_a_long_silence_loses_no_job(engine: Engine) -> None:
    batch_id = engine.submitted()
    engine.started(batch_id)
    engine.scheduler.show(batch_id, JobState.RUNNING, "RUNNING")
    present = list(engine.scheduler.entries)
    engine.clock.advance(3600)  # the controller could not be asked all the while
    engine.scheduler.purge()
    engine.monitor.poll()
    assert engine.view().state is JobState.RUNNING
    engine.scheduler.entries = present
    engine.monitor.poll()
    engine.clock.advance(3600)
    engine.scheduler.purge()
    engine.monitor.poll()
    assert engine.view().state is JobState.RUNNING


def test_an_end_by_a_signal_that_nobody_explains_is_a_failure_in_the_end(engine: Engine) -> None:
    batch_id = engine.submitted()
    engine.started(batch_id)
    engine.ended(batch_id, 137)
    engine.scheduler.purge()
    engine.monitor.poll()
    assert engine.view().state is JobState.RUNNING
    engine.clock.advance(30)
    engine.monitor.poll()
    assert (engine.view().state, engine.view().reason) == (JobState.FAILED, "ended by signal 9 (exit code 137)")


def test_completing_hides_the_final_state(engine: Engine) -> None:
    batch_id = engine.submitted(escalations=0)
    engine.started(batch_id)
    engine.ended(batch_id, 143, signal=15)
    engine.scheduler.show(batch_id, JobState.RUNNING, "COMPLETING", ending=True)
    engine.monitor.poll()
    assert engine.view().state is JobState.RUNNING
    engine.scheduler.show(batch_id, JobState.TIMEOUT, "TIMEOUT")
    engine.monitor.poll()
    assert engine.view().state is JobState.TIMEOUT


def test_a_spot_reclaim_that_slurm_requeued_is_the_same_job(engine: Engine) -> None:
    batch_id = engine.submitted()
    engine.started(batch_id)
    engine.ended(batch_id, 143, signal=15)
    engine.scheduler.show(batch_id, JobState.QUEUED, "PENDING", reason="BeginTime")
    engine.monitor.poll()
    assert not engine.view().state.terminal
    engine.started(batch_id, restart=1)
    engine.ended(batch_id, 0, restart=1)
    assert (engine.view().state, engine.view().attempt) == (JobState.COMPLETED, 2)


def test_an_unknown_state_name_is_reported_and_changes_nothing(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    batch_id = engine.submitted()
    engine.scheduler.show(batch_id, None, "QUANTUM")
    engine.monitor.poll()
    assert engine.view().state is JobState.QUEUED
    assert "QUANTUM" in caplog.text


def test_why_a_job_waits_is_told_in_words(engine: Engine) -> None:
    batch_id = engine.submitted()
    engine.scheduler.show(batch_id, JobState.QUEUED, "PENDING", reason="(Priority)")
    engine.monitor.poll()
    assert engine.view().reason == "waiting behind jobs of higher priority (Priority)"


def test_cancel_asks_until_the_job_is_gone(engine: Engine) -> None:
    batch_id = engine.submitted()
    engine.started(batch_id)
    engine.ledger.cancel("run", None)
    engine.monitor.poll()
    engine.monitor.poll()
    assert engine.scheduler.cancelled == ["101", "101"]
    engine.ended(batch_id, 143, signal=15)
    engine.scheduler.show(batch_id, JobState.CANCELLED, "CANCELLED")
    engine.monitor.poll()
    assert (engine.view().state, engine.view().reason) == (JobState.CANCELLED, "cancelled")
    engine.monitor.poll()
    assert engine.scheduler.cancelled == ["101", "101"]


def test_a_cancelled_job_does_not_begin_from_a_copy_that_the_queue_hides(tmp_path: Path) -> None:
    engine = Engine(f"sqlite:///{tmp_path / 'l.db'}", MemoryScheduler(transport=LocalTransport()), ManualClock())
    engine.monitor = Monitor(
        engine.ledger,
        engine.scheduler,
        engine.clock,
        cluster="default",
        spool=str(tmp_path),
        poll_s=30,
        lost_after_s=600,
    )
    folder = Folder(str(tmp_path), engine.submitted(2))
    Path(folder.path).mkdir(parents=True)
    Path(folder.path, "manifest").write_text(manifest([f"touch {tmp_path}/ran.{position}" for position in (0, 1)])[0])
    engine.ledger.cancel("run", [job_key("run", "t0")])
    engine.monitor.poll()
    for position in (0, 1):
        job = ["bash", "-c", job_script(folder)]
        subprocess.run(job, env=os.environ | {"SLURM_ARRAY_TASK_ID": str(position)}, check=False, timeout=60)
    assert sorted(path.name for path in tmp_path.glob("ran.*")) == ["ran.1"]
    engine.database.close()


def test_of_two_copies_of_a_submission_the_living_one_counts_and_cancel_reaches_both(engine: Engine) -> None:
    batch_id = engine.submitted()
    copies = [
        Entry(batch_id, None, "101", JobState.RUNNING, "RUNNING"),
        Entry(batch_id, None, "102", JobState.FAILED, "FAILED"),
    ]
    for entries in (copies, copies[::-1]):
        engine.scheduler.entries = entries
        engine.monitor.poll()
        assert engine.view().state is JobState.RUNNING
    engine.scheduler.entries = [Entry(batch_id, None, "102", JobState.QUEUED, "PENDING")]
    engine.ledger.cancel("run", None)
    engine.monitor.poll()
    assert engine.scheduler.cancelled == ["101", "102"]


def test_a_job_that_began_proves_that_its_submission_was_accepted(engine: Engine) -> None:
    engine.scheduler.answers = ["lose after", Unclear("Socket timed out on send/recv operation")]
    engine.want()
    with pytest.raises(ConnectionLost):
        engine.submitter.round()
    (batch_id,) = engine.scheduler.jobs
    engine.started(batch_id)
    engine.ended(batch_id, 0)
    engine.scheduler.purge()
    engine.submitter.round()
    engine.clock.advance(AMBIGUITY_S + 1)
    engine.submitter.round()
    assert engine.ledger.batch(batch_id).state == "ACCEPTED"
    assert engine.view().state is JobState.COMPLETED
    assert engine.scheduler.trips == 2


def test_events_of_other_agents_are_ignored(engine: Engine) -> None:
    batch_id = engine.submitted()
    engine.ended("bffffffffffffffff", 0)
    engine.ended(batch_id, 0, position=5)
    assert engine.view().state is JobState.QUEUED


def test_waiting_elements_of_a_cancelled_array_are_known_by_the_array_s_record(engine: Engine) -> None:
    batch_id = engine.submitted(3)
    engine.started(batch_id, position=0)
    engine.ledger.cancel("run", None)
    engine.scheduler.purge()
    engine.scheduler.entries = [
        Entry(batch_id, 0, "101_0", JobState.RUNNING, "COMPLETING", ending=True),
        Entry(batch_id, None, "101", JobState.CANCELLED, "CANCELLED", "JobArrayTaskLimit"),
    ]
    engine.monitor.poll()
    assert [engine.view(i).state for i in range(3)] == [JobState.RUNNING, JobState.CANCELLED, JobState.CANCELLED]
