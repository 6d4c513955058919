"""The realm's keys: RS256 for what others verify, HS256 for what only the realm reads."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from jwcrypto.common import JWException
from jwcrypto.jwk import JWK
from jwcrypto.jwt import JWT

from sandbox.double import save


class RealmKeys:
    """Signing keys in ``folder``, kept from one start to the next. The first RSA key signs; older ones still verify."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "keys.json"
        self._lock = threading.Lock()
        self._rsa: list[JWK] = []
        if self._file.exists():
            stored = json.loads(self._file.read_text())
            self._rsa = [JWK(**key) for key in stored["rsa"]]
            self._hmac = JWK(**stored["hmac"])
        else:
            self._hmac = JWK.generate(kty="oct", size=512)
            self.rotate(keep_old=False)

    def rotate(self, *, keep_old: bool = True) -> str:
        """Sign with a new key from now on; answers its ``kid``. Without ``keep_old`` earlier tokens become void."""
        new = JWK.generate(kty="RSA", size=2048, use="sig", alg="RS256")
        new = JWK(**new.export(as_dict=True), kid=new.thumbprint())
        with self._lock:
            self._rsa = [new, *(self._rsa if keep_old else [])]
            stored = {
                "rsa": [key.export(as_dict=True) for key in self._rsa],
                "hmac": self._hmac.export(as_dict=True),
            }
            save(self._file, json.dumps(stored))
        return str(new["kid"])

    def published(self) -> dict[str, Any]:
        """The JWKS. As Keycloak does, it also offers a key for encryption, which signs nothing."""
        with self._lock:
            keys = [key.export_public(as_dict=True) for key in self._rsa]
        encryption = {**keys[-1], "use": "enc", "alg": "RSA-OAEP", "kid": f"{keys[-1]['kid']}-enc"}
        return {"keys": [*keys, encryption]}

    def public_key(self) -> str:
        """The signing key as one line of base64 DER, as ``GET {realm}`` shows it."""
        lines = self._rsa[0].export_to_pem().decode().splitlines()
        return "".join(lines[1:-1])

    def sign(self, claims: dict[str, Any]) -> str:
        """An RS256 token with these claims."""
        return self._signed("RS256", self._rsa[0], claims)

    def seal(self, claims: dict[str, Any]) -> str:
        """An HS256 token, as Keycloak makes refresh and offline tokens: nobody else can verify it."""
        return self._signed("HS256", self._hmac, claims)

    def opened(self, token: str) -> dict[str, Any] | None:
        """The claims of a refresh token of this realm; ``None`` for any other text. Times are not checked."""
        return self._claims(token, [self._hmac], "HS256")

    def verified(self, token: str) -> dict[str, Any] | None:
        """The claims of an RS256 token of this realm; ``None`` for any other text. Times are not checked."""
        return self._claims(token, self._rsa, "RS256")

    @staticmethod
    def _signed(algorithm: str, key: JWK, claims: dict[str, Any]) -> str:
        header = {"alg": algorithm, "typ": "JWT"}
        if "kid" in key:
            header["kid"] = key["kid"]
        token = JWT(header=header, claims=claims)
        token.make_signed_token(key)
        return str(token.serialize())

    @staticmethod
    def _claims(token: str, keys: list[JWK], algorithm: str) -> dict[str, Any] | None:
        for key in keys:
            try:
                read = JWT(algs=[algorithm], expected_type="JWS", check_claims={})
                read.deserialize(token)
                read.token.verify(key)
                claims = json.loads(read.token.payload)
            except (JWException, ValueError, RecursionError):
                continue
            return claims if isinstance(claims, dict) else None
        return None
