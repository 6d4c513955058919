"""The API's own description: what FastAPI derives from the routes, and the errors that each route really answers.

FastAPI knows neither the gate in front of all routes nor :mod:`service.errors`: it promises a 422 that is never
sent, and says nothing of the 401 that may be. Here every operation gets the errors that its kind of route can have;
what only some have, the route itself names with :func:`may`.
"""

from __future__ import annotations

import http
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.access import OPEN

_STANDARD = {"type": "object", "required": ["msg", "status_code"]} | {
    "properties": {"msg": {"type": "string"}, "status_code": {"type": "integer"}}
}
"""Under ``/ga4gh``: WES 1.1 and DRS 1.5."""
_PROBLEM = {"type": "object", "required": ["title", "status", "detail"]} | {
    "properties": {
        "type": {"type": "string", "description": "`urn:bbpwf:error:<kind>`: a name that programs may look at."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What happened, and what to do."},
    }
}
"""Elsewhere: RFC 9457."""
_WORDS = {
    400: "Something is wrong with the request; the answer names it.",
    401: "There is no valid token.",
    403: "The token's owner may not do this here.",
    404: "There is nothing of this name.",
    409: "It is not in a state for that, or the idempotency key was used for another launch.",
    413: "It is larger than this service takes.",
    429: "Too many runs wait; the answer says when to try again.",
    500: "A defect of the service; its log has the details.",
    502: "The cluster, or what lies before it, cannot be reached or failed.",
    503: "The service cannot answer now; the answer says when to try again.",
    504: "The cluster did not answer in time.",
}
_ANYWHERE = (401, 403, 500, 503)

Responses = dict[int | str, dict[str, Any]]


def may(*statuses: int) -> Responses:
    """For a route's ``responses``: errors beside those that every route of its kind can have."""
    return {status: {"description": _WORDS[status]} for status in statuses}


def text(description: str, *more: int, kind: str = "text/plain") -> Responses:
    """For a route that answers text instead of JSON; ``more`` as for :func:`may`."""
    return {200: {"description": description, "content": {kind: {"schema": {"type": "string"}}}}, **may(*more)}


def install(app: FastAPI) -> None:
    """Have ``app`` describe itself so."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, routes=app.routes)
            for path, operations in found["paths"].items():
                for operation in operations.values():
                    _complete(path, operation)
            schemas = found.setdefault("components", {}).setdefault("schemas", {})
            for unsent in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unsent, None)
            schemas |= {"StandardError": _STANDARD, "Problem": _PROBLEM}
            found["components"]["securitySchemes"] = {
                "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
            }
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]  # the way that FastAPI documents


def _complete(path: str, operation: dict[str, Any]) -> None:
    answers = operation["responses"]
    answers.pop("422", None)
    statuses = {int(status) for status in answers if status.isdigit() and int(status) >= 400}
    if path not in OPEN:
        operation["security"] = [{"bearer": []}]
        statuses |= set(_ANYWHERE)
        if operation.get("parameters") or "requestBody" in operation:
            statuses.add(400)
        if "{" in path:
            statuses.add(404)
    standard = path.startswith("/ga4gh/")
    name, kind = ("StandardError", "application/json") if standard else ("Problem", "application/problem+json")
    for status in sorted(statuses):
        answer = answers.setdefault(str(status), {"description": _WORDS.get(status, http.HTTPStatus(status).phrase)})
        answer["content"] = {kind: {"schema": {"$ref": f"#/components/schemas/{name}"}}}
        if status == 503:
            answer["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "string"}}}
        if status == 401:
            answer["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
