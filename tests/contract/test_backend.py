"""What every backend promises, shown through a real agent: one suite over all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from bbpwf.cluster.agent import BoundAgent
from bbpwf.cluster.connectors import LocalConnector
from bbpwf.cluster.jobs import Resources
from bbpwf.errors import CommandFailed, InvalidInput, NotFound
from bbpwf.settings import ClusterSettings
from bbpwf.states import JobState
from tests.support.agents import Site, spec, wait_ended, wait_for


@pytest.fixture
def local_site(tmp_path: Path) -> Iterator[Site]:
    settings = ClusterSettings(kind="local", data_root=str(tmp_path / "data"), max_local_jobs=4, poll_s=1)
    site = Site(tmp_path, settings, lambda: LocalConnector(settings))
    yield site
    site.close()


@pytest.fixture(
    params=[
        "local",
        pytest.param("slurm", marks=pytest.mark.slurm),
        pytest.param("accounted", marks=[pytest.mark.slurm, pytest.mark.accounting]),
    ]
)
def site(request: pytest.FixtureRequest) -> Site:
    found: Site = request.getfixturevalue(f"{request.param}_site")
    return found


@pytest.fixture
def agent(site: Site) -> BoundAgent:
    return site.agent().for_run("r1")


def test_a_job_runs_and_leaves_its_log_and_record(agent: BoundAgent) -> None:
    job = spec("r1", "T", "echo to stdout; echo to stderr >&2; pwd > where.txt", env=[["NAME", "value"]])
    agent.submit([job])
    view = wait_ended(agent, [job.key])[job.key]
    assert view.state is JobState.COMPLETED
    assert view.exit is not None
    assert view.exit.code == 0
    assert view.submitted_at is not None
    assert view.started_at is not None
    assert view.ended_at is not None
    assert view.started_at <= view.ended_at
    assert sorted(agent.read(view.stdout).decode().split("\n")) == ["", "to stderr", "to stdout"]
    assert agent.read("where.txt").decode().strip() == f"{agent.cluster().data_root}/runs/r1"


def test_a_failure_tells_its_exit_code(agent: BoundAgent) -> None:
    job = spec("r1", "T", "echo before; exit 17")
    agent.submit([job])
    view = wait_ended(agent, [job.key])[job.key]
    assert (view.state, view.reason) == (JobState.FAILED, "exit code 17")


def test_elements_of_an_array_end_each_for_itself(agent: BoundAgent) -> None:
    jobs = [spec("r1", "A", f"echo {i}; exit {i % 3}", index=i, group="g", label=f"p{i}") for i in range(12)]
    agent.submit(jobs)
    views = wait_ended(agent, [j.key for j in jobs])
    ends = [views[j.key].state for j in jobs]
    assert ends == [JobState.COMPLETED if i % 3 == 0 else JobState.FAILED for i in range(12)]
    assert agent.read(views[jobs[5].key].stdout) == b"5\n"
    assert len({v.scheduler_id.partition("_")[0] for v in views.values()}) == 1, "they went as one array"


def test_a_throttle_keeps_the_number_of_running_elements_down(agent: BoundAgent) -> None:
    script = "echo x > run.$BBPWF_JOB_KEY; ls run.* | wc -l >> seen; sleep 0.3; rm run.$BBPWF_JOB_KEY"
    jobs = [spec("r1", "A", script, index=i, group="g", throttle=2) for i in range(6)]
    agent.submit(jobs)
    views = wait_ended(agent, [j.key for j in jobs])
    assert {v.state for v in views.values()} == {JobState.COMPLETED}
    assert max(int(n) for n in agent.read("seen").split()) <= 2


def test_a_throttle_can_be_lifted_while_jobs_run(site: Site) -> None:
    agent = site.agent()
    run = agent.for_run("r1")
    together = "touch begun.$BBPWF_JOB_KEY; for i in {1..600}; do set -- begun.*; [ $# -ge 3 ] && exit 0; sleep 0.1; done; exit 1"
    jobs = [spec("r1", "A", together, index=i, group="g", throttle=1) for i in range(3)]
    run.submit(jobs)
    wait_for(run, [jobs[0].key], lambda view: view.state is JobState.RUNNING)
    agent.throttle("r1", [job.key for job in jobs], 0)
    agent.throttle("r1", [job.key for job in jobs], 0)
    views = wait_ended(run, [j.key for j in jobs])
    assert {v.state for v in views.values()} == {JobState.COMPLETED}, "all three ran at once"
    agent.throttle("r1", [job.key for job in jobs], 2)


def test_asking_again_runs_nothing_again(agent: BoundAgent) -> None:
    job = spec("r1", "T", "echo ran >> ran")
    agent.submit([job])
    wait_ended(agent, [job.key])
    (again,) = agent.submit([job])
    assert again.state is JobState.COMPLETED
    assert agent.read("ran") == b"ran\n"


def test_cancel_ends_running_and_waiting_jobs_and_can_be_repeated(agent: BoundAgent) -> None:
    jobs = [spec("r1", "A", "touch started; sleep 300", index=i, group="g", throttle=1) for i in range(3)]
    agent.submit(jobs)
    wait_for(agent, [jobs[0].key], lambda view: view.state is JobState.RUNNING)
    agent.cancel()
    agent.cancel()
    views = wait_ended(agent, [j.key for j in jobs])
    assert {v.state for v in views.values()} == {JobState.CANCELLED}


def test_a_time_limit_is_told_from_a_failure(agent: BoundAgent) -> None:
    job = spec("r1", "T", "sleep 300", resources=Resources(time_limit=timedelta(seconds=1)), escalations=0)
    agent.submit([job])
    view = wait_ended(agent, [job.key], timeout=150)[job.key]
    assert (view.state, view.reason) == (JobState.TIMEOUT, "reached its time limit")


def test_a_new_agent_takes_over_without_running_anything_twice(site: Site) -> None:
    first = site.agent()
    jobs = [spec("r1", "A", "echo start >> starts.$BBPWF_JOB_KEY; sleep 1", index=i, group="g") for i in range(8)]
    bound = first.for_run("r1")
    bound.submit(jobs)
    wait_for(bound, [jobs[0].key], lambda view: view.state is JobState.RUNNING)
    first.stop()
    second = site.agent().for_run("r1")
    views = wait_ended(second, [j.key for j in jobs])
    assert {v.state for v in views.values()} == {JobState.COMPLETED}
    for job in jobs:
        assert second.read(f"starts.{job.key}") == b"start\n"


def test_files_are_written_listed_read_and_removed(agent: BoundAgent) -> None:
    agent.write_many([(f"in/{i}.txt", bytes([i]) * 10) for i in range(5)])
    agent.write("in/odd name's.txt", b"\0\xff\n")
    listed = agent.glob("in/*.txt")
    assert [p.rpartition("/")[2] for p in listed] == ["0.txt", "1.txt", "2.txt", "3.txt", "4.txt", "odd name's.txt"]
    assert agent.read("in/odd name's.txt") == b"\0\xff\n"
    assert agent.read("in/3.txt", offset=8) == b"\3\3"
    sizes = [None if s is None else s.size for s in agent.stat(["in/2.txt", "in/none", "in"])]
    assert sizes[:2] == [10, None]
    agent.remove(["in"])
    assert agent.stat(["in"]) == [None]
    with pytest.raises(NotFound):
        agent.read("in/3.txt")
    with pytest.raises(InvalidInput, match="not below"):
        agent.remove(["/etc"])
    with pytest.raises(InvalidInput, match="not below"):
        agent.remove([f"{agent.cluster().data_root}/.bbpwf"])


def test_a_write_that_cannot_be_says_so(agent: BoundAgent) -> None:
    agent.write("file", b"")
    with pytest.raises(CommandFailed):
        agent.write_many([("file/below", b"x")])


def test_many_threads_may_ask_at_once(agent: BoundAgent) -> None:
    agent.write("shared", b"here")
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda: answers.append(agent.read("shared"))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [b"here"] * 12
