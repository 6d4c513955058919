"""What the supervisor makes of an agent's answers, over the agent's real wire; time is ours."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bbpwf.clock import SystemClock
from bbpwf.cluster.control import AgentControl
from bbpwf.cluster.database import open_database
from bbpwf.cluster.jobs import ClusterInfo
from bbpwf.cluster.rpc import Server
from bbpwf.cluster.runs import Owner, RunRecord, RunRequest, RunStore
from bbpwf.errors import BbpwfError
from bbpwf.redact import Redactor
from bbpwf.settings import Settings
from bbpwf.states import RunState
from service.children import Child
from service.containment import Containment
from service.daemons import Daemon
from service.heads import RunFolder, Spare
from service.supervisor import Supervisor
from service.underway import AGENT_LIMIT_S, CANCEL_LIMIT_S, CONNECT_LIMIT_S, Surroundings
from service.uploads import Uploads


class ShiftedClock(SystemClock):
    """The machine's clock, moved ahead at will."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


@dataclass
class ScriptedAgent:
    """Answers what a test tells it to, on the agent's control socket."""

    cluster: ClusterInfo = field(
        default_factory=lambda: ClusterInfo(name="default", kind="slurm", state="creating", reason="CREATE_IN_PROGRESS")
    )
    asked: list[str] = field(default_factory=list)
    live: int = 0
    trouble: BbpwfError | None = None

    def methods(self) -> dict[str, Callable[..., Any]]:
        def note(name: str, answer: Callable[[], Any]) -> Callable[..., Any]:
            def method(**_: Any) -> Any:
                self.asked.append(name)
                if self.trouble is not None:
                    raise self.trouble
                return answer()

            return method

        return {
            "ping": note("ping", lambda: "pong"),
            "ensure_cluster": note("ensure_cluster", lambda: self.cluster),
            "cluster": note("cluster", lambda: self.cluster),
            "open_run": note("open_run", lambda: "/socket"),
            "close_run": note("close_run", lambda: None),
            "cancel_run": note("cancel_run", lambda: None),
            "live_jobs": note("live_jobs", lambda: self.live),
        }


@dataclass
class World:
    """A supervisor without its thread, and what is around it."""

    supervisor: Supervisor
    store: RunStore
    agent: ScriptedAgent
    clock: ShiftedClock
    state: Path
    daemons: list[Daemon]
    control: AgentControl
    spare: Spare

    def run(self, *, sub: str = "s", **request: Any) -> RunRecord:
        run = self.store.create(RunRequest(workflow_url="m:T", **request), Owner(sub=sub))
        self.supervisor.launched(run, None)
        return run

    def until(self, run: RunRecord, state: RunState, *, within: float = 20.0) -> RunRecord:
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            self.supervisor.tick()
            now = self.store.get(run.run_id)
            if now.state is state:
                return now
            time.sleep(0.02)
        pytest.fail(f"{self.store.get(run.run_id)}")


def lasting(tmp_path: Path, name: str, script: str, ready: Callable[[], bool]) -> Daemon:
    """A program that runs until its standard input ends, or whatever ``script`` does."""
    lock, log = tmp_path / "locks" / name, tmp_path / "log" / name

    def start() -> Child:
        return Child(
            name, [sys.executable, "-c", script], env={}, cwd=tmp_path, log=log, lock=lock, redactor=Redactor()
        )

    return Daemon(name, start, ready, lock=lock, log=log, clock=SystemClock())


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[tuple[World, Server]] = []

    def make(
        *, agent_script: str = "import sys; sys.stdin.read()", answers: bool = True, max_runs_per_user: int = 2
    ) -> World:
        settings = Settings(state_dir=tmp_path)
        database = open_database(settings.database)
        clock, agent = ShiftedClock(), ScriptedAgent()
        store = RunStore(database, clock)
        server = Server(tmp_path / "agent.sock", agent.methods(), Redactor())
        server.start()
        uploads = Uploads(tmp_path / "uploads", largest=1024)
        control = AgentControl(tmp_path / "agent.sock", timeout=5)
        containment = Containment(settings, 1)
        daemons = [
            lasting(tmp_path, "agent", agent_script, lambda: answers),
            lasting(tmp_path, "scheduler", "import sys; sys.stdin.read()", lambda: True),
        ]
        spare = Spare(settings, containment, Redactor(), clock, lambda: True)
        around = Surroundings(
            store=store,
            control=control,
            agent=daemons[0],
            scheduler=daemons[1],
            folder_of=lambda run_id: RunFolder(settings, uploads, containment, spare, run_id),
            spare=spare,
            redactor=Redactor(),
            clock=clock,
            max_runs=2,
            scheduler_url=lambda _: "http://127.0.0.1:1",
            cluster_limit_s=3600,
            max_runs_per_user=max_runs_per_user,
        )
        world = World(Supervisor(around), store, agent, clock, tmp_path, daemons, control, spare)
        made.append((world, server))
        return world

    yield make
    for world, server in made:
        for daemon in world.daemons:
            daemon.stop(grace=5)
        world.spare.stop()
        world.control.close()
        server.stop()


def test_a_cluster_that_is_made_is_waited_for_with_its_reason(make_world: Callable[..., World]) -> None:
    world = make_world()
    run = world.run()
    waiting = world.until(run, RunState.INITIALIZING)
    world.supervisor.tick()
    waiting = world.store.get(run.run_id)
    assert "creating" in waiting.reason
    assert "CREATE_IN_PROGRESS" in waiting.reason
    assert world.agent.asked.count("ensure_cluster") == 1


def test_a_failed_cluster_ends_the_run_with_the_provisioners_reason(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.agent.cluster = ClusterInfo(name="default", kind="slurm", state="failed", reason="FsxMountFailure: no room")
    ended = world.until(world.run(), RunState.SYSTEM_ERROR)
    assert "FsxMountFailure: no room" in ended.reason
    world.until(world.run(), RunState.SYSTEM_ERROR)
    assert world.agent.asked.count("ensure_cluster") == 2, "the next run has it tried again"


def test_a_cluster_out_of_reach_is_given_up(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.agent.cluster = ClusterInfo(name="default", kind="slurm", state="connecting", reason="sim@10.0.0.1: refused")
    run = world.run()
    world.until(run, RunState.INITIALIZING)
    world.supervisor.tick()
    world.clock.ahead += CONNECT_LIMIT_S + 1
    ended = world.until(run, RunState.SYSTEM_ERROR)
    assert "10.0.0.1" in ended.reason


def test_a_cluster_that_never_comes_is_given_up(make_world: Callable[..., World]) -> None:
    world = make_world()
    run = world.run()
    world.until(run, RunState.INITIALIZING)
    world.supervisor.tick()
    world.clock.ahead += 3601
    assert "given up" in world.until(run, RunState.SYSTEM_ERROR).reason


def test_without_an_agent_a_run_waits_says_why_and_ends(make_world: Callable[..., World]) -> None:
    world = make_world(agent_script="import sys; sys.exit('BBPWF_DATABASE_URL is wrong')", answers=False)
    run = world.run()
    deadline = time.monotonic() + 20
    while "BBPWF_DATABASE_URL is wrong" not in world.store.get(run.run_id).reason:
        assert time.monotonic() < deadline, world.store.get(run.run_id)
        world.supervisor.tick()
        world.clock.ahead += 1
        time.sleep(0.05)
    assert world.store.get(run.run_id).state is RunState.QUEUED
    world.clock.ahead += AGENT_LIMIT_S
    assert "BBPWF_DATABASE_URL is wrong" in world.until(run, RunState.SYSTEM_ERROR).reason


def test_a_resumed_run_is_canceled_only_when_its_jobs_are_gone(make_world: Callable[..., World]) -> None:
    world = make_world()
    run = world.run()
    world.until(run, RunState.INITIALIZING)
    world.store.move(run.run_id, RunState.CANCELING, "canceled by ann")
    world.agent.live = 3
    for _ in range(5):
        world.supervisor.tick()
    assert world.store.get(run.run_id).state is RunState.CANCELING
    world.agent.live = 0
    assert world.until(run, RunState.CANCELED).reason == "canceled by ann"
    assert world.agent.asked.count("cancel_run") == 1


def test_jobs_that_do_not_go_away_are_said_to_be_there(make_world: Callable[..., World]) -> None:
    world = make_world()
    run = world.run()
    world.until(run, RunState.INITIALIZING)
    world.store.move(run.run_id, RunState.CANCELING, "canceled by ann")
    world.agent.live = 2
    world.supervisor.tick()
    world.clock.ahead += CANCEL_LIMIT_S + 1
    assert "2 jobs" in world.until(run, RunState.SYSTEM_ERROR).reason


def test_an_agent_that_answers_nonsense_ends_the_run_and_not_the_supervisor(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.agent.trouble = BbpwfError("the agent failed on this request")
    assert "failed on this request" in world.until(world.run(), RunState.SYSTEM_ERROR).reason
    world.agent.trouble = None
    world.until(world.run(), RunState.INITIALIZING)


def test_an_attachment_that_is_gone_ends_the_run(make_world: Callable[..., World]) -> None:
    world = make_world()
    world.agent.cluster = ClusterInfo(name="default", kind="local", state="ready")
    ended = world.until(world.run(attachments=("a.py#sha256=" + "0" * 64,)), RunState.SYSTEM_ERROR)
    assert "a.py" in ended.reason


def test_slots_are_kept(make_world: Callable[..., World]) -> None:
    world = make_world()
    runs = [world.run() for _ in range(4)]
    world.until(runs[1], RunState.INITIALIZING)
    world.supervisor.tick()
    assert [world.store.get(r.run_id).state for r in runs] == [RunState.INITIALIZING] * 2 + [RunState.QUEUED] * 2
    world.store.move(runs[0].run_id, RunState.CANCELED, "x")
    world.until(runs[2], RunState.INITIALIZING)
    assert world.store.get(runs[3].run_id).state is RunState.QUEUED


def test_one_user_does_not_get_all_slots(make_world: Callable[..., World]) -> None:
    world = make_world(max_runs_per_user=1)
    eager = [world.run(sub="eager") for _ in range(3)]
    other = world.run(sub="other")
    world.until(other, RunState.INITIALIZING)
    assert [world.store.get(r.run_id).state for r in eager] == [RunState.INITIALIZING, *[RunState.QUEUED] * 2]
    world.store.move(eager[0].run_id, RunState.CANCELED, "x")
    world.until(eager[1], RunState.INITIALIZING)
    world.store.move(eager[2].run_id, RunState.CANCELED, "x")  # by a request, while it waits
    world.supervisor.changed(eager[2].run_id)
    world.store.move(eager[1].run_id, RunState.CANCELED, "x")
    world.supervisor.tick()
    assert world.store.get(eager[2].run_id).state is RunState.CANCELED
    world.supervisor.tick()
    world.until(world.run(sub="eager"), RunState.INITIALIZING)
