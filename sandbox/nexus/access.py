"""Who asks, and what they may do: Delta's identities and permissions, with tokens checked at the issuer's keys."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Any

import requests
from jwcrypto.common import JWException
from jwcrypto.jwk import JWKSet
from jwcrypto.jws import JWS
from jwcrypto.jwt import JWT

from sandbox.nexus.errors import Refused
from sandbox.tenants import PROJECT, SERVICE_CLIENT, VIRTUAL_LAB

_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Caller:
    """Somebody with a valid token, or nobody (``subject`` empty)."""

    subject: str = ""
    realm: str = ""
    groups: tuple[str, ...] = ()
    service: bool = False

    def identities(self, base: str) -> list[dict[str, str]]:
        """As ``/identities`` lists them."""
        if not self.subject:
            return [{"@id": f"{base}/anonymous", "@type": "Anonymous"}]
        realm = f"{base}/realms/{self.realm}"
        return [
            {"@id": f"{base}/anonymous", "@type": "Anonymous"},
            {"@id": f"{realm}/authenticated", "@type": "Authenticated", "realm": self.realm},
            {"@id": self.iri(base), "@type": "User", "realm": self.realm, "subject": self.subject},
            *(
                {"@id": f"{realm}/groups/{group}", "@type": "Group", "realm": self.realm, "group": group}
                for group in self.groups
            ),
        ]

    def iri(self, base: str) -> str:
        """The name under which this caller's writes are recorded."""
        return f"{base}/realms/{self.realm}/users/{self.subject}" if self.subject else f"{base}/anonymous"


@dataclass(frozen=True)
class Permissions:
    """Who may read and write the project: members and admins of one platform project, and the service itself."""

    project: str
    virtual_lab_id: str = VIRTUAL_LAB
    project_id: str = PROJECT

    def require(self, caller: Caller, permission: str) -> None:
        """Raises Refused (403) unless the caller has ``permission`` on the project; anonymous callers have none."""
        own = {f"/proj/{self.virtual_lab_id}/{self.project_id}/{role}" for role in ("admin", "member")}
        if caller.service or own & set(caller.groups):
            return
        reason = "The supplied authentication is not authorized to access this resource."
        details = f"Permission '{permission}' is missing on '/{self.project}'."
        raise Refused(403, "AuthorizationFailed", reason, details=details)


class Issuer:
    """The realm that tokens come from. Keys are fetched once, and again when a token names an unknown one."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._realm = url.rstrip("/").rsplit("/", 1)[-1]
        self._lock = threading.Lock()
        self._keys: JWKSet | None = None
        self._groups: dict[str, tuple[str, ...]] = {}

    def caller(self, authorization: str | None) -> Caller:
        """Who sent this ``Authorization`` header.

        Raises:
            Refused: 401 InvalidAccessTokenFormat, UnknownAccessTokenIssuer, InvalidAccessToken or AuthenticationFailed.
        """
        if authorization is None:
            return Caller()
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Refused(401, "AuthenticationFailed", "The supplied authentication is invalid.")
        claims = self._verify(token.strip())
        groups = tuple(claims["groups"]) if "groups" in claims else self._groups_of(token.strip())
        username = str(claims.get("preferred_username", ""))
        service = claims.get("azp") == SERVICE_CLIENT and username == f"service-account-{SERVICE_CLIENT}"
        return Caller(str(claims["sub"]), self._realm, groups, service)

    def _verify(self, token: str) -> dict[str, Any]:
        try:
            jws = JWS()
            jws.deserialize(token)
            unverified = json.loads(jws.objects["payload"])
            kid = str(jws.jose_header.get("kid", ""))
        except (JWException, ValueError, KeyError) as error:
            reason = "Access token is invalid; possible causes are: the token is not a JWT."
            raise Refused(401, "InvalidAccessTokenFormat", reason) from error
        if unverified.get("iss") != self._url:
            raise Refused(401, "UnknownAccessTokenIssuer", "The issuer referenced in the token was not found.")
        try:
            keys = self._known(kid)
            claims = JWT(jwt=token, key=keys, algs=["RS256"], check_claims={"iss": self._url, "exp": None, "sub": None})
        except (JWException, ValueError, KeyError) as error:
            details = f"{type(error).__name__}: the token is expired, or not signed by the issuer"
            raise Refused(401, "InvalidAccessToken", "The access token is invalid.", details=details) from error
        verified: dict[str, Any] = json.loads(claims.claims)
        return verified

    def _known(self, kid: str) -> JWKSet:
        with self._lock:
            if self._keys is None or self._keys.get_key(kid) is None:
                about = self._get(f"{self._url}/.well-known/openid-configuration").json()
                self._keys = JWKSet.from_json(self._get(about["jwks_uri"]).text)
            return self._keys

    def _groups_of(self, token: str) -> tuple[str, ...]:
        """The realm may tell groups in userinfo only; remembered, for a bounded number of tokens."""
        with self._lock:
            if token in self._groups:
                return self._groups[token]
            about = self._get(f"{self._url}/.well-known/openid-configuration").json()
            answer = requests.get(
                about["userinfo_endpoint"], headers={"Authorization": f"Bearer {token}"}, timeout=_TIMEOUT_S
            )
            groups = tuple(answer.json().get("groups", ())) if answer.ok else ()
            while len(self._groups) >= 1000:
                self._groups.pop(next(iter(self._groups)))
            self._groups[token] = groups
            return groups

    def _get(self, url: str) -> requests.Response:
        try:
            answer = requests.get(url, timeout=_TIMEOUT_S)
            answer.raise_for_status()
        except requests.RequestException as error:
            raise Refused(503, "ServiceUnavailable", "The realm's keys cannot be read.") from error
        return answer
