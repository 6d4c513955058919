"""Jobs that share an allocation: steps in one job of the scheduler, or jobs as ever where there are no allocations."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from bbpwf.cluster.agent import BoundAgent
from bbpwf.cluster.connectors import LocalConnector
from bbpwf.cluster.jobs import Allocation, JobSpec, JobView, Resources
from bbpwf.settings import ClusterSettings
from bbpwf.states import JobState
from tests.support.agents import Site, spec, wait_ended, wait_for
from tests.support.clusters import RealCluster

NODES = Allocation(name="shared", resources=Resources(nodes=1, ntasks=4), idle_s=30)


@pytest.fixture
def local_site(tmp_path: Path) -> Iterator[Site]:
    settings = ClusterSettings(kind="local", data_root=str(tmp_path / "data"), max_local_jobs=4, poll_s=1)
    site = Site(tmp_path, settings, lambda: LocalConnector(settings))
    yield site
    site.close()


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def site(request: pytest.FixtureRequest) -> Site:
    found: Site = request.getfixturevalue(f"{request.param}_site")
    return found


def step(task: str, script: str, allocation: Allocation = NODES, **more: object) -> JobSpec:
    return spec("r1", task, script, allocation=allocation, **more)


def holder(agent: BoundAgent, *, ended: bool = False) -> list[JobView]:
    """The jobs that hold nodes, oldest first."""
    found = [view for view in agent.observe(0).jobs if view.task_id.startswith("allocation ")]
    return sorted((v for v in found if v.state.terminal is ended), key=lambda v: v.submitted_at or 0.0)


def until(condition: Callable[[], object], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come true within {seconds:.0f} s"
        time.sleep(0.05)


def test_jobs_that_share_an_allocation_leave_what_jobs_leave(site: Site) -> None:
    agent = site.agent().for_run("r1")
    good = step("Good", 'echo "$BBPWF_JOB_KEY"; pwd')
    bad = step("Bad", "exit 9")
    agent.submit([good, bad])
    views = wait_ended(agent, [good.key, bad.key])
    assert views[good.key].state is JobState.COMPLETED
    assert agent.read(views[good.key].stdout).decode().split() == [good.key, f"{agent.cluster().data_root}/runs/r1"]
    assert (views[bad.key].state, views[bad.key].reason) == (JobState.FAILED, "exit code 9")
    assert views[good.key].exit is not None


@pytest.mark.slurm
def test_one_job_of_the_scheduler_runs_them_all(slurm_site: Site) -> None:
    agent = slurm_site.agent().for_run("r1")
    for number in range(3):  # one after the other, as a chain would come
        job = step(f"T{number}", 'echo "$SLURM_JOB_ID"')
        agent.submit([job])
        view = wait_ended(agent, [job.key])[job.key]
        (held,) = holder(agent)
        assert agent.read(view.stdout).decode().strip() == held.scheduler_id
        assert view.scheduler_id.startswith(f"{held.scheduler_id}/")
    elements = [step("A", "echo x >> ran", index=i, group="g") for i in range(20)]
    agent.submit(elements)
    assert {v.state for v in wait_ended(agent, [e.key for e in elements]).values()} == {JobState.COMPLETED}
    assert agent.read("ran") == b"x\n" * 20
    assert len(holder(agent)) == 1


@pytest.mark.slurm
def test_no_more_steps_run_at_once_than_there_are_cpus_or_than_is_allowed(slurm_site: Site) -> None:
    agent = slurm_site.agent().for_run("r1")
    script = "echo x > {0}.$BBPWF_JOB_KEY; ls {0}.* | wc -l >> {0}-seen; sleep 0.3; rm {0}.$BBPWF_JOB_KEY"
    wide = [step("W", script.format("w"), index=i, group="w", resources=Resources(cpus_per_task=2)) for i in range(6)]
    few = Allocation(name="few", resources=Resources(nodes=1, ntasks=8), max_steps=3)
    many = [step("F", script.format("f"), few, index=i, group="f") for i in range(9)]
    throttled = [step("H", script.format("h"), few, index=i, group="h", throttle=1) for i in range(3)]
    agent.submit([*wide, *many, *throttled])
    views = wait_ended(agent, [j.key for j in [*wide, *many, *throttled]])
    assert {v.state for v in views.values()} == {JobState.COMPLETED}
    assert max(map(int, agent.read("w-seen").split())) == 2, "of two CPUs each, in four"
    assert max(map(int, agent.read("f-seen").split())) <= 3
    assert max(map(int, agent.read("h-seen").split())) == 1


@pytest.mark.slurm
def test_steps_on_several_nodes_and_parallel_steps_run_where_there_is_room(slurm_site: Site) -> None:
    agent = slurm_site.agent().for_run("r1")
    two = Allocation(name="two", resources=Resources(nodes=2, ntasks_per_node=4))
    script = 'echo "$SLURMD_NODENAME $SLURM_PROCID/$SLURM_NTASKS"; touch up.$BBPWF_JOB_KEY; '
    meet = "for ((i = 0; i < 400; i++)); do [ $(ls up.* | wc -l) -eq 2 ] && exit 0; sleep 0.05; done; exit 1"
    single = [step("S", script + meet, two, index=i, group="s", resources=Resources(cpus_per_task=4)) for i in range(2)]
    agent.submit(single)
    views = wait_ended(agent, [j.key for j in single])
    logs = [agent.read(views[j.key].stdout).decode().split() for j in single]
    assert [v.state for v in views.values()] == [JobState.COMPLETED] * 2, logs
    assert len({words[0] for words in logs}) == 2, "each has a node of its own: no node has room for both"
    parallel = step("P", script, two, launcher="srun", resources=Resources(nodes=2, ntasks=6))
    agent.submit([parallel])
    view = wait_ended(agent, [parallel.key])[parallel.key]
    lines = agent.read(view.stdout).decode().splitlines()
    assert sorted(line.split()[1] for line in lines) == [f"{n}/6" for n in range(6)]
    assert len({line.split()[0] for line in lines}) == 2


@pytest.mark.slurm
def test_cancelling_reaches_steps_that_run_and_steps_that_wait_and_leaves_others_alone(slurm_site: Site) -> None:
    agent = slurm_site.agent().for_run("r1")
    one = Allocation(name="one", resources=Resources(nodes=1, ntasks=2))
    jobs = [step(f"T{i}", "trap '' TERM; touch began; sleep 300" if i == 0 else "sleep 300", one) for i in range(2)]
    waiting, other = step("Waiting", "echo never > ran", one), step("Other", "echo ran > other", one)
    agent.submit(jobs)
    wait_for(agent, [j.key for j in jobs], lambda v: v.state is JobState.RUNNING)
    agent.submit([waiting, other])
    wait_for(agent, [waiting.key, other.key], lambda v: v.state is JobState.QUEUED)
    agent.cancel([jobs[0].key, waiting.key])
    views = wait_ended(agent, [jobs[0].key, waiting.key, other.key])
    assert [views[k].state for k in (jobs[0].key, waiting.key)] == [JobState.CANCELLED] * 2
    assert views[other.key].state is JobState.COMPLETED
    assert agent.stat(["ran"]) == [None]
    agent.cancel()
    everything = wait_ended(agent, [jobs[1].key, *(h.key for h in holder(agent))])
    assert {v.state for v in everything.values()} == {JobState.CANCELLED}


@pytest.mark.slurm
def test_a_steps_own_time_limit_ends_that_step_alone(slurm_site: Site) -> None:
    agent = slurm_site.agent().for_run("r1")
    job = step("T", "sleep 300", resources=Resources(time_limit=timedelta(seconds=1)), escalations=0)
    agent.submit([job])
    view = wait_ended(agent, [job.key])[job.key]
    assert (view.state, view.reason) == (JobState.TIMEOUT, "reached its time limit")
    assert [h.state for h in holder(agent)] == [JobState.RUNNING]


@pytest.mark.slurm
def test_an_allocation_that_is_ended_takes_its_steps_with_it_for_its_own_cause(
    slurm_site: Site, shared_cluster: RealCluster
) -> None:
    agent = slurm_site.agent().for_run("r1")
    single = Allocation(name="single", resources=Resources(nodes=1, ntasks=1))
    running, waiting = step("Running", "sleep 300", single), step("Waiting", "sleep 300", single)
    agent.submit([running, waiting])
    wait_for(agent, [running.key], lambda v: v.state is JobState.RUNNING)
    (held,) = holder(agent)
    shared_cluster.slurm.command("scancel", held.scheduler_id)
    views = wait_ended(agent, [running.key, waiting.key])
    assert {v.state for v in views.values()} == {JobState.CANCELLED}
    assert {v.reason for v in views.values()} == {"its allocation ended: cancelled outside of bbpwf"}


@pytest.mark.slurm
def test_steps_that_an_allocations_time_limit_kept_from_beginning_go_into_the_next(slurm_site: Site) -> None:
    agent = slurm_site.agent().for_run("r1")
    short = Allocation(name="short", resources=Resources(nodes=1, ntasks=1, time_limit=timedelta(minutes=1)))
    long, waiting = step("Long", "sleep 600", short, escalations=0), step("Waiting", "echo ran >> ran", short)
    agent.submit([long, waiting])
    views = wait_for(agent, [long.key, waiting.key], lambda v: v.state.terminal, timeout=200)
    assert (views[long.key].state, views[long.key].reason) == (
        JobState.TIMEOUT,
        "its allocation ended: reached its time limit",
    )
    assert views[waiting.key].state is JobState.COMPLETED
    assert agent.read("ran") == b"ran\n"
    assert len(holder(agent)) == 1
    assert [h.state for h in holder(agent, ended=True)] == [JobState.TIMEOUT]


@pytest.mark.slurm
def test_nodes_are_given_back_when_idle_and_a_later_step_gets_new_ones(slurm_site: Site) -> None:
    agent = slurm_site.agent().for_run("r1")
    brief = Allocation(name="brief", resources=Resources(nodes=1, ntasks=1), idle_s=1)
    for number in range(2):
        job = step(f"T{number}", "true", brief)
        agent.submit([job])
        assert wait_ended(agent, [job.key])[job.key].state is JobState.COMPLETED
        until(lambda: not holder(agent))
    assert [h.state for h in holder(agent, ended=True)] == [JobState.COMPLETED] * 2


@pytest.mark.slurm
def test_nodes_are_given_back_at_the_end_of_the_run(slurm_site: Site) -> None:
    whole = slurm_site.agent()
    agent = whole.for_run("r1")
    job = step("T", "true", Allocation(name="patient", resources=Resources(nodes=1, ntasks=1), idle_s=3600))
    agent.submit([job])
    wait_ended(agent, [job.key])
    whole.release_run("r1")
    until(lambda: [h.state for h in holder(agent, ended=True)] == [JobState.COMPLETED])


@pytest.mark.slurm
def test_steps_survive_their_agent_and_none_runs_twice(slurm_site: Site) -> None:
    first = slurm_site.agent()
    bound = first.for_run("r1")
    jobs = [step("A", "echo start >> starts.$BBPWF_JOB_KEY; sleep 1", index=i, group="g") for i in range(8)]
    bound.submit(jobs)
    wait_for(bound, [jobs[0].key], lambda view: view.state is JobState.RUNNING)
    first.stop()
    second = slurm_site.agent().for_run("r1")
    views = wait_ended(second, [j.key for j in jobs])
    assert {v.state for v in views.values()} == {JobState.COMPLETED}
    for job in jobs:
        assert second.read(f"starts.{job.key}") == b"start\n"
    assert len(holder(second)) == 1


@pytest.mark.slurm
def test_one_name_means_one_kind_of_nodes(slurm_site: Site) -> None:
    agent = slurm_site.agent().for_run("r1")
    first = step("T", "true")
    other = step("U", "true", Allocation(name=NODES.name, resources=Resources(nodes=2)))
    agent.submit([first])
    wait_ended(agent, [first.key])
    agent.submit([other])
    view = wait_ended(agent, [other.key])[other.key]
    assert view.state is JobState.REJECTED
    assert "other resources" in view.reason


@pytest.mark.slurm
def test_an_allocation_that_slurm_refuses_is_its_steps_refusal(slurm_site: Site) -> None:
    agent = slurm_site.agent().for_run("r1")
    job = step("T", "true", Allocation(name="none", resources=Resources(partition="no-such-partition")))
    agent.submit([job])
    view = wait_ended(agent, [job.key])[job.key]
    assert view.state is JobState.REJECTED
    assert "partition" in view.reason
