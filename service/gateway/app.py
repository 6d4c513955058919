"""The gateway in one process on one machine: the same decisions, passed on as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import httpx
from fastapi import FastAPI, Request
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from bbpwf.errors import BbpwfError, InstanceFailed
from bbpwf.redact import Redactor
from service import errors
from service.access import BodyLimit
from service.gateway.authorizer import Admission, Authorizer
from service.gateway.instances import Instances, Ready, Starting
from service.gateway.passing import Headers, to_caller, to_instance

_log = logging.getLogger(__name__)

TEND_S = 2.0
"""Pause between looks at all instances."""
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_CONNECTIONS = httpx.Limits(max_connections=1000, max_keepalive_connections=100)
_TIMES = httpx.Timeout(60.0, connect=3.0, read=300.0, pool=10.0)
_LIVE = "/healthz"


class Finder:
    """Looks for a project's instance once at a time, however many requests wait for it."""

    def __init__(self, instances: Instances, *, wait_s: float) -> None:
        self._instances = instances
        self._wait_s = wait_s
        self._under_way: dict[str, asyncio.Task[Ready | Starting]] = {}

    async def find(self, admitted: Admission) -> Ready | Starting:
        """See :meth:`service.gateway.instances.Instances.find`."""
        key = admitted.project.key
        task = self._under_way.get(key)
        if task is None:
            look = run_in_threadpool(self._instances.find, admitted.project, admitted.sub, wait_s=self._wait_s)
            task = asyncio.ensure_future(look)
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(task)

    def forget(self, admitted: Admission) -> None:
        """Its address did not answer."""
        self._instances.forget(admitted.project)

    async def tend(self) -> None:
        """Look after all instances once."""
        try:
            await run_in_threadpool(self._instances.tend)
        except BbpwfError as error:
            _log.warning("the instances cannot be looked after now: %s", error)

    async def keep(self) -> None:
        """Look after all instances until cancelled."""
        while True:
            await asyncio.sleep(TEND_S)
            await self.tend()


def create_app(
    authorizer: Authorizer, instances: Instances, *, wait_s: float, body_limit: int, redactor: Redactor
) -> FastAPI:
    """The gateway. Everything but ``/healthz``, which is its own, needs a token and goes to the project's instance."""
    client = httpx.AsyncClient(timeout=_TIMES, limits=_CONNECTIONS, trust_env=False, follow_redirects=False)
    finder = Finder(instances, wait_s=wait_s)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await finder.tend()  # what runs already is known before the first request
        tending = asyncio.create_task(finder.keep())
        try:
            yield
        finally:
            tending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await tending
            await client.aclose()

    app = FastAPI(title="bbpwf gateway", lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.add_middleware(BodyLimit, limit=body_limit)
    errors.install(app, redactor)

    @app.get(_LIVE)
    def live() -> Response:
        return Response(status_code=204)

    @app.api_route("/{path:path}", methods=_METHODS)
    async def everything(request: Request) -> Response:
        admitted = await run_in_threadpool(_admit, authorizer, request)
        state = await finder.find(admitted)
        if isinstance(state, Starting):
            retry = {"Retry-After": str(state.retry_after_s)}
            return errors.answer(request.url.path, 503, state.reason, kind="InstanceStarting", headers=retry)
        return await _pass_on(client, request, admitted, state.address, forget=lambda: finder.forget(admitted))

    return app


def _admit(authorizer: Authorizer, request: Request) -> Admission:
    headers = request.headers
    return authorizer.admit(
        headers.get("authorization", ""),
        virtual_lab_id=headers.get("virtual-lab-id", ""),
        project_id=headers.get("project-id", ""),
    )


async def _pass_on(
    client: httpx.AsyncClient, request: Request, admitted: Admission, address: str, *, forget: Callable[[], None]
) -> Response:
    """Send the request on as it comes in, and its answer back as it comes out."""
    headers = to_instance(request.headers.items(), admitted.project, admitted.gate_pass)
    sent = {"content-length", "transfer-encoding"} & {name.lower() for name in request.headers}
    if length := request.headers.get("content-length"):
        headers.append(("content-length", length))
    raw_path: bytes = request.scope.get("raw_path") or request.url.path.encode()
    query: bytes = request.scope.get("query_string", b"")
    url = httpx.URL(f"http://{address}", raw_path=raw_path + (b"?" + query if query else b""))
    question = client.build_request(request.method, url, headers=headers, content=request.stream() if sent else None)
    for name in ("accept", "accept-encoding", "user-agent"):  # httpx's own manners are not the caller's
        if name not in request.headers and name in question.headers:
            del question.headers[name]
    try:
        answer = await client.send(question, stream=True)
    except httpx.ConnectError as error:
        forget()
        raise InstanceFailed("the project's instance does not answer", hint="It may be starting again.") from error
    except httpx.HTTPError as error:
        forget()
        raise InstanceFailed(f"the project's instance broke off ({type(error).__name__})") from error
    response = StreamingResponse(_body(answer), answer.status_code, background=BackgroundTask(answer.aclose))
    response.raw_headers = _raw(to_caller(answer.headers.multi_items()))
    return response


def _raw(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx.HTTPError as error:  # the status has gone out; all that is left is to end short of its length
        _log.warning("an instance broke off within an answer: %s", type(error).__name__)
        raise
    finally:
        await answer.aclose()
