"""A small OIDC issuer with the face of a Keycloak realm, for one machine.

``python -m sandbox.oidc --port N --state DIR --client-secret-file F`` serves the realm
``http://127.0.0.1:N/auth/realms/SBO`` with the people of :mod:`sandbox.tenants`. Clients: the confidential
``bbp-workflow`` (browser login, service account) and the public ``obi-entitysdk-auth`` (password, device and browser
login). Redirects go to loopback addresses only. What it does beyond Keycloak: ``/_faults``, see
:class:`sandbox.oidc_tokens.OidcFaults`.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from bbpwf.clock import Clock, SystemClock
from sandbox import oidc_pages as pages
from sandbox.double import Panel, install, serve
from sandbox.oidc_tokens import Client, GrantRefused, OidcFaults, Realm

PATH = "/auth/realms/SBO"
_OPENID = f"{PATH}/protocol/openid-connect"
_COOKIE = "KEYCLOAK_IDENTITY"
_GRANTS = (
    "authorization_code",
    "refresh_token",
    "password",
    "client_credentials",
    "urn:ietf:params:oauth:grant-type:device_code",
)
_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}


def issuer_url(port: int) -> str:
    """The realm's URL, which is also the ``iss`` of its tokens."""
    return f"http://127.0.0.1:{port}{PATH}"


def create_app(issuer: str, state: Path, client_secret: str, clock: Clock) -> FastAPI:
    """The issuer as an application. ``state`` holds keys and sessions and is made if absent."""
    app = FastAPI(title="OIDC issuer double", openapi_url=None)
    panel = Panel(OidcFaults)
    realm = Realm(issuer, state, client_secret, panel, clock)

    def turned(knobs: OidcFaults) -> None:
        if knobs.rotate_keys:
            realm.keys.rotate(keep_old=not knobs.drop_old_keys)
        if knobs.end_sessions:
            realm.log_everybody_out()
        panel.turn({"rotate_keys": False, "end_sessions": False})

    install(app, panel, turned=turned)

    @app.middleware("http")
    async def down(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if panel.now.down and request.url.path != "/_faults":
            return Response("Service Unavailable", status_code=503, media_type="text/plain")
        return await call_next(request)

    @app.exception_handler(GrantRefused)
    async def refused(_: Request, error: GrantRefused) -> Response:
        return JSONResponse(error.body, error.status, headers=_NO_STORE)

    _add_metadata(app, realm)
    _add_tokens(app, realm)
    _add_browser(app, realm)
    _add_device_page(app, realm)
    return app


def _add_metadata(app: FastAPI, realm: Realm) -> None:
    base = f"{realm.issuer}/protocol/openid-connect"

    @app.get(PATH)
    def about() -> dict[str, Any]:
        return {
            "realm": "SBO",
            "public_key": realm.keys.public_key(),
            "token-service": base,
            "account-service": f"{realm.issuer}/account",
            "tokens-not-before": 0,
        }

    @app.get(f"{PATH}/.well-known/openid-configuration")
    def discovery() -> dict[str, Any]:
        return {
            "issuer": realm.issuer,
            "authorization_endpoint": f"{base}/auth",
            "token_endpoint": f"{base}/token",
            "introspection_endpoint": f"{base}/token/introspect",
            "userinfo_endpoint": f"{base}/userinfo",
            "end_session_endpoint": f"{base}/logout",
            "jwks_uri": f"{base}/certs",
            "device_authorization_endpoint": f"{base}/auth/device",
            "grant_types_supported": list(_GRANTS),
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            "scopes_supported": ["openid", "profile", "email", "groups", "offline_access"],
            "claims_supported": ["sub", "iss", "name", "given_name", "family_name", "preferred_username", "email"],
            "code_challenge_methods_supported": ["S256"],
        }

    @app.get(f"{_OPENID}/certs")
    def certs() -> dict[str, Any]:
        return realm.keys.published()


def _add_tokens(app: FastAPI, realm: Realm) -> None:
    @app.post(f"{_OPENID}/token")
    async def token(request: Request) -> Response:
        form = await _form(request)
        client = _client(realm, request, form)
        grant = form.get("grant_type", "")
        scope = form.get("scope", "")
        if grant == "password":
            answer = realm.by_password(client, form.get("username", ""), form.get("password", ""), scope)
        elif grant == "client_credentials":
            answer = realm.by_client(client, scope)
        elif grant == "refresh_token":
            answer = realm.by_refresh_token(client, form.get("refresh_token", ""))
        elif grant == "authorization_code":
            verifier = form.get("code_verifier", "")
            answer = realm.by_code(client, form.get("code", ""), form.get("redirect_uri", ""), verifier)
        elif grant == "urn:ietf:params:oauth:grant-type:device_code":
            answer = realm.by_device(client, form.get("device_code", ""))
        elif not grant:
            raise GrantRefused("invalid_request", "Missing form parameter: grant_type")
        else:
            raise GrantRefused("unsupported_grant_type", "Unsupported grant_type")
        return JSONResponse(answer, headers=_NO_STORE)

    @app.post(f"{_OPENID}/auth/device")
    async def device(request: Request) -> Response:
        form = await _form(request)
        client = _client(realm, request, form)
        device_code, started = realm.start_device(client, form.get("scope", ""))
        page = f"{realm.issuer}/device"
        answer = {
            "device_code": device_code,
            "user_code": started.user_code,
            "verification_uri": page,
            "verification_uri_complete": f"{page}?user_code={started.user_code}",
            "expires_in": realm.panel.now.device_lifespan_s,
            "interval": started.interval,
        }
        return JSONResponse(answer, headers=_NO_STORE)

    @app.post(f"{_OPENID}/token/introspect")
    async def introspect(request: Request) -> Response:
        form = await _form(request)
        if not _client(realm, request, form).secret:
            raise GrantRefused("invalid_request", "Client not allowed.", 403)
        found = realm.bearer(form.get("token", ""))
        return JSONResponse({"active": True, **found[0], **realm.claims(found[1])} if found else {"active": False})

    @app.api_route(f"{_OPENID}/userinfo", methods=["GET", "POST"])
    async def userinfo(request: Request) -> Response:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        found = realm.bearer(token.strip()) if scheme.lower() == "bearer" else None
        if found is None:
            challenge = 'Bearer realm="SBO", error="invalid_token", error_description="Token verification failed"'
            body = {"error": "invalid_token", "error_description": "Token verification failed"}
            return JSONResponse(body, 401, headers={"WWW-Authenticate": challenge})
        if "openid" not in found[0]["scope"].split():
            # contracts §3.1: since Keycloak 19/20 a 403, whose body may be empty
            challenge = 'Bearer realm="SBO", error="insufficient_scope", error_description="Missing openid scope"'
            return Response(status_code=403, headers={"WWW-Authenticate": challenge})
        return JSONResponse(realm.claims(found[1]))


def _add_browser(app: FastAPI, realm: Realm) -> None:
    asked: dict[str, dict[str, str]] = {}

    @app.get(f"{_OPENID}/auth")
    def authorize(request: Request) -> Response:
        query = dict(request.query_params)
        client = realm.clients.get(query.get("client_id", ""))
        if client is None:
            return HTMLResponse(pages.message("We are sorry...", "Client not found."), 400)
        if not _loopback(query.get("redirect_uri", "")):
            return HTMLResponse(pages.message("We are sorry...", "Invalid parameter: redirect_uri"), 400)
        if query.get("response_type") != "code":
            return _back(query, error="unsupported_response_type")
        if query.get("code_challenge_method", "S256") != "S256" or not (client.secret or query.get("code_challenge")):
            return _back(query, error="invalid_request", error_description="Missing parameter: code_challenge")
        try:
            query["scope"] = realm.scope(query.get("scope", ""))
        except GrantRefused as error:
            return _back(query, **error.body)
        session = realm.session(request.cookies.get(_COOKIE, ""))
        if session is not None and query.get("prompt") != "login":
            return _signed_in(realm, client, query, session.sid)
        if query.get("prompt") == "none":
            return _back(query, error="login_required")
        ticket = secrets.token_urlsafe(24)
        while len(asked) >= 1000:
            asked.pop(next(iter(asked)))
        asked[ticket] = query
        return HTMLResponse(pages.login(f"{PATH}/login-actions/authenticate?session_code={ticket}"))

    @app.post(f"{PATH}/login-actions/authenticate")
    async def authenticate(request: Request) -> Response:
        ticket = request.query_params.get("session_code", "")
        query = asked.get(ticket)
        if query is None:
            return HTMLResponse(pages.message("We are sorry...", "The page has expired. Please start again."), 400)
        form = await _form(request)
        try:
            session = realm.log_in(form.get("username", ""), form.get("password", ""))
        except GrantRefused:
            return HTMLResponse(pages.login(str(request.url), "Invalid username or password."))
        del asked[ticket]
        return _signed_in(realm, realm.clients[query["client_id"]], query, session.sid)

    @app.get(f"{_OPENID}/logout")
    def leave(request: Request) -> Response:
        realm.log_out(request.cookies.get(_COOKIE, ""))
        target = request.query_params.get("post_logout_redirect_uri", "")
        hint = realm.keys.verified(request.query_params.get("id_token_hint", ""))
        if hint is not None:
            realm.log_out(hint["sid"])
        answer: Response = HTMLResponse(pages.message("You are logged out", "You may close this page."))
        if hint is not None and _loopback(target):
            answer = RedirectResponse(target, 302)
        answer.delete_cookie(_COOKIE, path=PATH)
        return answer

    @app.post(f"{_OPENID}/logout")
    async def revoke(request: Request) -> Response:
        form = await _form(request)
        client = _client(realm, request, form)
        claims = realm.keys.opened(form.get("refresh_token", ""))
        if claims is None or claims["azp"] != client.client_id:
            raise GrantRefused("invalid_grant", "Invalid refresh token")
        realm.log_out(claims["sid"])
        return Response(status_code=204)


def _add_device_page(app: FastAPI, realm: Realm) -> None:
    @app.get(f"{PATH}/device")
    def ask(user_code: str = "") -> Response:
        return HTMLResponse(pages.device(f"{PATH}/device", user_code))

    @app.post(f"{PATH}/device")
    async def decide(request: Request) -> Response:
        form = await _form(request)
        code = form.get("user_code", "")
        try:
            session = realm.log_in(form.get("username", ""), form.get("password", ""))
        except GrantRefused:
            return HTMLResponse(pages.device(f"{PATH}/device", code, "Invalid username or password."))
        agreed = form.get("decision", "yes") == "yes"
        if not realm.answer_device(code, session if agreed else None):
            return HTMLResponse(pages.device(f"{PATH}/device", "", "Invalid code."))
        text = "You may close this page and go back to your device."
        return HTMLResponse(pages.message("Device login successful" if agreed else "Device login refused", text))


async def _form(request: Request) -> dict[str, str]:
    return {name: value for name, value in (await request.form()).items() if isinstance(value, str)}


def _client(realm: Realm, request: Request, form: dict[str, str]) -> Client:
    scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            name, _, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise GrantRefused("invalid_client", "Invalid client credentials", 401) from None
        return realm.client(unquote(name), unquote(secret))
    if not form.get("client_id"):
        raise GrantRefused("invalid_client", "Parameter client_id is missing", 401)
    return realm.client(form["client_id"], form.get("client_secret", ""))


def _loopback(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in {"127.0.0.1", "localhost", "::1"} and not parts.fragment


def _back(query: dict[str, str], **answer: str) -> Response:
    if state := query.get("state"):
        answer["state"] = state
    join = "&" if "?" in query["redirect_uri"] else "?"
    return RedirectResponse(f"{query['redirect_uri']}{join}{urlencode(answer)}", 302)


def _signed_in(realm: Realm, client: Client, query: dict[str, str], sid: str) -> Response:
    session = realm.session(sid)
    if session is None:
        return _back(query, error="login_required")
    code = realm.issue_code(
        client,
        session,
        redirect_uri=query["redirect_uri"],
        scope=query["scope"],
        nonce=query.get("nonce", ""),
        challenge=query.get("code_challenge", ""),
    )
    answer = _back(query, session_state=sid, iss=realm.issuer, code=code)
    answer.set_cookie(_COOKIE, sid, path=PATH, httponly=True, samesite="lax")
    return answer


def main() -> None:
    """Serve the issuer until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.oidc", description="The sandbox's OIDC issuer.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True, help="folder for keys and sessions")
    parser.add_argument("--client-secret-file", type=Path, required=True, help="secret of the client bbp-workflow")
    options = parser.parse_args()
    secret = options.client_secret_file.read_text().strip()
    if not secret:
        parser.error(f"{options.client_secret_file} is empty")
    serve(create_app(issuer_url(options.port), options.state, secret, SystemClock()), options.port)


if __name__ == "__main__":
    main()
