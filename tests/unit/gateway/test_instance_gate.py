"""An instance behind the gateway lets nobody in without a pass, and a pass alone lets nobody in either."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx
import pytest
from pydantic import SecretStr
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from bbpwf.errors import NotAuthenticated
from bbpwf.redact import Redactor
from bbpwf.settings import ProjectSettings
from service.access import Caller, Gate
from service.gateway.passes import HEADER, PassChecker, PassMaker, new_key
from tests.support.clock import ManualClock

PROJECT = ProjectSettings(virtual_lab_id="v", project_id="p")
GOOD, BAD = "good.user.token", "bad.user.token"


class Realm:
    """An authority that knows one good token."""

    def known(self, token: str) -> Caller | None:
        return None

    def check(self, token: str) -> Caller:
        if token != GOOD:
            raise NotAuthenticated("not a valid token")
        return Caller("s", "alice", SecretStr(token), 1e10)


class Browsers:
    """Browser sessions: everybody has one."""

    async def caller(self, cookies: Mapping[str, str]) -> Caller | None:
        return Caller("s", "alice", SecretStr(GOOD), 1e10)


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("inside")(scope, receive, send)


@pytest.fixture
def maker() -> PassMaker:
    return PassMaker(new_key(), lifetime_s=60, clock=ManualClock())


def ask(maker: PassMaker, path: str, headers: dict[str, str]) -> int:
    async def run() -> int:
        gate = Gate(
            inside,
            authority=Realm(),
            sessions=Browsers(),
            project=PROJECT,
            redactor=Redactor(),
            passes=PassChecker(maker.public_keys, ManualClock()),
        )
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://instance") as client:
            return (await client.get(path, headers=headers)).status_code

    return asyncio.run(run())


def given(maker: PassMaker, token: str, project: str = "p") -> dict[str, str]:
    made = maker.make(token, virtual_lab_id="v", project_id=project, sub="s", username="alice", until=1e10)
    return {"authorization": f"Bearer {token}", HEADER: made}


def test_token_and_pass_together_let_in(maker: PassMaker) -> None:
    assert ask(maker, "/runs", given(maker, GOOD)) == 200


@pytest.mark.parametrize("path", ["/runs", "/auth/login", "/auth/callback", "/dashboard/", "/docs", "/metrics"])
def test_without_a_pass_nothing_is_open_not_even_to_a_browser(maker: PassMaker, path: str) -> None:
    browser = {"accept": "text/html", "cookie": "session=x"}
    assert ask(maker, path, browser) == 401
    assert ask(maker, path, {"authorization": f"Bearer {GOOD}"}) == 401


def test_a_pass_opens_nothing_without_a_good_token(maker: PassMaker) -> None:
    assert ask(maker, "/runs", given(maker, BAD)) == 401
    assert ask(maker, "/runs", {HEADER: given(maker, GOOD)[HEADER]}) == 401
    assert ask(maker, "/runs", {**given(maker, GOOD), "authorization": f"Bearer {BAD}"}) == 401


def test_a_pass_for_another_project_is_refused(maker: PassMaker) -> None:
    assert ask(maker, "/runs", given(maker, GOOD, project="another")) == 403


def test_a_pass_of_another_gateway_is_refused(maker: PassMaker) -> None:
    other = PassMaker(new_key(), lifetime_s=60, clock=ManualClock())
    assert ask(maker, "/runs", given(other, GOOD)) == 401


def test_liveness_is_open(maker: PassMaker) -> None:
    assert ask(maker, "/healthz", {}) == 200
