"""When an instance may stop itself: only when nobody uses it and nothing is under way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
import sqlalchemy as sa
from starlette.types import Message, Receive, Scope, Send

from bbpwf.clock import SystemClock
from bbpwf.cluster.control import AgentControl
from bbpwf.cluster.database import Database, open_database
from bbpwf.cluster.meters import AgentMeters, ClusterMeters
from bbpwf.cluster.notices import NoticeStore, record
from bbpwf.cluster.rpc import Server
from bbpwf.cluster.runs import Owner, RunRequest, RunStore
from bbpwf.cluster.schema import jobs
from bbpwf.redact import Redactor
from bbpwf.states import JobState, RunState
from service.idle import IdleStop, Noted, Use
from tests.support.clock import ManualClock


@dataclass
class World:
    """A database, and an agent that says what a test wants."""

    database: Database
    store: RunStore
    notices: NoticeStore
    control: AgentControl
    server: Server
    stopped: threading.Event = field(default_factory=threading.Event)
    meters: AgentMeters = field(default_factory=AgentMeters)

    def idle(self, after_s: float, use: Use) -> IdleStop:
        return IdleStop(after_s, use, self.store, self.notices, self.control, self.stopped.set)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    database = open_database(f"sqlite:///{tmp_path / 'x.db'}")
    clock = SystemClock()
    control = AgentControl(tmp_path / "a.sock", timeout=10)
    server = Server(tmp_path / "a.sock", {"meters": lambda: made.meters}, Redactor())
    server.start()
    made = World(database, RunStore(database, clock), NoticeStore(database, clock), control, server)
    yield made
    control.close()
    server.stop()
    database.close()


def launch(world: World) -> str:
    return world.store.create(RunRequest(workflow_url="m:T"), Owner(sub="s")).run_id


def unfinished(world: World) -> None:
    launch(world)


def live_job(world: World) -> None:
    """Of a paused run: the scheduler has it still."""
    run_id = launch(world)
    world.store.move(run_id, RunState.PAUSED)
    with world.database.begin() as db:
        names = {column.name for column in jobs.columns if not column.nullable and column.default is None}
        values: dict[str, Any] = dict.fromkeys(names, 0) | {"run_id": run_id, "key": "k", "cluster": "default"}
        values |= {"state": JobState.RUNNING.value}
        db.execute(sa.insert(jobs).values({name: value for name, value in values.items() if name in jobs.columns}))


def notice(world: World) -> None:
    with world.database.begin() as db:
        record(db, "r", 1, "COMPLETE", ["webhook:https://example.org"], 0.0)


def archiving(world: World) -> None:
    world.meters = AgentMeters(archives=1)


def provisioning(world: World) -> None:
    world.meters = AgentMeters(clusters={"default": ClusterMeters(state="creating")})


def silence(world: World) -> None:
    world.server.stop()


@pytest.mark.parametrize("busy", [unfinished, live_job, notice, archiving, provisioning, silence])
def test_what_is_under_way_keeps_an_unused_instance_up(world: World, busy: Callable[[World], None]) -> None:
    idle = world.idle(1.0, Use(ManualClock()))
    assert idle.under_way() == ""
    busy(world)
    assert idle.under_way() != ""


def test_finished_and_paused_runs_and_a_ready_cluster_do_not(world: World) -> None:
    world.store.move(launch(world), RunState.CANCELED)
    world.store.move(launch(world), RunState.PAUSED)
    world.meters = AgentMeters(clusters={"default": ClusterMeters(state="ready"), "local": ClusterMeters(state="none")})
    assert world.idle(1.0, Use(ManualClock())).under_way() == ""


def test_it_stops_once_nobody_has_used_it_for_long_enough(world: World) -> None:
    clock = ManualClock()
    use = Use(clock)
    idle = world.idle(0.2, use)
    use.began()
    idle.start()
    clock.advance(100)
    assert not world.stopped.wait(0.5), "somebody still reads"
    use.ended()
    clock.advance(100)
    assert world.stopped.wait(60)
    idle.end()


def test_it_is_in_use_from_the_first_request_on_and_for_a_while() -> None:
    clock = ManualClock()
    use = Use(clock)
    assert not use.within(60), "nobody has come yet"
    use.began()
    clock.advance(100)
    assert use.within(60)
    use.ended()
    clock.advance(59)
    assert use.within(60)
    clock.advance(1)
    assert not use.within(60)


def test_requests_are_noted_for_as_long_as_they_are_open_and_probes_are_not() -> None:
    clock = ManualClock()
    use = Use(clock)
    during: dict[str, float] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clock.advance(10)
        during[scope["path"]] = use.quiet_s()

    async def nothing() -> Message:
        return {}

    async def nowhere(_: Message) -> None:
        return

    async def ask(path: str) -> None:
        await Noted(app, use=use)({"type": "http", "path": path}, nothing, nowhere)

    anyio.run(ask, "/healthz")
    assert during == {"/healthz": 10.0}
    anyio.run(ask, "/runs/x/events")
    assert during["/runs/x/events"] == 0.0
    clock.advance(5)
    assert use.quiet_s() == 5.0
