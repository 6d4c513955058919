"""Real heads over real sockets: killed, hung up on, canceled, orphaned by their agent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.request import urlopen

import pytest

from bbpwf import faults
from bbpwf.cluster.agent import BoundAgent
from bbpwf.cluster.rpc import Server
from bbpwf.cluster.server import run_methods
from bbpwf.redact import Redactor
from bbpwf.states import JobState
from sandbox.process import Process, accepts, free_ports, start, stop
from tests.support.agent import MemoryAgent

FLOW = """
import time
from pathlib import Path
import luigi
from bbpwf.workflow import ArrayTask, Element, RemoteTarget, SbatchTask

class Points(luigi.Task):
    def run(self): self.output().write_text("0 1 2 3 4 5")
    def output(self): return RemoteTarget("points.txt")

class Simulate(ArrayTask):
    def requires(self): return Points()
    def elements(self):
        return [Element(f"p{p}", f"echo {p} >> out-{p}.txt", [f"out-{p}.txt"]) for p in self.input().read_text().split()]

class Report(SbatchTask):
    def requires(self): return Simulate()
    def command(self): return "cat out-*.txt > report.txt"
    def output(self): return RemoteTarget("report.txt")

class Napping(luigi.Task):
    def run(self):
        Path(PIDS).write_text(str(__import__("os").getpid()))
        time.sleep(600)
    def output(self): return RemoteTarget("never")
"""


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come true within {seconds:.0f} s"
        time.sleep(0.02)


@dataclass
class Stage:
    """A run's folder, its agent's socket, and heads that are started on it."""

    folder: Path
    agent: MemoryAgent
    server: Server | None = None
    heads: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def serve(self) -> None:
        methods = run_methods(cast(BoundAgent, self.agent))
        self.server = Server(self.folder / "agent.sock", methods, Redactor())
        self.server.start()

    def hang_up(self) -> None:
        if self.server is not None:
            self.server.stop()
            self.server = None

    def request(self, task: str, **more: Any) -> None:
        attachments = self.folder / "attachments"
        attachments.mkdir(exist_ok=True)
        pids = self.folder / "pid"
        (attachments / "head_flow.py").write_text(f"PIDS = {str(pids)!r}\n{FLOW}")
        body = {"run_id": "r1", "module": "head_flow", "task": task, "attachments": str(attachments), **more}
        (self.folder / "request.json").write_text(json.dumps(body))

    def head(self, armed: str = "") -> subprocess.Popen[bytes]:
        with (self.folder / "head.log").open("ab") as log:
            started = subprocess.Popen(
                [sys.executable, "-P", "-m", "bbpwf.workflow.head", str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder), faults.VARIABLE: armed},
            )
        self.heads.append(started)
        return started

    def log(self) -> str:
        return (self.folder / "head.log").read_text()

    def outcome(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "outcome.json").read_text())
        return found

    def close(self) -> None:
        for head in self.heads:
            if head.poll() is None:
                head.kill()
            head.wait()
            if head.stdin is not None:
                head.stdin.close()
        self.hang_up()
        self.agent.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    folder = tmp_path / "run"
    folder.mkdir()
    made = Stage(folder, MemoryAgent(tmp_path / "disk", hold=True))
    made.serve()
    yield made
    made.close()


@pytest.fixture
def luigid(tmp_path: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    argv = (sys.executable, "-m", "bbpwf.workflow.luigid", "--address", "127.0.0.1", "--port", str(port))
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    running = start(
        Process(
            "luigid",
            (*argv, "--state-path", str(tmp_path / "state.pickle")),
            env,
            tmp_path / "luigid.log",
            ready=lambda: accepts(port),
            cwd=tmp_path,
        )
    )
    yield f"http://127.0.0.1:{port}"
    stop(running)


def elements(agent: MemoryAgent) -> dict[str, int]:
    return {view.label: agent.started[view.key] for view in agent.views() if view.index is not None}


@pytest.mark.parametrize("shared_scheduler", [False, True])
def test_a_killed_head_is_continued_by_the_next_and_no_job_runs_twice(
    stage: Stage, luigid: str, shared_scheduler: bool
) -> None:
    stage.request("Report", scheduler_url=luigid if shared_scheduler else "")
    first = stage.head()
    wait_for(lambda: len(elements(stage.agent)) == 6)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (stage.folder / "outcome.json").exists()
    stage.agent.release()
    wait_for(lambda: all(view.state.succeeded for view in stage.agent.views()))
    second = stage.head()
    assert second.wait(60) == 0, stage.log()
    assert stage.outcome()["state"] == "COMPLETE"
    assert elements(stage.agent) == {f"p{i}": 1 for i in range(6)}
    assert stage.agent.file("report.txt").read_text().split() == ["0", "1", "2", "3", "4", "5"]
    states = {report.family: report.state for report in stage.agent.reports.values()}
    assert states["Report"] == states["Simulate"] == "DONE"


@pytest.mark.parametrize("point", ["head.outcome.before", "head.outcome.after"])
def test_a_head_that_dies_around_its_outcome_is_continued_by_the_next(stage: Stage, point: str) -> None:
    stage.request("Report")
    stage.agent.release()
    first = stage.head(f"{point}=1")
    assert first.wait(60) == -signal.SIGKILL, stage.log()
    assert (stage.folder / "outcome.json").exists() == point.endswith("after")
    assert stage.head().wait(60) == 0, stage.log()
    assert stage.outcome()["state"] == "COMPLETE"
    assert elements(stage.agent) == {f"p{i}": 1 for i in range(6)}


def test_a_head_killed_while_jobs_run_finds_them_again(stage: Stage, luigid: str) -> None:
    stage.request("Report", scheduler_url=luigid)
    first = stage.head()
    wait_for(lambda: len(elements(stage.agent)) == 6)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = stage.head()
    wait_for(lambda: stage.agent.calls["submit"] >= 2)
    stage.agent.release()
    assert second.wait(60) == 0, stage.log()
    assert elements(stage.agent) == {f"p{i}": 1 for i in range(6)}


def test_the_dashboard_shows_two_runs_of_one_task_as_two(stage: Stage, luigid: str, tmp_path: Path) -> None:
    other = Stage(tmp_path / "other", MemoryAgent(tmp_path / "disk2", run_id="r2"))
    other.folder.mkdir()
    other.serve()
    try:
        stage.agent.release()
        for each, run_id in ((stage, "r1"), (other, "r2")):
            each.request("Report", scheduler_url=luigid, run_id=run_id)
        heads = [stage.head(), other.head()]
        assert [head.wait(60) for head in heads] == [0, 0], stage.log() + other.log()
    finally:
        other.close()
    query = '{"status": "DONE", "upstream_status": ""}'
    with urlopen(f"{luigid}/api/task_list?data={query.replace(' ', '%20').replace(chr(34), '%22')}", timeout=10) as got:
        tasks = json.load(got)["response"]
    assert sorted(each["name"] for each in tasks.values()) == sorted(["Points", "Simulate", "Report"] * 2)


def test_a_canceled_head_leaves_no_job_and_says_so(stage: Stage) -> None:
    stage.request("Report")
    head = stage.head()
    wait_for(lambda: len(elements(stage.agent)) == 6)
    head.terminate()
    assert head.wait(30) == 5, stage.log()
    assert stage.outcome()["state"] == "CANCELED"
    assert {view.state for view in stage.agent.views()} == {JobState.CANCELLED}


def test_a_head_whose_parent_is_gone_ends_without_an_outcome_or_a_cancel(stage: Stage) -> None:
    stage.request("Report")
    head = stage.head()
    wait_for(lambda: len(elements(stage.agent)) == 6)
    assert head.stdin is not None
    head.stdin.close()
    assert head.wait(10) == 4
    assert not (stage.folder / "outcome.json").exists()
    assert stage.agent.calls["cancel"] == 0


def test_a_plain_task_dies_with_its_head(stage: Stage) -> None:
    stage.request("Napping")
    head = stage.head()
    wait_for(lambda: (stage.folder / "pid").exists() and (stage.folder / "pid").read_text())
    pid = int((stage.folder / "pid").read_text())
    head.send_signal(signal.SIGKILL)
    head.wait()
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])


def test_an_agent_that_restarts_is_waited_for(stage: Stage) -> None:
    stage.request("Report")
    head = stage.head()
    wait_for(lambda: len(elements(stage.agent)) == 6)
    stage.hang_up()
    stage.agent.release()
    wait_for(lambda: "waits" in stage.log() or "tried again" in stage.log())
    assert head.poll() is None
    stage.serve()
    assert head.wait(60) == 0, stage.log()
    assert elements(stage.agent) == {f"p{i}": 1 for i in range(6)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "Reprot"}, "Did you mean 'Report'?"),
        ({"module": "absent_flow"}, "there is no module 'absent_flow'"),
        ({"params": {"depth": 3}}, "Report has no parameter 'depth'"),
        ({"config": "typo.cfg"}, "[Report] has no option 'memry'"),
    ],
)
def test_what_makes_no_sense_ends_at_once_with_words(stage: Stage, change: dict[str, Any], said: str) -> None:
    stage.request("Report")
    request = json.loads((stage.folder / "request.json").read_text()) | change
    (stage.folder / "request.json").write_text(json.dumps(request))
    (stage.folder / "attachments" / "typo.cfg").write_text("[Report]\nmemry = 4G\n")
    assert stage.head().wait(30) == 3
    assert stage.outcome()["state"] == "EXECUTOR_ERROR"
    assert said in stage.outcome()["reason"]
    assert not stage.agent.views()


def test_modules_are_described_and_checked_in_a_process_of_their_own(stage: Stage) -> None:
    stage.request("Report")
    attachments = stage.folder / "attachments"
    (attachments / "broken_flow.py").write_text("print('noise')\nimport absent_thing\n")
    catalogue = [sys.executable, "-P", "-m", "bbpwf.workflow.catalogue"]
    env = {"PATH": os.environ["PATH"]}
    argv = [*catalogue, "list", "--path", str(attachments), "head_flow", "broken_flow"]
    answer = json.loads(subprocess.run(argv, env=env, capture_output=True, timeout=60, check=True).stdout)
    assert [each["name"] for each in answer["tasks"]] == [
        *("head_flow:Napping", "head_flow:Points", "head_flow:Report", "head_flow:Simulate"),
    ]
    (error,) = answer["errors"]
    assert error["module"] == "broken_flow"
    assert "No module named 'absent_thing'" in error["message"]
    assert "broken_flow.py" in error["hint"]
    for task, expected in {"Report": "", "Nothing": "UnknownTask"}.items():
        stage.request(task)
        done = subprocess.run(
            [*catalogue, "validate"],
            input=(stage.folder / "request.json").read_bytes(),
            env=env,
            capture_output=True,
            timeout=60,
            check=True,
        )
        said = json.loads(done.stdout)
        assert said.get("error", {}).get("type", "") == expected
        assert ("free" in said) == (not expected)
