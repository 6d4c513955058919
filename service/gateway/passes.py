"""Passes: the gateway's short-lived signed statement that a token may be used for a project.

A pass is a JWT signed with the gateway's own EC key (ES256). It is bound to the access token that it was made for by
that token's hash, so a pass is of no use without the token, nor with another one. Whoever checks a pass needs public
keys alone and can make none. Instances check the user's token as well: a pass opens nothing by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from jwcrypto.common import JWException, base64url_encode
from jwcrypto.jwk import JWK, JWKSet
from jwcrypto.jws import JWS
from pydantic import SecretStr

from bbpwf.clock import Clock
from bbpwf.errors import InvalidConfig, NotAuthenticated

HEADER = "bbpwf-pass"
"""Name of the HTTP header that carries a pass to an instance."""
ISSUER = "bbpwf-gateway"
AUDIENCE = "bbpwf-instance"
_TYPE = "bbpwf-pass+jwt"
_ALGORITHM = "ES256"
_LONGEST = 2048
_LEEWAY_S = 5
_REMEMBERED = 1024


@dataclass(frozen=True)
class Pass:
    """What a pass says."""

    virtual_lab_id: str
    project_id: str
    sub: str
    username: str
    expires_at: float
    """Seconds since the Unix epoch."""


class PassMaker:
    """Makes passes with a private key.

    Args:
        key: EC P-256 key as JWK.
        lifetime_s: of a pass; it ends with the token at the latest.
        clock: for the times in it.

    Raises:
        InvalidConfig: it is no such key.
    """

    def __init__(self, key: SecretStr, *, lifetime_s: int, clock: Clock) -> None:
        try:
            self._key = JWK.from_json(key.get_secret_value())
            fits = self._key.get("crv") == "P-256" and self._key.has_private
        except (JWException, ValueError, TypeError):
            fits = False
        if not fits:
            raise InvalidConfig("the gateway's signing key is no private EC P-256 key in JWK form")
        self._kid = self._key.thumbprint()
        self._lifetime = lifetime_s
        self._clock = clock

    @property
    def public_keys(self) -> str:
        """The JWK set that verifies these passes; not a secret."""
        public = {**self._key.export_public(as_dict=True), "kid": self._kid, "use": "sig", "alg": _ALGORITHM}
        return json.dumps({"keys": [public]}, sort_keys=True)

    def make(self, token: str, *, virtual_lab_id: str, project_id: str, sub: str, username: str, until: float) -> str:
        """A pass for whoever shows ``token``, which is valid ``until`` then."""
        now = self._clock.now()
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": sub,
            "username": username[:255],
            "virtual_lab_id": virtual_lab_id,
            "project_id": project_id,
            "iat": int(now),
            "exp": min(now + self._lifetime, until),
            "jti": secrets.token_urlsafe(12),
            "ath": _hash(token),
        }
        signed = JWS(json.dumps(claims))
        header = {"alg": _ALGORITHM, "kid": self._kid, "typ": _TYPE}
        signed.add_signature(self._key, alg=_ALGORITHM, protected=json.dumps(header))
        return str(signed.serialize(compact=True))


class PassChecker:
    """Checks passes with public keys. Thread-safe.

    Args:
        keys: JWK set of EC keys.
        clock: for their times.

    Raises:
        InvalidConfig: it is no set of public keys.
    """

    def __init__(self, keys: str, clock: Clock) -> None:
        try:
            self._keys = {str(key.get("kid")): key for key in JWKSet.from_json(keys)["keys"]}
            fits = bool(self._keys) and all(
                key.get("crv") == "P-256" and not key.has_private for key in self._keys.values()
            )
        except (JWException, ValueError, TypeError, KeyError):
            fits = False
        if not fits:
            raise InvalidConfig("the gateway's pass keys are no JWK set of public EC P-256 keys")
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, Pass] = OrderedDict()

    def check(self, sent: str, token: str) -> Pass:
        """What the pass says, if it was made for this token and still holds.

        Raises:
            NotAuthenticated: there is none, or not a good one for this token.
        """
        if not sent:
            raise NotAuthenticated("this instance is reached through the gateway alone", hint="Ask the gateway's URL.")
        digest = hashlib.sha256(f"{sent} {token}".encode("utf-8", "surrogatepass")).digest()
        with self._lock:
            found = self._known.get(digest)
        if found is None:
            found = self._opened(sent, token)
            with self._lock:
                self._known[digest] = found
                while len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
        if self._clock.now() >= found.expires_at + _LEEWAY_S:
            raise NotAuthenticated("the gateway's pass has expired")
        return found

    def _opened(self, sent: str, token: str) -> Pass:
        if len(sent) > _LONGEST or not sent.isascii():
            raise NotAuthenticated("the gateway's pass is malformed")
        signed = JWS()
        signed.allowed_algs = [_ALGORITHM]
        try:
            signed.deserialize(sent)
            header = signed.jose_header
            if not isinstance(header, dict) or header.get("typ") != _TYPE or header.get("alg") != _ALGORITHM:
                raise NotAuthenticated("this is not a pass of the gateway")
            key = self._keys.get(str(header.get("kid")))
            if key is None:
                raise NotAuthenticated("the pass is signed with a key that is not the gateway's")
            signed.verify(key)
            claims = json.loads(signed.payload)
            said = Pass(
                virtual_lab_id=str(claims["virtual_lab_id"]),
                project_id=str(claims["project_id"]),
                sub=str(claims["sub"]),
                username=str(claims["username"]),
                expires_at=float(claims["exp"]),
            )
            issued = float(claims["iat"])
            fits = claims["iss"] == ISSUER and claims["aud"] == AUDIENCE
            bound = secrets.compare_digest(str(claims["ath"]), _hash(token))
        except (JWException, ValueError, TypeError, KeyError, RecursionError) as error:
            raise NotAuthenticated("the gateway's pass is not valid") from error
        if not fits or issued > self._clock.now() + _LEEWAY_S:
            raise NotAuthenticated("the gateway's pass is not valid here or not yet")
        if not bound:
            raise NotAuthenticated("the gateway's pass was made for another token")
        return said


def new_key() -> SecretStr:
    """A fresh private key as JWK."""
    return SecretStr(str(JWK.generate(kty="EC", crv="P-256").export()))


def kept_key(path: Path) -> SecretStr:
    """The private key in a file that only we can read; made there if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        descriptor, draft = tempfile.mkstemp(dir=path.parent)  # which only we can read
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(new_key().get_secret_value())
            with contextlib.suppress(FileExistsError):  # another process was first: its key counts
                os.link(draft, path)
        finally:
            Path(draft).unlink()
    return SecretStr(path.read_text())


def _hash(token: str) -> str:
    return str(base64url_encode(hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()))
