"""``bbpwf proxy``: the service on a loopback port, with this machine's login added to every request.

Browsers on the dashboard, curl and GA4GH clients work as they are, without knowing of tokens. What the port opens is
open to whoever reaches it, so it listens on loopback, answers to its own names alone (a page whose host name was made
to point here is refused), takes nothing that another site's page had a browser send, and on Linux nothing from
another user of the machine.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import uvicorn
from pydantic import SecretStr
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from bbpwf import settings
from bbpwf.cli import show
from bbpwf.cli.credentials import Credentials
from bbpwf.clock import SystemClock
from bbpwf.errors import AccessError, BbpwfError, ConnectFailed, InvalidConfig
from bbpwf.redact import Redactor
from bbpwf.settings import Settings

_log = logging.getLogger(__name__)

_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "expect",
    }
)
PROXY_HEADER = "bbpwf-proxy"
"""Tells the service under which name and port the caller reaches it, so that links in its answers lead here."""
_OURS = frozenset({"authorization", "cookie", "virtual-lab-id", "project-id", PROXY_HEADER})
"""Request headers that are ours to say, whatever the client says."""
_TIMEOUT = httpx.Timeout(60.0, connect=10.0, read=None)  # event streams may be silent for long
_FRIENDS = 1024

GetToken = Callable[[], SecretStr]


class Proxy:
    """The application; ``port`` is where it listens.

    Args:
        url: the service.
        token: answers a valid access token; may block.
        project: the headers that name the project.
        port: ours, which is part of our name.
        client: how the service is asked.
    """

    def __init__(
        self, url: str, token: GetToken, project: dict[str, str], port: int, client: httpx.AsyncClient
    ) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._project = project
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
        self._origins = {f"http://{host}" for host in self._hosts}
        self._client = client
        self._friends: OrderedDict[tuple[str, int], None] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or say why not."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal:
            await _answer(send, scope["path"], 403, refusal)
            return
        try:
            token = await run_in_threadpool(self._token)
        except BbpwfError as error:
            await _answer(send, scope["path"], 401 if isinstance(error, AccessError) else 503, str(error))
            return
        await self._pass_on(scope, headers, token, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> str:
        """Why this request is not taken; empty if it is."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return f"this proxy answers to {', '.join(sorted(self._hosts))} alone"
        if any(origin not in self._origins for origin in headers.getlist("origin")):
            return "pages of other sites may not use this proxy"
        followed = (
            scope["method"] in {"GET", "HEAD"}
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )
        if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"} and not followed:
            return "pages of other sites may not use this proxy"
        if not self._own_user(scope.get("client")):
            return "this proxy belongs to another user of this machine"
        return ""

    def _own_user(self, client: tuple[str, int] | None) -> bool:
        if client is None:
            return False
        if client not in self._friends:
            if peer_uid(client) not in {None, os.getuid()}:
                return False
            self._friends[client] = None
            while len(self._friends) > _FRIENDS:
                self._friends.popitem(last=False)
        return True

    async def _pass_on(self, scope: Scope, headers: Headers, token: SecretStr, receive: Receive, send: Send) -> None:
        path = scope.get("raw_path") or quote(scope["path"]).encode()
        query = scope.get("query_string", b"")
        url = httpx.URL(self._url + path.decode("latin-1") + (f"?{query.decode('latin-1')}" if query else ""))
        sent = [(k, v) for k, v in headers.items() if k not in _HOP | _OURS and k not in _named(headers)]
        sent += [("authorization", f"Bearer {token.get_secret_value()}"), *self._project.items()]
        sent.append((PROXY_HEADER, headers["host"]))
        has_body = "content-length" in headers or "transfer-encoding" in headers
        question = self._client.build_request(
            scope["method"], url, headers=sent, content=_body(receive) if has_body else None
        )
        started = [False]
        try:
            work = self._exchange(question, scope, send, started)
            await (work if has_body else _while_there(receive, work))
        except httpx.HTTPError as error:
            _log.info("%s %s: %s", scope["method"], scope["path"], type(error).__name__)
            if started[0]:
                raise ConnectFailed("the service broke off its answer", where=self._url) from None
            await _answer(send, scope["path"], 502, f"the service at {self._url} does not answer")

    async def _exchange(self, question: httpx.Request, scope: Scope, send: Send, started: list[bool]) -> None:
        answer = await self._client.send(question, stream=True)
        try:
            passed = [
                (name, self._at_home(value) if name.lower() == b"location" else value)
                for name, value in answer.headers.raw
                if name.lower().decode("latin-1") not in _HOP | {"set-cookie"}
            ]
            started[0] = True
            await send({"type": "http.response.start", "status": answer.status_code, "headers": passed})
            if scope["method"] != "HEAD":
                async for chunk in answer.aiter_raw():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()

    def _at_home(self, location: bytes) -> bytes:
        """A redirect within the service leads to the same path here."""
        text = location.decode("latin-1")
        return (text[len(self._url) :] or "/").encode("latin-1") if f"{text}/".startswith(f"{self._url}/") else location


def peer_uid(
    client: tuple[str, int], table: Iterable[Path] = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
) -> int | None:
    """Which user of this machine holds the other end of a loopback connection; ``None`` where that cannot be told."""
    port = f"{client[1]:04X}"
    for path in table:
        try:
            lines = path.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[1].endswith(f":{port}") and fields[1].split(":")[0][-8:] in {"0100007F", "01000000"}:
                return int(fields[7])
    return None


def _named(headers: Headers) -> frozenset[str]:
    """Headers that ``Connection`` says are for this hop alone."""
    return frozenset(re.split(r"\s*,\s*", headers.get("connection", "").strip().lower()))


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise httpx.ReadError("the client left")
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


async def _while_there(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do ``work`` until its end or until the client leaves: an event stream would go on for ever."""
    doing, watching = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
    finally:
        doing.cancel()
        watching.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send: Send, path: str, status: int, text: str) -> None:
    """An error of our own, in the shape that the service would give it."""
    wes = path.startswith("/ga4gh/")
    content: dict[str, Any] = (
        {"msg": text, "status_code": status} if wes else {"title": "bbpwf proxy", "status": status, "detail": text}
    )
    kind = b"application/json" if wes else b"application/problem+json"
    start: Message = {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]}
    await send(start)
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def serve_proxy(port: int) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InvalidConfig: it is not known where the service is, or the port is taken.
        NotAuthenticated: nobody is logged in on this machine.
    """
    configured = settings.load()
    if not urlsplit(configured.url).netloc:
        raise InvalidConfig("it is not known where the service is", hint="Set BBPWF_URL to its address.")
    credentials = Credentials(configured, SystemClock(), Redactor(), token=os.environ.get("BBPWF_TOKEN", ""))
    credentials.access_token()  # now, rather than at the first request
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise InvalidConfig(
                f"port {port} cannot be used: {error.strerror}", hint="Choose another --port."
            ) from None
        own = listener.getsockname()[1]
        show.console().print(f"{configured.url} is at http://127.0.0.1:{own}/ for you; Ctrl-C ends it", soft_wrap=True)
        asyncio.run(_serve(configured, credentials.access_token, own, listener))


async def _serve(configured: Settings, token: GetToken, port: int, listener: socket.socket) -> None:
    project = {"virtual-lab-id": configured.project.virtual_lab_id, "project-id": configured.project.project_id}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    async with httpx.AsyncClient(timeout=_TIMEOUT, limits=limits, follow_redirects=False) as client:
        serving = uvicorn.Config(
            Proxy(configured.url, token, project, port, client),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
        await uvicorn.Server(serving).serve(sockets=[listener])
