"""Luigi's worker with one seam opened: tasks that run as jobs get no process.

What is used of Luigi's inside is pinned by ``tests/unit/workflow/test_luigi_seam.py``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import queue
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import luigi
from luigi import worker as luigi_worker
from luigi.event import Event
from luigi.task import flatten
from luigi.task_register import load_task
from luigi.task_status import DONE, FAILED, PENDING, RUNNING

from bbpwf.errors import BbpwfError
from bbpwf.workflow.arrays import ArrayTask
from bbpwf.workflow.dispatch import Dispatcher
from bbpwf.workflow.process import HeldProcess, JobProcess, LocalProcess
from bbpwf.workflow.reporting import Reporter, readable
from bbpwf.workflow.request import LOG_TAIL_CHARS, Failure
from bbpwf.workflow.results import Result
from bbpwf.workflow.targets import absence_remembered, prefetched
from bbpwf.workflow.tasks import JobTask

_log = logging.getLogger(__name__)

MOST_WAITING = 64
"""Forked processes that may be kept while what their tasks asked for at run time is made."""

PUMP_EVERY = 0.02
"""Seconds between looks at what happened, while task after task is started."""

_Base: Any = luigi_worker.Worker  # untyped as it is, each use of it would have to be excused
_callback: Any = luigi_worker.rpc_message_callback


class Worker(_Base):  # type: ignore[misc]  # see _Base
    """Runs a graph: job tasks through the dispatcher, all others in forked processes as Luigi does.

    Tasks with nothing to run need no process. A process whose task asks for more at run time is kept, and goes on when
    that is there, where Luigi runs the task again from its start; so it still is if there are too many such processes.

    Args:
        scheduler: Luigi's, local or remote.
        dispatcher: who takes job tasks on.
        reporter: who hears what became of every task.
        worker_id: stays the same when a new head continues a run, so that a central scheduler gives it back what
            the old one had.
        local_slots: forked processes at once.
        max_jobs: job tasks in flight at once.
        before_fork: called before a process is forked.
    """

    _first_task: str | None
    _worker_info: list[tuple[str, Any]]
    _running_tasks: dict[str, Any]
    _task_result_queue: Any

    def __init__(
        self,
        scheduler: Any,
        dispatcher: Dispatcher,
        reporter: Reporter,
        *,
        worker_id: str,
        local_slots: int,
        max_jobs: int,
        before_fork: Callable[[], None],
    ) -> None:
        super().__init__(
            scheduler=scheduler,
            worker_id=worker_id,
            worker_processes=max(max_jobs, local_slots + 1),
            keep_alive=False,
            force_multiprocessing=True,
            no_install_shutdown_handler=True,
        )
        self._dispatcher = dispatcher
        self._reporter = reporter
        self._before_fork = before_fork
        self._local_slots = local_slots
        self._local: dict[str, LocalProcess] = {}
        self._held: deque[str] = deque()
        self._timed: dict[str, JobProcess] = {}
        self._broken: dict[str, str] = {}
        self._pumped = 0.0
        self._waiting: dict[str, LocalProcess] = {}
        self._add_task_history: Any = deque(maxlen=0)  # what Luigi's summary on the command line is made of
        self._get_work_response_history: Any = deque(maxlen=0)
        shown = {"workers": local_slots}  # what the dashboard tells and lets people change
        self._worker_info = [(name, shown.get(name, value)) for name, value in self._worker_info]
        self._task_result_queue.close()
        self._task_result_queue = dispatcher.results

    # -- the graph

    def add(self, task: Any, multiprocess: bool = False, processes: int = 0) -> bool:
        """Schedule ``task`` and what it requires; the outputs of each level of the graph are looked up at once."""
        del multiprocess, processes
        with contextlib.nullcontext() if self._running_tasks else absence_remembered():
            return self._add_all([task])

    def _add_all(self, tasks: Sequence[Any]) -> bool:
        if self._first_task is None:
            self._first_task = tasks[0].task_id
        self.add_succeeded = True
        level = list({task.task_id: task for task in tasks}.values())
        seen = {task.task_id for task in level}
        for task in level:
            self._validate_task(task)
        while level:
            following = []
            with prefetched(_outputs(level)):
                for each in level:
                    self._dispatcher.interrupt()
                    for dependency in self._add(each, self._is_complete(each)):
                        if dependency.task_id not in seen:
                            self._validate_task(dependency)
                            seen.add(dependency.task_id)
                            following.append(dependency)
            level = following
            self._reporter.flush()
        return bool(self.add_succeeded)

    def _is_complete(self, task: Any) -> Any:
        answer: Any = luigi_worker.DequeQueue()
        luigi_worker.check_complete(task, answer, self._task_completion_cache)
        return answer.get()[1]

    def _add_task(self, *args: Any, **kwargs: Any) -> None:
        super()._add_task(*args, **kwargs)
        task = self._scheduled_tasks.get(kwargs["task_id"])
        status = kwargs["status"]
        if task is None:
            return
        self._dispatcher.note_complete(task.task_id, status == DONE)
        text = readable(kwargs.get("expl"))
        if status not in {DONE, PENDING, RUNNING} and task.task_id not in self._reporter.failures:
            reason, detail = _told(text) if text.strip() else (f"its status is {status}", "")
            failure = Failure(task_id=task.task_id, label=task.task_family, reason=reason, log_tail=detail)
            self._reporter.failed(task.task_id, [failure])
        self._reporter.note(task, status, text if status == FAILED else self._broken.get(task.task_id, ""))

    def _note_broken(self, task: Any, trace: str) -> None:
        error, trace = sys.exc_info()[1], self._reporter.masked(trace)
        reason = self._reporter.masked(str(error)) if isinstance(error, BbpwfError) else trace.strip().splitlines()[-1]
        self._broken[task.task_id] = reason
        detail = "" if isinstance(error, BbpwfError) else trace[-LOG_TAIL_CHARS:]
        self._reporter.failed(
            task.task_id, [Failure(task_id=task.task_id, label=task.task_family, reason=reason, log_tail=detail)]
        )

    def _log_complete_error(self, task: Any, tb: str) -> None:
        super()._log_complete_error(task, tb)
        self._note_broken(task, tb)

    def _log_dependency_error(self, task: Any, tb: str) -> None:
        super()._log_dependency_error(task, tb)
        self._note_broken(task, tb)

    # -- running

    def _run_task(self, task_id: str) -> None:
        task = self._scheduled_tasks[task_id]
        kept = self._waiting.get(task_id)
        if kept is not None and not kept.is_alive():
            del self._waiting[task_id]
        if task_id not in self._running_tasks and self._needs_process(task) and not self._room():
            held = HeldProcess(task, self._status_reporter(task))
            held.status_reporter.update_status_message(f"waits for one of {self._local_slots} local processes")
            self._running_tasks[task_id] = held
            self._held.append(task_id)
        elif task_id not in self._running_tasks and task_id in self._waiting:
            self._go_on(task)
        else:
            if task_id not in self._running_tasks and not isinstance(task, JobTask):
                self._reporter.note(task, RUNNING)
            super()._run_task(task_id)
        if not getattr(self._scheduler, "more", True):  # nothing can go with it: no need to ask before it is submitted
            self._dispatcher.pump(True)
        if time.monotonic() - self._pumped < PUMP_EVERY:
            return
        if self._task_result_queue.ready():  # do not let results wait until everything is started
            self._handle_next_task()
        else:
            self._dispatcher.pump(False)
        self._pumped = time.monotonic()

    def _create_task_process(self, task: Any) -> Any:
        if not self._needs_process(task):
            self._reporter.note(task, RUNNING)
            reporter = self._status_reporter(task)
            process = JobProcess(task, self._id, self._dispatcher, reporter, self._config.timeout)
            if process.timeout_time is not None:
                self._timed[task.task_id] = process
            return process
        self._before_fork()
        local = LocalProcess(
            self._config.task_process_context,
            task,
            self._id,
            self._task_result_queue,
            self._status_reporter(task),
            use_multiprocessing=True,
            worker_timeout=self._config.timeout,
            check_unfulfilled_deps=self._config.check_unfulfilled_deps,
            check_complete_on_run=self._config.check_complete_on_run,
            task_completion_cache=self._task_completion_cache,
        )
        self._local[task.task_id] = local
        return local

    def _needs_process(self, task: Any) -> bool:
        """Whether code of the task's author is to be run here."""
        if isinstance(task, JobTask):
            return False
        run, end = getattr(task.run, "__func__", None), getattr(task.on_success, "__func__", None)
        empty = run is luigi.Task.run and end is luigi.Task.on_success
        return not empty or task.accepts_messages or bool(task.worker_timeout or self._config.timeout)

    def _status_reporter(self, task: Any) -> Any:
        messages: Any = multiprocessing.Queue() if task.accepts_messages else None
        return luigi_worker.TaskStatusReporter(self._scheduler, task.task_id, self._id, messages)

    def _room(self) -> bool:
        self._local = {each: process for each, process in self._local.items() if each in self._running_tasks}
        return len(self._local) < self._local_slots

    def _start_held(self) -> None:
        while self._held and self._room():
            task_id = self._held.popleft()
            task = self._scheduled_tasks[task_id]
            if task_id in self._waiting:
                self._go_on(task)
                continue
            process = self._create_task_process(task)
            self._running_tasks[task_id] = process
            self._reporter.note(task, RUNNING)
            with luigi_worker.fork_lock:
                process.start()

    def _go_on(self, task: Any) -> None:
        """What the task asked for at run time is there: its process continues where it was."""
        process = self._waiting.pop(task.task_id)
        self._running_tasks[task.task_id] = self._local[task.task_id] = process
        self._reporter.note(task, RUNNING)
        process.go_on()

    def _handle_next_task(self) -> None:
        """Take the results that are there; wait for one if there is none."""
        self._idle_since = None
        self._start_held()
        self._purge_children()
        try:
            result = self._task_result_queue.get(timeout=self._config.wait_interval)
            while True:
                self._take(result)
                if not self._task_result_queue.ready():
                    break
                result = self._task_result_queue.get(timeout=0.0)
        except queue.Empty:
            pass
        self._start_held()

    def _take(self, result: Result) -> None:
        """Tell the scheduler how a task ended, or what it asks for before it can go on."""
        task_id, status, explanation, missing, wanted = result
        if isinstance(explanation, str):  # whoever may see the dashboard reads it
            explanation = self._reporter.masked(explanation)
        task = self._scheduled_tasks[task_id]
        if task_id not in self._running_tasks:  # it was given up meanwhile
            return
        again = luigi_worker._is_external(task) and self._config.retry_external_tasks
        if status == FAILED and not again:
            self._email_task_failure(task, explanation)
        new = [load_task(*each) for each in wanted or ()]
        if new:
            self._add_all(new)
        self._add_task(
            worker=self._id,
            task_id=task_id,
            status=status,
            expl=json.dumps(explanation),
            resources=task.process_resources(),
            runnable=None,
            family=task.task_family,
            module=task.task_module,
            new_deps=[each.task_id for each in new],
            assistant=self._assistant,
            retry_policy_dict=luigi_worker._get_retry_policy_dict(task),
        )
        process = self._running_tasks.pop(task_id)
        if new and isinstance(process, LocalProcess):
            self._keep(process)
        if missing:
            self._reschedule(task, missing)
        self.run_succeeded &= status == DONE or bool(new)

    def _keep(self, process: LocalProcess) -> None:
        """The process waits for what its task asked for; or ends, if too many wait already."""
        if len(self._waiting) < MOST_WAITING:
            self._waiting[process.task.task_id] = process
        else:
            process.give_up()

    def _reschedule(self, task: Any, missing: list[str]) -> None:
        """Let dependencies that turned out to be missing be made, but not again and again."""
        for each in missing:
            self.unfulfilled_counts[each] += 1
        if all(self.unfulfilled_counts[each] <= self._config.max_reschedules for each in missing):
            self.add(task)

    def _purge_children(self) -> None:
        """As Luigi's, but looking only at those that can die or time out: not at ten thousand jobs."""
        self._local = {each: process for each, process in self._local.items() if each in self._running_tasks}
        self._timed = {each: process for each, process in self._timed.items() if each in self._running_tasks}
        watched: list[tuple[str, Any]] = [*self._local.items(), *self._timed.items()]
        for task_id, process in watched:
            if not process.is_alive() and process.exitcode:
                text = f"Task {task_id} died unexpectedly with exit code {process.exitcode}"
                process.task.trigger_event(Event.PROCESS_FAILURE, process.task, text)
            elif process.timeout_time is not None and time.time() > process.timeout_time and process.is_alive():
                process.terminate()
                text = f"Task {task_id} timed out after {process.worker_timeout} seconds and was terminated."
                process.task.trigger_event(Event.TIMEOUT, process.task, text)
            else:
                continue
            _log.warning(text)
            self._local.pop(task_id, None)
            self._timed.pop(task_id, None)
            self._task_result_queue.put((task_id, FAILED, text, [], []))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """End local processes. Jobs go on: only a cancel ends them."""
        self._running_tasks = {
            each: process for each, process in self._running_tasks.items() if isinstance(process, LocalProcess)
        } | self._waiting
        return bool(super().__exit__(kind, error, trace))

    # -- what the dashboard may ask

    @_callback  # type: ignore[untyped-decorator]  # Luigi marks what the dashboard may call
    def set_worker_processes(self, n: int) -> None:
        """Change how many plain tasks run at once; jobs in flight are not affected."""
        self._local_slots = max(1, n)
        self._scheduler.add_worker(self._id, {"workers": self._local_slots})


def _told(text: str) -> tuple[str, str]:
    """The sentence in an explanation, and its details: of a traceback the last line, of words the first."""
    lines = text.strip().splitlines()
    if "Traceback (most recent call last)" in text:
        return lines[-1], text[-LOG_TAIL_CHARS:]
    return lines[0], "\n".join(lines[1:])[-LOG_TAIL_CHARS:]


def _outputs(tasks: Iterable[Any]) -> list[Any]:
    """What these tasks make, as far as that can be told; arrays look their own up."""
    found: list[Any] = []
    for task in tasks:
        if isinstance(task, ArrayTask):
            continue
        try:
            found.extend(flatten(task.output()))
            if getattr(task.complete, "__func__", None) is luigi.WrapperTask.complete:  # it asks those it wraps
                found.extend(_outputs(flatten(task.requires())))
        except Exception as error:  # noqa: BLE001 the task's own code; complete() will meet and report the same
            _log.debug("the outputs of %s cannot be told: %s", task, error)
    return found
