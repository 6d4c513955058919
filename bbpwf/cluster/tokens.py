"""The tokens with which results are registered: the run's user's while it lasts, then one from their offline login,
else the service's own.

Access tokens live in memory only, and are registered to be masked in every log. Offline ones are in
:mod:`bbpwf.cluster.consents`.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Callable
from typing import Protocol

from pydantic import SecretStr

from bbpwf.clock import Clock
from bbpwf.cluster.consents import Consent, Consents
from bbpwf.errors import LoginNeeded, NotAuthenticated
from bbpwf.redact import Redactor

_log = logging.getLogger(__name__)

EARLY_S = 30.0
"""A token that expires sooner than this is not handed out."""
PARKED = "parked: "
"""How the reason of a run begins that is PAUSED until its owner logs in again."""

ServiceLogin = Callable[[], tuple[SecretStr, float]]
"""Obtains a token of the service's own account, and when it expires (Unix seconds)."""


class Renewed(Protocol):
    """What an offline token is exchanged for."""

    @property
    def access(self) -> SecretStr:
        """An access token."""
        ...

    @property
    def expires_at(self) -> float:
        """When it expires, in Unix seconds."""
        ...

    @property
    def refresh(self) -> SecretStr | None:
        """The offline token from now on; a realm may give a new one each time."""
        ...


Renew = Callable[[str, SecretStr], Renewed]
"""Exchanges an offline token that a client (by id) was given; raises NotAuthenticated when it is void for good."""


class Tokens:
    """Tokens by run. Thread-safe.

    Args:
        clock: tells what has expired.
        redactor: told every token.
        service_login: the service's own account, if it has one.
        consents: offline logins, if there are any.
        renew: uses them.
        owner_of: the ``sub`` of a run's owner.
    """

    def __init__(
        self,
        clock: Clock,
        redactor: Redactor,
        *,
        service_login: ServiceLogin | None = None,
        consents: Consents | None = None,
        renew: Renew | None = None,
        owner_of: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._clock = clock
        self._redactor = redactor
        self._service_login = service_login
        self._consents = consents
        self._renew = renew
        self._owner_of = owner_of
        self._guard = threading.Lock()
        self._renewing = threading.Lock()
        self._users: dict[str, tuple[SecretStr, float]] = {}
        self._people: dict[str, tuple[SecretStr, float]] = {}
        self._service: tuple[SecretStr, float] | None = None

    def mask(self, text: str) -> str:
        """``text`` without any token or other secret that the redactor knows."""
        return self._redactor.mask(text)

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

        The service's own account stands in only for people who never left an offline login: when one was left and is
        void, whoever withdrew it meant that nothing more be done for them.

        Raises:
            LoginNeeded: none can be had until the run's owner logs in again.
            IdentityUnavailable: the identity provider did not answer.
        """
        soonest = self._clock.now() + EARLY_S
        with self._guard:
            held = self._users.get(run_id)
            if held is not None and held[1] > soonest:
                return held[0]
        consent = self._consent(run_id)
        if consent is not None:
            return self._offline(consent.sub)
        with self._guard:
            if self._service is not None and self._service[1] > soonest:
                return self._service[0]
        if self._service_login is None:
            raise LoginNeeded(
                f"the login of run {run_id} has expired and its owner left no offline login",
                hint="Run: bbpwf login --offline",
            )
        token, expires = self._service_login()
        self._redactor.add(token.get_secret_value())
        with self._guard:
            self._service = (token, expires)
        return token

    def _consent(self, run_id: str) -> Consent | None:
        sub = self._owner_of(run_id) if self._consents is not None else ""
        return self._consents.of(sub) if self._consents is not None and sub else None

    def _offline(self, sub: str) -> SecretStr:
        """A token from a person's offline login; one thread at a time asks for a new one."""
        if self._consents is None or self._renew is None:
            raise LoginNeeded("offline logins are not used here")
        with self._renewing:
            held = self._people.get(sub)
            consent = self._consents.of(sub)  # again: it may be new since
            if consent is None or consent.token is None:
                self._people.pop(sub, None)
                said = f": {consent.reason}" if consent is not None and consent.reason else ""
                raise LoginNeeded(f"the owner's offline login is gone{said}", hint="Run: bbpwf login --offline")
            if held is not None and held[1] > self._clock.now() + EARLY_S:
                return held[0]
            self._redactor.add(consent.token.get_secret_value())
            try:
                renewed = self._renew(consent.client_id, consent.token)
            except NotAuthenticated as error:
                _log.warning("the offline login of %s is gone: %s", consent.username, error)
                self._people.pop(sub, None)
                self._consents.lose(sub, consent.token, error.message)
                raise LoginNeeded(
                    f"the owner's offline login is gone: {error.message}", hint="Run: bbpwf login --offline"
                ) from error
            self._redactor.add(renewed.access.get_secret_value())
            if renewed.refresh is not None and renewed.refresh != consent.token:
                self._redactor.add(renewed.refresh.get_secret_value())
                self._consents.keep(sub, consent.username, consent.client_id, renewed.refresh)
            self._people[sub] = (renewed.access, renewed.expires_at)
            return renewed.access


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
