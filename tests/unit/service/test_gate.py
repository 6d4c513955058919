"""The gate looks at a token once for all requests that bring it at the same moment, and keeps no refusal."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping

import httpx
from pydantic import SecretStr
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from bbpwf.errors import NotAuthenticated
from bbpwf.redact import Redactor
from bbpwf.settings import ProjectSettings
from service.access import Caller, Gate

AT_ONCE = 50


class Realm:
    """An authority that takes its time, counts its checks, and refuses every token until told otherwise."""

    def __init__(self) -> None:
        self.checks: list[str] = []
        self.good: set[str] = set()
        self.go = threading.Event()

    def known(self, token: str) -> Caller | None:
        return None

    def check(self, token: str) -> Caller:
        self.checks.append(token)
        assert self.go.wait(60)
        if token not in self.good:
            raise NotAuthenticated("not a valid token")
        return Caller(token, token, SecretStr(token), 1e10)


class NoBrowsers:
    """Browser sessions: nobody has one."""

    async def caller(self, cookies: Mapping[str, str]) -> Caller | None:
        return None


async def inside(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse(scope["bbpwf.caller"].sub)(scope, receive, send)


async def ask(client: httpx.AsyncClient, token: str) -> tuple[int, str]:
    answer = await client.get("/runs", headers={"authorization": f"Bearer {token}"})
    return answer.status_code, answer.text


def test_requests_of_one_moment_share_a_check_and_each_token_has_its_own() -> None:
    realm = Realm()
    realm.good = {"alice", "bob"}

    async def run() -> None:
        gate = Gate(
            inside, authority=realm, sessions=NoBrowsers(), project=ProjectSettings(), redactor=Redactor(), passes=None
        )
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://instance") as client:
            tokens = ["alice", "bob", "eve"] * AT_ONCE
            asking = [asyncio.ensure_future(ask(client, token)) for token in tokens]
            while len(realm.checks) < 3:
                await asyncio.sleep(0.01)
            asking[0].cancel()  # whoever asked first is gone; the others are answered all the same
            realm.go.set()
            answers = (await asyncio.gather(*asking, return_exceptions=True))[1:]
            for token, answer in zip(tokens[1:], answers, strict=True):
                assert isinstance(answer, tuple)
                assert answer[0] == 401 if token == "eve" else answer == (200, token)
            assert sorted(realm.checks) == ["alice", "bob", "eve"]

            realm.good.add("eve")  # a refusal is not remembered
            assert await ask(client, "eve") == (200, "eve")
            assert len(realm.checks) == 4

    asyncio.run(run())
