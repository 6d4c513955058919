"""Requests that this service makes because a user said so: to listed hosts alone, and never into private networks.

The address that was looked at is the one that is connected to, so that a name cannot be answered differently the
second time. Redirects are not followed. Time and size have limits.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from bbpwf.errors import BbpwfError, InvalidInput, PlatformError
from bbpwf.settings import OutboundSettings

_PIECE = 64 * 1024
_LONGEST = 2000


class Unreachable(PlatformError):
    """The other side could not be reached, or did not answer well."""

    retryable = True


class Outbound:
    """Asks other hosts. Calls block for at most about ``timeout_s``: use a worker thread."""

    def __init__(self, settings: OutboundSettings) -> None:
        self._settings = settings
        self._hosts = {host.lower() for host in settings.hosts}
        self._private = [ipaddress.ip_network(each) for each in settings.private_networks]

    def check(self, url: str) -> SplitResult:
        """The parts of ``url`` if it may be asked at all.

        Raises:
            InvalidInput: it is no plain https URL, or its host is not on the list.
        """
        if len(url) > _LONGEST or not url.isascii() or not url.isprintable() or " " in url:
            raise InvalidInput("the URL is too long, or has characters that belong in no URL")
        try:
            parts = urlsplit(url)
            port = parts.port or 443
        except ValueError:
            raise InvalidInput(f"{url[:200]!r} is not a URL") from None
        if parts.scheme != "https" or not parts.hostname or parts.username is not None or parts.password is not None:
            raise InvalidInput(f"{url[:200]!r} is not a plain https URL")
        if not {parts.hostname, f"{parts.hostname}:{port}"} & self._hosts or (
            port != 443 and f"{parts.hostname}:{port}" not in self._hosts
        ):
            raise InvalidInput(
                f"the host {parts.hostname[:200]!r} is not one that this service asks",
                hint="Its operator lists them in BBPWF_OUTBOUND__HOSTS.",
            )
        return parts

    def get(self, url: str, *, most: int) -> bytes:
        """The content at ``url``, of at most ``most`` bytes.

        Raises:
            InvalidInput: it may not be asked, answers with a redirect, or is larger.
            Unreachable: it does not answer, or not with 200.
        """
        status, body = self._ask("GET", url, None, {}, most)
        if 300 <= status < 400:
            raise InvalidInput("the URL leads elsewhere", hint="Give the address that it leads to.")
        if status != http.HTTPStatus.OK:
            raise InvalidInput(f"the URL answers with status {status}")
        if len(body) > most:
            raise InvalidInput(f"what is at the URL is larger than {most} bytes")
        return body

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Send ``body``; the answer's status. Raises InvalidInput, Unreachable."""
        return self._ask("POST", url, body, headers, 0)[0]

    def _ask(
        self, method: str, url: str, body: bytes | None, headers: Mapping[str, str], most: int
    ) -> tuple[int, bytes]:
        parts = self.check(url)
        host, port = str(parts.hostname), parts.port or 443
        deadline = time.monotonic() + self._settings.timeout_s
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection = _Pinned(host, port, self._address(host, port), self._context(), self._settings.timeout_s)
            try:
                connection.request(method, target, body, {"User-Agent": "bbpwf", "Connection": "close", **headers})
                answer = connection.getresponse()
                found = b""
                while len(found) <= most and (piece := answer.read1(_PIECE)):
                    found += piece
                    if time.monotonic() > deadline:
                        raise TimeoutError("it takes too long")
                return answer.status, found
            finally:
                connection.close()
        except BbpwfError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{host} does not answer: {type(error).__name__}") from error

    def _address(self, host: str, port: int) -> str:
        """An address of the host that is no private one; every one of them has to be fit."""
        found = sorted({str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)})
        for text in found:
            address = ipaddress.ip_address(text)
            inner = getattr(address, "ipv4_mapped", None) or address
            allowed = any(inner in network for network in self._private)
            if not allowed and (not inner.is_global or inner.is_multicast):
                raise InvalidInput(f"the host {host!r} has a private address")
        return found[0]

    def _context(self) -> ssl.SSLContext:
        ca = self._settings.ca_file
        return ssl.create_default_context(cafile=str(ca) if ca else None)


class _Pinned(http.client.HTTPSConnection):
    """A connection to the address that was looked at, whatever the name says by now."""

    def __init__(self, host: str, port: int, address: str, context: ssl.SSLContext, timeout: float) -> None:
        super().__init__(host, port, timeout=timeout, context=context)
        self._address = address
        self._tls = context

    def connect(self) -> None:
        """Connect."""
        plain = socket.create_connection((self._address, self.port), self.timeout)
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise
