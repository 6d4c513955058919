"""GA4GH Workflow Execution Service 1.1.0, ``/ga4gh/wes/v1``.

Optional fields that have no value are absent rather than null. Times are UTC, ``2026-01-31T12:00:00Z``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

import bbpwf
from bbpwf.clock import utc_iso
from bbpwf.cluster.runs import MAX_PAGE, RunRecord, RunStore, RunSummary, TaskRecord
from bbpwf.errors import InvalidInput, NotFound
from bbpwf.settings import Settings
from bbpwf.states import RunState
from service.access import Caller, caller
from service.forms import json_object, launch_form, text_map
from service.heads import DEFAULT_WORKERS
from service.launches import Launches
from service.openapi import may
from service.pages import PageToken, is_page_token
from service.quick import looked_up, ready

WORKFLOW_TYPE = "LUIGI"
LUIGI_VERSION = "3.8"
OFFERED = {WORKFLOW_TYPE: LUIGI_VERSION, "PY": "3"}
"""Types and their versions. ``PY``, a Python module with tasks, is what WES clients call a file of that kind."""
DEFAULT_PAGE = 20
_ATTACHMENT = "workflow_attachment"
_PROXY = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\]):[0-9]{1,5}\Z", re.ASCII)
"""A caller's own machine, which ``bbpwf proxy`` names: links that leave it would lack the caller's token."""
_TEXTS = frozenset(
    {
        "workflow_params",
        "workflow_type",
        "workflow_type_version",
        "tags",
        "workflow_engine",
        "workflow_engine_version",
        "workflow_engine_parameters",
        "workflow_url",
    }
)
_REQUIRED = ("workflow_type", "workflow_type_version", "workflow_url")

Body = dict[str, Any]
IdempotencyKey = Annotated[str, Header(alias="Idempotency-Key")]


@dataclass(frozen=True)
class Wes:
    """What the routes work with."""

    settings: Settings
    store: RunStore
    launches: Launches

    def base(self, request: Request) -> str:
        """URL of the service as this client reaches it, without a slash at the end."""
        if proxy := _PROXY.match(request.headers.get("bbpwf-proxy", "")):
            return f"http://{proxy[0]}"
        return (self.settings.service.public_url or str(request.base_url)).rstrip("/")


def router(wes: Wes) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix="/ga4gh/wes/v1", tags=["GA4GH WES 1.1"])
    store = wes.store

    @routes.get("/service-info", response_model=Body)
    async def service_info(request: Request) -> Response:
        """What this service is, offers, and how many runs it has in which state."""
        counts = await looked_up(store, store.counts)
        return ready(_service_info(wes, wes.base(request), counts))

    @routes.post("/runs", openapi_extra=_RUN_FORM, responses=may(409, 413, 429, 502))
    async def run_workflow(
        request: Request,
        who: Annotated[Caller, Depends(caller)],
        idempotency_key: IdempotencyKey = "",
    ) -> Body:
        """Launch a run. The answer is sent when the launch was checked and the run is durable."""
        async with launch_form(request, file_parts=frozenset({_ATTACHMENT})) as form:
            if unknown := form.fields.keys() - _TEXTS:
                raise InvalidInput(f"there is no field {', '.join(sorted(unknown))[:200]} in a WES run request")
            given = {name: text.strip() for name, text in form.fields.items()}
            asked = _run_request(given)
            run = await run_in_threadpool(
                wes.launches.accept, asked.pop("url"), form.files, who, idempotency_key=idempotency_key, **asked
            )
        return {"run_id": run.run_id}

    @routes.get("/runs", response_model=Body)
    async def list_runs(
        page_size: Annotated[int, Query(ge=1)] = DEFAULT_PAGE,
        page_token: PageToken = "",
        state: Annotated[list[RunState] | None, Query()] = None,
        tag: Annotated[list[str] | None, Query(description="`name:value`; beyond WES, as is `state`.")] = None,
    ) -> Response:
        """The project's runs, newest first."""
        tags = dict(_tag(each) for each in tag or [])
        states, limit = tuple(state or ()), min(page_size, MAX_PAGE)
        if states or tags:
            page, following = await run_in_threadpool(store.found, limit, page_token, states=states, tags=tags)
        else:
            page, following = await looked_up(store, lambda: store.summaries(limit, page_token))
        return ready({"runs": [_summary(run) for run in page], "next_page_token": following})

    @routes.get("/runs/{run_id}")
    def run_log(run_id: str, request: Request) -> Body:
        """A run in full."""
        return _run_log(store.get(run_id), wes.base(request))

    @routes.get("/runs/{run_id}/status", response_model=Body)
    async def run_status(run_id: str) -> Response:
        """A run's state."""
        state = await looked_up(store, lambda: store.state(run_id))
        return ready({"run_id": run_id, "state": state.value})

    @routes.post("/runs/{run_id}/cancel", responses=may(409))
    def cancel_run(run_id: str, who: Annotated[Caller, Depends(caller)]) -> Body:
        """Have a run canceled. A run that ended stays as it is."""
        return {"run_id": wes.launches.cancel(run_id, who).run_id}

    @routes.get("/runs/{run_id}/tasks")
    def list_tasks(
        run_id: str,
        request: Request,
        page_size: Annotated[int | str, Query(description="A preference: what is no number counts as none.")] = 100,
        page_token: Annotated[str, Query(description="`next_page_token` of the page before.")] = "",
    ) -> Body:
        """The run's tasks, each followed by its array's elements. WES has no answer 400 here: see the parameters."""
        if not is_page_token(page_token):
            raise NotFound(f"run {run_id!r} has no page {page_token[:40]!r} of tasks")
        limit = min(page_size, MAX_PAGE) if isinstance(page_size, int) and page_size > 0 else 100
        page, following = store.tasks(run_id, limit=limit, token=page_token)
        base = wes.base(request)
        return {"task_logs": [task_log(run_id, task, base) for task in page], "next_page_token": following}

    @routes.get("/runs/{run_id}/tasks/{task_id}")
    def get_task(run_id: str, task_id: str, request: Request) -> Body:
        """One task of the run."""
        return task_log(run_id, store.task(run_id, task_id), wes.base(request))

    return routes


def _run_request(given: dict[str, str]) -> dict[str, Any]:
    """Arguments for :meth:`service.launches.Launches.accept` from the fields of the form.

    Raises:
        InvalidInput: names the field.
    """
    if missing := [name for name in _REQUIRED if not given.get(name)]:
        raise InvalidInput(f"the field {', '.join(missing)} is missing")
    kind, version = given["workflow_type"].upper(), given["workflow_type_version"]
    if kind not in OFFERED:
        raise InvalidInput(f"workflow_type {given['workflow_type'][:40]!r} is not offered", hint="There is LUIGI.")
    if version.split(".")[0] != OFFERED[kind].split(".", maxsplit=1)[0]:
        raise InvalidInput(f"{kind} {version[:40]!r} is not offered", hint=f"There is {OFFERED[kind]}.")
    engine = given.get("workflow_engine", "")
    if engine and engine.lower() not in {"luigi", "bbpwf"}:
        raise InvalidInput(f"workflow_engine {engine[:40]!r} is not offered", hint="There is bbpwf.")
    if given.get("workflow_engine_version") and not engine:
        raise InvalidInput("workflow_engine_version needs workflow_engine")
    return {
        "url": given["workflow_url"],
        "params": json_object("workflow_params", given.get("workflow_params", "")),
        "engine_parameters": text_map("workflow_engine_parameters", given.get("workflow_engine_parameters", "")),
        "tags": text_map("tags", given.get("tags", "")),
        "workflow_type": kind,
        "workflow_type_version": version,
        "workflow_engine": engine,
        "workflow_engine_version": given.get("workflow_engine_version", ""),
    }


def _tag(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name:
        raise InvalidInput(f"the filter tag={text[:80]!r} is not 'name:value'")
    return name, value


def _some(**fields: Any) -> Body:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None and value not in ("", [], {})}


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else utc_iso(seconds)


def _summary(run: RunSummary) -> Body:
    times = _some(start_time=_time(run.started_at), end_time=_time(run.ended_at))
    return {"run_id": run.run_id, "state": run.state.value, **times, "tags": run.tags}


_EXIT_CODES = {RunState.COMPLETE: 0, RunState.EXECUTOR_ERROR: 1}


def _run_log(run: RunRecord, base: str) -> Body:
    asked = run.request
    request = {
        "workflow_params": asked.workflow_params,
        "workflow_type": asked.workflow_type,
        "workflow_type_version": asked.workflow_type_version,
        "workflow_url": asked.workflow_url,
        **_some(
            tags=asked.tags,
            workflow_engine=asked.workflow_engine,
            workflow_engine_version=asked.workflow_engine_version,
            workflow_engine_parameters=asked.workflow_engine_parameters,
        ),
    }
    log = _some(
        name=asked.workflow_url,
        start_time=_time(run.started_at),
        end_time=_time(run.ended_at),
        stderr=f"{base}/runs/{run.run_id}/log",
        exit_code=_EXIT_CODES.get(run.state),
        system_logs=[run.reason] if run.reason else [],
    )
    return {
        "run_id": run.run_id,
        "request": request,
        "state": run.state.value,
        "run_log": log,
        "task_logs_url": f"{base}/ga4gh/wes/v1/runs/{run.run_id}/tasks",
        "outputs": run.outcome.get("outputs", {}),
    }


def task_log(run_id: str, task: TaskRecord, base: str) -> Body:
    """A task as WES's ``TaskLog``. WES gives tasks no state: it leads ``system_logs``."""
    logs = f"{base}/runs/{run_id}/tasks/{quote(task.id, safe='')}/logs" if task.job_key else None
    return _some(
        id=task.id,
        name=task.name or task.id,
        cmd=[task.command] if task.command else [],
        start_time=_time(task.started_at),
        end_time=_time(task.ended_at),
        stdout=logs,
        stderr=logs,
        exit_code=task.exit_code,
        system_logs=[task.state.value] + ([task.reason] if task.reason else []),
    )


def _service_info(wes: Wes, base: str, counts: Mapping[RunState, int]) -> Body:
    project = wes.settings.project
    return {
        "id": f"bbpwf.{project.project_id}",
        "name": "bbpwf",
        "description": "Luigi task graphs on the project's Slurm cluster.",
        "type": {"group": "org.ga4gh", "artifact": "wes", "version": "1.1.0"},
        "organization": {"name": "Open Brain Institute", "url": "https://www.openbraininstitute.org"},
        "version": bbpwf.__version__,
        "documentationUrl": f"{base}/docs",
        "workflow_type_versions": {kind: {"workflow_type_version": [version]} for kind, version in OFFERED.items()},
        "supported_wes_versions": ["1.1.0"],
        "supported_filesystem_protocols": ["file", "s3"],
        "workflow_engine_versions": {"bbpwf": {"workflow_engine_version": [bbpwf.__version__]}},
        "default_workflow_engine_parameters": [
            {"name": "workers", "type": "int", "default_value": str(DEFAULT_WORKERS)},
            {"name": "config", "type": "string", "default_value": ""},
            {"name": "webhook", "type": "string", "default_value": ""},
            {"name": "mail", "type": "string", "default_value": ""},
        ],
        "system_state_counts": {state.value: count for state, count in counts.items()},
        "auth_instructions_url": f"{base}/auth/login",
        "tags": {"virtual_lab": project.virtual_lab_id, "project": project.project_id},
    }


_RUN_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": list(_REQUIRED),
                    "properties": {
                        **{name: {"type": "string"} for name in sorted(_TEXTS)},
                        _ATTACHMENT: {"type": "array", "items": {"type": "string", "format": "binary"}},
                    },
                }
            }
        },
    }
}
