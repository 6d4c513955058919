"""One map from domain errors to answers."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from fastapi import FastAPI
from starlette.exceptions import HTTPException

from bbpwf import errors
from bbpwf.cli.exits import exit_code
from bbpwf.errors import BbpwfError
from bbpwf.redact import Redactor
from service.errors import answer_error, install, status_of

ALL = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, BbpwfError)]


def make(kind: type[BbpwfError], message: str) -> BbpwfError:
    if kind is errors.CommandFailed:
        return errors.CommandFailed(message, exit_code=1)
    return kind(message)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_and_an_exit_code(kind: type[BbpwfError]) -> None:
    error = make(kind, "what happened")
    assert 400 <= status_of(error) <= 599
    assert exit_code(error) in range(1, 6)
    if isinstance(error, errors.InvalidInput):
        assert (status_of(error), exit_code(error)) == (400, 2)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("path", ["/ga4gh/wes/v1/runs", "/runs/x"])
def test_answers_have_the_shape_of_the_path_and_hold_no_secret(kind: type[BbpwfError], path: str) -> None:
    redactor = Redactor()
    redactor.add("hunter2-hunter2")
    text = "it said hunter2-hunter2 and Bearer abcdefghijklmnop and eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl"
    response = answer_error(path, make(kind, text), redactor)
    body = bytes(response.body)
    for secret in (b"hunter2", b"abcdefghijklmnop", b"eyJ"):
        assert secret not in body
    content = json.loads(body)
    status = response.status_code
    if path.startswith("/ga4gh"):
        assert content.keys() == {"msg", "status_code"}
        assert content["status_code"] == status
    else:
        assert response.headers["content-type"] == "application/problem+json"
        assert (content["status"], content["type"]) == (status, f"urn:bbpwf:error:{kind.__name__}")
    assert ("www-authenticate" in response.headers) == (status == 401)
    assert ("retry-after" in response.headers) == (status in {429, 503})


def app() -> FastAPI:
    made = FastAPI()
    install(made, Redactor())

    @made.get("/defect")
    def defect() -> None:
        raise RuntimeError("a secret detail")

    @made.get("/ga4gh/defect")
    def wes_defect() -> None:
        raise RuntimeError("a secret detail")

    @made.get("/number/{n}")
    def number(n: int) -> int:
        return n

    @made.get("/teapot")
    def teapot() -> None:
        raise HTTPException(418, "no coffee")

    return made


def ask(method: str, path: str) -> httpx.Response:
    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path)

    return asyncio.run(asked())


def test_defects_are_not_explained_to_the_world() -> None:
    for path in ("/defect", "/ga4gh/defect"):
        answer = ask("GET", path)
        assert answer.status_code == 500
        assert "secret" not in answer.text
    assert ask("GET", "/ga4gh/defect").json()["status_code"] == 500


def test_what_the_framework_refuses_has_the_same_shape() -> None:
    assert ask("GET", "/number/x").status_code == 400
    assert "n" in ask("GET", "/number/x").json()["detail"]
    assert ask("GET", "/nowhere").json()["status"] == 404
    assert ask("GET", "/ga4gh/nowhere").json() == {"msg": "there is nothing at /ga4gh/nowhere", "status_code": 404}
    assert ask("POST", "/number/1").status_code == 405
    assert ask("GET", "/teapot").json()["detail"] == "no coffee"
