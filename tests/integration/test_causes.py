"""How jobs end on a real Slurm, and what is said of it: each cause is told apart, with accounting and without."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import pytest

from bbpwf.cluster.agent import Agent, BoundAgent
from bbpwf.cluster.jobs import JobSpec, JobView, Resources
from bbpwf.states import JobState
from tests.support.agents import Site, spec, wait_ended, wait_for
from tests.support.clusters import RealCluster, real_cluster

pytestmark = pytest.mark.slurm

# No cgroups in a container: Slurm's own watch over memory ends the job, and calls that FAILED (JobLaunchFailure).
MEMORY_IS_WATCHED = """JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
"""
EATS = """python3 -c '
import time
eaten = bytearray(200_000_000)
eaten[::4096] = b"x" * len(eaten[::4096])
time.sleep(6 if len(eaten) else 0)
'"""
WAITS = "echo begun >> begun.$BBPWF_JOB_KEY; [ $(wc -l < begun.$BBPWF_JOB_KEY) -gt 1 ] || sleep 300"


@dataclass
class Scene:
    """A cluster, an agent on it, and an operator at its head node."""

    cluster: RealCluster
    agent: Agent

    @property
    def run(self) -> BoundAgent:
        return self.agent.for_run("r1")

    def operator(self, *argv: str) -> str:
        done = self.cluster.slurm.command(*argv)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def running(self, job: JobSpec) -> JobView:
        return wait_for(self.run, [job.key], lambda view: view.state is JobState.RUNNING)[job.key]

    def at_once(self, job_id: str) -> None:
        """Slurm lets a requeued job wait for two minutes; the operator is less patient."""
        deadline = time.monotonic() + 30
        while "JobState=PENDING" not in self.operator("scontrol", "show", "job", job_id):
            assert time.monotonic() < deadline, f"{job_id} was not requeued"
            time.sleep(0.2)
        # not in the second in which it was killed: slurmd would refuse to start it ("already killed")
        self.operator("scontrol", "update", f"jobid={job_id}", "starttime=now+3")

    def reasons(self, job: JobSpec) -> list[tuple[int, str, str]]:
        return [(h["attempt"], h["state"], h["reason"]) for h in self.agent.ledger.history(job.key) if h["reason"]]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(False, id="no accounting"),
        pytest.param(True, id="slurmdbd", marks=pytest.mark.accounting),
    ],
)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    options = {"nodes": 2, "select": "CR_CPU_Memory", "extra": MEMORY_IS_WATCHED}
    with real_cluster(with_accounting=request.param, **options) as cluster:
        site = Site(tmp_path_factory.mktemp("a"), cluster.settings("d"), lambda: cluster.connector(site.settings))
        yield Scene(cluster, site.agent())
        site.close()


def test_memory_that_ran_out_is_named_and_the_next_attempt_has_more(scene: Scene) -> None:
    job = spec("r1", "memory", EATS, resources=Resources(memory_mb=130), escalations=1)
    scene.run.submit([job])
    view = wait_ended(scene.run, [job.key], 90)[job.key]
    assert (view.state, view.attempt) == (JobState.COMPLETED, 2)
    (retry,) = [reason for _, state, reason in scene.reasons(job) if state == "PLANNED"]
    assert retry == (
        "attempt 1 ended OUT_OF_MEMORY: used more memory than it asked for; trying again with 260 MiB of memory per node"
    )


def test_the_limits_of_partitions_are_known(scene: Scene) -> None:
    backend = scene.agent.cluster().connected().backend
    limits = backend.limits(Resources(partition="prod-batch"))
    assert (limits.time, limits.memory_mb) == (timedelta(hours=2), 32_000)
    assert backend.limits(Resources()).name == "debug", "the default"


def test_a_time_limit_is_named(scene: Scene) -> None:
    job = spec("r1", "time", "sleep 600", resources=Resources(time_limit=timedelta(minutes=1)), escalations=0)
    scene.run.submit([job])
    view = wait_ended(scene.run, [job.key], 150)[job.key]
    assert (view.state, view.reason) == (JobState.TIMEOUT, "reached its time limit")


def test_a_cancel_from_outside_is_told_from_ours(scene: Scene) -> None:
    theirs, ours = (spec("r1", name, "sleep 300") for name in ("theirs", "ours"))
    scene.run.submit([theirs, ours])
    scene.operator("scancel", scene.running(theirs).scheduler_id)
    scene.running(ours)
    scene.run.cancel([ours.key])
    ends = wait_ended(scene.run, [theirs.key, ours.key])
    assert (ends[theirs.key].state, ends[theirs.key].reason) == (JobState.CANCELLED, "cancelled outside of bbpwf")
    assert (ends[ours.key].state, ends[ours.key].reason) == (JobState.CANCELLED, "cancelled")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("node", "its node failed; Slurm put it back into the queue"),
        ("requeue", "requeued outside of bbpwf (scontrol requeue)"),
    ],
)
def test_a_lost_node_and_a_requeue_are_told_apart_and_the_job_goes_on(scene: Scene, how: str, words: str) -> None:
    job = spec("r1", how, WAITS)
    scene.run.submit([job])
    view = scene.running(job)
    node = scene.operator("squeue", "-h", "-o", "%N", "-j", view.scheduler_id).strip()
    if how == "node":
        scene.operator("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    else:
        scene.operator("scontrol", "requeue", view.scheduler_id)
    again = wait_for(scene.run, [job.key], lambda view: view.attempt == 2)[job.key]
    assert again.state is JobState.QUEUED
    assert words in [reason for _, _, reason in scene.reasons(job)]
    if how == "node":
        scene.operator("scontrol", "update", f"nodename={node}", "state=resume")
    scene.at_once(view.scheduler_id)
    end = wait_ended(scene.run, [job.key], 90)[job.key]
    assert (end.state, end.attempt, end.scheduler_id) == (JobState.COMPLETED, 2, view.scheduler_id)
    assert scene.run.read(f"begun.{job.key}") == b"begun\nbegun\n"


def test_a_lost_node_ends_a_job_that_slurm_may_not_requeue_and_it_is_tried_again_by_us(scene: Scene) -> None:
    job = spec("r1", "not requeued", WAITS, requeue=False, infrastructure_retries=1)
    scene.run.submit([job])
    view = scene.running(job)
    node = scene.operator("squeue", "-h", "-o", "%N", "-j", view.scheduler_id).strip()
    scene.operator("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    wait_for(scene.run, [job.key], lambda view: view.attempt == 2)
    scene.operator("scontrol", "update", f"nodename={node}", "state=resume")
    end = wait_ended(scene.run, [job.key], 90)[job.key]
    assert (end.state, end.attempt) == (JobState.COMPLETED, 2), (end, scene.reasons(job))
    assert end.scheduler_id != view.scheduler_id, "another job of Slurm's"
    (ended,) = [reason for attempt, state, reason in scene.reasons(job) if (attempt, state) == (1, "NODE_FAIL")]
    (retry,) = [reason for attempt, state, reason in scene.reasons(job) if (attempt, state) == (2, "PLANNED")]
    assert ended == "its node failed"
    assert retry == "attempt 1 ended NODE_FAIL: its node failed; trying again"


def test_accounting_knows_how_jobs_ended(scene: Scene) -> None:
    if "slurmdbd" not in scene.cluster.running:
        assert scene.agent.cluster().connected().backend.accounted(["1"]) == {}, "there is none to ask"
        return
    job = spec("r1", "accounted", "sleep 300", resources=Resources(memory_mb=50))
    scene.run.submit([job])
    view = scene.running(job)
    scene.operator("scancel", view.scheduler_id)
    end = wait_ended(scene.run, [job.key])[job.key]
    backend = scene.agent.cluster().connected().backend
    told = backend.accounted([end.scheduler_id, "99999"])
    assert [(e.scheduler_id, e.state) for e in told.values()] == [(view.scheduler_id, JobState.CANCELLED)]
