"""One request to Nexus Delta: authenticated, limited in time and size, its refusals turned into NexusError."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import requests
from pydantic import SecretStr

from bbpwf import retry
from bbpwf.clock import Clock
from bbpwf.errors import InvalidConfig, LimitExceeded, NexusError
from bbpwf.redact import Redactor
from bbpwf.settings import NexusSettings

_log = logging.getLogger(__name__)
_CAP = 32 * 1024 * 1024  # bytes of one answer
_CONNECT_S = 10.0
_UPLOAD_BYTES_PER_S = 1e6  # the slowest upload to be patient with
_ATTEMPTS = 5
_JSON_LD = "application/ld+json"
_RETRYABLE = frozenset({429, 500, 502, 503, 504})  # every request here is safe to repeat


@dataclass(frozen=True)
class Upload:
    """A request body made of pieces, which can be sent again: ``size`` bytes from every call of ``pieces``."""

    size: int
    pieces: Callable[[], Iterator[bytes]]

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        return self.pieces()


class DeltaSession:
    """Requests to one Delta. Use from one thread at a time.

    Args:
        settings: where it is; ``url``, ``org`` and ``project`` must be set.
        token: a valid access token; asked before every request, and once more when Delta refuses one (401).
        clock: time.

    Raises:
        InvalidConfig: a needed setting is empty.
    """

    def __init__(self, settings: NexusSettings, token: Callable[[], SecretStr], clock: Clock) -> None:
        if settings.url is None or not settings.org or not settings.project:
            raise InvalidConfig(
                "Nexus is not configured", hint="Set BBPWF_NEXUS__URL, BBPWF_NEXUS__ORG and BBPWF_NEXUS__PROJECT."
            )
        self.base = str(settings.url).rstrip("/")
        self.org = settings.org
        self.project = settings.project
        self._timeout = settings.timeout_s
        self._token = token
        self._clock = clock
        self._session = requests.Session()
        # no .netrc and no proxy from the environment: the token goes to this host and nowhere else
        self._session.trust_env = False

    def close(self) -> None:
        """Let go of the connections."""
        self._session.close()

    def url(self, kind: str, *segments: str) -> str:
        """URL below ``/{kind}/{org}/{project}``; each segment is percent-encoded, slashes and colons included."""
        return "/".join(
            [f"{self.base}/{kind}", *(quote(each, safe="") for each in (self.org, self.project, *segments))]
        )

    def call(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        payload: object = None,
        upload: Upload | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Send a request that is safe to repeat, until it is answered; the answer's JSON object.

        Raises:
            NexusError: Delta refused (``status`` and ``kind`` say how), or could not be reached after some tries.
        """

        def once() -> dict[str, Any]:
            token = self._token().get_secret_value()
            try:
                return self._once(method, url, params, payload, upload, headers, token)
            except NexusError as error:
                if error.status != 401:
                    raise
                renewed = self._token().get_secret_value()
                if renewed == token:
                    raise
                _log.info("Nexus refused the token; trying with a renewed one")
                return self._once(method, url, params, payload, upload, headers, renewed)

        return retry.call(f"{method} {url}", once, clock=self._clock, attempts=_ATTEMPTS)

    def _once(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None,
        payload: object,
        upload: Upload | None,
        headers: Mapping[str, str] | None,
        token: str,
    ) -> dict[str, Any]:
        limit = self._timeout + (len(upload) / _UPLOAD_BYTES_PER_S if upload else 0.0)
        sent = {"Accept": _JSON_LD, **(headers or {}), "Authorization": f"Bearer {token}"}
        body: bytes | Upload | None = upload
        if payload is not None:
            sent["Content-Type"] = "application/json"
            body = json.dumps(payload, ensure_ascii=False, allow_nan=False).encode()
        deadline = self._clock.monotonic() + limit
        try:
            with self._session.request(
                method,
                url,
                params=dict(params or {}),
                data=body,
                headers=sent,
                timeout=(_CONNECT_S, limit),
                allow_redirects=False,
                stream=True,
            ) as answer:
                content = self._read(answer, deadline, url)
                status = answer.status_code
        except requests.RequestException as error:
            # the exception's own text may hold headers of the request; its type says enough
            raise NexusError(
                f"Nexus did not answer: {type(error).__name__}", where=f"{method} {url}", retryable=True
            ) from error
        if 200 <= status < 300:
            return _object(content, url)
        raise _refusal(status, content, f"{method} {url}")

    def _read(self, answer: requests.Response, deadline: float, url: str) -> bytes:
        content = bytearray()
        for chunk in answer.iter_content(64 * 1024):
            content += chunk
            if len(content) > _CAP:
                raise LimitExceeded(f"Nexus answers more than {_CAP} bytes", where=url)
            if self._clock.monotonic() > deadline:
                raise NexusError("Nexus takes too long to answer", where=url, retryable=True)
        return bytes(content)


def _object(content: bytes, url: str) -> dict[str, Any]:
    if not content:
        return {}
    try:
        body = json.loads(content)
    except ValueError as error:
        raise NexusError("Nexus answered something that is not JSON", where=url) from error
    if not isinstance(body, dict):
        raise NexusError("Nexus answered JSON that is not an object", where=url)
    return body


def _refusal(status: int, content: bytes, where: str) -> NexusError:
    """Delta's ``@type`` and ``reason``; a gateway in front of it answers plain text."""
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    kind, reason = "", content[:300].decode(errors="replace").strip()
    if isinstance(body, dict):
        kind = str(body.get("@type", ""))
        reason = " ".join(str(body[name]) for name in ("reason", "details") if body.get(name)) or reason
    hints = {
        401: "The access token is invalid or expired: log in again.",
        403: "The token's user may not do this in the Nexus project.",
    }
    return NexusError(
        f"Nexus refused: {' '.join(filter(None, [str(status), kind]))}: {Redactor().mask(reason)[:500]}",
        status=status,
        kind=kind,
        where=where,
        hint=hints.get(status, ""),
        retryable=status in _RETRYABLE,
    )
