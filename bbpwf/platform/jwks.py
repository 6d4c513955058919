"""The realm's published keys, kept at hand."""

from __future__ import annotations

import logging
import threading

import requests
from jwcrypto.common import JWException
from jwcrypto.jwk import JWK

from bbpwf.clock import Clock
from bbpwf.errors import IdentityUnavailable
from bbpwf.platform.http import Limits, exchange

_log = logging.getLogger(__name__)

FRESH_S = 600.0
"""Keys this old are fetched again when next used."""
STALE_S = 24 * 3600.0
"""Keys older than this are not believed, even if the issuer cannot be reached."""
PAUSE_S = 10.0
"""Time without fetches after one that failed, or that an unknown ``kid`` caused: anybody can send those."""
_LIMITS = Limits(seconds=5, size=512 * 1024)
_FITTING = {"RS256": "RSA", "PS256": "RSA", "ES256": "EC"}


class KeyCache:
    """Keys by ``kid``, of one issuer. Thread-safe; only one thread fetches at a time.

    While the issuer is down, known keys stay good for a day. An unknown ``kid`` means that keys were rotated and causes
    a fetch, at most every 10 s.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        self._url = url
        self._clock = clock
        self._fetching = threading.Lock()
        self._keys: dict[str, JWK] = {}
        self._fetched: float | None = None
        self._attempts = 0
        self._quiet_until = float("-inf")
        self._trouble: IdentityUnavailable | None = None

    def find(self, kid: str, algorithm: str) -> JWK | None:
        """The key with this id if it may verify ``algorithm``; ``None`` if the issuer publishes no such key.

        Raises:
            IdentityUnavailable: the keys that are needed cannot be fetched.
        """
        before = self._attempts
        if self._age() > FRESH_S:
            self._refresh(before, wait=self._age() > STALE_S)
        if self._usable(kid) is None:
            self._refresh(before, wait=True, forced=True)
        key = self._usable(kid)
        if key is None:
            if self._trouble is not None:
                raise IdentityUnavailable(self._trouble.message, where=self._trouble.where) from self._trouble
            return None
        return key if key.get("kty") == _FITTING[algorithm] and key.get("alg", algorithm) == algorithm else None

    def _usable(self, kid: str) -> JWK | None:
        return self._keys.get(kid) if self._age() <= STALE_S else None

    def _age(self) -> float:
        return float("inf") if self._fetched is None else self._clock.monotonic() - self._fetched

    def _refresh(self, before: int, *, wait: bool, forced: bool = False) -> None:
        """Fetch the keys, unless somebody did since the attempt numbered ``before``, or it must not be now.

        Without ``wait``, a fetch that another thread has under way is left to it. A failure is kept in ``_trouble``.
        """
        if not self._fetching.acquire(blocking=wait):
            return
        try:
            if self._attempts != before or self._clock.monotonic() < self._quiet_until:
                return
            try:
                self._keys = self._fetch()
                self._fetched = self._clock.monotonic()
                self._trouble = None
            except IdentityUnavailable as error:
                self._trouble = error
                _log.warning("the issuer's keys could not be fetched; %d known: %s", len(self._keys), error)
            self._attempts += 1
            if forced or self._trouble is not None:
                self._quiet_until = self._clock.monotonic() + PAUSE_S
        finally:
            self._fetching.release()

    def _fetch(self) -> dict[str, JWK]:
        with requests.Session() as session:
            reply = exchange(
                session,
                "GET",
                self._url,
                what="the identity provider",
                limits=_LIMITS,
                clock=self._clock,
                error=IdentityUnavailable,
            )
        content = reply.json()
        entries = content.get("keys") if isinstance(content, dict) else None
        if reply.status != 200 or not isinstance(entries, list):
            raise IdentityUnavailable(
                f"the identity provider answered for its keys with {reply.status}", where=self._url
            )
        keys = {}
        for entry in entries:
            # only public signing keys: Keycloak lists one for encryption beside them
            if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or entry.get("kty") not in {"RSA", "EC"}:
                continue
            try:
                key = JWK(**entry)
            except (JWException, ValueError, TypeError) as error:
                _log.warning("the issuer publishes a key that cannot be read: %s", type(error).__name__)
                continue
            if isinstance(entry.get("kid"), str):
                keys[entry["kid"]] = key
        if not keys:
            raise IdentityUnavailable("the identity provider publishes no key to verify tokens with", where=self._url)
        return keys
