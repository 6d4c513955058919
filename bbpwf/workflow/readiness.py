"""What may run next, kept up to date instead of looked for: the state of :class:`bbpwf.workflow.flat.FlatScheduler`.

Luigi's scheduler looks at every task whenever a worker asks for one. Here each change of a task updates what is
derived from it: how many of its dependencies are not done, in which queue of ready tasks it stands, and how much is
pending for each worker. Queues are ordered as Luigi ranks: by priority, then by age.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from luigi.scheduler import SimpleTaskState
from luigi.task_status import BATCH_RUNNING, DISABLED, DONE, FAILED, PENDING, RUNNING

Entry = tuple[float, float, int, Any]
"""A task in a queue: what it is ordered by, and the task: priority (negated), time, a number of its own, task."""

_Base: Any = SimpleTaskState  # untyped as it is, each use of it would have to be excused


@dataclass(eq=False)
class Group:
    """Ready tasks that ask for the same resources and can be run by the same workers: one speaks for all."""

    resources: dict[str, int]
    workers: tuple[str, ...]
    runnable: bool
    queue: list[Entry] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Mark:
    """What is derived from one task, to be taken back when the task changes."""

    number: int
    deps: set[str] = field(default_factory=set)
    unmet: int = 0
    entry: Entry | None = None
    group: Group | None = None
    family: str | None = None
    counted: tuple[str, ...] = ()
    demanding: bool = False
    runner: str | None = None
    plain: bool = False


class ReadyState(_Base):  # type: ignore[misc]  # see _Base
    """Luigi's tasks and workers, with queues of those tasks that nothing but a worker is missing for."""

    _tasks: dict[str, Any]

    def __init__(self, state_path: str) -> None:
        super().__init__(state_path)
        self._numbers = itertools.count()
        self._clear()

    def _clear(self) -> None:
        self._marks: dict[str, _Mark] = {}
        self._dependents: dict[str, dict[str, None]] = {}
        self._groups: dict[Any, Group] = {}
        self.of_worker: dict[str, dict[Group, None]] = defaultdict(dict)
        """The groups that each worker can take tasks from."""
        self._batchable: dict[str, list[Entry]] = defaultdict(list)
        self.running: dict[str, dict[str, Any]] = defaultdict(dict)
        """RUNNING tasks by the worker that runs them."""
        self.elsewhere: dict[str, Any] = {}
        """RUNNING tasks that another worker than the one that runs them waits for, too."""
        self.plain: dict[str, list[Entry]] = defaultdict(list)
        """RUNNING tasks without resources, by worker."""
        self.using: dict[str, Any] = {}
        """RUNNING tasks with resources."""
        self.pending: Counter[str] = Counter()
        self.unique: Counter[str] = Counter()
        self.last: Counter[str] = Counter()
        self.demanding: Counter[str] = Counter()
        """PENDING tasks with resources, by worker."""
        self._stuck: set[str] | None = set()

    # -- asked for

    def groups(self) -> Iterable[Group]:
        """All groups with ready tasks."""
        return self._groups.values()

    def batch_after(self, task: Any) -> list[Any]:
        """Ready tasks of the family of ``task`` that may be batched and rank below it, in order."""
        queue = self._batchable.get(task.family, [])
        mine = (-task.priority, task.time, self._marks[task.id].number)
        return [entry[3] for entry in queue if entry[:3] > mine]

    def rank(self, task: Any) -> tuple[float, float, int]:
        """The task's place among all: the smallest comes first."""
        return -task.priority, task.time, self._marks[task.id].number

    def stuck(self) -> set[str]:
        """PENDING tasks that wait, directly or not, for one that is disabled: they are not counted as pending."""
        if self._stuck is None:
            self._stuck = set()
            around = [task.id for task in self._status_tasks[DISABLED].values()]
            while around:
                for dependent in self._dependents.get(around.pop(), ()):
                    if self._tasks[dependent].status == PENDING and dependent not in self._stuck:
                        self._stuck.add(dependent)
                        around.append(dependent)
        return self._stuck

    # -- Luigi's own, with what is derived kept true

    def get_task(self, task_id: str, default: Any = None, setdefault: Any = None) -> Any:
        """The task, made from ``setdefault`` if that is given and there is none."""
        known = self._tasks.get(task_id)
        if known is None and setdefault is not None:
            made: Any = super().get_task(task_id, setdefault=setdefault)
            self._register(made)
            return made
        return default if known is None else known

    def get_worker(self, worker_id: str) -> Any:
        """The worker, made if need be."""
        return self._active_workers.get(worker_id) or super().get_worker(worker_id)

    def get_batch_running_tasks(self, batch_id: str) -> list[Any]:
        """The tasks of a batch that runs."""
        found: list[Any] = super().get_batch_running_tasks(batch_id) if self._status_tasks[BATCH_RUNNING] else []
        return found

    def set_status(self, task: Any, new_status: str, config: Any = None) -> None:
        """Move a task; whoever waits for it hears of it."""
        before = task.status
        super().set_status(task, new_status, config)
        if task.status != before and task.id in self._marks:
            if DONE in (before, task.status):
                self._settle(task.id, 1 if before == DONE else -1)
            self._doubt_stuck(task, before)
            self.refresh(task)

    def inactivate_tasks(self, delete_tasks: Iterable[str]) -> None:
        """Forget tasks. A task that depends on one of them waits until it is added again."""
        gone = [self._tasks[each] for each in delete_tasks]
        super().inactivate_tasks([task.id for task in gone])
        for task in gone:
            mark = self._marks.pop(task.id)
            self._withdraw(task, mark)
            self._link(task.id, mark, set())
            if task.status == DONE:
                self._settle(task.id, 1)
            self._stuck = None

    def inactivate_workers(self, delete_workers: list[str]) -> None:
        """Forget workers; costs nothing if there are none to forget."""
        if delete_workers:
            super().inactivate_workers(delete_workers)

    def _remove_workers_from_tasks(self, workers: Any, remove_stakeholders: bool = True) -> None:
        super()._remove_workers_from_tasks(workers, remove_stakeholders)
        self.rebuild()

    def set_state(self, state: Any) -> None:
        """Take over what a scheduler before this one knew."""
        super().set_state(state)
        self.rebuild()

    # -- derived

    def rebuild(self) -> None:
        """Derive everything anew: in time that grows with the number of tasks."""
        self._clear()
        for task in self._tasks.values():
            self._register(task)
        self._stuck = None

    def relink(self, task: Any) -> None:
        """The task's dependencies may have changed."""
        mark = self._marks[task.id]
        if mark.deps != task.deps:
            self._link(task.id, mark, set(task.deps))
            if self._status_tasks[DISABLED]:
                self._stuck = None

    def refresh(self, task: Any) -> None:
        """Something else about the task may have changed."""
        mark = self._marks[task.id]
        self._withdraw(task, mark)
        self._enter(task, mark)

    def _register(self, task: Any) -> None:
        mark = self._marks[task.id] = _Mark(next(self._numbers))
        self._link(task.id, mark, set(task.deps))
        if task.status == DONE:
            self._settle(task.id, -1)
        if self._status_tasks[DISABLED]:
            self._stuck = None
        self._enter(task, mark)

    def _is_done(self, task_id: str) -> bool:
        task = self._tasks.get(task_id)
        return task is not None and task.status == DONE and task_id in self._marks

    def _link(self, task_id: str, mark: _Mark, deps: set[str]) -> None:
        for dep in mark.deps - deps:
            self._dependents[dep].pop(task_id, None)
            mark.unmet -= not self._is_done(dep)
        for dep in deps - mark.deps:
            self._dependents.setdefault(dep, {})[task_id] = None
            mark.unmet += not self._is_done(dep)
        mark.deps = deps

    def _settle(self, task_id: str, change: int) -> None:
        """A dependency became DONE (-1), or is it no more (+1)."""
        for dependent in self._dependents.get(task_id, ()):
            mark, task = self._marks[dependent], self._tasks.get(dependent)
            before, mark.unmet = mark.unmet, mark.unmet + change
            if task is not None and (not before or not mark.unmet):
                self.refresh(task)

    def _doubt_stuck(self, task: Any, before: str) -> None:
        """Ready tasks that run and end have no disabled one before them: they leave :meth:`stuck` as it is."""
        turned = task.status == PENDING or (before == PENDING and task.id in (self._stuck or ()))
        if DISABLED in (before, task.status) or (turned and self._status_tasks[DISABLED]):
            self._stuck = None

    def _enter(self, task: Any, mark: _Mark) -> None:
        if task.status in (PENDING, FAILED):
            mark.counted = workers = tuple(task.workers)
            for worker in workers:
                self.pending[worker] += 1
            if workers:
                self.last[workers[-1]] += 1
                self.unique[workers[0]] += len(workers) == 1
            mark.demanding = task.status == PENDING and bool(task.resources)
            if mark.demanding:
                self.demanding.update(workers)
            if task.status == PENDING and not mark.unmet:
                self._queue(task, mark, workers)
        elif task.status == RUNNING:
            self._run(task, mark)

    def _queue(self, task: Any, mark: _Mark, workers: tuple[str, ...]) -> None:
        entry = mark.entry = (*self.rank(task), task)
        key = (tuple(sorted((task.resources or {}).items())), workers, bool(task.runnable))
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(dict(key[0]), workers, key[2])
            for worker in workers:
                self.of_worker[worker][group] = None
        mark.group = group
        insort(group.queue, entry)
        if task.is_batchable():
            mark.family = task.family
            insort(self._batchable[task.family], entry)

    def _run(self, task: Any, mark: _Mark) -> None:
        mark.runner = runner = task.worker_running or ""
        self.running[runner][task.id] = task
        if any(worker != runner for worker in task.workers):
            self.elsewhere[task.id] = task
        mark.plain = not getattr(task, "resources_running", task.resources)
        if mark.plain:
            mark.entry = (*self.rank(task), task)
            insort(self.plain[runner], mark.entry)
        else:
            self.using[task.id] = task

    def _withdraw(self, task: Any, mark: _Mark) -> None:
        workers, entry = mark.counted, mark.entry
        for worker in workers:
            self.pending[worker] -= 1
        if workers:
            self.last[workers[-1]] -= 1
            self.unique[workers[0]] -= len(workers) == 1
        if mark.demanding:
            self.demanding.subtract(workers)
        if entry is not None and mark.group is not None:
            _remove(mark.group.queue, entry)
            if not mark.group.queue:
                self._disband(mark.group)
            if mark.family is not None:
                _remove(self._batchable[mark.family], entry)
        if mark.runner is not None:
            self.running[mark.runner].pop(task.id, None)
            self.elsewhere.pop(task.id, None)
            self.using.pop(task.id, None)
            if mark.plain and entry is not None:
                _remove(self.plain[mark.runner], entry)
        mark.counted, mark.demanding, mark.plain = (), False, False
        mark.entry = mark.group = mark.family = mark.runner = None

    def _disband(self, group: Group) -> None:
        key = (tuple(sorted(group.resources.items())), group.workers, group.runnable)
        self._groups.pop(key, None)
        for worker in group.workers:
            self.of_worker[worker].pop(group, None)


def _remove(queue: list[Entry], entry: Entry) -> None:
    del queue[bisect_left(queue, entry)]
