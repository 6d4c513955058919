"""From domain errors to HTTP answers: the one map, and the two shapes that standards ask for.

Under ``/ga4gh`` an error is ``{"msg", "status_code"}`` (WES 1.1, DRS 1.5); elsewhere it is a problem document
(RFC 9457). Bodies say what the domain error says, masked; a defect of ours says nothing but that it is logged.
"""

from __future__ import annotations

import http
import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route

from bbpwf import errors
from bbpwf.errors import BbpwfError
from bbpwf.redact import Redactor

_log = logging.getLogger(__name__)

STATUS: dict[type[BbpwfError], int] = {
    errors.BbpwfError: 500,
    errors.InvalidInput: 400,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.NotAuthenticated: 401,
    errors.NotAuthorized: 403,
    errors.LimitExceeded: 413,
    errors.TooManyRuns: 429,
    errors.DeadlineExceeded: 504,
    errors.TransportError: 502,
    errors.SlurmError: 502,
    errors.PlatformError: 502,
    errors.NoRoom: 503,
    errors.InstanceFailed: 503,
    errors.IdentityUnavailable: 503,
    errors.DataError: 502,
    errors.LedgerError: 503,
}
"""The status of an error is that of its nearest ancestor in this table."""

_RETRY_AFTER_S = {429: 60, 503: 5}
"""When to ask again: a place in the queue is free when a run has ended."""


def status_of(error: BbpwfError) -> int:
    """The HTTP status of a domain error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def answer(path: str, status: int, detail: str, *, kind: str = "", headers: dict[str, str] | None = None) -> Response:
    """An error in the shape that ``path`` asks for; ``kind`` is a stable name that programs may look at."""
    if path.startswith("/ga4gh/"):
        return JSONResponse({"msg": detail, "status_code": status}, status, headers)
    body: dict[str, Any] = {"title": http.HTTPStatus(status).phrase, "status": status, "detail": detail}
    if kind:
        body["type"] = f"urn:bbpwf:error:{kind}"
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def answer_error(path: str, error: BbpwfError, redactor: Redactor) -> Response:
    """The answer to a domain error."""
    status = status_of(error)
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="bbpwf"'
    if status in _RETRY_AFTER_S:
        headers["Retry-After"] = str(_RETRY_AFTER_S[status])
    return answer(path, status, redactor.mask(str(error)), kind=type(error).__name__, headers=headers)


def _methods(request: Request) -> set[str]:
    """What may be asked of the path of a request."""
    routes = (route for route in request.app.routes if isinstance(route, Route))
    return set().union(*(route.methods or () for route in routes if route.matches(request.scope)[0] is not Match.NONE))


def install(app: FastAPI, redactor: Redactor, failed: Callable[[str], None] = lambda _: None) -> None:
    """Answer every error that leaves a route of ``app``; ``failed`` hears of its kind."""

    @app.exception_handler(BbpwfError)
    async def domain(request: Request, error: BbpwfError) -> Response:
        failed(type(error).__name__)
        if status_of(error) >= 500:
            _log.warning("%s %s: %s", request.method, request.url.path, error)
        return answer_error(request.url.path, error, redactor)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        problems = "; ".join(f"{'.'.join(map(str, each['loc'][1:]))}: {each['msg']}" for each in error.errors())
        return answer(request.url.path, 400, redactor.mask(problems), kind="InvalidInput")

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        detail = f"there is nothing at {request.url.path}" if error.status_code == 404 else str(error.detail)
        headers = dict(error.headers) if error.headers else {}
        if error.status_code == 405:  # each route knows its own method alone
            headers["Allow"] = ", ".join(sorted(_methods(request)))
        return answer(request.url.path, error.status_code, redactor.mask(detail), headers=headers)

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> Response:
        failed("defect")
        del error  # logged with its traceback by the server; its text may hold anything
        return answer(request.url.path, 500, "the service failed on this request; its log has the details")
