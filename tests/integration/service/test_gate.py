"""Nobody gets in without a token of a member: every route, every kind of bad token, over real HTTP."""

from __future__ import annotations

import base64
import hmac
import http.client
import json
import time
from typing import Any

import pytest
import requests
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

from sandbox.tenants import OTHER_PROJECT, OTHER_VIRTUAL_LAB, PROJECT, VIRTUAL_LAB
from service.access import OPEN
from tests.integration.service.conftest import Issuer, Service


@pytest.fixture(scope="module")
def routes(templates: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Method and path of every route of the application, mounted ones included; parameters filled in."""
    found = {
        (method, "/".join("x" if part.startswith("{") else part for part in path.split("/")))
        for method, path in templates
    }
    return sorted(found)


def _b64(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def signed_by(key: JWK, algorithm: str, kid: str, body: dict[str, Any]) -> str:
    made = JWS(json.dumps(body))
    made.allowed_algs = [algorithm]
    made.add_signature(key, alg=algorithm, protected=json.dumps({"alg": algorithm, "kid": kid}))
    return str(made.serialize(compact=True))


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

    public = JWK(**published[0])
    realm_key = issuer.key()
    twice = json.dumps(issuer.claims())[:-1] + ', "typ": "Bearer"}'

    def by_stranger(**extra: Any) -> str:
        return signed(stranger, {"alg": "RS256", "kid": kid, **extra}, claims)

    def hmac_signed(secret: bytes, algorithm: str = "HS256") -> str:
        text = f"{_b64({'alg': algorithm, 'typ': 'JWT', 'kid': kid})}.{payload}"
        digest = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}[algorithm]
        return f"{text}.{base64.urlsafe_b64encode(hmac.digest(secret, text.encode(), digest)).rstrip(b'=').decode()}"

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
        "kid as SQL": (by_stranger(kid="' OR '1'='1"), 401),
        "kid as a URL": (by_stranger(kid=f"{issuer.url}/protocol/openid-connect/certs"), 401),
        "kid as a list": (by_stranger(kid=[kid]), 401),
        "kid empty": (by_stranger(kid=""), 401),
        "kid endless": (by_stranger(kid="k" * 4000), 401),
        "kid of the encryption key": (issuer.forge({"kid": f"{kid}-enc"}), 401),
        "keys elsewhere (jku)": (by_stranger(jku="http://127.0.0.1:9/keys"), 401),
        "keys elsewhere, well signed": (issuer.forge({"jku": "http://127.0.0.1:9/keys"}), 401),
        "certificate elsewhere (x5u)": (by_stranger(x5u="http://127.0.0.1:9/cert"), 401),
        "certificate along (x5c)": (by_stranger(x5c=["MIIB"]), 401),
        "key along, well signed": (issuer.forge({"jwk": json.loads(stranger.export_public())}), 401),
        "critical extension": (issuer.forge({"crit": ["b64"], "b64": True}), 401),
        "claims twice": (issuer.signed(twice), 401),
        "claims that are a list": (issuer.signed("[1]"), 401),
        "claims that are no JSON": (issuer.signed("{'sub': 1}"), 401),
        "HMAC with the public key's PEM": (hmac_signed(public.export_to_pem()), 401),
        "HMAC-384 with the public key's PEM": (hmac_signed(public.export_to_pem(), "HS384"), 401),
        "HMAC-512 with the modulus": (hmac_signed(published[0]["n"].encode(), "HS512"), 401),
        "HMAC with nothing": (hmac_signed(b""), 401),
        "other algorithm of the same key": (issuer.forge({"alg": "PS256"}), 401),
        "elliptic algorithm, RSA key": (f"{_b64({'alg': 'ES256', 'kid': kid})}.{payload}.{signature}", 401),
        "weak algorithm": (signed_by(realm_key, "RS512", kid, claims), 401),
        "not base64": (f"{header}.%%%%.{signature}", 401),
        "base64 with padding": (f"{header}=.{payload}.{signature}", 401),
        "standard base64": (f"{header}.{payload}.{signature[:-4]}+/+/", 401),
        "five parts": (f"{good}.a.b", 401),
        "nested deeply": (f"{base64.urlsafe_b64encode(b'[' * 4000).decode().rstrip('=')}.e30.e30", 401),
        "zero bytes": (good.replace(".", "%00.", 1), 401),
        "issued tomorrow": (issuer.forge(iat=now + 86400), 401),
        "expires as text": (issuer.forge(exp="tomorrow"), 401),
        "expires in another age": (issuer.forge(exp=1e300), 401),
        "issuer as a list": (issuer.forge(iss=[issuer.url]), 401),
        "issuer with a slash": (issuer.forge(iss=issuer.url + "/"), 401),
        "no typ": (issuer.forge(typ=None), 401),
        "typ in lower case": (issuer.forge(typ="bearer"), 401),
        "offline token": (issuer.tokens(scope="openid offline_access")["refresh_token"], 401),
        "real ID token": (issuer.tokens()["id_token"], 401),
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


def test_streams_refuse_bad_tokens_before_a_byte_of_them_is_sent(service: Service, issuer: Issuer) -> None:
    run_id = service.launch(who="stream")
    service.ended(run_id)
    (task, *_) = service.ask("GET", f"/runs/{run_id}/tasks").json()["tasks"]
    streams = [f"/runs/{run_id}/events", f"/runs/{run_id}/tasks/{task['id']}/logs?follow=1"]
    wrong = []
    with requests.Session() as session:
        for path in streams:
            for name, (token, status) in bad_tokens(issuer).items():
                headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream", "Last-Event-ID": "0"}
                with session.get(service.url + path, headers=headers, stream=True, timeout=30) as answer:
                    if answer.status_code != status or "event-stream" in answer.headers.get("Content-Type", ""):
                        wrong.append(f"{path} {name}: {answer.status_code}")
            # tokens belong in the header: elsewhere they end up in logs and histories
            join = "&" if "?" in path else "?"
            if session.get(f"{service.url}{path}{join}access_token={issuer.token()}", timeout=30).status_code != 401:
                wrong.append(f"{path}: token in the query")
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
    seen = (service.work_of(run_id) / "seen").read_text()
    assert "the-secret-of-the-service-client" not in seen
    assert "BBPWF_" not in seen
    assert "eyJ" not in seen
