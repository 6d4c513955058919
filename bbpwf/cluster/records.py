"""What is told of runs and their tasks, and how it is read from rows of the database.

A task's row is what its head reported; its job's row is what the agent knows. Where there is one job behind a task,
the job says more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bbpwf.cluster.views import job_view
from bbpwf.states import JobState, RunState


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunRequest(_Frozen):
    """What was asked for, in the words of WES ``RunRequest``; ``workflow_url`` is ``module:Task``."""

    workflow_type: str = "LUIGI"
    workflow_type_version: str = "3.8"
    workflow_url: str
    workflow_params: dict[str, Any] = {}
    workflow_engine: str = ""
    workflow_engine_version: str = ""
    workflow_engine_parameters: dict[str, str] = {}
    tags: dict[str, str] = {}
    attachments: tuple[str, ...] = ()


class Owner(_Frozen):
    """Who launched a run."""

    sub: str
    username: str = ""


class RunRecord(_Frozen):
    """What is known of a run. Times are Unix seconds; ``outcome`` is what its head wrote at the end."""

    run_id: str
    state: RunState
    reason: str = ""
    request: RunRequest
    owner: Owner
    incarnation: int = 1
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    outcome: dict[str, Any] = {}

    @property
    def tags(self) -> dict[str, str]:
        """The tags given at launch."""
        return self.request.tags


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a list tells of a run."""

    run_id: str
    state: RunState
    started_at: float | None
    ended_at: float | None
    tags: dict[str, str]


class TaskRecord(_Frozen):
    """A Luigi task of a run, or one job of it: an array's elements are ``<task id>.<index>``.

    ``state`` is a WES state name. ``job_key`` is set where there is exactly one job behind the row, whose log
    and exit code these are.
    """

    id: str
    name: str
    state: RunState
    started_at: float | None = None
    ended_at: float | None = None
    exit_code: int | None = None
    reason: str = ""
    job_key: str = ""
    scheduler_id: str = ""
    cluster: str = ""
    stdout: str = ""
    attempt: int = 0
    command: str = Field("", description="The script of the job, as submitted.")


def run_summary(row: Sequence[Any]) -> RunSummary:
    """From ``seq``, ``run_id``, ``state``, times and tags; tags may still be JSON text."""
    _, run_id, state, started_at, ended_at, tags = row
    return RunSummary(
        run_id, RunState(state), started_at, ended_at, json.loads(tags) if isinstance(tags, str) else tags or {}
    )


def run_record(row: Any) -> RunRecord:
    """From a row of ``runs``."""
    return RunRecord(
        run_id=row.run_id,
        state=RunState(row.state),
        reason=row.reason,
        request=RunRequest.model_validate(row.request),
        owner=Owner(sub=row.sub, username=row.username),
        incarnation=row.incarnation,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=row.outcome or {},
    )


TASK_STATES = {
    "PENDING": RunState.QUEUED,
    "RUNNING": RunState.RUNNING,
    "DONE": RunState.COMPLETE,
    "FAILED": RunState.EXECUTOR_ERROR,
}
"""What heads report, in the words of WES."""


def job_run_state(state: JobState) -> RunState:
    """A job's state in the words of WES."""
    if state.succeeded:
        return RunState.COMPLETE
    if state is JobState.CANCELLED:
        return RunState.CANCELED
    if state is JobState.PREEMPTED:
        return RunState.PREEMPTED
    if state in {JobState.NODE_FAIL, JobState.BOOT_FAIL, JobState.LOST, JobState.REJECTED}:
        return RunState.SYSTEM_ERROR
    if state.terminal:
        return RunState.EXECUTOR_ERROR
    if state is JobState.RUNNING:
        return RunState.RUNNING
    return RunState.QUEUED


def task_record(entry_id: str, row: Any | None, job: Any | None) -> TaskRecord:
    """From the rows of an entry of the task list; one of them, or both, may be absent."""
    if row is not None:
        return _task(row, job)
    if job is not None:
        return _element(job, entry_id)
    return TaskRecord(id=entry_id, name=entry_id.split("_", 1)[0], state=RunState.RUNNING)


def _task(row: Any, job: Any | None) -> TaskRecord:
    record = TaskRecord(
        id=row.task_id,
        name=row.family,
        state=TASK_STATES[row.state],
        started_at=row.started_at,
        ended_at=row.ended_at,
        reason=row.message,
    )
    if job is None:
        return record
    behind = _element(job, row.task_id)
    return behind.model_copy(
        update={
            "name": row.family,
            "state": record.state if record.state.terminal else behind.state,
            "reason": record.reason or behind.reason,
            "started_at": behind.started_at or record.started_at,
        }
    )


def _element(job: Any, task_id: str) -> TaskRecord:
    view = job_view(job)
    return TaskRecord(
        id=task_id,
        name=view.label or view.name,
        state=job_run_state(view.state),
        started_at=view.started_at,
        ended_at=view.ended_at,
        exit_code=view.exit.code if view.exit else None,
        reason=view.reason,
        job_key=view.key,
        scheduler_id=view.scheduler_id,
        cluster=view.cluster,
        stdout=view.stdout,
        attempt=view.attempt,
    )
