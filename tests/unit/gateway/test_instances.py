"""One instance a project, not too many in all, and none that ended badly is left lying; on a backend made of words."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bbpwf.errors import InstanceFailed, NoRoom
from service.gateway.authorizer import Project
from service.gateway.backend import Found, Order, Phase, Refused, Sighting
from service.gateway.instances import CLAIM_S, UNSEEN_S, Instances, Ready, Starting
from service.gateway.roster import FileRoster
from tests.support.clock import ManualClock

ONE, TWO, THREE = (Project("v", f"p{number}") for number in range(3))


class Boats:
    """A backend that remembers what it was told; tests say how its instances are."""

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.phases: dict[str, Phase] = {}
        self.stopped: list[str] = []
        self.first = Phase.READY
        self.trouble: BaseException | None = None
        self.starts_before_trouble = False
        self._lock = threading.Lock()

    def start(self, order: Order) -> str:
        with self._lock:
            if self.trouble is not None and not self.starts_before_trouble:
                raise self.trouble
            self.orders.append(order)
            name = f"{order.project.name}.{order.generation}"
            self.phases.setdefault(name, self.first)
            if self.trouble is not None:
                raise self.trouble
            return name

    def look(self, instance: str) -> Sighting:
        phase = self.phases.get(instance, Phase.UNSEEN)
        return Sighting(phase, "10.0.0.1:8100" if phase is Phase.READY else "", "so it is")

    def stop(self, instance: str, reason: str) -> None:
        self.stopped.append(instance)
        self.phases[instance] = Phase.RESTING

    def all(self) -> Sequence[Found]:
        running = {Phase.READY, Phase.STARTING, Phase.SICK}
        return [
            Found(f"{each.project.name}.{each.generation}", each.project, each.generation)
            for each in self.orders
            if self.phases[f"{each.project.name}.{each.generation}"] in running
        ]

    def distinct(self) -> set[tuple[str, int]]:
        return {(each.project.key, each.generation) for each in self.orders}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1.0)  # the first generation is the time


@pytest.fixture
def boats() -> Boats:
    return Boats()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "roster.json"


@pytest.fixture
def instances(boats: Boats, path: Path, clock: ManualClock) -> Instances:
    return Instances(boats, FileRoster(path), cap=2, start_limit_s=300, clock=clock)


def found(instances: Instances, project: Project = ONE, wait_s: float = 5.0) -> Ready | Starting:
    return instances.find(project, "somebody", wait_s=wait_s)


def test_the_first_request_starts_and_the_second_finds(instances: Instances, boats: Boats, clock: ManualClock) -> None:
    assert isinstance(found(instances, wait_s=0), Starting)
    assert found(instances) == Ready("10.0.0.1:8100")
    clock.advance(100)
    assert found(instances) == Ready("10.0.0.1:8100")
    assert [each.sub for each in boats.orders] == ["somebody"]


def test_many_gateways_at_once_start_one(boats: Boats, path: Path, clock: ManualClock) -> None:
    def ask(_: int) -> Ready | Starting:
        # short waits: everybody's together stay below what a claim lasts
        return found(Instances(boats, FileRoster(path), cap=2, start_limit_s=300, clock=clock), wait_s=0.5)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(60)))
    assert len(boats.orders) == 1
    assert {type(each) for each in answers} <= {Ready, Starting}
    assert ask(0) == Ready("10.0.0.1:8100")


def test_many_gateways_never_start_more_than_may_be(boats: Boats, path: Path, clock: ManualClock) -> None:
    def ask(number: int) -> str:
        mine = Instances(boats, FileRoster(path), cap=3, start_limit_s=300, clock=clock)
        try:
            found(mine, Project("v", f"p{number % 8}"), wait_s=0.5)
        except NoRoom:
            return "no room"
        return "room"

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(64)))
    assert len(boats.distinct()) == len(boats.orders) == 3
    assert answers.count("no room") == 64 - 3 * 8


def test_one_that_comes_up_slowly_is_waited_for_and_then_told(
    instances: Instances, boats: Boats, clock: ManualClock
) -> None:
    boats.first = Phase.STARTING
    before = clock.monotonic()
    state = found(instances, wait_s=20)
    assert isinstance(state, Starting)
    assert state.retry_after_s > 0
    assert clock.monotonic() - before >= 20
    boats.phases["v-p0.1"] = Phase.READY
    assert isinstance(found(instances), Ready)
    assert len(boats.orders) == 1


def test_one_that_never_comes_up_is_replaced(instances: Instances, boats: Boats, clock: ManualClock) -> None:
    boats.first = Phase.STARTING
    found(instances, wait_s=0)
    clock.advance(301)
    boats.first = Phase.READY
    assert isinstance(found(instances), Ready)
    assert boats.stopped == ["v-p0.1"]
    assert [each.generation for each in boats.orders] == [1, 2]


@pytest.mark.parametrize("phase", [Phase.GONE, Phase.SICK])
def test_one_that_ended_badly_comes_back_though_nobody_asks(
    instances: Instances, boats: Boats, clock: ManualClock, phase: Phase
) -> None:
    found(instances)
    clock.advance(1000)
    boats.phases["v-p0.1"] = phase
    instances.tend()
    assert [each.generation for each in boats.orders] == [1, 2]
    assert isinstance(found(instances), Ready)


def test_one_that_went_to_rest_stays_so_until_somebody_asks(
    instances: Instances, boats: Boats, clock: ManualClock
) -> None:
    found(instances)
    boats.phases["v-p0.1"] = Phase.RESTING
    for _ in range(3):
        clock.advance(10)
        instances.tend()
    assert len(boats.orders) == 1
    assert isinstance(found(instances), Ready)
    assert len(boats.orders) == 2


def test_one_that_always_ends_at_once_is_started_ever_more_rarely(
    instances: Instances, boats: Boats, clock: ManualClock
) -> None:
    boats.first = Phase.GONE
    for _ in range(600):
        clock.advance(1)
        instances.tend()
        found(instances, wait_s=0)
    assert 5 <= len(boats.orders) <= 16
    state = found(instances, wait_s=0)
    assert isinstance(state, Starting)
    assert "so it is" in state.reason or "started" in state.reason
    boats.first = Phase.READY
    for _ in range(200):
        clock.advance(1)
        instances.tend()
    assert isinstance(found(instances), Ready)


def test_room_is_told_and_comes_free_with_rest(instances: Instances, boats: Boats, clock: ManualClock) -> None:
    found(instances, ONE)
    found(instances, TWO)
    with pytest.raises(NoRoom, match="all 2 project instances"):
        found(instances, THREE)
    boats.phases["v-p0.1"] = Phase.RESTING
    assert isinstance(found(instances, THREE), Ready)
    clock.advance(10)
    with pytest.raises(NoRoom):
        found(instances, ONE)


def test_a_refusal_is_told_and_holds_no_room(instances: Instances, boats: Boats, clock: ManualClock) -> None:
    boats.trouble = Refused("no capacity")
    with pytest.raises(InstanceFailed, match="no capacity"):
        found(instances, ONE)
    state = found(instances, ONE, wait_s=0)
    assert isinstance(state, Starting)
    assert "no capacity" in state.reason
    boats.trouble = None
    found(instances, TWO)
    found(instances, THREE)
    clock.advance(60)
    with pytest.raises(NoRoom):
        found(instances, ONE)
    boats.phases["v-p1.1"] = Phase.RESTING
    assert isinstance(found(instances, ONE), Ready)
    assert boats.orders[-1].generation == 2, "a refused order is not repeated but made anew"


def test_an_order_whose_answer_was_lost_is_made_again_as_the_same(
    instances: Instances, boats: Boats, clock: ManualClock
) -> None:
    boats.trouble = InstanceFailed("the answer was lost")
    boats.starts_before_trouble = True
    with pytest.raises(InstanceFailed):
        found(instances)
    boats.trouble = None
    clock.advance(60)
    assert isinstance(found(instances), Ready)
    assert boats.distinct() == {("v/p0", 1)}


def test_a_gateway_that_dies_while_it_starts_is_succeeded(
    instances: Instances, boats: Boats, clock: ManualClock
) -> None:
    class Died(BaseException):
        pass

    boats.trouble = Died()
    boats.starts_before_trouble = True
    with pytest.raises(Died):
        found(instances)
    boats.trouble = None
    assert isinstance(found(instances, wait_s=0), Starting)
    clock.advance(CLAIM_S + 1)
    assert isinstance(found(instances), Ready)
    assert boats.distinct() == {("v/p0", 1)}


def test_one_that_cannot_be_seen_yet_is_not_taken_for_gone(
    instances: Instances, boats: Boats, clock: ManualClock
) -> None:
    boats.first = Phase.UNSEEN
    assert isinstance(found(instances, wait_s=10), Starting)
    assert len(boats.orders) == 1
    clock.advance(UNSEEN_S)
    boats.first = Phase.READY
    assert isinstance(found(instances), Ready)
    assert len(boats.orders) == 2


def test_a_lost_roster_is_made_anew_from_what_runs(instances: Instances, boats: Boats, path: Path) -> None:
    found(instances, ONE)
    path.unlink()
    instances.tend()
    assert isinstance(found(instances, ONE), Ready)
    assert len(boats.orders) == 1


def test_a_roster_that_cannot_be_read_starts_nothing(instances: Instances, boats: Boats, path: Path) -> None:
    path.write_text("{")
    with pytest.raises(InstanceFailed, match="roster"):
        found(instances)
    assert boats.orders == []
