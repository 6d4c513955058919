"""One HTTP request to a service of the platform: limited in time and size, its failures turned into ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import requests
import urllib3
from requests.auth import AuthBase

from bbpwf.clock import Clock
from bbpwf.errors import PlatformError
from bbpwf.redact import Redactor

_CHUNK = 64 * 1024


@dataclass(frozen=True)
class Reply:
    """What came back. ``headers`` ignore case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    def json(self) -> object:
        """The body as JSON; ``None`` if it is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def said(self, limit: int = 300) -> str:
        """What the other side says went wrong, for an error message: capped, one line, secrets masked.

        It is the text of ``message``, ``Message``, ``error_description`` or ``error`` of a JSON object, else the start
        of the body: services here answer errors as plain text too (contracts §1.4).
        """
        content = self.json()
        text = self.body[: 4 * limit].decode("utf-8", "replace")
        if isinstance(content, dict):
            names = ("message", "Message", "error_description", "error")
            text = next((str(content[name]) for name in names if content.get(name)), "")
        text = " ".join(Redactor().mask(text[: 4 * limit]).split())
        return text if len(text) <= limit else f"{text[:limit]}…"


@dataclass(frozen=True)
class Limits:
    """Bounds of one request: seconds in all, and bytes of the answer."""

    seconds: float
    size: int = 4 * 1024 * 1024


def exchange(
    session: requests.Session,
    method: str,
    url: str,
    *,
    what: str,
    limits: Limits,
    clock: Clock,
    error: type[PlatformError],
    params: Mapping[str, str] | None = None,
    data: Mapping[str, str] | None = None,
    auth: AuthBase | None = None,
) -> Reply:
    """Send one request and read the whole answer, whatever its status. Redirects are not followed.

    Args:
        session: keeps connections; any thread may use it for one request at a time.
        method: HTTP method.
        url: where to, without the query.
        what: the other side's name in error messages, e.g. "the provisioner".
        limits: for this request.
        clock: measures the limit.
        error: class of the error that is raised.
        params: query.
        data: form fields of the body.
        auth: adds what the request needs to be let in. Without one, requests would look for a ``.netrc``.

    Raises:
        PlatformError: ``error``, retryable, when no complete answer came; not retryable when it is too large.
    """
    started = clock.monotonic()
    late = f"{what} did not answer within {limits.seconds:g} s"
    try:
        with session.request(
            method,
            url,
            params=params,
            data=data,
            auth=auth or _Unsigned(),
            timeout=limits.seconds,
            allow_redirects=False,
            stream=True,
        ) as response:
            body = bytearray()
            while chunk := response.raw.read1(_CHUNK, decode_content=True):
                body += chunk
                if len(body) > limits.size:
                    raise error(f"{what} answered more than {limits.size} bytes", where=url, retryable=False)
                if clock.monotonic() - started > limits.seconds:
                    raise error(late, where=url, retryable=True)
            return Reply(response.status_code, response.headers, bytes(body))
    except (requests.Timeout, urllib3.exceptions.TimeoutError) as problem:
        raise error(late, where=url, retryable=True) from problem
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as problem:
        kind = type(problem).__name__
        raise error(f"{what} could not be reached ({kind})", where=url, retryable=True) from problem


class Bearer(AuthBase):
    """An access token in the ``Authorization`` header."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the header."""
        r.headers["Authorization"] = f"Bearer {self._token}"
        return r


class _Unsigned(AuthBase):
    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        return r
