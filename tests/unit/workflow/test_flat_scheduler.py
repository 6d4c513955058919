"""Our scheduler answers as Luigi's does: both are told the same, at random, and must give out the same work."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from luigi.scheduler import Scheduler
from luigi.task_status import DISABLED, DONE, FAILED, PENDING, RUNNING

from bbpwf.workflow import flat
from bbpwf.workflow.flat import FlatScheduler

WORKERS = ("a", "b")
TASKS = tuple(f"Task_{n}" for n in range(9))
Step = tuple[Any, ...]


class Ticking:
    """A clock that moves at each look, so that no two tasks are of one age."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 1e-4
        return self.now


@contextmanager
def ticking() -> Iterator[Ticking]:
    clock = Ticking()
    with mock.patch.object(time, "time", clock):
        yield clock


class Told:
    """One scheduler, and what its workers were given."""

    def __init__(self, made: Any) -> None:
        self.scheduler: Any = made
        self.given: dict[str, list[str]] = {worker: [] for worker in WORKERS}

    def do(self, step: Step) -> Any:
        """Do it. Luigi's workers go on counting tasks that were removed: that much is set right first."""
        state = self.scheduler._state
        for each in state.get_active_workers():
            each.tasks = {task for task in each.tasks if state.get_task(task.id) is task}
        kind, *rest = step
        answer: Any = getattr(self, f"_{kind}")(*rest)
        return answer

    def _add(self, worker: str, number: int, deps: list[int], facts: dict[str, Any]) -> None:
        self.scheduler.add_task(
            task_id=TASKS[number],
            worker=worker,
            deps=[TASKS[dep] for dep in deps],
            family=f"F{number % 2}",
            params={"n": str(number), "small": str(number < 6)},
            **facts,
        )

    def _done(self, worker: str, status: str) -> str | None:
        return self._end(worker, status, [])

    def _more(self, worker: str, deps: list[int]) -> str | None:
        return self._end(worker, PENDING, deps)

    def _end(self, worker: str, status: str, deps: list[int]) -> str | None:
        if not self.given[worker]:
            return None
        task_id = self.given[worker].pop(0)
        new = [TASKS[dep] for dep in deps if TASKS[dep] > task_id]
        self.scheduler.add_task(task_id=task_id, worker=worker, status=status, expl="1", runnable=None, new_deps=new)
        return task_id

    def _work(self, worker: str, forgetful: bool) -> dict[str, Any]:
        current = [] if forgetful else list(self.given[worker])
        answer: dict[str, Any] = self.scheduler.get_work(worker=worker, host="h", current_tasks=current)
        if answer["task_id"] and answer["task_id"] not in self.given[worker]:
            self.given[worker].append(answer["task_id"])
        if "batch_id" in answer:
            self.scheduler.add_task(
                worker=worker, task_id=answer["batch_id"], family=answer["task_family"], status=RUNNING,
                params=answer["task_params"], batch_id=answer["batch_id"],
            )  # fmt: skip
            self.given[worker].append(answer["batch_id"])
        answer.pop("more", None)  # ours alone
        others = [each for each in answer.pop("running_tasks") if each["worker"] != worker]
        return {**answer, "others": sorted(each["task_id"] for each in others)}

    def _call(self, name: str, *values: Any) -> Any:
        return getattr(self.scheduler, name)(*values)

    def states(self) -> dict[str, Any]:
        shown: dict[str, Any] = self.scheduler.graph()
        return {
            task_id: (each["status"], sorted(each["deps"]), each["priority"], sorted(each["workers"]))
            for task_id, each in shown.items()
        }


workers = st.sampled_from(WORKERS)
numbers = st.integers(0, len(TASKS) - 1)
facts = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.integers(0, 3),
        "resources": st.sampled_from(({}, {}, {"r": 1}, {"r": 2}, {"s": 3}, {"r": 1, "s": 1})),
        "batchable": st.just(True),
        "retry_policy_dict": st.fixed_dictionaries({"retry_count": st.integers(1, 3)}),
        "runnable": st.sampled_from((True, True, False)),
        "status": st.sampled_from((PENDING, PENDING, PENDING, PENDING, DONE, DISABLED)),
    },
)
later = st.lists(numbers, max_size=3)  # a task depends on those with larger numbers, if at all


def _adding(worker: str, number: int, deps: list[int], more: dict[str, Any]) -> Step:
    return "add", worker, number, sorted({dep for dep in deps if dep > number}), more


adding = st.builds(_adding, workers, numbers, later, facts)
calls = st.sampled_from(
    [
        *(("call", name) for name in ("pause", "unpause")),
        *(("call", "update_resource", name, amount) for name in ("r", "s") for amount in (1, 4)),
        *(("call", "add_worker", worker, {"workers": 2}) for worker in WORKERS),
        *(("call", name, TASKS[n]) for n in range(4) for name in ("forgive_failures", "mark_as_done")),
        *(("call", "re_enable_task", TASKS[n]) for n in range(4)),
        ("call", "disable_worker", "b"),
        *(("wait", seconds) for seconds in (0.5, 40.0, 1000.0)),
    ]
)
beginnings = st.lists(
    st.sampled_from(
        [
            ("call", "update_resource", "r", 3),
            ("call", "update_resource", "s", 4),
            ("call", "add_worker", "a", {"workers": 3}),
            ("call", "add_worker", "b", {"workers": 4}),
            ("call", "add_task_batcher", "a", "F0", ["n"], 3),
            ("call", "add_task_batcher", "a", "F1", ["n"]),
            ("call", "add_task_batcher", "b", "F0", ["n"], 2),
            ("work", "a", False),
            ("work", "b", False),
        ]
    ),
    unique_by=repr,
    max_size=9,
)
working = st.tuples(st.just("work"), workers, st.sampled_from((False, False, False, True)))
ending = st.tuples(st.just("done"), workers, st.sampled_from((DONE, DONE, FAILED)))
growing = st.tuples(st.just("more"), workers, later)
stories = st.builds(
    lambda first, graph, rest: [*first, *graph, *rest],
    beginnings,
    st.lists(adding, min_size=4, max_size=12),
    st.lists(st.one_of(working, working, working, ending, ending, growing, adding, calls), min_size=5, max_size=40),
)


def _played(made: type[Any], story: list[Step], path: str) -> list[Any]:
    seen = []
    with ticking() as clock:
        told = Told(
            made(
                prune_on_get_work=True,
                record_task_history=False,
                retry_delay=0.2,
                disable_persist=30,
                worker_disconnect_delay=100,
                remove_delay=50,
                stable_done_cooldown_secs=1,
                state_path=path,
            )
        )
        for step in story:
            if step[0] == "wait":
                clock.now += step[1]
                told.do(("call", "prune"))  # as luigid does by itself
            else:
                answer = told.do(step)
                seen.append((step, _plain(answer)))
            seen.append((step, told.states()))
    return seen


def _plain(answer: Any) -> Any:
    if isinstance(answer, dict):
        return {name: value for name, value in answer.items() if "time" not in name and name != "last_updated"}
    return answer


@settings(max_examples=150, deadline=None, derandomize=True)
@given(stories)
def test_both_give_out_the_same_work(story: list[Step]) -> None:
    ours, theirs = _played(FlatScheduler, story, "unused"), _played(Scheduler, story, "unused")
    for our, their in zip(ours, theirs, strict=True):
        assert our == their


def _scheduler(**more: Any) -> Any:
    return FlatScheduler(prune_on_get_work=True, record_task_history=False, retry_delay=-1.0, **more)


def test_it_says_whether_asking_again_may_bring_more() -> None:
    scheduler = _scheduler()
    scheduler.add_task(task_id="a", worker="w", family="T")
    scheduler.add_task(task_id="b", worker="w", family="T")
    scheduler.add_task(task_id="c", worker="w", family="T", deps=["a"])
    answers = [scheduler.get_work(worker="w", host="h", current_tasks=given) for given in ([], ["a"], ["a", "b"])]
    assert [(each["task_id"], each["more"]) for each in answers] == [("a", True), ("b", False), (None, False)]
    scheduler.add_task(task_id="d", worker="w", family="T", resources={"licence": 1})
    scheduler.add_task(task_id="e", worker="w", family="T")
    answer = scheduler.get_work(worker="w", host="h", current_tasks=["a", "b"])
    assert (answer["task_id"], answer["more"]) == ("d", True), "where tasks need something, it is not known"


def test_a_chain_longer_than_the_stack_can_be_urgent() -> None:
    """Luigi's own raises RecursionError here."""
    made = _scheduler()
    for number in range(3000):
        made.add_task(task_id=f"T_{number}", worker="w", deps=[f"T_{number + 1}"] if number < 2999 else [])
    made.add_task(task_id="T_0", worker="w", deps=["T_1"], priority=7)
    assert made.get_work(worker="w")["task_id"] == "T_2999"
    assert made._state.get_task("T_1500").priority == 7


def test_what_was_given_and_lost_is_given_again_though_much_is_running() -> None:
    made = _scheduler()
    count = 2 * flat.ALWAYS_RECALLED
    with ticking() as clock:
        for number in range(count):
            made.add_task(task_id=f"T_{number}", worker="w")
        given: list[str] = []
        while len(given) < count:
            given.append(made.get_work(worker="w", current_tasks=given)["task_id"])
        assert len(set(given)) == count
        mistaken = [*given[1:], "Another_1"]  # as many as are running, but not the same
        clock.now += flat.RECALL_EVERY_S + 1
        assert made.get_work(worker="w", current_tasks=mistaken)["task_id"] == given[0]
        assert made.get_work(worker="w", current_tasks=[])["task_id"] == "T_0", "the best of all, at once"


def test_what_a_scheduler_knew_is_taken_over_by_the_next(tmp_path: Path) -> None:
    path = str(tmp_path / "state.pickle")
    first = _scheduler(state_path=path)
    for task_id, deps in (("A_1", []), ("B_1", ["A_1"]), ("C_1", [])):
        first.add_task(task_id=task_id, worker="w", deps=deps, family=task_id[0])
    first.add_task(task_id="A_1", worker="w", status=DONE)
    first.dump()
    with Path(path).open("rb") as kept:
        assert len(pickle.load(kept)[0]) == 3
    second = _scheduler(state_path=path)
    second.load()
    assert {second.get_work(worker="w")["task_id"] for _ in range(2)} == {"B_1", "C_1"}


@pytest.mark.parametrize("count", [2000])
def test_asking_for_work_looks_at_no_more_tasks_when_more_are_pending(count: int) -> None:
    looked = itertools.count()
    made = _scheduler()
    for number in range(count):
        made.add_task(task_id=f"T_{number}", worker="w", resources={"licence": 1} if number % 2 else {})
    made.update_resource("licence", 3)
    whole = made._has_resources

    def counted(*args: Any) -> Any:
        next(looked)
        return whole(*args)

    with mock.patch.object(made, "_has_resources", counted):
        running: list[str] = []
        for _ in range(200):
            running.append(made.get_work(worker="w", current_tasks=running)["task_id"])
    assert next(looked) < 200 * 20
