"""A head that is there before its run is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bbpwf.clock import SystemClock
from bbpwf.cluster.runs import Owner, RunRecord, RunRequest
from bbpwf.redact import Redactor
from bbpwf.settings import HeadsSettings, Settings
from bbpwf.states import RunState
from bbpwf.workflow.request import WAITING
from service.children import Child, holders
from service.containment import Containment
from service.heads import SPARE_AFTER_S, SPARE_AGAIN_S, RunFolder, Spare
from service.uploads import Uploads


class ShiftedClock(SystemClock):
    """The machine's clock, moved ahead at will."""

    ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


@dataclass
class Place:
    """What heads are started with."""

    settings: Settings
    containment: Containment
    clock: ShiftedClock
    spare: Spare
    begun: list[Child]
    people: list[str]

    def pid(self) -> int | None:
        """The spare head's process."""
        found = holders(self.settings.state / "locks" / "spare")
        return found[0] if found else None

    def ready(self) -> int | None:
        """Its process, once it waits."""
        deadline = time.monotonic() + 30
        while not (self.settings.state / "heads" / "spare" / "work" / WAITING).exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self.pid()

    def start(self, run_id: str) -> Child:
        """The head of a run."""
        run = RunRecord(
            run_id=run_id,
            state=RunState.RUNNING,
            owner=Owner(sub="s"),
            request=RunRequest(workflow_url="no_such_module:T"),
            created_at=0.0,
        )
        folder = RunFolder(self.settings, Uploads(self.settings.state, largest=1), self.containment, self.spare, run_id)
        self.begun.append(folder.start(run, scheduler_url="", public_url="", redactor=Redactor()))
        return self.begun[-1]

    def log(self, run_id: str) -> str:
        """What the head of a run said."""
        return (self.settings.state / "runs" / run_id / "head.log").read_text()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    settings = Settings(state_dir=tmp_path)
    containment, clock = Containment(settings, 1), ShiftedClock()
    people = ["somebody"]
    spare = Spare(settings, containment, Redactor(), clock, lambda: bool(people))
    made = Place(settings, containment, clock, spare, [], people)
    yield made
    made.spare.stop()
    for child in made.begun:
        child.kill()


def kill(pid: int | None) -> None:
    """Kill a process of ours; it is dead afterwards."""
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_a_run_gets_the_head_that_waits(place: Place) -> None:
    place.spare.tend()
    waiting = place.ready()
    head = place.start("r1")
    assert head.pid == waiting
    assert head.wait(30)
    assert "no_such_module" in place.log("r1")
    assert (place.settings.state / "heads" / "r1" / "work" / "outcome-1.json").exists()
    assert not (place.settings.state / "heads" / "spare").exists()


def test_a_head_that_is_not_ready_yet_is_left_alone(place: Place) -> None:
    work = place.settings.state / "heads" / "spare" / "work"
    work.mkdir(parents=True)
    (work / WAITING).touch()  # of one that was killed
    place.spare.tend()
    early = place.pid()
    head = place.start("r1")
    assert head.pid != early
    assert head.wait(30)
    assert "no_such_module" in place.log("r1")
    assert place.ready() == early
    assert place.start("r2").pid == early
    assert place.begun[-1].wait(30)
    assert "no_such_module" in place.log("r2")


def test_a_run_that_has_been_here_before_gets_a_head_of_its_own(place: Place) -> None:
    (place.settings.state / "heads" / "r1" / "work" / "tmp").mkdir(parents=True)
    (place.settings.state / "heads" / "r1" / "work" / "kept").touch()
    place.spare.tend()
    waiting = place.ready()
    head = place.start("r1")
    assert head.pid != waiting
    assert head.wait(30)
    assert (place.settings.state / "heads" / "r1" / "work" / "kept").exists()
    assert place.pid() == waiting


def test_a_run_begins_although_the_waiting_head_was_killed(place: Place) -> None:
    place.spare.tend()
    waiting = place.ready()
    kill(waiting)
    head = place.start("r1")
    assert head.pid != waiting
    assert head.wait(30)
    assert "no_such_module" in place.log("r1")


def test_the_next_one_is_started_when_the_launch_is_over(place: Place) -> None:
    place.spare.tend()
    place.ready()
    place.start("r1")
    place.spare.tend()
    assert place.pid() is None
    place.clock.ahead += SPARE_AFTER_S
    place.spare.tend()
    assert place.pid() is not None


def test_one_that_ends_by_itself_is_not_started_again_at_once(place: Place) -> None:
    place.spare.tend()
    first = place.pid()
    kill(first)
    place.spare.tend()
    assert place.pid() is None
    place.clock.ahead += SPARE_AGAIN_S
    place.spare.tend()
    assert place.pid() not in {None, first}


def test_nobody_waits_where_it_is_not_wanted(place: Place) -> None:
    settings = Settings(state_dir=place.settings.state, heads=HeadsSettings(spare=False))
    Spare(settings, place.containment, Redactor(), place.clock, lambda: True).tend()
    assert place.pid() is None


def test_nobody_waits_when_nobody_is_there(place: Place) -> None:
    place.people.clear()
    place.spare.tend()
    assert place.pid() is None
    place.people.append("somebody")
    place.spare.tend()
    assert place.pid() is not None
    place.people.clear()
    place.spare.tend()
    assert place.pid() is None
    assert not (place.settings.state / "heads" / "spare").exists()


def test_nothing_of_it_is_left_after_the_service(place: Place) -> None:
    place.spare.tend()
    place.spare.stop()
    assert place.pid() is None
    assert not (place.settings.state / "heads" / "spare").exists()
