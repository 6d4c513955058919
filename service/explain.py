"""``/runs/<id>/tasks/<task>/explain``: why jobs wait, how they ended and why, and exactly what was submitted."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from bbpwf.cluster.control import AgentControl
from bbpwf.cluster.explanation import Explanations
from bbpwf.cluster.runs import RunStore
from bbpwf.errors import BbpwfError, NotFound
from bbpwf.redact import Redactor
from service.views import task_view

LOG_TAIL = 4096
"""Bytes at the end of a log that explain a job."""


def router(store: RunStore, explanations: Explanations, control: AgentControl, redactor: Redactor) -> APIRouter:
    """The route. All comes from the ledger but the log's last lines, which the agent has a limited time for."""
    routes = APIRouter(tags=["runs"])

    @routes.get("/runs/{run_id}/tasks/{task_id}/explain")
    def explain(run_id: str, task_id: str) -> dict[str, Any]:
        """Why a task's jobs wait, or how they ended and why; for one job also attempts, submission, last lines."""
        task = store.task(run_id, task_id)
        if not task.job_key:
            found = explanations.reasons(run_id, store.job_keys(run_id, task_id))
            return {"task": task_view(task), "reasons": [each.model_dump(mode="json") for each in found], "job": None}
        explained = explanations.job(task.job_key).model_dump(mode="json", exclude={"job": {"key"}})
        explained["log_tail"] = _last_lines(run_id, task.job_key)
        return {"task": task_view(task), "reasons": [], "job": explained}

    def _last_lines(run_id: str, key: str) -> str:
        try:
            data = control.log_tail(run_id, key, LOG_TAIL)
        except NotFound:
            return ""
        except BbpwfError as error:  # the explanation does not depend on the cluster
            return f"(the log cannot be read now: {error})"
        lines = data.decode(errors="replace").splitlines()
        return redactor.mask("\n".join(lines[1:] if len(data) == LOG_TAIL and len(lines) > 1 else lines))

    return routes
