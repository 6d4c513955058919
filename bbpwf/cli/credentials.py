"""The login of this machine: tokens in one file that only its owner can read, refreshed when due."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator

from pydantic import BaseModel, SecretStr, ValidationError

from bbpwf.clock import Clock
from bbpwf.errors import NotAuthenticated
from bbpwf.platform.login import Login, Tokens
from bbpwf.redact import Redactor
from bbpwf.settings import Settings

EARLY_S = 30.0
"""Tokens are refreshed this long before they end."""
_LOG_IN = "Run: bbpwf login"


class _Stored(BaseModel):
    issuer: str
    client_id: str
    access: str
    expires_at: float
    refresh: str = ""
    offline: bool = False


class Credentials:
    """The tokens kept in ``<state>/credentials.json``; the file is locked while they are changed.

    ``BBPWF_TOKEN`` in the environment, an access token, goes before them: for programs that have one.
    """

    def __init__(self, settings: Settings, clock: Clock, redactor: Redactor, *, token: str = "") -> None:
        self._settings = settings
        self._clock = clock
        self._redactor = redactor
        self._given = token
        self._path = settings.state / "credentials.json"
        if token:
            redactor.add(token)

    def login(self) -> Login:
        """The flows of the command line's client."""
        oidc = self._settings.oidc
        return Login(oidc, self._clock, client_id=oidc.cli_client_id, redactor=self._redactor)

    def store(self, tokens: Tokens) -> None:
        """Keep these tokens, instead of any other."""
        with self._locked():
            self._write(tokens)

    def forget(self) -> SecretStr | None:
        """Remove the file; answers the refresh token that it held, unless runs go on with it (an offline one)."""
        with self._locked():
            stored = self._read()
            self._path.unlink(missing_ok=True)
        return SecretStr(stored.refresh) if stored and stored.refresh and not stored.offline else None

    def access_token(self) -> SecretStr:
        """A token that is valid now.

        Raises:
            NotAuthenticated: there is no login, or it cannot be refreshed any more.
            IdentityUnavailable: it is due and the identity provider does not answer.
        """
        if self._given:
            return SecretStr(self._given)
        with self._locked():
            stored = self._read()
            if stored is None or stored.issuer != self._settings.oidc.issuer:
                raise NotAuthenticated("you are not logged in", hint=_LOG_IN)
            self._redactor.add(stored.access, stored.refresh)
            if self._clock.now() < stored.expires_at - EARLY_S:
                return SecretStr(stored.access)
            if not stored.refresh:
                raise NotAuthenticated("your login has expired", hint=_LOG_IN)
            try:
                tokens = self.login().refresh(SecretStr(stored.refresh))
            except NotAuthenticated as error:
                raise NotAuthenticated("your login has expired", hint=_LOG_IN) from error
            self._write(tokens)
            return tokens.access

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self) -> _Stored | None:
        try:
            return _Stored.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValidationError, ValueError):
            raise NotAuthenticated("the stored login cannot be read", where=str(self._path), hint=_LOG_IN) from None

    def _write(self, tokens: Tokens) -> None:
        stored = _Stored(
            issuer=self._settings.oidc.issuer,
            client_id=self._settings.oidc.cli_client_id,
            access=tokens.access.get_secret_value(),
            expires_at=tokens.expires_at,
            refresh=tokens.refresh.get_secret_value() if tokens.refresh else "",
            offline=tokens.endless,
        )
        draft = self._path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(stored.model_dump(), file)
        draft.replace(self._path)
