"""Luigi's scheduler, with the same methods and answers, where asking for work does not cost more the more is pending.

What Luigi derives from all tasks at each question is kept by :class:`bbpwf.workflow.readiness.ReadyState`; what
changes with time alone (failures that may be tried again, tasks to be forgotten) has its due time in a heap. Answers
differ from Luigi's in one thing: ``running_tasks`` in the answer of ``get_work`` names only what other workers run,
which is all that a worker does not know itself.
"""

from __future__ import annotations

import hashlib
import heapq
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luigi.scheduler import Scheduler
from luigi.task_status import BATCH_RUNNING, DISABLED, FAILED, RUNNING

from bbpwf.workflow.readiness import Group, ReadyState

_Base: Any = Scheduler  # untyped as it is, each use of it would have to be excused

PRUNE_EVERY_S = 60.0
"""Seconds between full looks at everything, where Luigi looks at each question; as ``luigid`` does by itself."""

RECALL_EVERY_S = 5.0
"""Seconds between full comparisons of what a worker says it runs with what it was given, while the numbers agree."""

ALWAYS_RECALLED = 256
"""With no more running tasks than these, they are compared at each question."""

Batch = tuple[dict[str, list[Any]], list[Any]]
"""The combined parameters of tasks that run as one, and the tasks."""


@dataclass
class _Greedy:
    """What would be taken if all workers were given tasks anew, best first: see Luigi's ``get_work``."""

    state: ReadyState
    capacity: dict[str, int]

    def __post_init__(self) -> None:
        self.resources: dict[str, int] = defaultdict(int)

    def take(self, worker: str, resources: Mapping[str, int] | None) -> None:
        """The worker takes a task."""
        self.capacity[worker] -= 1
        for name, amount in (resources or {}).items():
            self.resources[name] += amount

    def room(self, worker: str, rank: tuple[float, float, int]) -> bool:
        """Whether the worker would have room for a task of this rank, after all those that rank above it."""
        if self.capacity.get(worker, 0) <= 0:
            return False
        running = self.state.plain.get(worker, [])
        low, high = 0, len(running)
        while low < high:
            middle = (low + high) // 2
            if running[middle][:3] < rank:
                low = middle + 1
            else:
                high = middle
        return self.capacity[worker] > low


class FlatScheduler(_Base):  # type: ignore[misc]  # see _Base
    """A drop-in for ``luigi.scheduler.Scheduler``, in a process of its own or within a run's."""

    _state: ReadyState
    _config: Any
    _paused: bool
    _make_task: Any

    more = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        state = ReadyState(self._config.state_path)
        state._metrics_collector = self._state._metrics_collector
        self._state = state
        self._new_task: Any = self._make_task
        self._make_task = self._known_or_new
        self._due: list[tuple[float, str]] = []
        self._pruned_at = time.time()
        self._recalled_at: dict[str, float] = {}

    def _known_or_new(self, *, task_id: str, **facts: Any) -> Any:
        """Luigi makes a task for each mention of one, and drops it if it has that task."""
        return self._state.get_task(task_id) or self._new_task(task_id=task_id, **facts)

    # -- tasks

    def add_task(self, *args: Any, **call: Any) -> None:
        """See Luigi."""
        super().add_task(*args, **call)
        task = self._state.get_task(call["task_id"] if "task_id" in call else args[0])
        if task is not None:
            self._state.relink(task)
            self._state.refresh(task)
            self._watch(task)

    def add_tasks(self, tasks: list[dict[str, Any]]) -> None:
        """Many calls of :meth:`add_task` in one, from :class:`bbpwf.workflow.scheduler.RunScheduler`."""
        for each in tasks:
            self.add_task(**each)

    def _update_priority(self, task: Any, prio: float, worker: str) -> None:
        """What a task of some priority needs is as urgent as it is."""
        del worker
        todo = [(task, prio)]
        while todo:
            each, least = todo.pop()
            present = each.priority if isinstance(each.priority, (int, float)) else 0
            urgent = max(least, present)
            if urgent != each.priority:
                each.priority = urgent
                self._state.refresh(each)
            for dep in each.deps or ():
                known = self._state.get_task(dep)
                if known is not None and urgent > known.priority:
                    todo.append((known, urgent))

    # -- time

    def _watch(self, task: Any) -> None:
        """Note when the task will have to be looked at, if ever."""
        if task.status == FAILED and self._config.retry_delay >= 0 and task.retry is not None:
            heapq.heappush(self._due, (task.retry, task.id))
        if task.status == DISABLED and task.scheduler_disable_time is not None:
            heapq.heappush(self._due, (task.scheduler_disable_time + self._config.disable_persist, task.id))
        if task.remove:
            heapq.heappush(self._due, (task.remove, task.id))

    def prune(self) -> None:
        """Look at everything: workers that are gone, tasks that are due."""
        super().prune()
        self._pruned_at = time.time()
        self._due.clear()
        for task in self._state.get_active_tasks():
            self._watch(task)

    def _prune_due(self) -> None:
        """Look at what is due. Everything is looked at when a worker is gone, and now and then."""
        now = time.time()
        lost = any(worker.prune(self._config) for worker in self._state.get_active_workers())
        if lost or now - self._pruned_at > PRUNE_EVERY_S:
            self.prune()
            return
        due = []
        while self._due and self._due[0][0] < now:
            due.append(heapq.heappop(self._due)[1])
        for task_id in dict.fromkeys(due):
            task = self._state.get_task(task_id)
            if task is None:
                continue
            self._state.update_status(task, self._config)
            if self._state.may_prune(task):
                self._state.inactivate_tasks([task_id])
            else:
                self._watch(task)

    # -- work

    def get_work(
        self,
        host: str | None = None,
        assistant: bool = False,
        current_tasks: Collection[str] | None = None,
        worker: str | None = None,
        tasks: Sequence[dict[str, Any]] = (),
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The best task that this worker can run now, after calls of :meth:`add_task`; see Luigi.

        The answer's ``more``, which Luigi's has not, says whether asking again may bring another one.
        """
        del kwargs
        for each in tasks:
            self.add_task(**each)
        if self._config.prune_on_get_work:
            self._prune_due()
        if worker is None:
            raise TypeError("get_work needs the worker's id")
        asking = self._update_worker(worker, worker_reference={"host": host}, get_work=True)
        if not asking.enabled:
            nothing = {"n_pending_tasks": 0, "running_tasks": [], "task_id": None, "n_unique_pending": 0}
            return {**nothing, "worker_state": asking.state}
        if assistant:
            self.add_worker(worker, [("assistant", assistant)])
        best = None
        if current_tasks is not None:
            best = self._given_before(worker, current_tasks)
            if self._state._status_tasks[BATCH_RUNNING]:
                self._reset_orphaned_batch_running_tasks(worker)
        batch: Batch | None = None
        trivial = not assistant and not self._state.demanding[worker]
        if best is None and not self._paused:
            best = self._first_of(worker) if trivial else self._greedily(worker, assistant)
            if best is not None:
                batch = self._batch_of(worker, best, own=trivial)
        reply = self._given(worker, host, best, batch)
        self.more = reply["more"] = not trivial or self._first_of(worker) is not None
        return reply

    def _given_before(self, worker: str, current: Collection[str]) -> Any:
        """A task that the worker was given and does not know of: it lost the answer, or was started again."""
        given = self._state.running.get(worker)
        now = time.time()
        if not given:
            return None
        recently = now - self._recalled_at.get(worker, 0.0) < RECALL_EVERY_S
        if recently and len(given) == len(current) and len(given) > ALWAYS_RECALLED:
            return None
        self._recalled_at[worker] = now
        known = set(current)
        lost = (task for task_id, task in given.items() if task_id not in known)
        return min(lost, key=self._state.rank, default=None)

    def _first_of(self, worker: str) -> Any:
        """The best task where none needs resources."""
        heads = (group.queue[0] for group in self._state.of_worker.get(worker, ()))
        first = min(heads, default=None)
        return None if first is None else first[3]

    def _greedily(self, worker: str, assistant: bool) -> Any:
        """The best task that may have its resources, now and when workers that could do something better are served.

        Within a group a task that is refused is refused for something that no later one can change: resources and
        room only get less. The group is then done with, so that the number of ready tasks does not matter.
        """
        state = self._state
        used = self._used_resources()
        active = state.get_active_workers(last_get_work_gt=time.time() - self._config.worker_disconnect_delay)
        greedy = _Greedy(state, {each.id: each.info.get("workers", 1) for each in active})
        heads: list[tuple[tuple[float, float, int], int, Group | None, Any]] = []
        heads += [(each.queue[0][:3], 0, each, each.queue[0][3]) for each in state.groups()]
        heads += [(state.rank(task), 0, None, task) for task in state.using.values()]
        heapq.heapify(heads)  # ranks differ: nothing behind them is ever compared
        while heads:
            rank, position, group, task = heapq.heappop(heads)
            if group is None:
                if task.worker_running in greedy.capacity:
                    greedy.take(task.worker_running, getattr(task, "resources_running", task.resources))
                continue
            if not self._has_resources(group.resources, greedy.resources):
                continue
            able = (assistant and group.runnable) or worker in group.workers
            if able and self._has_resources(group.resources, used):
                return task
            others = (*group.workers, worker) if assistant else group.workers
            taker = next((each for each in others if greedy.room(each, rank)), None)
            if taker is None:
                continue
            greedy.take(taker, group.resources)
            if position + 1 < len(group.queue):
                entry = group.queue[position + 1]
                heapq.heappush(heads, (entry[:3], position + 1, group, entry[3]))
        return None

    def _used_resources(self) -> dict[str, int]:
        used: dict[str, int] = defaultdict(int)
        if self._resources is not None:
            for task in self._state.using.values():
                for name, amount in getattr(task, "resources_running", task.resources).items():
                    used[name] += amount
        return used

    def _batch_of(self, worker: str, best: Any, *, own: bool) -> Batch | None:
        """What can run together with ``best``, if its family is one that batches."""
        names, most = self._state.get_batcher(worker, best.family)
        if not names or not best.is_batchable() or any(name not in best.params for name in names):
            return None
        fixed = {name: value for name, value in best.params.items() if name not in names}
        tasks = [best]
        for task in self._state.batch_after(best):
            if len(tasks) >= most:
                break
            if own and worker not in task.workers:
                continue
            alike = all(task.params.get(name) == value for name, value in fixed.items())
            if alike and task.resources == best.resources:
                tasks.append(task)
        return {name: [task.params.get(name) for task in tasks] for name in names}, tasks

    def _given(self, worker: str, host: str | None, best: Any, batch: Batch | None) -> dict[str, Any]:
        """The answer; what it gives is RUNNING from now on."""
        reply = self._pending_of(worker)
        reply["task_id"] = None
        if best is None:
            return reply
        reply |= {"task_family": best.family, "task_module": getattr(best, "module", None)}
        if batch is not None and len(batch[1]) > 1:
            combined, tasks = batch
            text = "|".join(task.id for task in tasks)
            batch_id = hashlib.new("md5", text.encode(), usedforsecurity=False).hexdigest()
            for task in tasks:
                self._state.set_batch_running(task, batch_id, worker)
            ids = [task.id for task in tasks]
            return reply | {"task_params": best.params | combined, "batch_id": batch_id, "batch_task_ids": ids}
        self.update_metrics_task_started(best)
        best.worker_running = worker
        best.resources_running = best.resources.copy()
        self._state.set_status(best, RUNNING, self._config)
        best.time_running = time.time()
        self._update_task_history(best, RUNNING, host=host)
        return reply | {"task_id": best.id, "task_params": best.params}

    def _pending_of(self, worker_id: str) -> dict[str, Any]:
        """What :meth:`count_pending` answers, without what the worker runs itself."""
        state = self._state
        worker = state.get_worker(worker_id)
        counts = [state.pending[worker_id], state.unique[worker_id], state.last[worker_id]]
        for task_id in state.stuck():
            workers = tuple(state.get_task(task_id).workers)
            if worker_id in workers:
                counts[0] -= 1
                counts[1] -= len(workers) == 1
                counts[2] -= workers[-1] == worker_id
        running = []
        for task in state.elsewhere.values():
            if worker_id in task.workers and task.worker_running != worker_id:
                other = state.get_worker(task.worker_running)
                running.append({"task_id": task.id, "worker": str(other), **other.info})
        return {
            "n_pending_tasks": counts[0],
            "n_unique_pending": counts[1],
            "n_pending_last_scheduled": counts[2],
            "worker_state": worker.state,
            "running_tasks": running,
        }
