"""Job tasks from the moment Luigi says "run" to the moment it hears how they ended.

All of it happens in the worker's thread; the watcher's thread only stores what it heard and rings. No process
and no thread belongs to a job.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from luigi.event import Event
from luigi.task import flatten
from luigi.task_status import DONE, FAILED
from luigi.worker import TaskProcess

from bbpwf.cluster.jobs import JobSpec, JobView
from bbpwf.errors import (
    BbpwfError,
    DataError,
    InvalidInput,
    JobFailed,
    LedgerError,
    PlatformError,
    TransportError,
)
from bbpwf.workflow import explain
from bbpwf.workflow.arrays import ArrayTask
from bbpwf.workflow.context import RunContext
from bbpwf.workflow.process import JobProcess
from bbpwf.workflow.reporting import LINGER, Reporter
from bbpwf.workflow.request import Failure
from bbpwf.workflow.results import ResultQueue
from bbpwf.workflow.targets import absent, prefetched
from bbpwf.workflow.tasks import JobTask
from bbpwf.workflow.watch import Watcher

_log = logging.getLogger(__name__)

LOGGED = 20
"""Most failed jobs of one task that are logged one by one."""

SUBMIT_BATCH = 2000
"""Jobs in one call to the agent."""

SUBMIT_BYTES = 16 * 1024 * 1024
"""Script bytes in one call to the agent."""

SUBMIT_AFTER = 0.2
"""Seconds that a job may wait for others to be submitted with."""

OUTPUT_PATIENCE = 15.0
"""Seconds for a file that a node wrote to be seen from the head node."""

OUTPUT_STEP = 0.5
TRUSTED = 60.0
"""Seconds for which a task that was seen to be complete is not asked again whether it is."""

PROGRESS_INTERVAL = 1.0
PROGRESS_CALLS = 50
"""Most calls to Luigi's scheduler about progress in one interval."""


class Dispatcher:
    """Submits, watches, checks, explains.

    Args:
        context: the run.
        reporter: whom to tell about tasks.
        patience: seconds for outputs to appear after their job ended well.
    """

    def __init__(self, context: RunContext, reporter: Reporter, *, patience: float = OUTPUT_PATIENCE) -> None:
        self._context = context
        self._reporter = reporter
        self._patience = patience
        self.results = ResultQueue(self.pump, self.next_due)
        context.catch_up()  # with what an earlier head of the run left behind
        self._watcher = Watcher(context.agent, context.jobs.complete_to, self.results.wake)
        self._complete: dict[str, float] = {}
        self._by_key: dict[str, JobProcess] = {}
        self._waiting: list[tuple[JobProcess, list[JobSpec]]] = []
        self._waiting_since = 0.0
        self._checking: dict[JobProcess, None] = {}
        self._check_at = 0.0
        self._dirty: dict[JobProcess, None] = {}
        self._progress_at = 0.0
        self.interrupt: Callable[[], None] = lambda: None
        """Called often; raises to end the run."""

    def start(self) -> None:
        """Begin to watch."""
        self._watcher.start()

    def close(self) -> None:
        """Stop watching. Jobs go on."""
        self._watcher.stop()
        self.results.close()

    # -- from Luigi

    def begin(self, process: JobProcess) -> None:
        """Check the task's dependencies, and queue its jobs for submission."""
        task: Any = process.task
        for reporter_name, task_name in TaskProcess.forward_reporter_attributes.items():
            setattr(task, task_name, getattr(process.status_reporter, reporter_name))
        _log.info("starting %s", task, extra={"task_id": task.task_id})
        try:
            missing = self._missing_dependencies(task)
            if missing:
                self._end(process, FAILED, f"Unfulfilled dependencies at run time: {', '.join(missing)}", missing)
                return
            task.trigger_event(Event.START, task)
            plan = task.plan(self._context) if isinstance(task, JobTask) else None
        except Exception as error:  # noqa: BLE001 the task's own code: whatever it raises fails the task
            self._fail(process, error)
            return
        if plan is None:  # nothing to run
            self._succeed(process)
            return
        process.progress.total = plan.total
        if not plan.jobs:
            self._await_outputs(process)
            return
        process.keys = tuple(spec.key for spec in plan.jobs)
        process.progress.open = set(process.keys)
        for key in process.keys:
            self._by_key[key] = process
        if not self._waiting:
            self._waiting_since = time.monotonic()
        self._waiting.append((process, plan.jobs))

    def abandon(self, process: JobProcess) -> None:
        """Cancel a task's jobs that have not ended."""
        self._waiting = [(other, specs) for other, specs in self._waiting if other is not process]
        if process.progress.open:
            self._context.agent.cancel(sorted(process.progress.open))
        self._forget(process)

    # -- the loop

    def pump(self, idle: bool) -> None:
        """Do everything that can be done without waiting.

        Jobs wait a moment for others to be submitted with, unless the worker is ``idle``: then there are no others.
        """
        self.interrupt()
        if idle or (self._waiting and self._is_time_to_submit()):
            self.submit()
        self._take_in(self._watcher.take())
        self._context.jobs.complete_to = self._watcher.taken
        self._check_outputs()
        self._show_progress()
        self._reporter.flush()

    def next_due(self) -> float | None:
        """Seconds until :meth:`pump` has something to do even if nobody rings."""
        due = [at for at in (self._reporter.due(),) if at is not None]
        if self._checking:
            due.append(self._check_at)
        if self._dirty:
            due.append(self._progress_at)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _is_time_to_submit(self) -> bool:
        jobs = sum(len(specs) for _, specs in self._waiting)
        return jobs >= SUBMIT_BATCH or time.monotonic() - self._waiting_since > SUBMIT_AFTER

    def submit(self) -> None:
        """Hand all waiting jobs to the agent: as many in one call as is reasonable."""
        waiting, self._waiting = self._waiting, []
        batch: list[tuple[JobProcess, list[JobSpec]]] = []
        jobs = size = 0
        for process, specs in waiting:
            weight = sum(len(spec.script) for spec in specs)
            if batch and (jobs + len(specs) > SUBMIT_BATCH or size + weight > SUBMIT_BYTES):
                self._submit(batch)
                batch, jobs, size = [], 0, 0
            batch.append((process, specs))
            jobs += len(specs)
            size += weight
        if batch:
            self._submit(batch)

    def _submit(self, batch: list[tuple[JobProcess, list[JobSpec]]]) -> None:
        try:
            views = self._context.agent.submit([spec for _, specs in batch for spec in specs])
        except BbpwfError as error:
            if len(batch) == 1:
                self._fail(batch[0][0], error)
                return
            for each in batch:  # one of them is to blame; the others must not suffer
                self._submit([each])
            return
        self._context.jobs.update(views)
        self._show(views)

    def _take_in(self, views: Sequence[JobView]) -> None:
        self._show(self._context.jobs.update(views))

    def _show(self, views: Sequence[JobView]) -> None:
        settled: dict[JobProcess, None] = {}
        for view in views:
            process = self._by_key.get(view.key)
            if process is not None:
                process.progress.saw(view)
                if not self._dirty:
                    self._progress_at = max(self._progress_at, time.monotonic() + LINGER)
                self._dirty[process] = None
                if not process.progress.open:
                    settled[process] = None
        for process in settled:
            for key in process.keys:
                self._by_key.pop(key, None)
            if process.progress.failures:
                self._fail_jobs(process)
            else:
                self._await_outputs(process)

    # -- outputs

    def _await_outputs(self, process: JobProcess) -> None:
        try:
            process.outputs = flatten(process.task.output())
        except Exception as error:  # noqa: BLE001 the task's own code
            self._fail(process, error)
            return
        process.check_until = time.monotonic() + self._patience
        self._checking[process] = None
        self._check_at = 0.0

    def _check_outputs(self) -> None:
        if not self._checking or time.monotonic() < self._check_at:
            return
        checking = list(self._checking)
        self._checking.clear()
        try:
            with prefetched(target for process in checking for target in process.outputs):
                for process in checking:
                    self._check(process)
        except BbpwfError as error:  # the cluster has been out of reach for longer than the agent's patience
            for process in checking:
                if process.is_alive() and process not in self._checking:
                    self._fail(process, error)
        self._check_at = time.monotonic() + OUTPUT_STEP

    def _check(self, process: JobProcess) -> None:
        try:
            missing = absent(process.outputs)
        except Exception as error:  # noqa: BLE001 a target of the task's own may raise anything
            self._fail(process, error)
            return
        if not missing:
            self._succeed(process)
        elif time.monotonic() < process.check_until:
            self._checking[process] = None
        else:
            named = ", ".join(map(str, missing[:5])) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            self._fail(
                process,
                JobFailed(
                    f"{process.task.task_family} ended well but did not make {named}",
                    hint="Check the paths in its output() against what its command writes.",
                ),
            )

    # -- ends

    def _succeed(self, process: JobProcess) -> None:
        task: Any = process.task
        try:
            task.trigger_event(Event.PROCESSING_TIME, task, time.time() - process.started_at)
            explanation = task.on_success()
        except Exception as error:  # noqa: BLE001 the task's own code
            self._fail(process, error)
            return
        task.trigger_event(Event.SUCCESS, task)
        _log.info("done %s", task, extra={"task_id": task.task_id})
        self._end(process, DONE, explanation)

    def _fail_jobs(self, process: JobProcess) -> None:
        progress = process.progress
        for view in progress.failed[:LOGGED]:
            ids = {"task_id": process.task.task_id, "job_key": view.key}
            _log.warning("job %s is %s: %s", view.label or view.name or view.key, view.state, view.reason, extra=ids)
        found = explain.failures(self._context.agent, progress.failed)
        self._reporter.failed(
            process.task.task_id, found, platform=all(view.state.infrastructure for view in progress.failed)
        )
        text = explain.summary(progress.total, found, progress.failures)
        self._fail(process, JobFailed(text), details=False)

    def _fail(self, process: JobProcess, error: Exception, *, details: bool = True) -> None:
        task: Any = process.task
        if details:
            platform = isinstance(error, (TransportError, PlatformError, LedgerError, DataError))
            label = getattr(task, "task_family", "")
            reason = str(error) or type(error).__name__
            self._reporter.failed(
                task.task_id, [Failure(task_id=task.task_id, label=label, reason=reason)], platform=platform
            )
        try:
            raise error
        except Exception as raised:  # noqa: BLE001 on_failure may ask for the traceback of what is being handled
            if isinstance(raised, (JobFailed, InvalidInput, BbpwfError)):
                _log.warning("failed %s: %s", task, raised, extra={"task_id": task.task_id})
            else:
                _log.exception("failed %s", task, extra={"task_id": task.task_id})
            task.trigger_event(Event.FAILURE, task, raised)
            try:
                explanation = task.on_failure(raised)
            except Exception:  # noqa: BLE001 the task's own code; its failure must not hide the first one
                _log.exception("on_failure of %s failed", task)
                explanation = str(raised)
        self._end(process, FAILED, explanation)

    def _end(self, process: JobProcess, status: str, explanation: Any, missing: list[str] | None = None) -> None:
        self._forget(process)
        if process.keys:
            self._link(process)
        process.end()
        for task_name in TaskProcess.forward_reporter_attributes.values():
            setattr(process.task, task_name, None)
        self.results.put((process.task.task_id, status, explanation, missing or [], []))

    def _forget(self, process: JobProcess) -> None:
        for key in process.keys:
            self._by_key.pop(key, None)
        self._dirty.pop(process, None)
        self._checking.pop(process, None)

    # -- beside

    def note_complete(self, task_id: str, complete: bool) -> None:
        """A task was seen to be complete, or not to be."""
        if complete:
            self._complete[task_id] = time.monotonic()
        else:
            self._complete.pop(task_id, None)

    def _missing_dependencies(self, task: Any) -> list[str]:
        """Dependencies that are not complete, not asking those that were a moment ago."""
        recently = time.monotonic() - TRUSTED
        dependencies = [each for each in task.deps() if self._complete.get(each.task_id, -math.inf) < recently]
        outputs = [
            target for each in dependencies if not isinstance(each, ArrayTask) for target in flatten(each.output())
        ]
        with prefetched(outputs):
            return [each.task_id for each in dependencies if not each.complete()]

    def _link(self, process: JobProcess) -> None:
        base = self._context.request.public_url.rstrip("/")
        if base and not process.linked:
            process.linked = True
            url = f"{base}/runs/{self._context.run_id}/tasks/{process.task.task_id}/logs"
            process.status_reporter.update_tracking_url(url)

    def _show_progress(self) -> None:
        now = time.monotonic()
        if not self._dirty or now < self._progress_at:
            return
        self._progress_at = now + PROGRESS_INTERVAL
        for process in list(self._dirty)[:PROGRESS_CALLS]:
            del self._dirty[process]
            self._link(process)
            words = process.progress.words()
            self._reporter.message(process.task.task_id, words)
            process.status_reporter.update_status_message(words)
            if process.progress.total > 1:
                percentage = 100 * process.progress.done // process.progress.total
                process.status_reporter.update_progress_percentage(percentage)
