"""Luigi's own dashboard behind our gate: its pages, and of its RPC the calls that only look.

Luigi's handlers answer GET and POST alike, also for calls that change or end tasks. Here a call passes only by
GET and only if it is one of :data:`bbpwf.workflow.guarded.LOOKS`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import httpx
from fastapi import APIRouter, Request
from starlette.background import BackgroundTask
from starlette.responses import RedirectResponse, Response, StreamingResponse

from bbpwf.errors import ConnectFailed, InvalidInput, NotAuthorized
from bbpwf.workflow.guarded import DASHBOARD, LOOKS, code

_PASSED_ON = ("content-type", "content-encoding", "etag", "last-modified", "cache-control", "vary")
_LONGEST_QUERY = 16_384
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; form-action 'none'"
)


class Dashboard:
    """The proxy. ``base_url`` is the scheduler's, on the loopback address; ``key`` is that of its passes."""

    def __init__(self, base_url: str, key: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=base_url,
            timeout=httpx.Timeout(30.0, connect=2.0),
            trust_env=False,
            auth=(DASHBOARD, code(key, DASHBOARD)),
        )

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def page(self, path: str, request: Request) -> Response:
        """A file of the dashboard."""
        kept = {n: v for n, v in request.headers.items() if n in {"if-none-match", "if-modified-since"}}
        return await self._ask(f"/static/{path}", {}, kept)

    async def look(self, method: str, request: Request) -> Response:
        """The scheduler's answer to a call that changes nothing.

        Raises:
            NotAuthorized: it is another call.
            InvalidInput: its arguments are no JSON object.
        """
        if method not in LOOKS:
            raise NotAuthorized(
                f"the scheduler's {method[:40]!r} is not offered here: the dashboard only shows",
                hint="Cancel or resume runs through the API.",
            )
        data = request.query_params.get("data", "{}")
        try:
            fine = len(data) <= _LONGEST_QUERY and isinstance(json.loads(data), dict)
        except (ValueError, RecursionError):
            fine = False
        if not fine:
            raise InvalidInput("'data' is not a JSON object of the call's arguments")
        return await self._ask(f"/api/{method}", {"data": data}, {})

    async def _ask(self, path: str, query: dict[str, str], headers: dict[str, str]) -> Response:
        accepted = {"accept-encoding": "gzip", **headers}
        try:
            question = self._client.build_request("GET", path, params=query, headers=accepted)
            answer = await self._client.send(question, stream=True)
        except httpx.HTTPError as error:
            raise ConnectFailed("Luigi's scheduler does not answer", hint="It may be starting: try again.") from error
        passed = {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}
        passed["content-security-policy"] = _POLICY
        return StreamingResponse(_body(answer), answer.status_code, passed, background=BackgroundTask(answer.aclose))


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    async for chunk in answer.aiter_raw():
        yield chunk


def router(dashboard: Dashboard) -> APIRouter:
    """``/dashboard/`` and ``/api/``."""
    routes = APIRouter(tags=["dashboard"], include_in_schema=False)

    @routes.get("/dashboard")
    @routes.get("/dashboard/")
    @routes.get("/dashboard/static/visualiser/")
    def front() -> Response:
        return RedirectResponse("/dashboard/static/visualiser/index.html", 302)

    @routes.get("/dashboard/static/{path:path}")
    async def static(path: str, request: Request) -> Response:
        return await dashboard.page(path, request)

    @routes.get("/dashboard/api/{method}")
    @routes.get("/api/{method}")
    async def api(method: str, request: Request) -> Response:
        return await dashboard.look(method, request)

    @routes.api_route("/dashboard/api/{method}", methods=["POST", "PUT", "DELETE", "PATCH"])
    @routes.api_route("/api/{method}", methods=["POST", "PUT", "DELETE", "PATCH"])
    def refused(method: str) -> Response:
        raise NotAuthorized(f"the scheduler's {method[:40]!r} is offered by GET alone: the dashboard only shows")

    return routes
