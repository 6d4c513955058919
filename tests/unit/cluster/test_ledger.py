"""The ledger: intents are kept, states go forward only, one writer at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bbpwf.clock import SystemClock
from bbpwf.cluster.changes import Sighting
from bbpwf.cluster.database import Database, open_database
from bbpwf.cluster.jobs import ExitRecord, JobSpec, Resources, job_key
from bbpwf.cluster.ledger import Ledger
from bbpwf.cluster.submission import pack
from bbpwf.errors import Conflict, LedgerError, NotFound
from bbpwf.states import JobState


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = open_database(database_url)
    yield opened
    opened.close()


@pytest.fixture
def ledger(database: Database) -> Ledger:
    made = Ledger(database, SystemClock())
    made.claim()
    return made


def spec(task: str, **more: object) -> JobSpec:
    values = {"key": job_key("run", task), "run_id": "run", "task_id": task, "script": f"echo {task}"}
    return JobSpec.model_validate(values | more)


def send(ledger: Ledger, *specs: JobSpec, scheduler_id: str = "500") -> str:
    """Plan, prepare and accept these jobs as one submission; answers its id."""
    ledger.plan(specs, 1)
    (batch,) = ledger.prepare("default", [ledger.planned("default", 100)], lambda b, i: f"/spool/{b}/log.{i}")
    ledger.mark_sent([batch.batch_id])
    ledger.accept(batch.batch_id, scheduler_id)
    return batch.batch_id


def state(ledger: Ledger, wanted: JobSpec) -> tuple[JobState, int]:
    view, _ = ledger.job(wanted.key)
    return view.state, view.attempt


def record(code: int, restart: int = 0) -> ExitRecord:
    return ExitRecord(code=code, started=10.0, ended=20.0, node="n1", restart=restart)


def test_asking_twice_is_asking_once(ledger: Ledger) -> None:
    first = ledger.plan([spec("a")], 1)
    second = ledger.plan([spec("a")], 1)
    assert first == second
    assert len(ledger.planned("default", 10)) == 1


def test_the_same_key_for_another_script_is_refused(ledger: Ledger) -> None:
    ledger.plan([spec("a")], 1)
    with pytest.raises(Conflict, match="another script"):
        ledger.plan([spec("a", script="echo other")], 1)


def test_elements_of_a_submission_get_their_ids_and_logs(ledger: Ledger) -> None:
    one, two = spec("a"), spec("b")
    batch_id = send(ledger, one, two)
    views = ledger.observe("run", 0, 0).jobs
    assert [(v.scheduler_id, v.state) for v in views] == [("500_0", JobState.QUEUED), ("500_1", JobState.QUEUED)]
    assert views[1].stdout == f"/spool/{batch_id}/log.1"


def test_a_job_that_started_before_its_answer_came_keeps_running(ledger: Ledger) -> None:
    job = spec("a")
    ledger.plan([job], 1)
    (batch,) = ledger.prepare("default", [ledger.planned("default", 10)], lambda b, i: "/log")
    ledger.see([Sighting(batch.batch_id, 0, JobState.RUNNING, 5.0, "event", scheduler_id="7")])
    ledger.accept(batch.batch_id, "7")
    view, _ = ledger.job(job.key)
    assert (view.state, view.started_at, view.submitted_at) == (JobState.RUNNING, 5.0, 5.0)


def test_late_and_repeated_sightings_change_nothing(ledger: Ledger) -> None:
    job = spec("a")
    batch_id = send(ledger, job)
    ended = Sighting(batch_id, 0, JobState.COMPLETED, 20.0, "event", exit=record(0))
    ledger.see([ended])
    before = ledger.observe("run", 0, 0)
    ledger.see([Sighting(batch_id, 0, JobState.RUNNING, 10.0, "event"), ended])
    ledger.see([Sighting(batch_id, 0, JobState.FAILED, 30.0, "queue")])
    assert ledger.observe("run", 0, 0) == before
    assert ledger.observe("run", before.version, 0).jobs == ()


def test_a_requeue_is_the_next_attempt_of_the_same_job(ledger: Ledger) -> None:
    job = spec("a")
    batch_id = send(ledger, job)
    ledger.see([Sighting(batch_id, 0, JobState.RUNNING, 1.0, "event", restart=0)])
    ledger.see([Sighting(batch_id, 0, JobState.RUNNING, 9.0, "event", restart=1)])
    assert state(ledger, job) == (JobState.RUNNING, 2)
    ledger.see([Sighting(batch_id, 0, JobState.COMPLETED, 2.0, "event", restart=0, exit=record(0))])
    assert state(ledger, job) == (JobState.RUNNING, 2), "an older attempt's end is not the present one's"
    ledger.see([Sighting(batch_id, 0, JobState.COMPLETED, 20.0, "event", restart=1, exit=record(0, 1))])
    assert state(ledger, job) == (JobState.COMPLETED, 2)


@pytest.mark.parametrize(
    ("how", "more", "after"),
    [
        (JobState.NODE_FAIL, {}, JobState.PLANNED),
        (JobState.NODE_FAIL, {"infrastructure_retries": 0}, JobState.NODE_FAIL),
        (JobState.LOST, {}, JobState.LOST),
        (JobState.FAILED, {}, JobState.FAILED),
        (JobState.FAILED, {"retries": 1}, JobState.PLANNED),
        (JobState.TIMEOUT, {"retries": 5, "escalations": 0}, JobState.TIMEOUT),
    ],
)
def test_what_is_tried_again_is_decided_by_its_cause(
    ledger: Ledger, how: JobState, more: dict[str, object], after: JobState
) -> None:
    job = spec("a", **more)
    batch_id = send(ledger, job)
    ledger.see([Sighting(batch_id, 0, how, 20.0, "queue")])
    assert state(ledger, job)[0] is after


def test_retries_are_counted(ledger: Ledger) -> None:
    job = spec("a", retries=2)
    for attempt in (1, 2, 3):
        batch_id = send(ledger, job)
        assert state(ledger, job) == (JobState.QUEUED, attempt)
        ledger.see([Sighting(batch_id, 0, JobState.FAILED, 20.0, "event", exit=record(1))])
    assert state(ledger, job) == (JobState.FAILED, 3)


def test_a_resumed_run_tries_what_ended_again_and_keeps_what_runs(ledger: Ledger) -> None:
    failed, running = spec("a"), spec("b")
    batch_id = send(ledger, failed, running)
    ledger.see([Sighting(batch_id, 0, JobState.FAILED, 20.0, "event", exit=record(1))])
    ledger.see([Sighting(batch_id, 1, JobState.RUNNING, 20.0, "event")])
    ledger.plan([failed, running], 1)
    assert state(ledger, failed) == (JobState.FAILED, 1), "a restarted head gets the end that there was"
    ledger.plan([failed, running], 2)
    assert state(ledger, failed) == (JobState.PLANNED, 2)
    assert state(ledger, running) == (JobState.RUNNING, 1)


def test_cancel_ends_what_was_never_sent_and_marks_the_rest(ledger: Ledger) -> None:
    sent, unsent = spec("a"), spec("b")
    send(ledger, sent)
    ledger.plan([unsent], 1)
    ledger.cancel("run", None)
    ledger.cancel("run", None)
    assert state(ledger, unsent)[0] is JobState.CANCELLED
    assert state(ledger, sent)[0] is JobState.QUEUED
    assert [job.cancel for job in ledger.live("default")] == [True]
    assert ledger.planned("default", 10) == []


def test_a_submission_put_off_and_cancelled_is_given_up(ledger: Ledger) -> None:
    job = spec("a")
    ledger.plan([job], 1)
    (batch,) = ledger.prepare("default", [ledger.planned("default", 10)], lambda b, i: "/log")
    ledger.mark_sent([batch.batch_id])
    ledger.put_off(batch.batch_id, "a limit of the site")
    assert ledger.job(job.key)[0].reason == "a limit of the site"
    ledger.cancel("run", None)
    ledger.abandon_cancelled("default")
    assert state(ledger, job)[0] is JobState.CANCELLED
    assert ledger.open_batches("default") == []


def test_a_rejected_submission_names_its_reason(ledger: Ledger) -> None:
    job = spec("a")
    ledger.plan([job], 1)
    (batch,) = ledger.prepare("default", [ledger.planned("default", 10)], lambda b, i: "/log")
    ledger.reject(batch.batch_id, "Invalid partition name specified")
    view, _ = ledger.job(job.key)
    assert (view.state, view.reason) == (JobState.REJECTED, "Invalid partition name specified")


def test_an_older_agent_can_write_no_more(database: Database, ledger: Ledger) -> None:
    ledger.plan([spec("a")], 1)
    newer = Ledger(database, SystemClock())
    newer.claim()
    with pytest.raises(LedgerError, match="another agent"):
        ledger.plan([spec("b")], 1)
    assert newer.ledger_id == ledger.ledger_id
    assert [p.spec.task_id for p in newer.planned("default", 10)] == ["a"]


def test_a_job_is_answered_for_alike_however_it_is_asked_for(ledger: Ledger) -> None:
    job, other = spec("a"), spec("b")
    batch_id = send(ledger, job, other)
    ledger.see([Sighting(batch_id, 0, JobState.FAILED, 20.0, "record", exit=record(3), reason="exit code 3")])
    for each in (job, other):
        assert ledger.view(each.key) == ledger.job(each.key)[0]
    with pytest.raises(NotFound):
        ledger.view("j-none")


def test_history_tells_who_saw_what(ledger: Ledger) -> None:
    job = spec("a")
    batch_id = send(ledger, job)
    ledger.see([Sighting(batch_id, 0, JobState.COMPLETED, 20.0, "record", exit=record(0))])
    told = [(entry["state"], entry["witness"]) for entry in ledger.history(job.key)]
    assert told == [("PLANNED", "agent"), ("SUBMITTING", "agent"), ("QUEUED", "agent"), ("COMPLETED", "record")]


_SIGHTINGS = st.lists(
    st.tuples(st.sampled_from([s for s in JobState if s.rank >= 2 and s is not JobState.REJECTED]), st.integers(0, 2)),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(seen=_SIGHTINGS)
def test_whatever_is_seen_in_whatever_order_nothing_goes_back(
    seen: list[tuple[JobState, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    database = open_database(f"sqlite:///{tmp_path_factory.mktemp('l') / 'ledger.db'}")
    ledger = Ledger(database, SystemClock())
    ledger.claim()
    job = spec("a", infrastructure_retries=0)
    batch_id = send(ledger, job)
    for sighted, restart in seen:
        ledger.see([Sighting(batch_id, 0, sighted, 1.0, "queue", restart=restart)])
    steps = [(entry["attempt"], JobState(entry["state"]).rank) for entry in ledger.history(job.key)]
    assert steps == sorted(set(steps)), "each step is later than all before it"
    terminal = [entry for entry in ledger.history(job.key) if JobState(entry["state"]).terminal]
    assert len(terminal) <= 1, "an end is final"
    database.close()


def test_compatible_jobs_share_an_array_and_others_do_not(ledger: Ledger) -> None:
    big = Resources(memory_mb=1000)
    specs = [spec(f"s{i}") for i in range(5)] + [spec("big", resources=big)] + [spec("named", name="other")]
    ledger.plan(specs, 1)
    groups = pack(ledger.planned("default", 100), array_limit=3)
    assert [[p.spec.task_id for p in group] for group in groups] == [
        ["s0", "s1", "s2"],
        ["s3", "s4"],
        ["big"],
        ["named"],
    ]
