"""The gate in front of every route: who is calling, and do they belong to this instance's project?

The gate stands before routing and before a body is read, so that a route, a mounted application or a page that
somebody adds is closed until its path is listed in :data:`OPEN`. Behind it, :func:`caller` tells who it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from fastapi import Request
from pydantic import SecretStr
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bbpwf.cluster.runs import Owner
from bbpwf.errors import BbpwfError, LimitExceeded, NotAuthenticated, NotAuthorized
from bbpwf.platform.membership import Role
from bbpwf.redact import Redactor
from bbpwf.settings import ProjectSettings
from service import errors
from service.gateway.passes import HEADER as PASS
from service.gateway.passes import PassChecker

LIVENESS = frozenset({"/healthz", "/healthz/", "/readyz"})
OPEN = LIVENESS | {"/auth/login", "/auth/callback", "/auth/logout", "/auth/offline"}
"""Paths that anybody may ask; the browser login is how one becomes somebody. Behind a gateway only liveness is open."""

BROWSED = ("/dashboard", "/api", "/docs", "/openapi.json", "/auth/")
"""Paths where a browser's session stands in for a token, for reading only."""
PAGES = ("/dashboard", "/docs")
"""Pages that send a browser without a session to the login."""

_LONGEST_TOKEN = 16_384


@dataclass(frozen=True)
class Caller:
    """Somebody who may be here. ``token`` is what they showed, valid until ``expires_at`` (Unix seconds)."""

    sub: str
    username: str
    token: SecretStr
    expires_at: float
    role: Role = "member"
    """In this instance's project."""

    @property
    def owner(self) -> Owner:
        """The caller as the owner of a run."""
        return Owner(sub=self.sub, username=self.username)


class Authority(Protocol):
    """Whoever can tell what a token is worth."""

    def known(self, token: str) -> Caller | None:
        """The caller, if this token was checked before and still holds; never blocks."""
        ...

    def check(self, token: str) -> Caller:
        """The caller behind a token; may ask the identity provider.

        Raises:
            NotAuthenticated: not a valid token.
            NotAuthorized: valid, but not of a member of this instance's project.
            IdentityUnavailable: the provider cannot be asked now.
        """
        ...


class Sessions(Protocol):
    """Whoever keeps browser sessions."""

    async def caller(self, cookies: Mapping[str, str]) -> Caller | None:
        """The caller of a live session, or ``None``."""
        ...


async def caller(request: Request) -> Caller:
    """Dependency: who is calling. Without the gate in front there is nobody, and the request is refused."""
    found = request.scope.get("bbpwf.caller")
    if not isinstance(found, Caller):
        raise NotAuthenticated("this request did not pass the gate")
    return found


def require_power(who: Caller, owner: Owner) -> None:
    """Let through who may act on a run: its owner, and the project's administrators. Everybody may look.

    Raises:
        NotAuthorized: another member.
    """
    if who.sub != owner.sub and who.role != "admin":
        raise NotAuthorized(
            f"this run is {owner.username[:80]}'s", hint="Its owner or an administrator of the project may do that."
        )


class Gate:
    """ASGI middleware that lets members of the project through, and nobody else but to :data:`OPEN` paths."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        authority: Authority,
        sessions: Sessions,
        project: ProjectSettings,
        redactor: Redactor,
        passes: PassChecker | None = None,
    ) -> None:
        self._app = app
        self._authority = authority
        self._sessions = sessions
        self._project = project
        self._redactor = redactor
        self._passes = passes
        self._open = OPEN if passes is None else LIVENESS
        self._checks: dict[str, asyncio.Future[Caller]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with ``bbpwf.caller`` in its scope, or answer 401, 403 or 503."""
        if scope["type"] == "lifespan" or scope.get("path") in self._open:
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no other protocol is spoken here; a websocket is closed before it opens
            await send({"type": "websocket.close", "code": 1008})
            return
        path: str = scope["path"]
        headers = Headers(scope=scope)
        try:
            self._own_project(headers)
            self._through_gateway(headers)
            scope["bbpwf.caller"] = await self._caller(scope, headers)
        except BbpwfError as error:
            response = errors.answer_error(path, error, self._redactor)
            if isinstance(error, NotAuthenticated) and self._passes is None and self._should_log_in(scope, headers):
                response = RedirectResponse("/auth/login?next=" + quote(path, safe="/"), 302)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _own_project(self, headers: Headers) -> None:
        for name, own in (("virtual-lab-id", self._project.virtual_lab_id), ("project-id", self._project.project_id)):
            sent = headers.getlist(name)
            if any(value.strip() != own for value in sent):
                raise NotAuthorized(
                    f"the header {name} names another project than this instance serves",
                    hint=f"This instance serves project {self._project.project_id}.",
                )

    def _through_gateway(self, headers: Headers) -> None:
        """Behind a gateway every request carries its pass, for this project and this very token."""
        if self._passes is None:
            return
        said = self._passes.check(headers.get(PASS, ""), headers.get("authorization", "").partition(" ")[2].strip())
        if (said.virtual_lab_id, said.project_id) != (self._project.virtual_lab_id, self._project.project_id):
            raise NotAuthorized("the gateway's pass is for another project than this instance serves")

    async def _caller(self, scope: Scope, headers: Headers) -> Caller:
        sent = headers.getlist("authorization")
        if sent:
            return await self._bearer(sent)
        if scope["method"] in {"GET", "HEAD"} and scope["path"].startswith(BROWSED):
            by_session = await self._sessions.caller(Request(scope).cookies)
            if by_session is not None:
                return by_session
        raise NotAuthenticated("this needs a token", hint="Send it as 'Authorization: Bearer <access token>'.")

    async def _bearer(self, sent: list[str]) -> Caller:
        scheme, _, token = sent[0].partition(" ")
        token = token.strip()
        if len(sent) != 1 or scheme.lower() != "bearer" or not token:
            raise NotAuthenticated("the Authorization header is not 'Bearer <access token>'")
        if len(token) > _LONGEST_TOKEN or not token.isascii():
            raise NotAuthenticated("the token is malformed")
        known = self._authority.known(token)
        return known if known is not None else await self._checked(token)

    async def _checked(self, token: str) -> Caller:
        """What a token is worth, looked at once for all requests that bring it at the same moment."""
        check = self._checks.get(token)
        if check is None:
            check = self._checks[token] = asyncio.ensure_future(run_in_threadpool(self._authority.check, token))
            check.add_done_callback(lambda done: self._over(token, done))
        return await asyncio.shield(check)

    def _over(self, token: str, check: asyncio.Future[Caller]) -> None:
        del self._checks[token]
        if not check.cancelled():
            check.exception()  # looked at, in case that whoever asked is gone

    @staticmethod
    def _should_log_in(scope: Scope, headers: Headers) -> bool:
        if scope["method"] != "GET" or "authorization" in headers:
            return False
        path: str = scope["path"]
        return path == "/auth/" or (path.startswith(PAGES) and "text/html" in headers.get("accept", ""))


class BodyLimit:
    """ASGI middleware that refuses request bodies over ``limit`` bytes, whether announced or not."""

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; answer 413 when its body is too large and nothing was answered yet."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        too_large = f"the request is over this service's limit of {self._limit} bytes"
        if announced.isdigit() and int(announced) > self._limit:
            await errors.answer(scope["path"], 413, too_large, kind="LimitExceeded")(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise LimitExceeded(too_large)
            return message

        await self._app(scope, counted, send)
