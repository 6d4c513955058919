"""A run's view of a scheduler that it shares with others, over HTTP."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from luigi.rpc import RemoteScheduler, RPCError

from bbpwf.workflow import guarded
from bbpwf.workflow.guarded import url_with_pass, worker_of
from bbpwf.workflow.scheduler import MOST_TOLD, RunScheduler, central
from sandbox.process import Process, accepts, free_ports, start, stop

KEY = "a key of nobody else"


@contextmanager
def luigid(folder: Path, *command: str, **env: str) -> Iterator[str]:
    (port,) = free_ports(1)
    where = ("--address", "127.0.0.1", "--port", str(port), "--state-path", str(folder / "state"))
    program = Process(
        "luigid",
        (*command, *where),
        {"PATH": os.environ["PATH"], "HOME": str(folder), **env},
        folder / "log",
        ready=lambda: accepts(port),
        cwd=folder,
    )
    running = start(program)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(running)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with luigid(
        tmp_path_factory.mktemp("ours"), sys.executable, "-m", "bbpwf.workflow.luigid", **{guarded.KEY: KEY}
    ) as url:
        yield url


@pytest.fixture
def requests_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    fetch: Callable[..., Any] = RemoteScheduler._fetch

    def counted(self: RemoteScheduler, url: str, body: Any) -> Any:
        made.append(url)
        return fetch(self, url, body)

    monkeypatch.setattr(RemoteScheduler, "_fetch", counted)
    return made


def view(url: str, run_id: str) -> RunScheduler:
    return central(url_with_pass(url, KEY, run_id), run_id)


def tell(scheduler: RunScheduler, run_id: str, count: int) -> None:
    for number in range(count):
        deps = [f"T_{number - 1}"] if number else []
        scheduler.add_task(task_id=f"T_{number}", worker=worker_of(run_id), status="PENDING", deps=deps, family="T")


def work(scheduler: RunScheduler, run_id: str) -> Any:
    return scheduler.get_work(worker=worker_of(run_id), host="here", current_tasks=[])


def listed(dashboard: Any, status: str) -> Any:
    tasks = dashboard.task_list(status=status, upstream_status="")
    return {task_id: task for task_id, task in tasks.items() if task_id.endswith("@r5")}


def test_hundreds_of_tasks_are_told_in_one_request(ours: str, requests_made: list[str]) -> None:
    scheduler = view(ours, "r1")
    tell(scheduler, "r1", MOST_TOLD - 1)
    assert work(scheduler, "r1")["task_id"] == "T_0"
    assert requests_made == ["/api/get_work"]
    scheduler.add_task(task_id="T_0", worker=worker_of("r1"), status="DONE", family="T")
    assert work(scheduler, "r1")["task_id"] == "T_1"
    assert len(requests_made) == 2


def test_more_are_told_in_several(ours: str, requests_made: list[str]) -> None:
    scheduler = view(ours, "r2")
    tell(scheduler, "r2", 2 * MOST_TOLD + 1)
    assert scheduler.count_pending(worker=worker_of("r2"))["n_pending_tasks"] == 2 * MOST_TOLD + 1
    assert requests_made == ["/api/add_tasks"] * 3 + ["/api/count_pending"]


def test_nobody_tells_of_the_tasks_of_others(ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luigi.rpc.RemoteScheduler._get_retryer", lambda _: lambda function, *given: function(*given))
    scheduler = view(ours, "r3")
    tell(scheduler, "r4", 1)
    with pytest.raises(RPCError):
        work(scheduler, "r3")


def test_a_forked_task_tells_only_what_is_its_own(ours: str) -> None:
    scheduler = view(ours, "r5")
    tell(scheduler, "r5", 1)
    work(scheduler, "r5")
    scheduler.add_task(task_id="T_0", worker=worker_of("r5"), status="DONE", family="T")
    child = os.fork()
    if child == 0:
        try:
            scheduler.add_task(task_id="T_1", worker=worker_of("r5"), status="PENDING", family="T")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    dashboard = RemoteScheduler(url_with_pass(ours, KEY, guarded.DASHBOARD))
    assert set(listed(dashboard, "PENDING")) == {"T_1@r5"}
    assert listed(dashboard, "DONE") == {}, "its worker has not said so yet"
    assert work(scheduler, "r5")["task_id"] == "T_1"
    assert set(listed(dashboard, "DONE")) == {"T_0@r5"}


def test_luigis_own_is_told_of_one_after_the_other(tmp_path: Path, requests_made: list[str]) -> None:
    with luigid(tmp_path, str(Path(sys.executable).with_name("luigid"))) as url:
        scheduler = central(url, "r6")
        tell(scheduler, "r6", 3)
        assert work(scheduler, "r6")["task_id"] == "T_0"
    assert requests_made == ["/api/add_task"] * 3 + ["/api/get_work"]
