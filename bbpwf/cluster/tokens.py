"""The tokens with which results are registered: the run's user's while it lasts, else the service's own.

They live in memory only, and are registered to be masked in every log.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable

from pydantic import SecretStr

from bbpwf.clock import Clock
from bbpwf.errors import NotAuthenticated
from bbpwf.redact import Redactor

EARLY_S = 30.0
"""A token that expires sooner than this is not handed out."""

ServiceLogin = Callable[[], tuple[SecretStr, float]]
"""Obtains a token of the service's own account, and when it expires (Unix seconds)."""


class Tokens:
    """Tokens by run. Thread-safe."""

    def __init__(self, clock: Clock, redactor: Redactor, *, service_login: ServiceLogin | None = None) -> None:
        self._clock = clock
        self._redactor = redactor
        self._service_login = service_login
        self._guard = threading.Lock()
        self._users: dict[str, tuple[SecretStr, float]] = {}
        self._service: tuple[SecretStr, float] | None = None

    def put(self, run_id: str, token: SecretStr) -> None:
        """Keep the token that a run was launched (or resumed) with."""
        self._redactor.add(token.get_secret_value())
        expires = expiry(token)
        with self._guard:
            self._users[run_id] = (token, expires)

    def forget(self, run_id: str) -> None:
        """The run needs none any more."""
        with self._guard:
            self._users.pop(run_id, None)

    def get(self, run_id: str) -> SecretStr:
        """A token that is good for at least :data:`EARLY_S` seconds.

        Raises:
            NotAuthenticated: the user's has expired, and the service has no account of its own.
            IdentityUnavailable: the identity provider did not answer.
        """
        soonest = self._clock.now() + EARLY_S
        with self._guard:
            held = self._users.get(run_id)
            if held is not None and held[1] > soonest:
                return held[0]
            if self._service is not None and self._service[1] > soonest:
                return self._service[0]
        if self._service_login is None:
            raise NotAuthenticated(
                f"the token of run {run_id} has expired and this instance has no account of its own",
                hint="Log in and resume the run, or give the instance a client secret.",
            )
        token, expires = self._service_login()
        self._redactor.add(token.get_secret_value())
        with self._guard:
            self._service = (token, expires)
        return token


def expiry(token: SecretStr) -> float:
    """When an access token expires, in Unix seconds, as it says itself: whoever hands it over has verified it.

    A token that is not a JWT with a number in ``exp`` counts as expired.
    """
    parts = token.get_secret_value().split(".")
    try:
        payload = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(payload["exp"])
    except (IndexError, ValueError, KeyError, TypeError):
        return 0.0
