"""Luigi's worker with one seam opened: tasks that run as jobs get no process.

What is used of Luigi's inside is pinned by ``tests/unit/workflow/test_luigi_seam.py``.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from luigi import worker as luigi_worker
from luigi.event import Event
from luigi.task import flatten
from luigi.task_status import DONE, FAILED, PENDING, RUNNING

from bbpwf.errors import BbpwfError
from bbpwf.workflow.arrays import ArrayTask
from bbpwf.workflow.dispatch import Dispatcher
from bbpwf.workflow.process import HeldProcess, JobProcess, LocalProcess
from bbpwf.workflow.reporting import Reporter, readable
from bbpwf.workflow.request import LOG_TAIL_CHARS, Failure
from bbpwf.workflow.targets import prefetched
from bbpwf.workflow.tasks import JobTask

_log = logging.getLogger(__name__)

_Base: Any = luigi_worker.Worker  # untyped as it is, each use of it would have to be excused
_callback: Any = luigi_worker.rpc_message_callback


class Worker(_Base):  # type: ignore[misc]  # see _Base
    """Runs a graph: job tasks through the dispatcher, all others in forked processes as Luigi does.

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
        shown = {"workers": local_slots}  # what the dashboard tells and lets people change
        self._worker_info = [(name, shown.get(name, value)) for name, value in self._worker_info]
        self._task_result_queue.close()
        self._task_result_queue = dispatcher.results

    # -- the graph

    def add(self, task: Any, multiprocess: bool = False, processes: int = 0) -> bool:
        """Schedule ``task`` and what it requires; the outputs of each level of the graph are looked up at once."""
        del multiprocess, processes
        if self._first_task is None:
            self._first_task = task.task_id
        self.add_succeeded = True
        self._validate_task(task)
        seen = {task.task_id}
        level = [task]
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
        text = readable(kwargs.get("expl"))
        if status not in {DONE, PENDING, RUNNING} and task.task_id not in self._reporter.failures:
            reason, detail = _told(text) if text.strip() else (f"its status is {status}", "")
            failure = Failure(task_id=task.task_id, label=task.task_family, reason=reason, log_tail=detail)
            self._reporter.failed(task.task_id, [failure])
        self._reporter.note(task, status, text if status == FAILED else self._broken.get(task.task_id, ""))

    def _note_broken(self, task: Any, trace: str) -> None:
        error = sys.exc_info()[1]
        reason = str(error) if isinstance(error, BbpwfError) else trace.strip().splitlines()[-1]
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
        if task_id not in self._running_tasks and not isinstance(task, JobTask) and not self._room():
            held = HeldProcess(task, self._status_reporter(task))
            held.status_reporter.update_status_message(f"waits for one of {self._local_slots} local processes")
            self._running_tasks[task_id] = held
            self._held.append(task_id)
        else:
            if task_id not in self._running_tasks and not isinstance(task, JobTask):
                self._reporter.note(task, RUNNING)
            super()._run_task(task_id)
        if self._task_result_queue.ready():  # do not let results wait until everything is started
            self._handle_next_task()
        else:
            self._dispatcher.pump(False)

    def _create_task_process(self, task: Any) -> Any:
        if isinstance(task, JobTask):
            self._reporter.note(task, RUNNING)
            reporter = self._status_reporter(task)
            process = JobProcess(task, self._id, self._dispatcher, reporter, self._config.timeout)
            if process.timeout_time is not None:
                self._timed[task.task_id] = process
            return process
        self._before_fork()
        local = LocalProcess(  # type: ignore[no-untyped-call]  # Luigi's constructor
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
            process = self._create_task_process(task)
            self._running_tasks[task_id] = process
            self._reporter.note(task, RUNNING)
            with luigi_worker.fork_lock:
                process.start()

    def _handle_next_task(self) -> None:
        self._start_held()
        super()._handle_next_task()
        self._start_held()

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
        }
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
        except Exception as error:  # noqa: BLE001 the task's own code; complete() will meet and report the same
            _log.debug("the outputs of %s cannot be told: %s", task, error)
    return found
