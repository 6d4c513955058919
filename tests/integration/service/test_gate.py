"""Nobody gets in without a token of a member: every route, every kind of bad token, over real HTTP."""

from __future__ import annotations

import base64
import hmac
import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS
from pydantic import SecretStr
from starlette.routing import Mount, Route

from bbpwf.settings import OidcSettings, ProjectSettings, ServiceSettings, Settings
from sandbox.tenants import OTHER_PROJECT, OTHER_VIRTUAL_LAB, PROJECT, VIRTUAL_LAB
from service.access import OPEN
from service.app import create_app
from tests.integration.service.conftest import Issuer, Service


def _walk(routes: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for route in routes:
        included = getattr(route, "original_router", None)  # how FastAPI keeps an included router
        nested = included.routes if included is not None else getattr(route, "routes", None)
        if nested is not None:
            assert nested, f"{route} holds routes that cannot be seen"
            yield from _walk(nested, prefix + getattr(route, "path", ""))
        else:
            assert isinstance(route, Route), f"an unknown kind of route: {route!r}"
            for method in sorted(route.methods or {"GET"}):
                yield method, prefix + route.path
        if isinstance(route, Mount):
            yield "GET", f"{prefix}{route.path}/anything"


@pytest.fixture(scope="module")
def routes(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Method and path of every route of the application, mounted ones included; parameters filled in."""
    settings = Settings(
        state_dir=tmp_path_factory.mktemp("routes"),
        project=ProjectSettings(virtual_lab_id=VIRTUAL_LAB, project_id=PROJECT),
        oidc=OidcSettings(issuer=issuer.url, client_secret=SecretStr("x" * 12)),
        service=ServiceSettings(scheduler_port=1),
    )
    app = create_app(settings)
    found = []
    for method, path in _walk(app.routes):
        filled = "/".join("x" if part.startswith("{") else part for part in path.split("/"))
        found.append((method, filled))
    app.state.instance.database.close()
    return sorted(set(found))


def _b64(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def bad_tokens(issuer: Issuer) -> dict[str, tuple[str, int]]:
    """Tokens that must not be believed, and the status that each is owed."""
    good = issuer.token()
    header, payload, signature = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    published = requests.get(f"{issuer.url}/protocol/openid-connect/certs", timeout=10).json()["keys"]
    kid = json.loads(base64.urlsafe_b64decode(header + "=="))["kid"]
    stranger = JWK.generate(kty="RSA", size=2048)

    def signed(key: JWK, protected: dict[str, Any], body: dict[str, Any]) -> str:
        made = JWS(json.dumps(body))
        made.add_signature(key, alg="RS256", protected=json.dumps(protected))
        return str(made.serialize(compact=True))

    confused = f"{_b64({'alg': 'HS256', 'typ': 'JWT', 'kid': kid})}.{payload}"
    mac = hmac.digest(json.dumps(published[0]).encode(), confused.encode(), "sha256")
    swapped = _b64({**claims, "groups": [*claims.get("groups", []), "/service/*/admin"]})
    now = int(time.time())
    return {
        "garbage": ("garbage", 401),
        "dots": ("..", 401),
        "empty JSON": (f"{_b64({})}.{_b64({})}.", 401),
        "alg none": (f"{_b64({'alg': 'none', 'typ': 'JWT'})}.{payload}.", 401),
        "alg None": (f"{_b64({'alg': 'None', 'kid': kid})}.{payload}.{signature}", 401),
        "HMAC with the public key": (f"{confused}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}", 401),
        "changed claims": (f"{header}.{swapped}.{signature}", 401),
        "cut signature": (good[:-8], 401),
        "a stranger's key under our kid": (signed(stranger, {"alg": "RS256", "kid": kid}, claims), 401),
        "a key that comes along": (
            signed(stranger, {"alg": "RS256", "jwk": json.loads(stranger.export_public())}, claims),
            401,
        ),
        "kid as a path": (signed(stranger, {"alg": "RS256", "kid": "../../../../dev/null"}, claims), 401),
        "kid that nobody has": (signed(stranger, {"alg": "RS256", "kid": "nobody"}, claims), 401),
        "expired": (issuer.forge(exp=now - 3600, iat=now - 7200), 401),
        "never expires": (issuer.forge(exp=None), 401),
        "from the future": (issuer.forge(nbf=now + 3600), 401),
        "other issuer": (issuer.forge(iss="https://example.org/auth/realms/SBO"), 401),
        "other realm": (issuer.forge(iss=issuer.url + "2"), 401),
        "ID token": (issuer.forge(typ="ID"), 401),
        "refresh token": (issuer.tokens()["refresh_token"], 401),
        "nobody": (issuer.forge(sub=None), 401),
        "oversized": (issuer.forge(padding="x" * 20_000), 401),
        "very oversized": ("x" * 40_000, 401),
        "foreign project": (issuer.token("bob"), 403),
        "virtual lab admin": (issuer.token("victor"), 403),
        "group of another lab's project": (issuer.forge(groups=[f"/proj/{OTHER_VIRTUAL_LAB}/{PROJECT}/member"]), 403),
        "role that is none": (issuer.forge(groups=[f"/proj/{VIRTUAL_LAB}/{PROJECT}/memberx"]), 403),
        "project as a prefix": (issuer.forge(groups=[f"/proj/{VIRTUAL_LAB}/{PROJECT}"]), 403),
        "groups as text": (issuer.forge(groups=f"/proj/{VIRTUAL_LAB}/{PROJECT}/member", sub="somebody-else"), 401),
    }


def test_every_route_refuses_every_bad_token(service: Service, issuer: Issuer, routes: list[tuple[str, str]]) -> None:
    closed = [(method, path) for method, path in routes if path not in OPEN]
    assert len(closed) > 25
    corpus: dict[str, tuple[dict[str, str], int]] = {
        "nothing": ({}, 401),
        "basic": ({"Authorization": "Basic YWxpY2U6YWxpY2U="}, 401),
        "bare": ({"Authorization": "Bearer"}, 401),
        "spaces": ({"Authorization": "Bearer   "}, 401),
        "other cookie": ({"Cookie": "bbpwf=guess; sessionid=None"}, 401),
    }
    bad = bad_tokens(issuer)
    corpus |= {name: ({"Authorization": f"Bearer {token}"}, status) for name, (token, status) in bad.items()}
    good = {"Authorization": f"Bearer {issuer.token()}"}
    corpus |= {
        "other project's header": ({**good, "project-id": OTHER_PROJECT}, 403),
        "other lab's header": ({**good, "virtual-lab-id": OTHER_VIRTUAL_LAB}, 403),
        "empty project header": ({**good, "project-id": ""}, 403),
        "header in upper case": ({**good, "project-id": PROJECT.upper()}, 403),
    }
    wrong: list[str] = []
    with requests.Session() as session:
        for method, path in closed:
            for name, (headers, status) in corpus.items():
                answer = session.request(method, service.url + path, headers=headers, timeout=10, allow_redirects=False)
                if path == "/auth/" and name in {"nothing", "other cookie"} and method == "GET":
                    if not (answer.status_code == 302 and answer.headers["Location"].startswith("/auth/login")):
                        wrong.append(f"{method} {path} {name}: {answer.status_code}")
                    continue
                if answer.status_code != status:
                    wrong.append(f"{method} {path} {name}: {answer.status_code} instead of {status}")
                token = headers.get("Authorization", "").removeprefix("Bearer ").strip()
                if len(token) > 8 and token in answer.text:
                    wrong.append(f"{method} {path} {name}: the token is echoed")
    assert wrong == []


def test_two_tokens_or_none_at_all_in_one_request_are_refused(service: Service, issuer: Issuer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    try:
        connection.putrequest("GET", "/tags/")
        connection.putheader("Authorization", f"Bearer {issuer.token('bob')}")
        connection.putheader("Authorization", f"Bearer {issuer.token('alice')}")
        connection.endheaders()
        assert connection.getresponse().status == 401
    finally:
        connection.close()


def test_what_does_not_exist_is_not_told_to_strangers(service: Service) -> None:
    assert requests.get(f"{service.url}/no/such/page", timeout=10).status_code == 401
    assert service.ask("GET", "/no/such/page").status_code == 404


def test_a_body_of_a_stranger_is_not_read(service: Service) -> None:
    """The refusal comes while the body is still on its way."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    try:
        connection.putrequest("POST", "/ga4gh/wes/v1/runs")
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.putheader("Content-Length", "900000")
        connection.endheaders()
        connection.send(b"--x\r\n")
        assert connection.getresponse().status == 401
    finally:
        connection.close()


@pytest.mark.parametrize("username", ["alice", "ada"])
def test_members_and_admins_of_the_project_are_let_in(service: Service, username: str) -> None:
    own = {"virtual-lab-id": VIRTUAL_LAB, "project-id": PROJECT}
    assert service.ask("GET", "/tags/", username=username).json() == {"virtual_lab": VIRTUAL_LAB, "project": PROJECT}
    assert service.ask("GET", "/tags/", username=username, headers=own).status_code == 200
    assert service.ask("GET", "/ga4gh/wes/v1/service-info", username=username).status_code == 200


def test_health_is_open_and_says_nothing(service: Service) -> None:
    for path in ("/healthz", "/healthz/"):
        answer = requests.get(service.url + path, timeout=10)
        assert (answer.status_code, answer.content) == (204, b"")


def test_errors_have_the_shape_of_their_standard(service: Service) -> None:
    wes = requests.get(f"{service.url}/ga4gh/wes/v1/runs", timeout=10)
    assert wes.json().keys() == {"msg", "status_code"}
    assert wes.json()["status_code"] == 401
    assert wes.headers["WWW-Authenticate"].startswith("Bearer")
    other = service.ask("GET", "/runs/nothing")
    assert other.headers["Content-Type"] == "application/problem+json"
    assert other.json()["status"] == 404
    assert "nothing" in other.json()["detail"]


def test_logs_hold_no_token(service: Service, issuer: Issuer) -> None:
    token = issuer.token()
    requests.get(f"{service.url}/tags/", headers={"Authorization": f"Bearer {token}x"}, timeout=10)
    run_id = service.launch(who="lena")
    service.ended(run_id)
    for path in [*service.folder.glob("*.log"), *service.state.rglob("*")]:
        if path.is_file():
            content = path.read_bytes()
            assert b"eyJ" not in content, path
            assert b"the-secret-of-the-service-client" not in content, path


def test_secrets_are_not_in_the_environment_or_arguments_of_what_runs_user_code(service: Service) -> None:
    run_id = service.launch(who="mia", seconds=3)
    service.ended(run_id)
    module = (
        "import os, luigi\nfrom pathlib import Path\n"
        "class Spy(luigi.Task):\n"
        "    def complete(self):\n        return Path('seen').exists()\n"
        "    def run(self):\n"
        "        Path('seen').write_text(repr(dict(os.environ)) + Path('/proc/self/cmdline').read_text())\n"
    )
    run_id = service.launch("spy:Spy", files=[("spy.py", module)])
    run = service.ended(run_id)
    assert run["state"] == "COMPLETE", run
    seen = (Path(service.state) / "runs" / run_id / "seen").read_text()
    assert "the-secret-of-the-service-client" not in seen
    assert "BBPWF_" not in seen
    assert "eyJ" not in seen
