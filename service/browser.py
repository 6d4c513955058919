"""Login by browser, for the dashboard: OpenID Connect code flow with PKCE, and sessions kept on this side.

The browser holds two random values and nothing else: one while it is away at the identity provider, so that a login
that somebody else began is not finished here, and one for the session. Tokens stay in this process, and are refreshed
here; a restart of the service means another trip to the provider, which usually goes unnoticed.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from fastapi import APIRouter, Query, Request
from pydantic import SecretStr
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, RedirectResponse, Response

from bbpwf.clock import Clock
from bbpwf.errors import AccessError, BbpwfError, InvalidInput, NotAuthenticated, NotAuthorized
from bbpwf.platform.login import OFFLINE_SCOPE, SCOPE, Authorization, Login, Tokens
from bbpwf.settings import ServiceSettings
from service.access import Authority, Caller
from service.consent import OfflineLogins

SESSION_S = 12 * 3600.0
"""A session ends this long after its login, whatever is refreshed meanwhile."""
AWAY_S = 600.0
"""How long a browser may take at the identity provider."""
EARLY_S = 30.0
"""Tokens are refreshed this long before they end."""
_MOST = 1000
_OFFLINE_PAGE = (
    "<!doctype html><title>Offline login</title><p>Leave an offline login, and your runs go on acting for you when "
    "this login has ended, until you withdraw it.</p><form method=post><button>Leave an offline login</button></form>"
)
T = TypeVar("T")


@dataclass
class _Session:
    tokens: Tokens
    until: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class _Away:
    begun: Authorization
    browser: str
    following: str
    until: float
    offline: bool = False


def local_path(wanted: str) -> str:
    """``wanted`` if it is a path on this host, else the dashboard."""
    plain = wanted.startswith("/") and not wanted.startswith("//") and wanted.isprintable() and "\\" not in wanted
    return wanted if plain else "/dashboard/"


class BrowserSessions:
    """Sessions of people with a browser; see :class:`service.access.Sessions`."""

    def __init__(
        self, login: Login, authority: Authority, settings: ServiceSettings, clock: Clock, offline: OfflineLogins
    ) -> None:
        self._login = login
        self._offline = offline
        self._authority = authority
        self.secure = settings.secure_cookies
        self._public_url = settings.public_url.rstrip("/")
        self._clock = clock
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._away: OrderedDict[str, _Away] = OrderedDict()
        # __Host- makes browsers insist on Secure, on this very host and on Path=/
        self.cookie = "__Host-bbpwf" if self.secure else "bbpwf"
        self.away_cookie = "__Host-bbpwf-login" if self.secure else "bbpwf-login"

    async def caller(self, cookies: Mapping[str, str]) -> Caller | None:
        """The caller whose session the cookie names, with a token that is valid now; ``None`` if there is none."""
        key = _digest(cookies.get(self.cookie, ""))
        session = self._sessions.get(key)
        if session is None:
            return None
        try:
            if self._clock.now() > session.until:
                raise NotAuthenticated("the session has ended")
            async with session.lock:
                if self._clock.now() > session.tokens.expires_at - EARLY_S:
                    session.tokens = await run_in_threadpool(self._refreshed, session.tokens)
            token = session.tokens.access.get_secret_value()
            known = self._authority.known(token)
            return known if known is not None else await run_in_threadpool(self._authority.check, token)
        except AccessError:
            self._sessions.pop(key, None)
            return None

    def _refreshed(self, tokens: Tokens) -> Tokens:
        if tokens.refresh is None:
            raise NotAuthenticated("the session cannot be refreshed")
        return self._login.refresh(tokens.refresh)

    def begin(self, base_url: str, following: str, *, offline: bool = False) -> Response:
        """Send the browser to the identity provider; it comes back to ``<base_url>/auth/callback``.

        With ``offline``, to leave an offline login here as well.
        """
        back = f"{self._public_url or base_url.rstrip('/')}/auth/callback"
        begun = self._login.authorization(back, scope=OFFLINE_SCOPE if offline else SCOPE)
        browser = secrets.token_urlsafe(24)
        _put(self._away, begun.state, _Away(begun, _digest(browser), following, self._clock.now() + AWAY_S, offline))
        response = RedirectResponse(begun.url, 303 if offline else 302)
        self._set(response, self.away_cookie, browser, AWAY_S)
        return response

    async def finish(self, cookies: Mapping[str, str], code: str, state: str) -> Response:
        """The browser came back: make its session, and send it where it wanted to go.

        Raises:
            NotAuthenticated: this browser began no such login, took too long, or the provider refused the code.
            NotAuthorized: whoever logged in is no member of this project.
        """
        away = self._away.pop(state, None)
        browser = _digest(cookies.get(self.away_cookie, ""))
        if away is None or self._clock.now() > away.until or not secrets.compare_digest(away.browser, browser):
            raise NotAuthenticated("this browser began no such login, or too long ago", hint="Go to /auth/login.")
        tokens = await run_in_threadpool(self._login.exchange_code, away.begun, code, state)
        who = await run_in_threadpool(self._authority.check, tokens.access.get_secret_value())
        if away.offline:
            return await self._left(who, tokens)
        session = secrets.token_urlsafe(32)
        _put(self._sessions, _digest(session), _Session(tokens, self._clock.now() + SESSION_S))
        response = RedirectResponse(away.following, 303)
        self._set(response, self.cookie, session, SESSION_S)
        response.delete_cookie(self.away_cookie, secure=self.secure, httponly=True, samesite="lax")
        return response

    async def _left(self, who: Caller, tokens: Tokens) -> Response:
        if tokens.refresh is None:
            raise NotAuthenticated("the identity provider gave no offline token", hint="Allow it there, or ask why.")
        resumed = await run_in_threadpool(self._offline.give, who, tokens.refresh)
        told = f" Runs that go on now: {len(resumed)}." if resumed else ""
        response = HTMLResponse(f"<!doctype html><p>Your offline login is kept for your runs.{told}</p>")
        response.delete_cookie(self.away_cookie, secure=self.secure, httponly=True, samesite="lax")
        return response

    def own_page(self, headers: Headers, base_url: str) -> bool:
        """Whether a form was sent by a page of ours, as far as the browser tells; one that tells nothing is none."""
        own = urlsplit(self._public_url or base_url)
        return headers.get("origin") == f"{own.scheme}://{own.netloc}"

    async def end(self, cookies: Mapping[str, str]) -> None:
        """Forget the session, and end it at the provider too if that answers."""
        session = self._sessions.pop(_digest(cookies.get(self.cookie, "")), None)
        if session is not None and session.tokens.refresh is not None:
            await run_in_threadpool(self._log_out, session.tokens.refresh)

    def _log_out(self, refresh: SecretStr) -> None:
        try:
            self._login.log_out(refresh)
        except BbpwfError:
            return  # over there it ends by itself; here it is forgotten, which is what was asked

    def _set(self, response: Response, name: str, value: str, seconds: float) -> None:
        response.set_cookie(name, value, max_age=int(seconds), secure=self.secure, httponly=True, samesite="lax")


def router(sessions: BrowserSessions) -> APIRouter:
    """``/auth/…``."""
    routes = APIRouter(prefix="/auth", tags=["browser login"], include_in_schema=False)

    @routes.get("/")
    def logged_in() -> Response:
        """204 for a browser with a session; the gate sends others to the login."""
        return Response(status_code=204)

    @routes.get("/login")
    def login(request: Request, following: Annotated[str, Query(alias="next")] = "/dashboard/") -> Response:
        return sessions.begin(str(request.base_url), local_path(following))

    @routes.get("/offline")
    def ask_offline() -> Response:
        """What an offline login is, and a button; a link from elsewhere alone leaves none."""
        return HTMLResponse(_OFFLINE_PAGE)

    @routes.post("/offline")
    def offline(request: Request) -> Response:
        if not sessions.own_page(request.headers, str(request.base_url)):
            raise NotAuthorized("this form was not sent by a page of this service", hint="Go to /auth/offline.")
        return sessions.begin(str(request.base_url), "/auth/offline", offline=True)

    @routes.get("/callback")
    async def callback(request: Request, code: str = "", state: str = "", error: str = "") -> Response:
        if error:
            raise NotAuthenticated(f"the identity provider did not log you in: {error[:100]}", hint="Try again.")
        if not code or not state:
            raise InvalidInput("this address is where the identity provider sends browsers back to")
        return await sessions.finish(request.cookies, code, state)

    @routes.get("/logout")
    def ask() -> Response:
        """A GET changes nothing: the button sends a POST, which other sites' pages cannot do with our cookie."""
        return HTMLResponse('<!doctype html><form method="post"><button>Log out</button></form>')

    @routes.post("/logout")
    async def logout(request: Request) -> Response:
        await sessions.end(request.cookies)
        response = HTMLResponse("<!doctype html><p>Logged out.</p>")
        response.delete_cookie(sessions.cookie, secure=sessions.secure, httponly=True, samesite="lax")
        return response

    return routes


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def _put(store: OrderedDict[str, T], key: str, value: T) -> None:
    store[key] = value
    while len(store) > _MOST:
        store.popitem(last=False)
