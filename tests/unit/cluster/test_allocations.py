"""Allocations: asked for once, filled while they live, followed by the next; and the script that runs steps in them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from bbpwf.cluster.allocations import AllocatingBackend
from bbpwf.cluster.database import open_database
from bbpwf.cluster.jobs import Allocation, JobSpec, JobView, Resources, job_key
from bbpwf.cluster.ledger import Ledger
from bbpwf.cluster.monitor import Monitor
from bbpwf.cluster.spool import EventReader
from bbpwf.cluster.steps import Steps, read_look, step_of
from bbpwf.cluster.submission import Submitter
from bbpwf.errors import ConnectionLost
from bbpwf.states import JobState
from bbpwf.transport.local import LocalTransport
from tests.support.clock import ManualClock
from tests.support.scheduler import MemoryScheduler

SHARED = Allocation(name="shared", resources=Resources(ntasks=4), idle_s=1)


class Rig:
    """The real ledger, submitter and monitor on a spool on disk; the scheduler's jobs are started by the test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spool = root / "spool"
        (self.spool / "batches").mkdir(parents=True, exist_ok=True)
        self.clock = ManualClock()
        self.transport = LocalTransport(command_timeout=30)
        self.scheduler = MemoryScheduler(transport=self.transport)
        self.database = open_database(f"sqlite:///{root / 'l.db'}")
        self.ledger = Ledger(self.database, self.clock)
        self.runners: list[subprocess.Popen[bytes]] = []
        self._reader = EventReader()
        self.restart()

    def restart(self) -> None:
        """A new agent on the same ledger, spool and scheduler."""
        self.ledger.claim()
        spool = str(self.spool)
        self.backend = AllocatingBackend(
            self.scheduler, self.ledger, self.clock, cluster="default", spool=spool, on_planned=lambda: None
        )
        self.submitter = Submitter(
            self.ledger,
            self.backend,
            self.clock,
            cluster="default",
            spool=spool,
            data_root=str(self.root),
            software="",
        )
        self.monitor = Monitor(
            self.ledger, self.backend, self.clock, cluster="default", spool=spool, poll_s=30, lost_after_s=600
        )

    def want(self, name: str, script: str = "true", **more: object) -> str:
        values = {"key": job_key("run", name), "run_id": "run", "task_id": name, "script": script}
        spec = JobSpec.model_validate(values | {"allocation": SHARED} | more)
        self.ledger.plan([spec], 1)
        return spec.key

    def rounds(self) -> None:
        """Send steps, and then the allocation that they made necessary."""
        self.submitter.round()
        self.submitter.round()

    def view(self, key: str) -> JobView:
        return self.ledger.job(key)[0]

    def asked(self, key: str) -> JobView:
        """A job after the queue was asked."""
        self.monitor.poll()
        return self.view(key)

    def holder(self, generation: int = 0) -> JobView:
        return self.view(job_key("run", "allocation shared", generation))

    def batch_of(self, key: str) -> str:
        (batch,) = [each for each in self.ledger.live("default") if each.key == key]
        return batch.batch_id

    def start(self, generation: int = 0, cpus: str = "4", slurm_id: str = "57") -> subprocess.Popen[bytes]:
        """Start the job that holds the nodes, as the scheduler would."""
        batch_id = self.batch_of(self.holder(generation).key)
        self.scheduler.show(batch_id, JobState.RUNNING, "RUNNING")
        env = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": slurm_id, "SLURM_JOB_CPUS_PER_NODE": cpus}
        env |= {"SLURMD_NODENAME": "n1", "SLURM_JOB_NUM_NODES": "1"}
        runner = subprocess.Popen(["bash", "-c", self.scheduler.jobs[batch_id].scripts[0]], env=env)
        self.runners.append(runner)
        return runner

    def show_end(self, state: JobState, generation: int = 0) -> None:
        self.scheduler.show(self.batch_of(self.holder(generation).key), state, state.value)

    def hear(self) -> None:
        """Take in what was appended to the event file."""
        file = self.spool / "events"
        if file.exists():
            self.monitor.take(self._reader.feed(file.read_bytes()[self._reader.offset :]))

    def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"it did not come true within {seconds:.0f} s"
            time.sleep(0.02)
            self.hear()

    def close(self) -> None:
        for runner in self.runners:
            if runner.poll() is None:
                runner.terminate()
                runner.wait(20)
        self.transport.close()
        self.database.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


def test_steps_of_one_name_make_one_job_of_the_scheduler(rig: Rig) -> None:
    keys = [rig.want(name) for name in ("A", "B", "C")]
    rig.rounds()
    later = rig.want("D")
    rig.rounds()
    (submission,) = rig.scheduler.jobs.values()
    assert submission.resources == SHARED.resources
    assert not submission.requeue, "nodes that failed end their steps; the next ones are a new allocation"
    assert {rig.view(key).state for key in [*keys, later]} == {JobState.QUEUED}


def test_a_step_runs_with_everything_that_a_job_leaves(rig: Rig) -> None:
    key = rig.want("A", "echo said; exit 3")
    rig.rounds()
    rig.start()
    rig.until(lambda: rig.view(key).state.terminal)
    view = rig.view(key)
    assert (view.state, view.reason) == (JobState.FAILED, "exit code 3")
    assert view.exit is not None
    assert Path(view.stdout).read_text() == "said\n"
    assert step_of(view.scheduler_id) is not None
    assert view.scheduler_id.startswith("57/")


def test_a_step_whose_answer_was_lost_is_asked_for_again_and_runs_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = rig.want("A", "echo ran >> ran")
    real = rig.transport.run
    cut = iter([False, True, False, False])  # the folder is made; the answer to the request is lost

    def lossy(*args: object, **more: object) -> object:
        done = real(*args, **more)  # type: ignore[arg-type]  # passed on as it came
        if next(cut, False):
            raise ConnectionLost("cut after the request was written")
        return done

    with monkeypatch.context() as patched:
        patched.setattr(rig.transport, "run", lossy)
        with pytest.raises(ConnectionLost):
            rig.submitter.round()
    rig.restart()
    rig.rounds()
    requests = (rig.spool / "allocations" / rig.holder().key / "requests").read_text().splitlines()
    assert len(requests) == 2
    assert len(rig.scheduler.jobs) == 1
    rig.start()
    rig.until(lambda: rig.view(key).state is JobState.COMPLETED)
    assert (rig.root / "runs" / "run" / "ran").read_text() == "ran\n"


def test_an_allocation_that_closed_is_followed_by_the_next(rig: Rig) -> None:
    first = rig.want("A")
    rig.rounds()
    runner = rig.start()
    rig.until(lambda: rig.view(first).state is JobState.COMPLETED)
    assert runner.wait(20) == 0, "idle: it ends by itself, and well"
    second = rig.want("B")
    rig.rounds()  # the ledger still takes the first for alive; its folder says otherwise
    assert rig.holder(1).state is JobState.QUEUED
    assert rig.view(second).state is JobState.QUEUED
    rig.start(1, slurm_id="58")
    rig.until(lambda: rig.view(second).state is JobState.COMPLETED)
    assert rig.view(second).scheduler_id.startswith("58/")


def test_steps_end_as_their_allocation_does(rig: Rig) -> None:
    begun = rig.want("Begun", "sleep 300", infrastructure_retries=0)
    rig.rounds()
    waits = rig.want("Waits", "sleep 300", resources=Resources(cpus_per_task=4), infrastructure_retries=0)
    rig.rounds()
    runner = rig.start()
    rig.until(lambda: rig.view(begun).state is JobState.RUNNING)
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(20) == 143
    rig.show_end(JobState.NODE_FAIL)
    rig.until(lambda: rig.asked(begun).state.terminal)
    for key in (begun, waits):
        assert (rig.view(key).state, rig.view(key).reason) == (
            JobState.NODE_FAIL,
            "its allocation ended: its node failed",
        )


def test_a_step_that_never_began_goes_into_the_next_allocation_after_a_time_limit(rig: Rig) -> None:
    begun = rig.want("Begun", "sleep 300", resources=Resources(cpus_per_task=4), escalations=0)
    rig.rounds()
    waits = rig.want("Waits", "echo ran >> ran")
    rig.rounds()
    runner = rig.start()
    rig.until(lambda: rig.view(begun).state is JobState.RUNNING)
    runner.send_signal(signal.SIGTERM)
    runner.wait(20)
    rig.show_end(JobState.TIMEOUT)
    rig.monitor.poll()
    rig.monitor.poll()
    assert rig.view(begun).state is JobState.TIMEOUT
    assert not rig.view(waits).state.terminal
    rig.rounds()
    rig.start(1, slurm_id="58")
    rig.until(lambda: rig.view(waits).state is JobState.COMPLETED)
    assert (rig.view(waits).attempt, (rig.root / "runs" / "run" / "ran").read_text()) == (1, "ran\n")


def test_a_refused_allocation_refuses_its_steps(rig: Rig) -> None:
    key = rig.want("A")
    rig.submitter.round()
    rig.ledger.reject(
        rig.ledger.prepare("default", [rig.ledger.planned("default", 9)], "{0}{1}".format)[0].batch_id, "no"
    )
    rig.monitor.poll()
    assert (rig.view(key).state, rig.view(key).reason) == (JobState.REJECTED, "its allocation was refused: no")


def test_a_cancelled_step_that_waits_never_begins(rig: Rig) -> None:
    key, other = rig.want("A", "echo ran >> ran"), rig.want("B")
    rig.rounds()
    rig.ledger.cancel("run", [key])
    rig.monitor.poll()
    rig.monitor.poll()
    assert rig.view(key).state is JobState.CANCELLED
    rig.start()
    rig.until(lambda: rig.view(other).state is JobState.COMPLETED)
    assert not (rig.root / "runs" / "run" / "ran").exists()


def test_a_restarted_agent_knows_its_steps_again(rig: Rig) -> None:
    key = rig.want("A", "while [ ! -e go ]; do sleep 0.05; done")
    rig.rounds()
    rig.start()
    rig.until(lambda: rig.view(key).state is JobState.RUNNING)
    rig.restart()
    rig.monitor.poll()
    assert rig.view(key).state is JobState.RUNNING
    (rig.root / "runs" / "run" / "go").touch()
    rig.until(lambda: rig.view(key).state is JobState.COMPLETED)


def test_an_allocation_that_nobody_needs_any_more_stops_waiting_for_nodes(rig: Rig) -> None:
    key = rig.want("A")
    rig.rounds()
    rig.ledger.cancel("run", [key])
    rig.monitor.poll()
    rig.monitor.poll()
    rig.monitor.poll()
    assert not rig.holder().state.terminal
    rig.clock.advance(61)
    rig.monitor.poll()
    assert rig.scheduler.cancelled[-1:] == [rig.holder().scheduler_id]


def test_at_the_end_of_the_run_it_ends_after_its_last_step(rig: Rig) -> None:
    patient = SHARED.model_copy(update={"idle_s": 3600})
    key = rig.want("A", "while [ ! -e go ]; do sleep 0.05; done", allocation=patient)
    rig.rounds()
    runner = rig.start()
    rig.until(lambda: rig.view(key).state is JobState.RUNNING)
    rig.monitor.poll()
    rig.backend.release("run")
    (rig.root / "runs" / "run" / "go").touch()
    assert runner.wait(20) == 0
    rig.until(lambda: rig.view(key).state is JobState.COMPLETED)


def test_steps_that_wait_in_a_released_allocation_run_and_end_it(rig: Rig) -> None:
    key = rig.want("A")
    rig.rounds()
    rig.backend.release("run")  # as at a pause; the allocation was still waiting for its nodes
    assert not rig.scheduler.cancelled
    assert rig.start().wait(20) == 0
    assert rig.asked(key).state is JobState.COMPLETED


def test_or_go_into_the_next_if_it_never_began(rig: Rig) -> None:
    key = rig.want("A")
    rig.rounds()
    rig.backend.release("run")
    rig.show_end(JobState.CANCELLED)
    rig.asked(key)
    rig.rounds()
    assert rig.holder().state is JobState.CANCELLED
    runner = rig.start(generation=1)
    rig.until(lambda: rig.view(key).state is JobState.COMPLETED)
    assert runner.wait(20) == 0


def test_a_released_allocation_that_began_unseen_does_not_take_its_steps_along(rig: Rig) -> None:
    key = rig.want("A", "while [ ! -e go ]; do sleep 0.05; done")
    rig.rounds()
    runner = rig.start()
    rig.scheduler.show(rig.batch_of(rig.holder().key), JobState.QUEUED, "PENDING")  # a controller that is behind
    rig.until(lambda: rig.view(key).state is JobState.RUNNING)
    assert rig.holder().state is JobState.QUEUED
    rig.backend.release("run")
    rig.monitor.poll()
    assert not rig.scheduler.cancelled
    (rig.root / "runs" / "run" / "go").touch()
    rig.until(lambda: rig.view(key).state is JobState.COMPLETED)
    assert (runner.wait(20), rig.view(key).attempt) == (0, 1)


def test_a_step_that_runs_stays_running_though_the_word_of_its_beginning_was_lost(rig: Rig) -> None:
    key = rig.want("A", "while [ ! -e go ]; do sleep 0.05; done")
    rig.rounds()
    rig.start()
    rig.until(lambda: rig.view(key).state is JobState.RUNNING)
    (file,) = rig.spool.glob("allocations/*/steps")
    said = file.read_text()
    file.write_text("".join(line for line in said.splitlines(keepends=True) if not line.startswith("S ")))
    assert file.read_text() != said
    assert rig.asked(key).state is JobState.RUNNING
    (rig.root / "runs" / "run" / "go").touch()
    rig.until(lambda: rig.view(key).state is JobState.COMPLETED)
    assert rig.view(key).attempt == 1


def test_an_allocation_whose_agent_is_gone_is_given_back(rig: Rig) -> None:
    patient = SHARED.model_copy(update={"idle_s": 3600})
    key = rig.want("A", allocation=patient)
    rig.rounds()
    batch_id = rig.batch_of(rig.holder().key)
    script = rig.scheduler.jobs[batch_id].scripts[0]
    assert "ORPHAN=180\n" in script
    env = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "57", "SLURM_JOB_CPUS_PER_NODE": "1"}
    runner = subprocess.Popen(["bash", "-c", script.replace("ORPHAN=180\n", "ORPHAN=2\n")], env=env)
    rig.runners.append(runner)
    rig.until(lambda: rig.view(key).state is JobState.COMPLETED)
    assert runner.wait(20) == 0


def test_cpus_of_all_nodes_count_and_a_step_that_is_too_wide_runs_alone(rig: Rig) -> None:
    meet = (
        "touch up.{}; for ((i = 0; i < 200; i++)); do [ $(ls up.* | wc -l) -eq 5 ] && exit 0; sleep 0.05; done; exit 1"
    )
    keys = [rig.want(f"T{i}", meet.format(i)) for i in range(5)]
    wide = rig.want("Wide", "rm up.*; ls", resources=Resources(ntasks=99))
    rig.rounds()
    rig.start(cpus="2(x2),1")
    rig.until(lambda: all(rig.view(key).state is JobState.COMPLETED for key in [*keys, wide]))


def test_a_throttle_can_be_changed_while_steps_run(rig: Rig) -> None:
    script = "echo . >> began; while [ ! -e go ]; do sleep 0.05; done"
    keys = [rig.want("A", script, index=i, key=job_key("run", "A", i), group="g", throttle=1) for i in range(3)]
    rig.rounds()
    began = rig.root / "runs" / "run" / "began"
    rig.start()
    rig.until(began.exists)
    for arrays in rig.ledger.throttle("run", keys, 0).values():
        rig.backend.throttle(arrays, 0)
    rig.until(lambda: began.read_text().count(".") == 3)
    (rig.root / "runs" / "run" / "go").touch()
    rig.until(lambda: all(rig.view(key).state is JobState.COMPLETED for key in keys))


def test_a_steps_time_limit_and_its_refusal_to_end(rig: Rig) -> None:
    key = rig.want("A", "trap '' TERM; sleep 300", resources=Resources(time_limit=timedelta(seconds=1)), escalations=0)
    rig.rounds()
    rig.start()
    rig.until(lambda: rig.asked(key).state.terminal, seconds=30)
    assert (rig.view(key).state, rig.view(key).reason) == (JobState.TIMEOUT, "reached its time limit")


@pytest.mark.parametrize(
    ("scheduler_id", "step"),
    [
        ("57", None),
        ("57_3", None),
        ("57/b0123_4", ("b0123", 4)),
        ("j0a1/b0123", ("b0123", 0)),
    ],
)
def test_ids_of_steps_are_told_from_ids_of_jobs(scheduler_id: str, step: tuple[str, int] | None) -> None:
    assert step_of(scheduler_id) == step


def test_what_is_not_whole_in_a_file_of_steps_says_nothing() -> None:
    steps = Steps()
    for line in ("S b1 0 .", "E b1 0 COMPLE", "E b1 x FAILED .", "", "E b1 0 FAILED .", "E b1 0 COMPLETED ."):
        steps.read(line)
    assert steps.began == {("b1", 0)}
    assert steps.ended == {("b1", 0): "FAILED"}
    seen = read_look("banner\nA k1\nS b1 0 .\nR k2\nA k2\nL b1 0\nL b1 x\n")
    assert (seen.steps["k1"].began, seen.released, seen.leases) == ({("b1", 0)}, {"k2"}, {("b1", 0)})
