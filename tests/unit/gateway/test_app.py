"""The gateway in one process: what goes through it, in both directions, and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

from bbpwf.errors import IdentityUnavailable, NoRoom, NotAuthenticated, NotAuthorized
from bbpwf.redact import Redactor
from sandbox.process import free_ports
from service.gateway.app import create_app
from service.gateway.authorizer import Admission, Authorizer, Project
from service.gateway.instances import Instances, Ready, Starting

ADMITTED = Admission(Project("v", "p"), "sub", "alice", "the-pass")


class Opinion(Authorizer):
    """An authorizer that was told what to say."""

    def __init__(self) -> None:
        self.says: Admission | Exception = ADMITTED

    def admit(self, authorization: str, *, virtual_lab_id: str = "", project_id: str = "") -> Admission:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


class Places(Instances):
    """Instances that were told where they are."""

    def __init__(self) -> None:
        self.says: Ready | Starting | Exception = Starting("it comes", 7)
        self.asked = 0
        self.forgotten = 0
        self.tended = 0

    def find(self, project: Project, sub: str, *, wait_s: float = 0.0) -> Ready | Starting:
        self.asked += 1
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    def forget(self, project: Project) -> None:
        self.forgotten += 1

    def tend(self) -> None:
        self.tended += 1


@dataclass
class House:
    """A gateway and what it stands on."""

    authorizer: Opinion
    instances: Places
    client: httpx.AsyncClient = field(repr=False)


@contextlib.asynccontextmanager
async def house() -> AsyncIterator[House]:
    authorizer, instances = Opinion(), Places()
    app = create_app(authorizer, instances, wait_s=1, body_limit=1000, redactor=Redactor())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://gate") as client,
    ):
        yield House(authorizer, instances, client)


def instance() -> FastAPI:
    """An instance that tells what it got."""
    app = FastAPI(openapi_url=None)

    @app.get("/stream")
    async def stream() -> Response:
        async def parts() -> AsyncIterator[bytes]:
            for number in range(3):
                yield f"data: {number}\n\n".encode()
                await asyncio.sleep(0)

        return StreamingResponse(parts(), media_type="text/event-stream")

    @app.api_route("/{path:path}", methods=["GET", "POST", "HEAD"])
    async def everything(request: Request) -> Response:
        body = await request.body()
        raw = request.scope["raw_path"].decode()
        said = {"headers": request.headers.items(), "body": body.decode(), "path": raw, "query": request.url.query}
        answer = Response(json.dumps(said), 201, media_type="application/json")
        answer.raw_headers += [
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"connection", b"x-hop"),
            (b"x-hop", b"1"),
        ]
        return answer

    return app


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[str]:
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(instance(), port=port, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(60):
            while not server.started:
                await asyncio.sleep(0.01)
        yield f"127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving


def one(headers: list[list[str]], name: str) -> list[str]:
    return [value for each, value in headers if each == name]


def test_a_request_and_its_answer_go_through_as_they_are() -> None:
    async def run() -> None:
        async with running() as address, house() as here:
            here.instances.says = Ready(address)
            sent = {
                "authorization": "Bearer t",
                "bbpwf-pass": "forged",
                "virtual-lab-id": "forged",
                "x-forwarded-for": "forged",
                "connection": "x-mine",
                "x-mine": "1",
                "x-kept": "2",
            }
            answer = await here.client.post("/a%2Fb/c?q=1&q=%20", content=b"body", headers=sent)
            assert answer.status_code == 201
            assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
            assert "x-hop" not in answer.headers
            said = answer.json()
            assert (said["path"], said["query"], said["body"]) == ("/a%2Fb/c", "q=1&q=%20", "body")
            headers = said["headers"]
            assert one(headers, "bbpwf-pass") == ["the-pass"]
            assert one(headers, "virtual-lab-id") == ["v"]
            assert one(headers, "project-id") == ["p"]
            assert one(headers, "authorization") == ["Bearer t"]
            assert one(headers, "x-kept") == ["2"]
            assert one(headers, "x-mine") == one(headers, "x-forwarded-for") == []
            assert one(headers, "content-length") == ["4"]

    asyncio.run(run())


def test_an_event_stream_goes_through_and_a_head_has_no_body() -> None:
    async def run() -> None:
        async with running() as address, house() as here:
            here.instances.says = Ready(address)
            async with here.client.stream("GET", "/stream") as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                assert [line async for line in answer.aiter_lines() if line] == ["data: 0", "data: 1", "data: 2"]
            head = await here.client.head("/x")
            assert (head.status_code, head.content) == (201, b"")

    asyncio.run(run())


def test_many_requests_that_wait_look_once() -> None:
    async def run() -> None:
        async with house() as here:
            answers = await asyncio.gather(*(here.client.get("/x") for _ in range(20)))
            assert {each.status_code for each in answers} == {503}
            assert {each.headers["retry-after"] for each in answers} == {"7"}
            assert {each.json()["detail"] for each in answers} == {"it comes"}
            assert here.instances.asked < 20

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotAuthenticated("no token"), 401),
        (NotAuthorized("not yours"), 403),
        (IdentityUnavailable("Keycloak is down"), 503),
    ],
)
def test_who_may_not_gets_no_further(error: Exception, status: int) -> None:
    async def run() -> None:
        async with house() as here:
            here.authorizer.says = error
            for path, shape in (("/x", "detail"), ("/ga4gh/wes/v1/runs", "msg")):
                answer = await here.client.get(path)
                assert answer.status_code == status
                assert str(error) in answer.json()[shape]
            assert here.instances.asked == 0

    asyncio.run(run())


def test_no_room_is_told_and_when_to_come_back() -> None:
    async def run() -> None:
        async with house() as here:
            here.instances.says = NoRoom("all 2 are in use")
            answer = await here.client.get("/ga4gh/wes/v1/service-info")
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert answer.json()["msg"] == "all 2 are in use"

    asyncio.run(run())


def test_an_instance_that_does_not_answer_is_forgotten() -> None:
    async def run() -> None:
        async with house() as here:
            here.instances.says = Ready(f"127.0.0.1:{free_ports(1)[0]}")
            answer = await here.client.get("/x")
            assert answer.status_code == 503
            assert "retry-after" in answer.headers
            assert here.instances.forgotten == 1

    asyncio.run(run())


def test_a_request_too_large_is_refused_whether_announced_or_not() -> None:
    async def run() -> None:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b"x" * 100

        async with running() as address, house() as here:
            here.instances.says = Ready(address)
            assert (await here.client.post("/x", content=b"x" * 1001)).status_code == 413
            assert (await here.client.post("/x", content=parts())).status_code == 413

    asyncio.run(run())


def test_the_gateways_own_liveness_is_open_and_instances_are_tended() -> None:
    async def run() -> None:
        async with house() as here:
            here.authorizer.says = NotAuthenticated("no token")
            assert (await here.client.get("/healthz")).status_code == 204
            async with asyncio.timeout(60):
                while not here.instances.tended:
                    await asyncio.sleep(0.01)

    asyncio.run(run())
