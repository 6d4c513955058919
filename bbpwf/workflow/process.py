"""What stands in Luigi's worker for a task that is running: a job elsewhere, a forked process, or one that waits."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Protocol

from luigi.task import DynamicRequirements, flatten
from luigi.task_status import PENDING
from luigi.worker import ContextManagedTaskProcess, TaskStatusReporter

from bbpwf.cluster.jobs import JobView
from bbpwf.states import JobState
from bbpwf.workflow.arrays import ArrayTask
from bbpwf.workflow.context import current
from bbpwf.workflow.targets import prefetched

KEPT_FAILURES = 1000
"""Failed elements of one array whose details are kept; beyond that they are only counted."""

_GO_ON = b"go on"


class Starter(Protocol):
    """Who takes a job task on."""

    def begin(self, process: JobProcess) -> None:
        """Check, prepare and submit."""
        ...

    def abandon(self, process: JobProcess) -> None:
        """Cancel what was submitted."""
        ...


@dataclass
class Progress:
    """Where the jobs of a task stand."""

    total: int = 0
    open: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    failed: list[JobView] = field(default_factory=list)
    failures: int = 0

    def saw(self, view: JobView) -> None:
        """Take a sighting in."""
        if view.key not in self.open:
            return
        self.running.discard(view.key)
        if view.state is JobState.RUNNING:
            self.running.add(view.key)
        elif view.state.terminal:
            self.open.discard(view.key)
            if not view.state.succeeded:
                self.failures += 1
                if len(self.failed) < KEPT_FAILURES:
                    self.failed.append(view)

    @property
    def done(self) -> int:
        """Jobs that ended, well or not, and those that were done before."""
        return self.total - len(self.open)

    def words(self) -> str:
        """One line for a person."""
        if self.total == 1:
            return "running" if self.running else "waiting for the scheduler"
        text = f"{self.done - self.failures} of {self.total} done, {len(self.running)} running"
        waiting = len(self.open) - len(self.running)
        return (
            text + (f", {waiting} waiting" if waiting else "") + (f", {self.failures} failed" if self.failures else "")
        )


class JobProcess:
    """Luigi's view of a task whose jobs the agent runs: the shape of ``luigi.worker.TaskProcess``, no process.

    Everything here happens in the worker's own thread.
    """

    use_multiprocessing = False
    exitcode: int | None = None

    def __init__(
        self, task: Any, worker_id: str, starter: Starter, reporter: TaskStatusReporter, worker_timeout: int
    ) -> None:
        self.task = task
        self.worker_id = worker_id
        self.status_reporter = reporter
        self.worker_timeout = task.worker_timeout if task.worker_timeout is not None else worker_timeout
        self.timeout_time = time.time() + self.worker_timeout if self.worker_timeout else None
        self.started_at = time.time()
        self.progress = Progress()
        self.keys: tuple[str, ...] = ()
        self.outputs: list[Any] = []
        self.check_until = 0.0
        self.linked = False
        """Whether Luigi's scheduler was told where its log is."""
        self._starter = starter
        self._ended = False

    def run(self) -> None:
        """Hand the task's jobs over and return."""
        self._starter.begin(self)

    def start(self) -> None:
        """The same as :meth:`run`: there is no process to start."""
        self.run()

    def is_alive(self) -> bool:
        """Whether the task has not ended."""
        return not self._ended

    def terminate(self) -> None:
        """Cancel the task's jobs: Luigi's ``worker_timeout`` passed."""
        self._starter.abandon(self)
        self._ended = True

    def end(self) -> None:
        """Note that the task's result is known."""
        self._ended = True


class HeldProcess:
    """A plain task that waits until fewer than the allowed number of local processes run."""

    use_multiprocessing = False
    exitcode: int | None = None
    timeout_time: float | None = None
    worker_timeout = 0

    def __init__(self, task: Any, reporter: TaskStatusReporter) -> None:
        self.task = task
        self.status_reporter = reporter

    def run(self) -> None:
        """Nothing yet: the worker replaces this object when there is room."""

    start = run

    def is_alive(self) -> bool:
        """It will run."""
        return True

    def terminate(self) -> None:
        """There is nothing to end."""


class LocalProcess(ContextManagedTaskProcess):
    """A plain Luigi task in a forked process, which does not outlive the worker.

    A ``run()`` that yields tasks which are not complete waits for them in its process, until the worker says
    :meth:`go_on` or :meth:`give_up`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]  # Luigi's is untyped
        self._ear, self._mouth = multiprocessing.Pipe(duplex=False)

    # -- in the worker's process

    def start(self) -> None:
        """Fork while no thread is writing to a log: the lock of a file that is being written to would stay locked."""
        with contextlib.ExitStack() as quiet:
            for handler in logging.getLogger().handlers:
                handler.acquire()
                quiet.callback(handler.release)
            super().start()

    def go_on(self) -> None:
        """Let the process look again for what its task asked for."""
        if self.worker_timeout:
            self.timeout_time = time.time() + self.worker_timeout
        self._tell(_GO_ON)

    def give_up(self) -> None:
        """Let the process end without a result."""
        self._tell(b"")

    def _tell(self, word: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it was killed while it waited, which the worker will see
            self._mouth.send_bytes(word)

    # -- in its own

    def run(self) -> None:
        """Run the task with the default reaction to signals, whatever the worker's own is."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        _die_with_parent()
        _own_streams()
        super().run()  # type: ignore[no-untyped-call]  # Luigi's is untyped

    def _run_get_new_deps(self) -> None:
        """Run the task to its end, telling the worker of each demand that is not met."""
        steps = self.task.run()
        if not isinstance(steps, Generator):
            return
        answer = None
        while True:
            try:
                asked = steps.send(answer)
            except StopIteration:
                return
            wanted = asked if isinstance(asked, DynamicRequirements) else DynamicRequirements(asked)
            while not self._met(wanted):
                tasks = [(t.task_module, t.task_family, t.to_str_params()) for t in wanted.flat_requirements]
                self.result_queue.put((self.task.task_id, PENDING, "", [], tasks))
                self._wait(steps)
            answer = wanted.paths

    def _met(self, wanted: Any) -> bool:
        """Whether everything that was asked for is complete; one look for all remote outputs."""
        jobs = [each for each in wanted.flat_requirements if not isinstance(each, ArrayTask)]
        with prefetched(target for each in jobs for target in flatten(each.output())):
            return bool(wanted.complete(self.check_complete))

    def _wait(self, steps: Generator[Any, Any, Any]) -> None:
        if self._ear.recv_bytes() != _GO_ON:
            with contextlib.suppress(Exception):
                steps.close()
            os._exit(0)
        current().catch_up()


def _own_streams() -> None:
    """Standard output and error anew: somebody may have been writing to the old ones, and hold their locks for ever."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, os.fdopen(number, "w", buffering=1, errors="backslashreplace", closefd=False))


def _die_with_parent() -> None:
    """Ask Linux to kill this process when the worker is gone: two workers must never run one task."""
    libc = ctypes.CDLL(None, use_errno=True)
    set_death_signal = 1  # PR_SET_PDEATHSIG, linux/prctl.h
    libc.prctl(set_death_signal, signal.SIGKILL, 0, 0, 0)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it went between the fork and the call
        os._exit(1)
