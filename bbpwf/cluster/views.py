"""From a row of the ``jobs`` table to what the rest of the house sees."""

from __future__ import annotations

from typing import Any

from bbpwf.cluster.jobs import ExitRecord, JobView
from bbpwf.cluster.schema import jobs
from bbpwf.states import JobState

VIEWED = tuple(column for column in jobs.c if column.name not in {"spec", "fingerprint", "resources"})
"""The columns that a view is made from, and little else: a specification may be large."""


def job_view(row: Any) -> JobView:
    """The view of a job, from its row."""
    return JobView(
        key=row.key,
        run_id=row.run_id,
        task_id=row.task_id,
        index=row.idx,
        label=row.label,
        name=row.name,
        cluster=row.cluster,
        state=JobState(row.state),
        attempt=row.attempt,
        version=row.version,
        reason=row.reason,
        scheduler_id=row.scheduler_id,
        exit=ExitRecord.model_validate(row.exit) if row.exit else None,
        submitted_at=row.submitted_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        stdout=row.stdout,
    )
