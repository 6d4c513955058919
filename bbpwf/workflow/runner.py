"""One run from a request to an outcome: the same for a head under the service and for ``bbpwf run``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import luigi
from luigi.rpc import RPCError
from luigi.task_register import Register

from bbpwf.clock import Clock, SystemClock
from bbpwf.cluster.api import RunAgent
from bbpwf.errors import BbpwfError, DeadlineExceeded
from bbpwf.workflow.building import build, extend_path, find_task, import_module
from bbpwf.workflow.config import luigi_config
from bbpwf.workflow.context import RunContext, activated
from bbpwf.workflow.dispatch import OUTPUT_PATIENCE, Dispatcher
from bbpwf.workflow.guarded import worker_of
from bbpwf.workflow.patience import PatientAgent
from bbpwf.workflow.reporting import Reporter
from bbpwf.workflow.request import MAX_FAILURES, Failure, HeadRequest, Outcome
from bbpwf.workflow.scheduler import central, in_process
from bbpwf.workflow.worker import Worker

_log = logging.getLogger(__name__)

CANCEL_PATIENCE = 300.0
"""Seconds for jobs to be gone after they were cancelled."""

SCHEDULER_RPC = {"rpc_retry_attempts": "12", "rpc_retry_wait": "5"}
"""How patiently Luigi asks a central scheduler that restarts, unless its configuration says otherwise."""

ROUNDS = 3
"""How often the graph is given to a scheduler that has forgotten it."""


class Canceled(BaseException):
    """Somebody wants the run to end. Not an ``Exception``: no task's code may catch it."""


class SchedulerGone(BaseException):
    """Luigi's central scheduler does not answer any more."""


@dataclass
class Cancellation:
    """A request to end a run, from a signal handler or another thread."""

    wake: Callable[[], None] = lambda: None
    requested: bool = False

    def request(self) -> None:
        """End the run soon: cancel its jobs and answer CANCELED."""
        self.requested = True
        self.wake()

    def check(self) -> None:
        """Raises Canceled when it was requested."""
        if self.requested:
            raise Canceled


def run_local(
    agent: RunAgent,
    request: HeadRequest,
    *,
    socket_path: Path | None = None,
    cancellation: Cancellation | None = None,
    clock: Clock | None = None,
    output_patience: float = OUTPUT_PATIENCE,
    cancel_patience: float = CANCEL_PATIENCE,
) -> Outcome:
    """Run the graph that ``request`` asks for, in this process and thread, and answer how it ended.

    Args:
        agent: the agent, bound to the run.
        request: what to run.
        socket_path: the agent's socket, if it is in another process: its restarts are waited for.
        cancellation: how to end the run early.
        clock: for waits.
        output_patience: seconds for the outputs of a job that ended well to be seen.
        cancel_patience: seconds for jobs to be gone after a cancel.

    Raises:
        InvalidInput: the module, task, a parameter or the config is wrong; nothing was run.
        AgentGone, SchedulerGone: try again with a new process; jobs go on.
    """
    clock = clock or SystemClock()
    cancellation = cancellation or Cancellation()
    patient = PatientAgent(agent, clock, socket_path=socket_path)
    patient.interrupt = cancellation.check
    context = RunContext(patient, request, clock=clock)
    Register.clear_instance_cache()
    extend_path([request.attachments or "", *request.workflows_path])
    with luigi_config(request.config_file) as config, activated(context):
        for name, value in SCHEDULER_RPC.items():
            config.set_default("core", name, value)
        try:
            cancellation.check()
            module = import_module(request.module, attachments=request.attachments)
            config.check()
            task = build(find_task(module, request.task), request.params)
            return _execute(task, context, cancellation, output_patience, patient.prepare_fork)
        except Canceled:
            patient.interrupt = lambda: None
            return _cancel(patient, clock, cancel_patience)
        except RPCError as error:
            raise SchedulerGone(f"Luigi's scheduler does not answer: {error}") from error
        finally:
            patient.close()


def _execute(
    task: luigi.Task,
    context: RunContext,
    cancellation: Cancellation,
    output_patience: float,
    before_fork: Callable[[], None],
) -> Outcome:
    request = context.request
    scheduler: Any = central(request.scheduler_url, request.run_id) if request.scheduler_url else in_process()
    reporter = Reporter(context.agent)
    dispatcher = Dispatcher(context, reporter, patience=output_patience)
    dispatcher.interrupt = cancellation.check
    cancellation.wake = dispatcher.results.wake
    try:
        worker = Worker(
            scheduler,
            dispatcher,
            reporter,
            worker_id=worker_of(request.run_id),
            local_slots=request.workers,
            max_jobs=request.max_jobs,
            before_fork=before_fork,
        )
        dispatcher.start()
        with worker:
            for _ in range(ROUNDS):
                scheduled = worker.add(task)
                worker.run()
                if reporter.state(task.task_id) == "DONE" or not scheduled or reporter.unsuccessful():
                    break
                _log.warning("the scheduler ended before the run did: giving it the graph again")
        reporter.flush(force=True)
        return _outcome(task, reporter)
    finally:
        cancellation.wake = lambda: None
        dispatcher.close()


def _outcome(task: luigi.Task, reporter: Reporter) -> Outcome:
    if reporter.state(task.task_id) == "DONE":
        return Outcome(state="COMPLETE", reason="")
    failed = reporter.unsuccessful()
    details: list[Failure] = []
    for report in failed:
        details.extend(
            reporter.failures.get(report.task_id)
            or [Failure(task_id=report.task_id, label=report.family, reason=report.message or "failed")]
        )
    if not failed:
        reason = f"{task.task_family} was not run: it waits for data that no task makes, or the scheduler forgot it"
        return Outcome(state="EXECUTOR_ERROR", reason=reason)
    platform = all(report.task_id in reporter.platform_failures for report in failed)
    return Outcome(
        state="SYSTEM_ERROR" if platform else "EXECUTOR_ERROR",
        reason=_reason(failed, details),
        failed=tuple(details[:MAX_FAILURES]),
    )


def _reason(failed: Sequence[Any], details: Sequence[Failure]) -> str:
    names = ", ".join(dict.fromkeys(report.family for report in failed[:5]))
    more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
    first = details[0]
    label = f"{first.label}: " if first.label and first.label != failed[0].family else ""
    words = f"{names}{more} failed: {label}{first.reason}"
    return f"{words} (and {len(details) - 1} more)" if len(details) > 1 else words


def _cancel(agent: PatientAgent, clock: Clock, patience: float) -> Outcome:
    """Cancel the run's jobs and wait until none is left."""
    _log.info("canceling the run's jobs")
    deadline = clock.monotonic() + patience
    open_jobs: set[str] = set()
    version = 0
    try:
        agent.cancel()
        while True:
            seen = agent.observe(version, wait=1.0 if version else 0.0)
            version = seen.version
            for view in seen.jobs:
                (open_jobs.discard if view.state.terminal else open_jobs.add)(view.key)
            if not open_jobs:
                return Outcome(state="CANCELED", reason="canceled on request; no job of the run is left")
            if clock.monotonic() > deadline:
                raise DeadlineExceeded(f"{len(open_jobs)} jobs were still there {patience:.0f} s after their cancel")
            if not seen.jobs:
                clock.sleep(0.05)
    except BbpwfError as error:
        return Outcome(state="SYSTEM_ERROR", reason=f"the run could not be canceled: {error}")
