"""Who is calling: access tokens verified against the realm's published keys.

What a Keycloak realm sends is in ``contracts.md`` §3.1 and §3.2. A token is believed when its signature was made with
a published key by an algorithm of :data:`ALGORITHMS`, its issuer is ours, its payload's ``typ`` is ``Bearer`` (ID
tokens are signed with the same keys) and its times fit. Error messages say what is wrong and never repeat the token.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import requests
from jwcrypto.common import JWException, base64url_decode
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS
from pydantic import SecretStr

from bbpwf.clock import Clock
from bbpwf.errors import IdentityUnavailable, InvalidConfig, NotAuthenticated, NotAuthorized
from bbpwf.platform.http import Bearer, Limits, exchange
from bbpwf.platform.jwks import KeyCache
from bbpwf.settings import OidcSettings

ALGORITHMS = frozenset({"RS256", "PS256", "ES256"})
"""Asymmetric ones only: a token signed with HMAC over a public key, or not at all, never gets as far as a key."""
TOKEN_LIMIT = 8 * 1024
"""Bytes of the longest token that is looked at. Keycloak's are 1 to 4 KiB."""
_CACHE_S = 300.0  # longest time an identity is believed without another look, as the platform's services do (§3.2)
_CACHE_SIZE = 1024
_USERINFO = Limits(seconds=5, size=256 * 1024)
_LOG_IN = "Log in again."
_FOREIGN = frozenset({"jwk", "jku", "x5u", "x5c", "crit", "b64", "enc", "zip"})
"""Header parameters that Keycloak never sends: they are for whoever wants to choose the key or the rules."""
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\Z")
_LATEST = 1e11  # seconds: the year 5138; a later time is a mistake or a trap


@dataclass(frozen=True)
class Identity:
    """A person or service that showed a valid token. ``groups`` are full paths, with their leading slash."""

    sub: str
    username: str
    groups: frozenset[str]
    expires_at: float
    """Seconds since the Unix epoch at which the token ends."""
    token: SecretStr = field(repr=False)


class TokenVerifier:
    """Turns bearer tokens into identities. Thread-safe; a token seen before costs microseconds.

    The realm's keys are fetched when first needed, so building one needs no network.

    Raises:
        InvalidConfig: ``settings`` name no issuer.
    """

    def __init__(self, settings: OidcSettings, clock: Clock) -> None:
        if not settings.issuer:
            raise InvalidConfig("there is no identity provider", hint="Set BBPWF_OIDC__ISSUER to the realm's URL.")
        self._issuer = settings.issuer.rstrip("/")
        self._audience = settings.audience
        self._leeway = settings.leeway_s
        self._clock = clock
        self._keys = KeyCache(f"{self._issuer}/protocol/openid-connect/certs", clock)
        self._lock = threading.Lock()
        self._seen: OrderedDict[bytes, tuple[Identity, float]] = OrderedDict()

    def verify(self, token: str) -> Identity:
        """The identity behind ``token``, remembered for 300 s or until it expires.

        Groups come from the token, or from userinfo if it carries none.

        Raises:
            NotAuthenticated: it is no valid access token of our issuer, or its session has ended.
            NotAuthorized: it is valid, but was requested without the scope that shows groups.
            IdentityUnavailable: the keys or groups that are needed cannot be had now.
        """
        # surrogates must not break the digest
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        now = self._clock.now()
        with self._lock:
            found = self._seen.get(digest)
            if found is not None and now < found[1]:
                self._seen.move_to_end(digest)
                return found[0]
        identity = self._verified(token)
        with self._lock:
            self._seen[digest] = identity, min(now + _CACHE_S, identity.expires_at)
            self._seen.move_to_end(digest)
            while len(self._seen) > _CACHE_SIZE:
                self._seen.popitem(last=False)
        return identity

    def _verified(self, token: str) -> Identity:
        if not token:
            raise NotAuthenticated("there is no access token", hint=_LOG_IN)
        if len(token) > TOKEN_LIMIT:
            raise NotAuthenticated(f"the access token is longer than {TOKEN_LIMIT} bytes")
        claims = self._claims(token, self._key(token))
        subject = _text(claims, "sub")
        if not subject or len(subject) > 255:
            raise NotAuthenticated("the access token names nobody (sub)")
        expires_at = self._check(claims)
        groups = claims.get("groups")
        if not isinstance(groups, list):
            groups = self._groups_from_userinfo(token, subject)
        return Identity(
            sub=subject,
            username=_text(claims, "preferred_username") or subject,
            groups=frozenset(group for group in groups if isinstance(group, str)),
            expires_at=expires_at,
            token=SecretStr(token),
        )

    def _key(self, token: str) -> tuple[JWK, str]:
        """The published key that the token says it is signed with, and the algorithm."""
        header = _object(token.split(".", 1)[0]) if _COMPACT.match(token) else None
        if header is None:
            raise NotAuthenticated("the access token is not a signed JWT", hint=_LOG_IN)
        if foreign := _FOREIGN & header.keys():
            raise NotAuthenticated(f"the access token brings keys or rules of its own ({', '.join(sorted(foreign))})")
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            raise NotAuthenticated(
                f"the access token is not signed with one of {', '.join(sorted(ALGORITHMS))}", hint=_LOG_IN
            )
        if not isinstance(kid, str) or not kid:
            raise NotAuthenticated("the access token does not name the key it is signed with (kid)")
        key = self._keys.find(kid, algorithm)
        if key is None:
            raise NotAuthenticated("the access token is signed with a key that the issuer does not publish")
        return key, algorithm

    @staticmethod
    def _claims(token: str, key: tuple[JWK, str]) -> Mapping[str, object]:
        signed = JWS()
        signed.allowed_algs = [key[1]]
        try:
            signed.deserialize(token)
            signed.verify(key[0])
            claims = json.loads(signed.payload, object_pairs_hook=_once)
        except (JWException, ValueError, TypeError, RecursionError) as error:
            raise NotAuthenticated("the access token's signature is wrong", hint=_LOG_IN) from error
        if not isinstance(claims, dict):
            raise NotAuthenticated("the access token holds no claims")
        return claims

    def _check(self, claims: Mapping[str, object]) -> float:
        """Issuer, kind, audience and times; answers when the token ends."""
        if claims.get("iss") != self._issuer:
            raise NotAuthenticated("the access token is from another issuer", where=self._issuer)
        if claims.get("typ") != "Bearer":
            raise NotAuthenticated("the token is not an access token (typ)", hint="Send the access token.")
        audience = claims.get("aud")
        if self._audience and self._audience not in (audience if isinstance(audience, list) else [audience]):
            raise NotAuthenticated(f"the access token is not meant for {self._audience!r} (aud)")
        now = self._clock.now()
        expires_at = _time(claims, "exp")
        if expires_at is None:
            raise NotAuthenticated("the access token never expires (exp)")
        if now >= expires_at + self._leeway:
            raise NotAuthenticated("the access token has expired", hint=_LOG_IN)
        for name in ("nbf", "iat"):
            start = _time(claims, name)
            if start is not None and start > now + self._leeway:
                raise NotAuthenticated(f"the access token is not valid yet ({name})", hint="Compare the clocks.")
        return expires_at

    def _groups_from_userinfo(self, token: str, subject: str) -> list[object]:
        url = f"{self._issuer}/protocol/openid-connect/userinfo"
        with requests.Session() as session:
            reply = exchange(
                session,
                "GET",
                url,
                what="the identity provider",
                limits=_USERINFO,
                clock=self._clock,
                error=IdentityUnavailable,
                auth=Bearer(token),
            )
        if reply.status == 401:
            raise NotAuthenticated("the access token's session has ended", hint=_LOG_IN)
        if reply.status == 403:
            raise NotAuthorized(
                "the access token does not let us read its owner's groups",
                hint="Request it with scope=openid.",
            )
        content = reply.json()
        if reply.status != 200 or not isinstance(content, dict):
            raise IdentityUnavailable(f"the identity provider answered userinfo with {reply.status}", where=url)
        if content.get("sub") != subject:
            raise NotAuthenticated("userinfo is about somebody else than the access token")
        groups = content.get("groups", [])
        return groups if isinstance(groups, list) else []


def _object(part: str) -> dict[str, object] | None:
    try:
        content = json.loads(base64url_decode(part), object_pairs_hook=_once)
    except (ValueError, TypeError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object none of whose names occurs twice: readers disagree on which one counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _text(claims: Mapping[str, object], name: str) -> str:
    value = claims.get(name)
    return value if isinstance(value, str) else ""


def _time(claims: Mapping[str, object], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LATEST:
        raise NotAuthenticated(f"the access token's {name} is not a time")
    return float(value)
