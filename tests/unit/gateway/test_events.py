"""API Gateway's payloads: what comes in of either version is one question, and goes out in that version's form."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from bbpwf.errors import InvalidInput
from service.gateway import events

ARN = "arn:aws:execute-api:us-east-1:123456789012:abc123/prod/GET/ga4gh/wes/v1/runs"

TOKEN = {"type": "TOKEN", "authorizationToken": "Bearer t", "methodArn": ARN}
FIRST = {
    "version": "1.0",
    "type": "REQUEST",
    "methodArn": ARN,
    "identitySource": "Bearer t",
    "authorizationToken": "Bearer t",
    "resource": "/{proxy+}",
    "path": "/ga4gh/wes/v1/runs",
    "httpMethod": "GET",
    "headers": {"Authorization": "Bearer t", "Virtual-Lab-Id": "v", "Project-Id": "p"},
    "queryStringParameters": {},
    "requestContext": {"path": "/ga4gh/wes/v1/runs", "accountId": "123456789012"},
}
SECOND = {
    "version": "2.0",
    "type": "REQUEST",
    "routeArn": ARN,
    "identitySource": ["Bearer t"],
    "routeKey": "$default",
    "rawPath": "/ga4gh/wes/v1/runs",
    "rawQueryString": "",
    "headers": {"authorization": "Bearer t", "virtual-lab-id": "v", "project-id": "p"},
    "requestContext": {"http": {"method": "GET"}, "stage": "$default"},
}


@pytest.mark.parametrize(("event", "version"), [(FIRST, 1), (SECOND, 2)])
def test_an_authorizer_is_asked_the_same_by_both_versions(event: dict[str, Any], version: int) -> None:
    assert events.question(event) == events.Question(version, "Bearer t", "v", "p", ARN)


def test_a_rest_token_authorizer_gets_the_token_alone() -> None:
    assert events.question(TOKEN) == events.Question(0, "Bearer t", "", "", ARN)


@pytest.mark.parametrize("event", [{}, {"type": "OTHER"}])
def test_other_events_are_refused(event: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        events.question(event)


def test_a_policy_is_for_this_request_alone() -> None:
    answer = events.verdict(events.question(FIRST), allowed=True, principal="s", context={"pass": "x"}, simple=True)
    assert answer["principalId"] == "s"
    (statement,) = answer["policyDocument"]["Statement"]
    assert statement == {"Action": "execute-api:Invoke", "Effect": "Allow", "Resource": ARN}
    assert answer["context"] == {"pass": "x"}


def test_a_refusal_is_a_deny() -> None:
    answer = events.verdict(events.question(TOKEN), allowed=False, principal="", context={}, simple=False)
    assert answer["policyDocument"]["Statement"][0]["Effect"] == "Deny"
    assert answer["principalId"]


def test_payload_2_answers_simply_or_with_a_policy_as_the_api_is_set_up() -> None:
    asked = events.question(SECOND)
    simple = events.verdict(asked, allowed=True, principal="s", context={"a": "b"}, simple=True)
    assert simple == {"isAuthorized": True, "context": {"a": "b"}}
    assert "policyDocument" in events.verdict(asked, allowed=True, principal="s", context={}, simple=False)


def test_a_resource_too_long_for_a_policy_is_shortened_to_its_method() -> None:
    asked = events.question({**FIRST, "methodArn": ARN + "/" + "x" * 600})
    (statement,) = events.verdict(asked, allowed=True, principal="s", context={}, simple=False)["policyDocument"][
        "Statement"
    ]
    assert statement["Resource"] == "arn:aws:execute-api:us-east-1:123456789012:abc123/prod/GET/*"


CALL_1: dict[str, Any] = {
    "version": "1.0",
    "httpMethod": "POST",
    "path": "/runs/a b/é",
    "headers": {"Authorization": "Bearer t", "X": "2"},
    "multiValueHeaders": {"Authorization": ["Bearer t"], "X": ["1", "2"], "Cookie": ["a=1; b=2==="]},
    "queryStringParameters": {"q": "2"},
    "multiValueQueryStringParameters": {"q": ["1", "2 &"]},
    "requestContext": {"authorizer": {"pass": "P", "integrationLatency": 3}},
    "body": base64.b64encode(b"\x00\xff").decode(),
    "isBase64Encoded": True,
}
CALL_2: dict[str, Any] = {
    "version": "2.0",
    "rawPath": "/prod/runs/a%20b",
    "rawQueryString": "q=1&q=2%20&e=",
    "cookies": ["a=1", "b=2==="],
    "headers": {"authorization": "Bearer t", "x": "1,2"},
    "requestContext": {
        "http": {"method": "post"},
        "stage": "prod",
        "authorizer": {"lambda": {"pass": "P"}},
    },
    "body": "text",
    "isBase64Encoded": False,
}


def test_a_request_of_payload_1_is_read_whole() -> None:
    asked = events.call(CALL_1)
    assert (asked.version, asked.method, asked.target) == (1, "POST", "/runs/a%20b/%C3%A9?q=1&q=2+%26")
    assert asked.body == b"\x00\xff"
    assert [value for name, value in asked.headers if name == "x"] == ["1", "2"]
    assert asked.header("cookie") == "a=1; b=2==="
    assert asked.context["pass"] == "P"


def test_a_request_of_payload_2_is_read_whole() -> None:
    asked = events.call(CALL_2)
    assert (asked.version, asked.method, asked.target) == (2, "POST", "/runs/a%20b?q=1&q=2%20&e=")
    assert asked.body == b"text"
    assert asked.header("cookie") == "a=1; b=2==="
    assert asked.context["pass"] == "P"


def test_a_request_without_query_or_authorizer_is_read_too() -> None:
    bare = {"httpMethod": "GET", "path": "/", "queryStringParameters": None, "requestContext": {"authorizer": None}}
    asked = events.call(bare)
    assert (asked.target, asked.body, dict(asked.context)) == ("/", b"", {})


@pytest.mark.parametrize("event", [{}, {**CALL_1, "body": "%%%"}])
def test_an_event_that_is_no_request_is_refused(event: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        events.call(event)


HEADERS = [
    ("content-type", "application/json; charset=utf-8"),
    ("set-cookie", "a=1"),
    ("set-cookie", "b=2"),
    ("x", "1"),
]


def test_answers_keep_every_cookie_in_either_version() -> None:
    first = events.response(1, 200, HEADERS, b"{}")
    assert first["multiValueHeaders"]["set-cookie"] == ["a=1", "b=2"]
    second = events.response(2, 200, HEADERS, b"{}")
    assert second["cookies"] == ["a=1", "b=2"]
    assert "set-cookie" not in second["headers"]
    assert first["body"] == second["body"] == "{}"


def test_what_is_not_text_travels_as_base64() -> None:
    for headers, body in (
        ([("content-type", "image/png")], b"\x89PNG"),
        ([("content-type", "text/plain"), ("content-encoding", "gzip")], b"\x1f\x8b"),
        ([("content-type", "text/plain")], b"\xff"),
        ([], b"text"),
    ):
        answer = events.response(2, 200, headers, body)
        assert answer["isBase64Encoded"]
        assert base64.b64decode(answer["body"]) == body
