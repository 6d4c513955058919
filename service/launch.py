"""Small routes that the platform's UI and its instance handler already use: ``/launch/``, ``/version/``, ``/tags/``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response

import bbpwf
from bbpwf.errors import InvalidInput
from bbpwf.settings import ProjectSettings
from service.access import Caller, caller
from service.forms import launch_form
from service.launches import Launches
from service.openapi import text


def router(launches: Launches, project: ProjectSettings) -> APIRouter:
    """The routes, with and without the slash at their end."""
    routes = APIRouter(tags=["platform UI"])

    @routes.post("/launch/{task}", include_in_schema=False)
    @routes.post(
        "/launch/{task}/",
        openapi_extra=_LAUNCH_FORM,
        responses=text("The run's id.", 409, 413, 429, 502),
        response_class=PlainTextResponse,
    )
    async def launch(
        task: str,
        request: Request,
        who: Annotated[Caller, Depends(caller)],
        idempotency_key: Annotated[str, Header(alias="Idempotency-Key")] = "",
    ) -> Response:
        """Launch ``module.Task`` with the attached files; ``cfg_name`` names the Luigi config among them."""
        async with launch_form(request, file_parts=None) as form:
            if unknown := form.fields.keys() - {"cfg_name"}:
                raise InvalidInput(f"there is no field {', '.join(sorted(unknown))[:200]} in a launch")
            config = form.fields.get("cfg_name", "").strip()
            run = await run_in_threadpool(
                launches.accept,
                task,
                form.files,
                who,
                idempotency_key=idempotency_key,
                engine_parameters={"config": config} if config else {},
            )
        return PlainTextResponse(run.run_id, headers={"Location": f"/runs/{run.run_id}"})

    @routes.get("/version", include_in_schema=False)
    @routes.get("/version/", responses=text("The version."), response_class=PlainTextResponse)
    def version() -> Response:
        """The version of this service."""
        return PlainTextResponse(bbpwf.__version__)

    @routes.get("/tags", include_in_schema=False)
    @routes.get("/tags/")
    def tags() -> dict[str, str]:
        """Which project this instance serves."""
        return {"virtual_lab": project.virtual_lab_id, "project": project.project_id}

    return routes


def liveness() -> APIRouter:
    """``/healthz``: open to everybody, and says nothing but that the process answers."""
    routes = APIRouter(tags=["operations"])

    @routes.api_route("/healthz", methods=["GET", "HEAD"], include_in_schema=False, status_code=204)
    @routes.get("/healthz/", status_code=204)
    def healthz() -> None:
        """204 as long as the service answers."""

    return routes


_LAUNCH_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"cfg_name": {"type": "string"}},
                    "additionalProperties": {"type": "string", "format": "binary"},
                }
            }
        },
    }
}
