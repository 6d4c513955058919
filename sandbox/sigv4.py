"""AWS Signature Version 4, from the receiving side.

Written from AWS's description of the algorithm and without botocore, so that a request is judged by something else than
the code that signed it. What API Gateway answers is in ``contracts.md`` §1.1.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, unquote

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key_id>[^/,\s]+)/(?P<date>\d{8})/(?P<region>[a-z0-9-]+)/(?P<service>[a-z0-9-]+)"
    r"/aws4_request, ?SignedHeaders=(?P<headers>[a-z0-9;-]+), ?Signature=(?P<signature>[0-9a-f]{64})\Z"
)
SKEW_S = 300
"""A request whose clock is further off than this is refused."""


class Forbidden(Exception):
    """The request is refused; the text is what API Gateway answers with status 403."""


@dataclass(frozen=True)
class Request:
    """The parts of a request that are signed, as they came over the wire. Header names are lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Verifier:
    """Checks signatures for one service of one region. Without a known secret only their form is checked."""

    service: str
    region: str
    key_id: str = ""
    secret: str = ""

    def check(self, request: Request, now: float) -> None:
        """Return if the request may pass.

        Args:
            request: what came.
            now: seconds since the Unix epoch.

        Raises:
            Forbidden: unsigned, signed wrongly, for another service or at another time.
        """
        header = request.headers.get("authorization", "")
        if not header:
            raise Forbidden("Missing Authentication Token")
        parts = _AUTHORIZATION.match(header)
        stamp = request.headers.get("x-amz-date", "")
        if (
            parts is None
            or "host" not in parts["headers"].split(";")
            or "x-amz-date" not in parts["headers"].split(";")
        ):
            raise Forbidden("Authorization header requires 'Credential', 'Signature' and 'SignedHeaders' parameters.")
        try:
            signed_at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        except ValueError:
            raise Forbidden("Date in x-amz-date is not in the basic ISO 8601 form.") from None
        if abs(now - signed_at.timestamp()) > SKEW_S:
            raise Forbidden(f"Signature expired or not yet current: {stamp}")
        if parts["region"] != self.region:
            raise Forbidden(f"Credential should be scoped to a valid region, not '{parts['region']}'.")
        if parts["service"] != self.service or parts["date"] != stamp[:8]:
            raise Forbidden("Credential should be scoped to correct service and date.")
        if not self.secret:
            return
        if parts["key_id"] != self.key_id:
            raise Forbidden("The security token included in the request is invalid.")
        if not hmac.compare_digest(self._signature(request, parts, stamp), parts["signature"]):
            raise Forbidden(
                "The request signature we calculated does not match the signature you provided. Check your AWS Secret "
                "Access Key and signing method. Consult the service documentation for details."
            )

    def _signature(self, request: Request, parts: re.Match[str], stamp: str) -> str:
        pairs = [pair.partition("=") for pair in request.query.split("&") if pair]
        encoded = sorted((_encode(unquote(name)), _encode(unquote(value))) for name, _, value in pairs)
        names = parts["headers"].split(";")
        canonical = "\n".join(
            [
                request.method,
                quote(request.path, safe="/-_.~"),
                "&".join(f"{name}={value}" for name, value in encoded),
                *(f"{name}:{' '.join(request.headers.get(name, '').split())}" for name in names),
                "",
                ";".join(names),
                hashlib.sha256(request.body).hexdigest(),
            ]
        )
        scope = f"{parts['date']}/{parts['region']}/{parts['service']}/aws4_request"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        key = f"AWS4{self.secret}".encode()
        for step in scope.split("/"):
            key = hmac.digest(key, step.encode(), "sha256")
        return hmac.digest(key, f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}".encode(), "sha256").hex()


def _encode(text: str) -> str:
    return quote(text, safe="-_.~")
