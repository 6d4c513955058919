"""Runs and tasks in our own words, for this API and for ``bbpwf run``: with states and reasons, unlike WES."""

from __future__ import annotations

from typing import Any

from bbpwf.cluster.runs import RunRecord, TaskRecord


def run_view(run: RunRecord) -> dict[str, Any]:
    """A run as this API shows it; times are Unix seconds."""
    body = run.model_dump(mode="json", exclude={"request"})
    asked = run.request
    return body | {"task": asked.workflow_url, "params": asked.workflow_params, "tags": run.tags}


def task_view(task: TaskRecord) -> dict[str, Any]:
    """A task as this API shows it."""
    return task.model_dump(mode="json", exclude={"job_key", "command"})
