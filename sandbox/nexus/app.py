"""The double as an application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox.double import Panel, install
from sandbox.nexus import contents, files, resources, storages
from sandbox.nexus.access import Issuer, Permissions
from sandbox.nexus.delta import Delta, NexusFaults, json_ld
from sandbox.nexus.errors import CONTEXT, Refused
from sandbox.nexus.iris import Names
from sandbox.nexus.store import Store


class RawPath:
    """Routes see the path as it was sent: ids hold percent-encoded slashes that must not split it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope.get("raw_path"):
            scope = {**scope, "path": scope["raw_path"].decode("ascii")}
        await self._app(scope, receive, send)


def create_app(
    base: str, state: Path, issuer: str, *, s3_endpoint: str, buckets: list[str], org: str, project: str
) -> FastAPI:
    """The double. ``base`` is the public URL up to and including ``/v1``; ``state`` is made if absent."""
    names = Names(base, org, project)
    delta = Delta(
        names=names,
        store=Store(state / "nexus.db", names.project),
        issuer=Issuer(issuer),
        permissions=Permissions(names.project),
        panel=Panel(NexusFaults),
        volume=contents.volume(state),
        s3=contents.s3_client(s3_endpoint) if s3_endpoint else None,
    )
    storages.make_defaults(delta, buckets)
    app = FastAPI(title="Nexus Delta double", openapi_url=None)

    @app.middleware("http")
    async def unavailable(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        left = delta.panel.now.unavailable
        if left and request.url.path != "/_faults":
            delta.panel.turn({"unavailable": left - 1})
            return Response("no healthy upstream", 503, media_type="text/plain")
        return await call_next(request)

    install(app, delta.panel)
    app.add_middleware(RawPath)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return error.answer()

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        what = ", ".join(str(each["loc"][-1]) for each in error.errors())
        body = {"@context": CONTEXT, "@type": "MissingQueryParam", "reason": f"Malformed or missing: {what}."}
        return json_ld(body, 400)

    @app.exception_handler(StarletteHTTPException)
    async def unmatched(_: Request, error: StarletteHTTPException) -> Response:
        status = 405 if error.status_code == 405 else 404
        kind = "HttpMethodNotAllowed" if status == 405 else "ResourceNotFound"
        return Refused(status, kind, "The requested resource does not exist.").answer()

    for part in (resources, files, storages):
        app.include_router(part.routes(delta))

    @app.get("/v1/identities")
    def identities(request: Request) -> dict[str, Any]:
        return {"@context": "https://bluebrain.github.io/nexus/contexts/identities.json"} | {
            "identities": delta.caller(request).identities(base)
        }

    @app.get("/v1/projects/{org}/{project}")
    def about(request: Request, org: str, project: str) -> Response:
        delta.reader(request, org, project)
        return json_ld(
            {
                "@id": f"{base}/projects/{names.project}",
                "@type": "Project",
                "base": f"{base}/resources/{names.project}/_/",
                "vocab": f"{base}/vocabs/{names.project}/",
                "_label": names.name,
                "_organizationLabel": names.org,
                "_rev": 1,
                "_deprecated": False,
            }
        )

    return app
