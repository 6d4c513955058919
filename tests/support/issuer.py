"""The sandbox's small issuer as a process of its own, and tokens of it: good ones, and forged ones."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import requests
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS
from pydantic import SecretStr

from bbpwf.clock import SystemClock
from bbpwf.platform.login import Login
from bbpwf.settings import OidcSettings
from sandbox.process import Process, Running, free_ports, start, stop
from sandbox.tenants import CLI_CLIENT, PEOPLE, SERVICE_CLIENT

SECRET = "the-secret-of-the-service-client"


class Realm(Protocol):
    """A realm with the sandbox's people, whoever serves it."""

    @property
    def url(self) -> str:
        """Its issuer."""
        ...

    def token(self, username: str = "alice") -> str:
        """An access token of somebody."""
        ...


@dataclass
class Issuer:
    """A running issuer."""

    process: Process
    running: Running
    state: Path
    origin: str

    @property
    def url(self) -> str:
        """The realm's URL."""
        return f"{self.origin}/auth/realms/SBO"

    def faults(self, **knobs: object) -> None:
        """Turn its knobs."""
        requests.post(f"{self.origin}/_faults", json=knobs, timeout=10).raise_for_status()

    def restart(self) -> None:
        """End it and start it again."""
        stop(self.running)
        self.running = start(self.process)

    def settings(self, **changes: Any) -> OidcSettings:
        """What a service has to know of it."""
        return OidcSettings(
            **{"issuer": self.url, "client_id": SERVICE_CLIENT, "client_secret": SecretStr(SECRET), **changes}
        )

    def login(self, clock: SystemClock | None = None, client_id: str = CLI_CLIENT) -> Login:
        """The flows of a client."""
        return Login(self.settings(), clock or SystemClock(), client_id=client_id)

    def tokens(self, username: str = "alice", scope: str = "openid") -> dict[str, Any]:
        """All that a login by password answers."""
        form = {
            "grant_type": "password",
            "client_id": CLI_CLIENT,
            "username": username,
            "password": username,
            "scope": scope,
        }
        answer = requests.post(f"{self.url}/protocol/openid-connect/token", data=form, timeout=10)
        answer.raise_for_status()
        return dict(answer.json())

    def token(self, username: str = "alice", scope: str = "openid") -> str:
        """An access token."""
        return str(self.tokens(username, scope)["access_token"])

    def key(self) -> JWK:
        """The realm's own signing key, private part and all."""
        return JWK(**json.loads((self.state / "keys.json").read_text())["rsa"][0])

    def claims(self, **changes: object) -> dict[str, Any]:
        """What a good token of alice's says, with changes; ``None`` takes a claim away."""
        now = int(time.time())
        merged: dict[str, Any] = {
            "iss": self.url,
            "sub": PEOPLE[0].sub,
            "typ": "Bearer",
            "iat": now,
            "exp": now + 300,
            "preferred_username": "alice",
            "groups": list(PEOPLE[0].groups),
            "scope": "openid",
            **changes,
        }
        return {k: v for k, v in merged.items() if v is not None}

    def forge(self, header: dict[str, Any] | None = None, **claims: object) -> str:
        """A token signed with the realm's own key, its claims changed."""
        return self.signed(json.dumps(self.claims(**claims)), header)

    def signed(self, payload: str, header: dict[str, Any] | None = None) -> str:
        """Any text signed with the realm's own key."""
        key = self.key()
        made = JWS(payload)
        protected = {"alg": "RS256", "kid": key["kid"], **(header or {})}
        made.add_signature(key, alg=protected["alg"], protected=json.dumps(protected))
        return str(made.serialize(compact=True))


@contextlib.contextmanager
def running_issuer(folder: Path) -> Iterator[Issuer]:
    """An issuer with its state in ``folder``; ended in the end."""
    (port,) = free_ports(1)
    secret = folder / "client-secret"
    secret.write_text(SECRET + "\n")
    origin = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        try:
            return requests.get(f"{origin}/auth/realms/SBO", timeout=2).ok
        except requests.ConnectionError:
            return False

    argv = (sys.executable, "-W", "error", "-m", "sandbox.oidc", "--port", str(port), "--state", str(folder / "state"))
    env = {"PATH": os.environ["PATH"]}
    process = Process("oidc", (*argv, "--client-secret-file", str(secret)), env, folder / "oidc.log", ready)
    made = Issuer(process, start(process), folder / "state", origin)
    try:
        yield made
    finally:
        stop(made.running)
