"""Getting tokens from the realm: the OAuth flows that the command line, the browser login and the agent need.

python-keycloak sends the requests; here are limits, PKCE, polling, and one place where its exceptions become ours.
Requests ask for ``openid``, without which userinfo refuses the token (``contracts.md`` §3.1).
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from keycloak import KeycloakOpenID
from keycloak.exceptions import KeycloakConnectionError, KeycloakError
from pydantic import SecretStr

from bbpwf.clock import Clock
from bbpwf.errors import DeadlineExceeded, IdentityUnavailable, InvalidConfig, NotAuthenticated
from bbpwf.redact import Redactor
from bbpwf.settings import OidcSettings

_log = logging.getLogger(__name__)

SCOPE = "openid"
OFFLINE_SCOPE = f"{SCOPE} offline_access"
"""Asks for a refresh token that outlives the session."""
_TIMEOUT_S = 10
_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_DEVICE_LIMIT_S = 1800.0  # no realm's codes live longer; a server that says otherwise is not waited for
_INTERVALS = (1.0, 60.0)
_SLICE_S = 1.0

# OAuth error → what it means here. All of them are final: the same request gets the same answer.
_REFUSALS = {
    "invalid_grant": "the identity provider refused the login",
    "access_denied": "the login was refused by the person asked",
    "expired_token": "the code was not confirmed in time",
    "invalid_client": "the identity provider does not know this client, or its secret is wrong",
    "unauthorized_client": "the identity provider does not let this client log in this way",
    "invalid_scope": "the identity provider does not grant the scopes asked for",
    "invalid_request": "the identity provider found the request malformed",
    "unsupported_grant_type": "the identity provider does not offer this way to log in",
}
_CLIENT_TROUBLE = frozenset({"invalid_client", "unauthorized_client", "invalid_scope", "unsupported_grant_type"})


@dataclass(frozen=True)
class Tokens:
    """What a login gives. Times are seconds since the Unix epoch, by our clock.

    ``refresh_expires_at`` is ``None`` when there is no refresh token or it is an offline one, which has no end.
    """

    access: SecretStr = field(repr=False)
    expires_at: float
    scope: str = ""
    refresh: SecretStr | None = field(default=None, repr=False)
    refresh_expires_at: float | None = None
    identity: SecretStr | None = field(default=None, repr=False)

    @property
    def endless(self) -> bool:
        """Whether these can be refreshed after the session has ended: an offline login."""
        return self.refresh is not None and self.refresh_expires_at is None


@dataclass(frozen=True)
class DevicePrompt:
    """What to show to somebody who logs in from a terminal. ``complete_uri`` already has the code in it."""

    uri: str
    complete_uri: str
    user_code: str
    expires_in_s: float


@dataclass(frozen=True)
class Authorization:
    """A browser login that begins. Send the browser to ``url``; keep the rest until it comes back with ``state``."""

    url: str
    state: str
    nonce: str = field(repr=False)
    verifier: SecretStr = field(repr=False)
    redirect_uri: str = ""


class Login:
    """The flows of one client of the realm. Thread-safe.

    Args:
        settings: the realm.
        clock: for expiry and waits.
        client_id: the client to be; its secret is sent only for ``settings.client_id``.
        redactor: told every token that it would not mask anyway.

    Raises:
        InvalidConfig: the issuer is not the URL of a Keycloak realm.

    Every flow raises NotAuthenticated when the realm refuses, which is final (``invalid_grant`` above all: a refresh
    token that got it will never work again); InvalidConfig when it refuses the client; IdentityUnavailable when it does
    not answer within 10 s.
    """

    def __init__(
        self, settings: OidcSettings, clock: Clock, *, client_id: str = "", redactor: Redactor | None = None
    ) -> None:
        base, found, realm = settings.issuer.rstrip("/").rpartition("/realms/")
        if not found or not urlsplit(base).netloc or not realm or "/" in realm:
            raise InvalidConfig(
                f"{settings.issuer!r} is not the URL of a Keycloak realm",
                hint="Set BBPWF_OIDC__ISSUER to https://<host>/auth/realms/<realm>.",
            )
        self.client_id = client_id or settings.client_id
        secret = settings.client_secret if self.client_id == settings.client_id else None
        self._issuer = settings.issuer.rstrip("/")
        self._clock = clock
        self._redactor = redactor
        self._secret = secret.get_secret_value() if secret else None
        self._server, self._realm_name = f"{base}/", realm

    def password_login(self, username: str, password: SecretStr, *, scope: str = SCOPE) -> Tokens:
        """Direct grant: name and password."""
        return self._tokens(
            lambda realm: realm.token(username=username, password=password.get_secret_value(), scope=scope)
        )

    def client_credentials(self, *, scope: str = SCOPE) -> Tokens:
        """The client's own service account."""
        return self._tokens(lambda realm: realm.token(grant_type="client_credentials", scope=scope))

    def refresh(self, token: SecretStr) -> Tokens:
        """New tokens for a refresh or offline token. After NotAuthenticated the person must log in again."""
        return self._tokens(lambda realm: realm.refresh_token(token.get_secret_value()))

    def log_out(self, token: SecretStr) -> None:
        """End the session of a refresh token."""
        self._call(lambda realm: realm.logout(token.get_secret_value()))

    def authorization(self, redirect_uri: str, *, scope: str = SCOPE) -> Authorization:
        """Begin a browser login with PKCE (S256), a fresh state and a fresh nonce. Asks nobody."""
        verifier = secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        state, nonce = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        query = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": redirect_uri,
            "scope": scope,
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        url = f"{self._issuer}/protocol/openid-connect/auth?{urlencode(query)}"
        return Authorization(url, state, nonce, SecretStr(verifier), redirect_uri)

    def exchange_code(self, begun: Authorization, code: str, state: str) -> Tokens:
        """Finish a browser login with what the browser brought back.

        Raises:
            NotAuthenticated: also when ``state`` or the nonce in the ID token is not that of ``begun``.
        """
        if not secrets.compare_digest(begun.state.encode(), state.encode()):
            raise NotAuthenticated("the browser came back from another login (state)", hint="Log in again.")
        tokens = self._tokens(
            lambda realm: realm.token(
                grant_type="authorization_code",
                code=code,
                redirect_uri=begun.redirect_uri,
                code_verifier=begun.verifier.get_secret_value(),
            )
        )
        # straight from the token endpoint, so its signature adds nothing (OpenID Connect Core 3.1.3.7, 6)
        claims = _unverified(tokens.identity)
        if not secrets.compare_digest(begun.nonce.encode(), str(claims.get("nonce", "")).encode()):
            raise NotAuthenticated("the identity provider answered another login (nonce)", hint="Log in again.")
        return tokens

    def device_login(
        self,
        prompt: Callable[[DevicePrompt], None],
        *,
        scope: str = SCOPE,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Tokens | None:
        """Log in from a terminal: ``prompt`` shows where to go, then we wait. ``None`` if cancelled first.

        Raises:
            DeadlineExceeded: nobody confirmed the code while it was valid.
        """
        begun = self._call(lambda realm: realm.device(scope=scope))
        device_code, user_code, page = (
            str(begun.get(name, "")) for name in ("device_code", "user_code", "verification_uri")
        )
        if not (device_code and user_code and page):
            raise IdentityUnavailable(
                "the identity provider's answer to a device login makes no sense", where=self._issuer, retryable=False
            )
        lifetime = min(_seconds(begun, "expires_in") or _DEVICE_LIMIT_S, _DEVICE_LIMIT_S)
        interval = min(max(_seconds(begun, "interval") or 5.0, _INTERVALS[0]), _INTERVALS[1])  # 5: RFC 8628, 3.2
        prompt(DevicePrompt(page, str(begun.get("verification_uri_complete") or page), user_code, lifetime))
        deadline = self._clock.monotonic() + lifetime
        while not cancelled():
            if self._clock.monotonic() >= deadline:
                raise DeadlineExceeded(
                    f"nobody confirmed the code {user_code} within {lifetime:.0f} s",
                    hint="Log in again.",
                    retryable=False,
                )
            self._pause(interval, cancelled)
            try:
                return self._tokens(lambda realm: realm.token(grant_type=_DEVICE_GRANT, device_code=device_code))
            except _Pending as pending:
                interval += 5 if pending.slow_down else 0  # RFC 8628, 3.5
            except IdentityUnavailable as error:
                _log.warning("the identity provider did not answer; still waiting: %s", error)
        return None

    def _pause(self, seconds: float, cancelled: Callable[[], bool]) -> None:
        while seconds > 0 and not cancelled():
            self._clock.sleep(min(seconds, _SLICE_S))
            seconds -= _SLICE_S

    def _tokens(self, request: Callable[[KeycloakOpenID], Mapping[str, object]]) -> Tokens:
        asked_at = self._clock.now()
        answer = self._call(request)
        access, refresh, identity = (answer.get(name) for name in ("access_token", "refresh_token", "id_token"))
        lifetime, refreshable = (_seconds(answer, name) for name in ("expires_in", "refresh_expires_in"))
        if not isinstance(access, str) or not access or lifetime is None:
            raise IdentityUnavailable(
                "the identity provider answered without an access token", where=self._issuer, retryable=False
            )
        found = [token for token in (access, refresh, identity) if isinstance(token, str) and token]
        if self._redactor is not None:
            # JWTs are masked by their looks; to register each would grow the redactor with every refresh
            self._redactor.add(*(token for token in found if token in self._redactor.mask(token)))
        return Tokens(
            access=SecretStr(access),
            expires_at=asked_at + lifetime,
            scope=str(answer.get("scope", "")),
            refresh=SecretStr(refresh) if isinstance(refresh, str) and refresh else None,
            # 0 for an offline token (contracts §3.1)
            refresh_expires_at=asked_at + refreshable if isinstance(refresh, str) and refreshable else None,
            identity=SecretStr(identity) if isinstance(identity, str) and identity else None,
        )

    def _call(self, request: Callable[[KeycloakOpenID], Mapping[str, object]]) -> Mapping[str, object]:
        """Send one request; the only place where python-keycloak's errors are caught.

        ``from None``: they carry the answer's body, and their traceback the form with the password.
        """
        # one for each call, as threads would share its headers; and no retries, as a refresh token or code may count
        # as used although its answer was lost
        realm = KeycloakOpenID(
            server_url=self._server,
            realm_name=self._realm_name,
            client_id=self.client_id,
            client_secret_key=self._secret,
            timeout=_TIMEOUT_S,
            max_retries=0,
        )
        try:
            answer = request(realm)
        except KeycloakConnectionError:
            raise IdentityUnavailable("the identity provider did not answer", where=self._issuer) from None
        except KeycloakError as error:
            raise self._refused(error) from None
        except TypeError:  # what python-keycloak raises for a body that is no JSON object
            answer = {}
        if not isinstance(answer, Mapping):
            raise IdentityUnavailable("the identity provider's answer makes no sense", where=self._issuer)
        return answer

    def _refused(self, error: KeycloakError) -> Exception:
        status = error.response_code or 0
        content = _json(error.response_body or b"")
        kind, said = str(content.get("error", "")), str(content.get("error_description", ""))[:200]
        if kind in {"authorization_pending", "slow_down"}:
            return _Pending(slow_down=kind == "slow_down")
        if kind not in _REFUSALS:
            return IdentityUnavailable(
                f"the identity provider answered with {status}" + (f" ({kind})" if kind else ""),
                where=self._issuer,
                retryable=status >= 500 or status == 429 or not status,
            )
        text = _REFUSALS[kind] + (f": {said}" if said else "")
        if kind in _CLIENT_TROUBLE:
            return InvalidConfig(f"{text} (client {self.client_id!r})", where=self._issuer)
        return NotAuthenticated(text, where=self._issuer, hint="Log in again.")


class _Pending(Exception):
    def __init__(self, *, slow_down: bool) -> None:
        super().__init__("pending")
        self.slow_down = slow_down


def _seconds(answer: Mapping[str, object], name: str) -> float | None:
    value = answer.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


def _json(body: bytes) -> Mapping[str, object]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _unverified(token: SecretStr | None) -> Mapping[str, object]:
    parts = token.get_secret_value().split(".") if token else []
    if len(parts) != 3:
        return {}
    try:
        return _json(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except ValueError:
        return {}
