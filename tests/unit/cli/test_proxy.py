"""What the proxy takes and refuses, and that it lets go of what nobody waits for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.types import Message

from bbpwf.cli.proxy import Proxy, peer_uid
from bbpwf.errors import IdentityUnavailable, NotAuthenticated

PORT = 8099
OWN = {"host": f"127.0.0.1:{PORT}"}


class Pieces(httpx.AsyncByteStream):
    """A body that arrives in pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


class Upstream(httpx.AsyncBaseTransport):
    """The service: remembers what it was asked and answers ``answer``."""

    def __init__(self, answer: httpx.Response | None = None) -> None:
        self.asked: list[httpx.Request] = []
        self.answer = answer or httpx.Response(200, stream=Pieces(b"fi", b"ne"))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.asked.append(request)
        return self.answer


def token() -> SecretStr:
    return SecretStr("the-token")


def ask(
    upstream: httpx.AsyncBaseTransport,
    headers: dict[str, str],
    *,
    method: str = "GET",
    path: str = "/tags/",
    messages: tuple[Message, ...] = (),
    get_token: Any = token,
) -> tuple[int, dict[str, str], bytes]:
    """One request to a proxy; status, headers and body of its answer."""
    sent: list[Message] = []

    async def go() -> None:
        waiting = list(messages) or [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Message:
            if waiting:
                return waiting.pop(0)
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message)

        async with httpx.AsyncClient(transport=upstream) as client:
            proxy = Proxy("http://service:1", get_token, {"project-id": "p"}, PORT, client)
            scope = {
                "type": "http",
                "method": method,
                "path": path,
                "raw_path": path.encode(),
                "query_string": b"a=%2F&b=1",
                "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
                "client": None if headers.get("x-nobody") else ("127.0.0.1", 1),
            }
            await asyncio.wait_for(proxy(scope, receive, send), 60)

    asyncio.run(go())
    start = next(each for each in sent if each["type"] == "http.response.start")
    body = b"".join(each.get("body", b"") for each in sent if each["type"] == "http.response.body")
    return start["status"], {k.decode().lower(): v.decode() for k, v in start["headers"]}, body


def test_a_request_is_passed_on_with_our_login_and_project() -> None:
    upstream = Upstream()
    spoken = {"authorization": "Bearer stale", "cookie": "a=b", "project-id": "other", "x-kept": "1", "te": "trailers"}
    status, _, body = ask(upstream, {**OWN, **spoken})
    assert (status, body) == (200, b"fine")
    (asked,) = upstream.asked
    assert str(asked.url) == "http://service:1/tags/?a=%2F&b=1"
    assert asked.headers["authorization"] == "Bearer the-token"
    assert asked.headers.get_list("project-id") == ["p"]
    assert asked.headers["x-kept"] == "1"
    assert "cookie" not in asked.headers
    assert "te" not in asked.headers


def test_a_body_is_passed_on_in_pieces() -> None:
    pieces = tuple({"type": "http.request", "body": b"ab", "more_body": more} for more in (True, True, False))
    chunked, counted = Upstream(), Upstream()
    ask(chunked, {**OWN, "transfer-encoding": "chunked"}, method="POST", messages=pieces)
    assert chunked.asked[0].content == b"ababab"
    ask(counted, {**OWN, "content-length": "6"}, method="POST", messages=pieces)
    assert counted.asked[0].headers["content-length"] == "6"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": f"evil.example:{PORT}"},
        {"host": "127.0.0.1"},
        {"host": f"127.0.0.1.evil.example:{PORT}"},
        {},
        {**OWN, "origin": "https://evil.example"},
        {**OWN, "origin": "null"},
        {**OWN, "origin": "http://localhost:3000"},
        {**OWN, "sec-fetch-site": "cross-site"},
        {**OWN, "sec-fetch-site": "same-site"},
        {**OWN, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
        {**OWN, "x-nobody": "1"},
    ],
)
def test_other_names_and_other_sites_are_refused(headers: dict[str, str]) -> None:
    upstream = Upstream()
    assert ask(upstream, headers)[0] == 403
    assert upstream.asked == []


@pytest.mark.parametrize(
    "headers",
    [
        {"host": f"localhost:{PORT}"},
        {**OWN, "origin": f"http://127.0.0.1:{PORT}", "sec-fetch-site": "same-origin"},
        {**OWN, "sec-fetch-site": "none"},
        {**OWN, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
    ],
)
def test_ones_own_pages_and_followed_links_are_taken(headers: dict[str, str]) -> None:
    assert ask(Upstream(), headers)[0] == 200


def test_a_followed_link_must_not_act() -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert ask(Upstream(), {**OWN, **link}, method="POST")[0] == 403


def test_without_a_login_it_says_so_in_the_shape_of_the_standard() -> None:
    def expired() -> SecretStr:
        raise NotAuthenticated("your login has expired", hint="Run: bbpwf login")

    def down() -> SecretStr:
        raise IdentityUnavailable("the identity provider did not answer")

    status, _, body = ask(Upstream(), OWN, path="/ga4gh/wes/v1/runs", get_token=expired)
    assert status == 401
    assert b'"msg": "your login has expired Run: bbpwf login"' in body
    assert ask(Upstream(), OWN, get_token=down)[0] == 503


def test_redirects_stay_here_and_cookies_do_not_come_through() -> None:
    away = {"location": "http://service:1/dashboard/?x=1", "set-cookie": "a=b"}
    _, headers, _ = ask(Upstream(httpx.Response(302, headers=away, stream=Pieces())), OWN)
    assert headers["location"] == "/dashboard/?x=1"
    assert "set-cookie" not in headers
    elsewhere = {"location": "http://service:11/x"}
    assert (
        ask(Upstream(httpx.Response(302, headers=elsewhere, stream=Pieces())), OWN)[1]["location"]
        == "http://service:11/x"
    )


def test_a_service_that_is_not_there_is_told() -> None:
    class Nobody(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            raise httpx.ConnectError("refused", request=request)

    assert ask(Nobody(), OWN)[0] == 502


def test_a_stream_ends_when_its_reader_leaves() -> None:
    class Endless(httpx.AsyncByteStream):
        closed = False

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"event: state\n\n"
            await asyncio.Event().wait()

        async def aclose(self) -> None:
            self.closed = True

    stream = Endless()
    leaves: tuple[Message, ...] = (
        {"type": "http.request", "body": b"", "more_body": False},
        {"type": "http.disconnect"},
    )
    upstream = Upstream(httpx.Response(200, stream=stream))

    async def go() -> list[Message]:
        sent: list[Message] = []
        arrived = asyncio.Event()
        waiting = list(leaves)

        async def receive() -> Message:
            if len(waiting) == 1:
                await arrived.wait()
            return waiting.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)
            if message.get("body"):
                arrived.set()

        async with httpx.AsyncClient(transport=upstream) as client:
            proxy = Proxy("http://service:1", token, {}, PORT, client)
            scope = {
                "type": "http",
                "method": "GET",
                "path": "/runs/x/events",
                "headers": [(b"host", OWN["host"].encode())],
                "client": ("127.0.0.1", 1),
            }
            await asyncio.wait_for(proxy(scope, receive, send), 60)
        return sent

    sent = asyncio.run(go())
    assert [each.get("body") for each in sent[1:]] == [b"event: state\n\n"]
    assert stream.closed


def test_the_kernel_tells_whose_connection_it_is(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    table.write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:1F90 0100007F:1FA3 01 00000000:00000000 00:00000000 00000000  1234        0 1 1 0\n"
        "   1: 0A00020F:1F91 0100007F:1FA3 01 00000000:00000000 00:00000000 00000000  4321        0 1 1 0\n"
    )
    assert peer_uid(("127.0.0.1", 0x1F90), [table]) == 1234
    assert peer_uid(("127.0.0.1", 0x1F91), [table]) is None  # not from loopback
    assert peer_uid(("127.0.0.1", 0x1F92), [table]) is None
    assert peer_uid(("127.0.0.1", 0x1F92), [tmp_path / "none"]) is None


def test_another_users_connection_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bbpwf.cli.proxy.peer_uid", lambda _: os.getuid() + 1)
    assert ask(Upstream(), OWN)[0] == 403
