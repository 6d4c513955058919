"""A real Keycloak for tests: people's logins as a browser does them, and an administrator's deeds."""

from __future__ import annotations

import contextlib
import html
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.cookiejar import Cookie
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
from requests.cookies import RequestsCookieJar

from sandbox import keycloak
from sandbox.keycloak_realm import ACCESS_LIFESPAN_S, REALM
from sandbox.process import Process, Running, free_ports, start, stop
from sandbox.tenants import CLI_CLIENT, PEOPLE
from tests.support.issuer import SECRET

_FORM = re.compile(r'<form[^>]*\baction="([^"]+)"[^>]*>(.*?)</form>', re.DOTALL)
_INPUT = re.compile(r"<(?:input|button)\b[^>]*>")
_ATTRIBUTE = re.compile(r'\b(name|value)="([^"]*)"')


@dataclass
class Keycloak:
    """A running Keycloak with the sandbox's realms."""

    process: Process
    port: int
    running: Running | None = field(default=None, repr=False)
    _fresh: dict[str, tuple[str, float]] = field(default_factory=dict, repr=False)

    @property
    def url(self) -> str:
        """The realm's issuer."""
        return keycloak.issuer_url(self.port)

    def start(self) -> None:
        """Start it, if it does not run."""
        if self.running is None:
            self.running = start(self.process)

    def stop(self) -> None:
        """An outage begins."""
        self._fresh.clear()
        if self.running is not None:
            stop(self.running)
            self.running = None

    def tokens(
        self, username: str = "alice", *, client: str = CLI_CLIENT, scope: str = "openid", realm: str = REALM
    ) -> dict[str, Any]:
        """All that a login by password answers."""
        form = {
            "grant_type": "password",
            "client_id": client,
            "username": username,
            "password": username,
            "scope": scope,
        }
        url = f"{keycloak.issuer_url(self.port, realm)}/protocol/openid-connect/token"
        answer = requests.post(url, data=form, timeout=60)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def token(self, username: str = "alice") -> str:
        """An access token of somebody, at most ten seconds old: hashing a password takes its time."""
        token, made = self._fresh.get(username, ("", 0.0))
        if time.monotonic() - made > 10:
            made = time.monotonic()
            token = str(self.tokens(username)["access_token"])
            self._fresh[username] = token, made
        return token

    def admin(self, method: str, path: str, **request: Any) -> Any:
        """A deed of the administrator's, below ``/auth/admin/realms/SBO``; the JSON answered, if any."""
        form = {
            "grant_type": "password",
            "client_id": "admin-cli",
            "username": keycloak.ADMIN,
            "password": keycloak.admin_password(),
        }
        url = f"{keycloak.issuer_url(self.port, 'master')}/protocol/openid-connect/token"
        token = requests.post(url, data=form, timeout=60).json()["access_token"]
        answer = requests.request(
            method,
            f"{keycloak.origin(self.port)}/auth/admin/realms/{REALM}{path}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
            **request,
        )
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def rotate_keys(self, *, drop_old: bool = False) -> None:
        """Sign with a new key from now on; with ``drop_old`` the earlier ones are withdrawn."""
        query = {"type": "org.keycloak.keys.KeyProvider"}
        present = [
            each for each in self.admin("GET", "/components", params=query) if each["providerId"] == "rsa-generated"
        ]
        highest = max(int(each["config"].get("priority", ["0"])[0]) for each in present)
        self.admin(
            "POST",
            "/components",
            json={
                "name": f"rsa-{highest + 10}",
                "providerId": "rsa-generated",
                "providerType": "org.keycloak.keys.KeyProvider",
                "config": {"priority": [str(highest + 10)], "enabled": ["true"], "active": ["true"]},
            },
        )
        for each in present if drop_old else []:
            self.admin("DELETE", f"/components/{each['id']}")
        self._fresh.clear()

    @contextlib.contextmanager
    def short_tokens(self, seconds: int) -> Iterator[None]:
        """Access tokens live ``seconds`` meanwhile."""
        self.admin("PUT", "", json={"accessTokenLifespan": seconds})
        self._fresh.clear()
        yield
        self.admin("PUT", "", json={"accessTokenLifespan": ACCESS_LIFESPAN_S})
        self._fresh.clear()

    def revoke_offline(self, username: str, client: str = CLI_CLIENT) -> None:
        """What somebody does who withdraws a client's consent in their account: its offline sessions end."""
        self.admin("DELETE", f"/users/{sub_of(username)}/consents/{client}")

    def log_out(self, username: str) -> None:
        """End all sessions of somebody."""
        self.admin("POST", f"/users/{sub_of(username)}/logout")


def sub_of(username: str) -> str:
    """Somebody's id."""
    return next(person.sub for person in PEOPLE if person.username == username)


class _Jar(RequestsCookieJar):
    """Takes loopback for secure, as browsers do: Keycloak's cookies are all Secure."""

    def set_cookie(self, cookie: Cookie, *args: Any, **kwargs: Any) -> None:
        cookie.secure = False
        super().set_cookie(cookie, *args, **kwargs)


def browser() -> requests.Session:
    """A browser, as far as logins need one."""
    made = requests.Session()
    made.headers["Accept"] = "text/html"
    made.cookies = _Jar()
    return made


def submit(window: requests.Session, page: requests.Response, **values: str) -> requests.Response:
    """Fill the page's (first) form in and send it, as a browser would."""
    found = _FORM.search(page.text)
    assert found is not None, f"no form at {page.url}: {re.sub('<[^>]*>', ' ', page.text)[-1000:]}"
    fields = {}
    for tag in _INPUT.findall(found[2]):
        attributes = dict(_ATTRIBUTE.findall(tag))
        if "name" in attributes and attributes["name"] not in {"rememberMe", "cancel"}:
            fields[attributes["name"]] = html.unescape(attributes.get("value", ""))
    return window.post(urljoin(page.url, html.unescape(found[1])), data={**fields, **values}, timeout=60)


def log_in(window: requests.Session, page: requests.Response, username: str) -> requests.Response:
    """Log in on Keycloak's page; the page where that leads."""
    return submit(window, page, username=username, password=username)


@contextlib.contextmanager
def running_keycloak(folder: Path) -> Iterator[Keycloak]:
    """A Keycloak with its data in ``folder``; ended in the end."""
    (port,) = free_ports(1)
    process = keycloak.process(folder / "server", port, client_secret=SECRET, log=folder / "keycloak.log")
    made = Keycloak(process, port)
    made.start()
    try:
        yield made
    finally:
        made.stop()
