"""API Gateway's payloads, both versions (``contracts.md`` §8.1 and §8.3): read into one shape, answered in theirs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from bbpwf.errors import InvalidInput
from service.gateway.passing import Headers

Event = Mapping[str, Any]

_LONGEST_RESOURCE = 512
_SAFE_PATH = "/:@!$&'()*+,;=-._~"
RAISED = "Unauthorized"
"""The words that make API Gateway answer 401 when an authorizer raises an exception with them."""


@dataclass(frozen=True)
class Question:
    """What an authorizer is asked. ``version`` is that of the payload, ``0`` for a REST API's TOKEN authorizer."""

    version: int
    authorization: str
    virtual_lab_id: str
    project_id: str
    arn: str


def question(event: Event) -> Question:
    """Read an authorizer's event.

    Raises:
        InvalidInput: it is of no known kind.
    """
    kind = event.get("type")
    if kind == "TOKEN":
        return Question(0, str(event.get("authorizationToken", "")), "", "", str(event.get("methodArn", "")))
    if kind != "REQUEST":
        raise InvalidInput("this is not an event for an authorizer")
    headers = _single(event)
    version = 2 if str(event.get("version", "")).startswith("2") else 1
    arn = str(event.get("routeArn" if version == 2 else "methodArn", ""))
    return Question(
        version,
        authorization=headers.get("authorization", ""),
        virtual_lab_id=headers.get("virtual-lab-id", ""),
        project_id=headers.get("project-id", ""),
        arn=arn,
    )


def verdict(asked: Question, *, allowed: bool, principal: str, context: Mapping[str, str], simple: bool) -> Event:
    """An authorizer's answer in the form that its question asks for; ``simple`` is how an HTTP API is set up."""
    if asked.version == 2 and simple:
        return {"isAuthorized": allowed, "context": dict(context)}
    statement = {
        "Action": "execute-api:Invoke",
        "Effect": "Allow" if allowed else "Deny",
        "Resource": _resource(asked.arn),
    }
    return {
        "principalId": principal or "nobody",
        "policyDocument": {"Version": "2012-10-17", "Statement": [statement]},
        "context": dict(context),
    }


def _resource(arn: str) -> str:
    """The request's own ARN; one that is too long for a policy, by its stage and method."""
    if len(arn) <= _LONGEST_RESOURCE:
        return arn
    return "/".join([*arn.split("/")[:3], "*"])


@dataclass(frozen=True)
class Call:
    """A request as the handler gets it. ``target`` is path and query, quoted; ``context`` what the authorizer said."""

    version: int
    method: str
    path: str
    target: str
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)
    context: Mapping[str, str] = field(repr=False)

    def header(self, name: str) -> str:
        """The first header of a name, empty if there is none."""
        return next((value for each, value in self.headers if each == name), "")


def call(event: Event) -> Call:
    """Read an integration's event.

    Raises:
        InvalidInput: it is not one, or its body is not what it says.
    """
    request = event.get("requestContext")
    if not isinstance(request, Mapping):
        raise InvalidInput("this is not an event of an API")
    version = 2 if str(event.get("version", "")).startswith("2") else 1
    authorizer = request.get("authorizer") or {}
    if version == 2:
        http = request.get("http", {})
        method, path = str(http.get("method", "")), str(event.get("rawPath", "/"))
        stage = str(request.get("stage", "$default"))
        if stage != "$default":  # rawPath begins with the stage, unless it is the default one
            path = path.removeprefix(f"/{stage}") or "/"
        query = str(event.get("rawQueryString", ""))
        authorizer = authorizer.get("lambda") or {}
    else:
        method, path = str(event.get("httpMethod", "")), str(event.get("path", "/"))
        pairs = event.get("multiValueQueryStringParameters") or {}
        single = event.get("queryStringParameters") or {}
        every = [(name, str(value)) for name, values in pairs.items() for value in values] or list(single.items())
        query = urlencode(every)
    body = event.get("body") or ""
    try:
        content = base64.b64decode(body, validate=True) if event.get("isBase64Encoded") else str(body).encode()
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("the request's body is not base64") from error
    quoted = quote(path, safe=_SAFE_PATH + "%") if version == 2 else quote(path, safe=_SAFE_PATH)
    return Call(
        version=version,
        method=method.upper(),
        path=path,
        target=f"{quoted}?{query}" if query else quoted,
        headers=_every(event, version),
        body=content,
        context={str(name): str(value) for name, value in authorizer.items() if isinstance(value, str | int | bool)},
    )


def response(version: int, status: int, headers: Headers, body: bytes) -> Event:
    """An integration's answer. Bodies travel as base64 unless they are plainly text."""
    kind = next((value for name, value in headers if name == "content-type"), "")
    encoded = any(name == "content-encoding" for name, _ in headers)
    text: str | None = None
    if not encoded and kind.partition(";")[0].strip() in _TEXTS:
        try:
            text = body.decode()
        except UnicodeDecodeError:
            text = None
    answer: dict[str, Any] = {
        "statusCode": status,
        "isBase64Encoded": text is None,
        "body": base64.b64encode(body).decode() if text is None else text,
    }
    if version == 2:
        answer["cookies"] = [value for name, value in headers if name == "set-cookie"]
        joined: dict[str, str] = {}
        for name, value in headers:
            if name != "set-cookie":
                joined[name] = f"{joined[name]}, {value}" if name in joined else value
        answer["headers"] = joined
        return answer
    several: dict[str, list[str]] = {}
    for name, value in headers:
        several.setdefault(name, []).append(value)
    answer["multiValueHeaders"] = several
    return answer


_TEXTS = frozenset({"application/json", "application/problem+json", "text/event-stream", "text/html", "text/plain"})


def _single(event: Event) -> dict[str, str]:
    headers = event.get("headers") or {}
    return {str(name).lower(): str(value) for name, value in headers.items()}


def _every(event: Event, version: int) -> Headers:
    several = event.get("multiValueHeaders") if version == 1 else None
    if several:
        headers = [(str(name).lower(), str(value)) for name, values in several.items() for value in values]
    else:
        headers = list(_single(event).items())
    cookies = event.get("cookies") or []
    if cookies:  # payload 2.0 keeps them apart
        headers = [(name, value) for name, value in headers if name != "cookie"]
        headers.append(("cookie", "; ".join(map(str, cookies))))
    return headers
