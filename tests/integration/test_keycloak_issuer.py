"""The real verifier and login flows against the issuer as a process of its own, over loopback HTTP."""

from __future__ import annotations

import base64
import hmac
import json
import re
import statistics
import threading
import time
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS
from pydantic import SecretStr

from bbpwf.clock import SystemClock
from bbpwf.errors import (
    DeadlineExceeded,
    IdentityUnavailable,
    InvalidConfig,
    NotAuthenticated,
    NotAuthorized,
)
from bbpwf.platform.login import DevicePrompt, Login
from bbpwf.platform.membership import membership, require_member
from bbpwf.platform.tokens import TOKEN_LIMIT, TokenVerifier
from bbpwf.redact import Redactor
from bbpwf.settings import OidcSettings, ProjectSettings
from sandbox.process import start, stop
from sandbox.tenants import CLI_CLIENT, PEOPLE, PROJECT, SERVICE_CLIENT, VIRTUAL_LAB
from tests.support.issuer import SECRET, Issuer, running_issuer

REDIRECT = "http://127.0.0.1:4242/callback?from=login"


class ShiftedClock(SystemClock):
    """The machine's clock, moved ahead at will; sleeping takes no time but moves it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead

    def sleep(self, seconds: float) -> None:
        self.ahead += seconds


@pytest.fixture(scope="module")
def one_issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    with running_issuer(tmp_path_factory.mktemp("oidc")) as made:
        yield made


@pytest.fixture
def issuer(one_issuer: Issuer) -> Issuer:
    """The issuer, up and without faults."""
    if one_issuer.running.popen.poll() is not None:
        one_issuer.running = start(one_issuer.process)
    requests.delete(f"{one_issuer.origin}/_faults", timeout=10).raise_for_status()
    return one_issuer


@pytest.fixture
def clock() -> ShiftedClock:
    return ShiftedClock()


@pytest.fixture
def verifier(issuer: Issuer, clock: ShiftedClock) -> TokenVerifier:
    return TokenVerifier(issuer.settings(), clock)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# -- what the realm looks like from outside


def test_discovery_leads_to_endpoints_that_answer(issuer: Issuer) -> None:
    found = requests.get(f"{issuer.url}/.well-known/openid-configuration", timeout=10).json()
    assert found["issuer"] == issuer.url
    keys = requests.get(found["jwks_uri"], timeout=10).json()["keys"]
    assert {key["use"] for key in keys} == {"sig", "enc"}
    assert all("d" not in key for key in keys)
    assert requests.get(found["userinfo_endpoint"], timeout=10).status_code == 401


def test_a_person_gets_a_token_with_the_claims_of_a_keycloak_realm(issuer: Issuer, verifier: TokenVerifier) -> None:
    tokens = issuer.login().password_login("alice", SecretStr("alice"))
    identity = verifier.verify(tokens.access.get_secret_value())
    assert identity.username == "alice"
    assert identity.sub == PEOPLE[0].sub
    assert identity.groups == set(PEOPLE[0].groups)
    assert identity.expires_at == pytest.approx(tokens.expires_at, abs=5)
    assert "alice" not in repr(tokens.access)
    assert tokens.access.get_secret_value() not in repr(identity)


@pytest.mark.parametrize(("username", "role"), [("alice", "member"), ("ada", "admin"), ("victor", None), ("bob", None)])
def test_only_members_of_the_project_may_use_it(
    issuer: Issuer, verifier: TokenVerifier, username: str, role: str | None
) -> None:
    identity = verifier.verify(issuer.token(username))
    assert membership(identity, VIRTUAL_LAB, PROJECT) == role
    project = ProjectSettings(virtual_lab_id=VIRTUAL_LAB, project_id=PROJECT)
    if role is None:
        with pytest.raises(NotAuthorized, match=PROJECT):
            require_member(identity, project)
    else:
        assert require_member(identity, project) == role


# -- tokens that must be refused


def hostile(issuer: Issuer) -> dict[str, str]:
    good = issuer.token()
    header, payload, signature = good.split(".")
    stranger = JWK.generate(kty="RSA", size=2048)
    public = requests.get(f"{issuer.url}/protocol/openid-connect/certs", timeout=10).json()["keys"][0]
    pem = JWK(**public).export_to_pem()
    kid = public["kid"]

    def confused(key: bytes, algorithm: str = "HS256") -> str:
        text = f"{b64(json.dumps({'alg': algorithm, 'kid': kid}).encode())}.{payload}"
        return f"{text}.{b64(hmac.digest(key, text.encode(), 'sha256'))}"

    def by_stranger(**extra: object) -> str:
        signed = JWS(base64.urlsafe_b64decode(payload + "=="))
        signed.add_signature(stranger, alg="RS256", protected=json.dumps({"alg": "RS256", "kid": kid, **extra}))
        return str(signed.serialize(compact=True))

    tokens = issuer.login().password_login("alice", SecretStr("alice"))
    assert tokens.identity is not None
    assert tokens.refresh is not None
    now = int(time.time())
    return {
        "empty": "",
        "space": " ",
        "words": "let me in please",
        "two parts": f"{header}.{payload}",
        "four parts": f"{good}.{signature}",
        "dots": "..",
        "newline after": good + "\n",
        "not base64": "a$.b$.c$",
        "lone surrogate": "\ud800.\ud800.\ud800",
        "header no object": f"{b64(b'[]')}.{payload}.{signature}",
        "header nested deeply": f"{b64(b'[' * 4000)}.{payload[:40]}.x",
        "alg none": f"{b64(json.dumps({'alg': 'none', 'kid': kid}).encode())}.{payload}.",
        "alg None, with signature": f"{b64(json.dumps({'alg': 'None', 'kid': kid}).encode())}.{payload}.{signature}",
        "alg a list": f"{b64(json.dumps({'alg': ['RS256'], 'kid': kid}).encode())}.{payload}.{signature}",
        "HMAC with the public key as PEM": confused(pem),
        "HMAC with the modulus": confused(public["n"].encode()),
        "HS512": confused(pem, "HS512"),
        "no kid": f"{b64(json.dumps({'alg': 'RS256'}).encode())}.{payload}.{signature}",
        "unknown kid": f"{b64(json.dumps({'alg': 'RS256', 'kid': 'x'}).encode())}.{payload}.{signature}",
        "kid of the encryption key": issuer.forge({"kid": f"{kid}-enc"}),
        "algorithm not the key's own": issuer.forge({"alg": "PS256"}),
        "unknown critical extension": f"{b64(json.dumps({'alg': 'RS256', 'kid': kid, 'crit': ['x'], 'x': 1}).encode())}"
        f".{payload}.{signature}",
        "stranger's key": by_stranger(),
        "stranger's key sent along": by_stranger(jwk=json.loads(stranger.export_public())),
        "stranger's keys linked": by_stranger(jku="http://127.0.0.1:9/keys"),
        "signature missing": f"{header}.{payload}.",
        "payload changed": f"{header}.{b64(json.dumps({'sub': 'root', 'typ': 'Bearer'}).encode())}.{signature}",
        "oversized": issuer.forge(padding="x" * TOKEN_LIMIT),
        "expired": issuer.forge(exp=now - 60),
        "never expires": issuer.forge(exp=None),
        "exp is text": issuer.forge(exp="tomorrow"),
        "exp is true": issuer.forge(exp=True),
        "exp is infinite": issuer.forge(exp=float("inf")),
        "exp is NaN": issuer.forge(exp=float("nan")),
        "exp in another age": issuer.forge(exp=1e300),
        "issued tomorrow": issuer.forge(iat=now + 86400),
        "not yet valid": issuer.forge(nbf=now + 3600),
        "another issuer": issuer.forge(iss="https://elsewhere.example/auth/realms/SBO"),
        "issuer's prefix": issuer.forge(iss=issuer.url + "/"),
        "nobody": issuer.forge(sub=None),
        "sub is a number": issuer.forge(sub=7),
        "endless sub": issuer.forge(sub="x" * 300),
        "no typ": issuer.forge(typ=None),
        "typ in lower case": issuer.forge(typ="bearer"),
        "an ID token": tokens.identity.get_secret_value(),
        "a refresh token": tokens.refresh.get_secret_value(),
    }


def test_hostile_tokens_are_refused_without_being_repeated(issuer: Issuer, verifier: TokenVerifier) -> None:
    wrong = {}
    for name, token in hostile(issuer).items():
        try:
            verifier.verify(token)
            wrong[name] = "believed"
        except NotAuthenticated as error:
            said = f"{error} {error!r}"
            if any(part in said for part in token.strip().split(".") if len(part) > 12):
                wrong[name] = said
    assert wrong == {}
    assert verifier.verify(issuer.forge()).username == "alice"  # and the forge itself makes good ones


def test_times_are_judged_with_a_little_leeway(issuer: Issuer, clock: ShiftedClock) -> None:
    verifier = TokenVerifier(issuer.settings(leeway_s=60), clock)
    token = issuer.forge(exp=int(time.time()) + 1000)
    clock.ahead = 1030
    assert verifier.verify(token).username == "alice"
    clock.ahead = 1062
    with pytest.raises(NotAuthenticated, match="expired"):
        verifier.verify(token)
    clock.ahead = -30
    assert verifier.verify(issuer.forge(nbf=int(time.time()))).username == "alice"


def test_an_audience_is_required_only_if_configured(issuer: Issuer, clock: ShiftedClock) -> None:
    strict = TokenVerifier(issuer.settings(audience="bbpwf"), clock)
    for audience in (None, "account", ["account"], 7):
        with pytest.raises(NotAuthenticated, match="aud"):
            strict.verify(issuer.forge(aud=audience))
    assert strict.verify(issuer.forge(aud=["account", "bbpwf"])).username == "alice"


# -- keys: cached, rotated, withdrawn, out of reach


def test_a_rotated_key_is_found_at_once(issuer: Issuer, verifier: TokenVerifier) -> None:
    old = issuer.forge()
    verifier.verify(issuer.token())
    issuer.faults(rotate_keys=True)
    assert verifier.verify(issuer.token("ada")).username == "ada"
    assert verifier.verify(old).username == "alice"  # the earlier key is still published


def test_invented_keys_do_not_hammer_the_issuer(issuer: Issuer, verifier: TokenVerifier, clock: ShiftedClock) -> None:
    verifier.verify(issuer.token())
    invented = [issuer.forge({"kid": f"invented-{number}"}) for number in range(50)]
    issuer.faults(slow_s=0.5)
    begun = time.monotonic()
    for token in invented:
        with pytest.raises(NotAuthenticated, match="does not publish"):
            verifier.verify(token)
    assert time.monotonic() - begun < 9  # one fetch, not fifty, which would take 25 s
    issuer.faults(slow_s=0, rotate_keys=True)
    clock.ahead += 11
    assert verifier.verify(issuer.token("ada")).username == "ada"


def test_withdrawn_keys_stop_working(issuer: Issuer, verifier: TokenVerifier, clock: ShiftedClock) -> None:
    old = issuer.forge(exp=int(time.time()) + 7200)
    assert verifier.verify(old).username == "alice"
    issuer.faults(rotate_keys=True, drop_old_keys=True)
    clock.ahead += 700  # keys and identity are both too old to be believed unasked
    with pytest.raises(NotAuthenticated, match="does not publish"):
        verifier.verify(old)


def test_known_keys_work_while_the_issuer_is_down(issuer: Issuer, verifier: TokenVerifier, clock: ShiftedClock) -> None:
    verifier.verify(issuer.token())
    fresh = issuer.forge(exp=int(time.time()) + 7200, jti="another")
    issuer.faults(down=True)
    assert verifier.verify(fresh).username == "alice"
    clock.ahead += 3600
    assert verifier.verify(issuer.forge(exp=int(time.time()) + 7200, iat=None)).username == "alice"
    with pytest.raises(IdentityUnavailable):
        verifier.verify(issuer.forge({"kid": "rotated-while-away"}))
    clock.ahead += 24 * 3600
    with pytest.raises(IdentityUnavailable):
        verifier.verify(issuer.forge(exp=int(time.time()) + 10**6))


def test_an_issuer_that_was_down_at_first_is_found_later(
    issuer: Issuer, verifier: TokenVerifier, clock: ShiftedClock
) -> None:
    token = issuer.token()
    issuer.faults(down=True)
    with pytest.raises(IdentityUnavailable) as caught:
        verifier.verify(token)
    assert caught.value.retryable
    issuer.faults(down=False)
    clock.ahead += 11
    assert verifier.verify(token).username == "alice"


def test_a_dead_issuer_is_not_waited_for_long(issuer: Issuer, verifier: TokenVerifier) -> None:
    token = issuer.token()
    issuer.faults(slow_s=30)
    begun = time.monotonic()
    with pytest.raises(IdentityUnavailable, match="5 s"):
        verifier.verify(token)
    for _ in range(20):  # and the next callers are told at once
        with pytest.raises(IdentityUnavailable):
            verifier.verify(token)
    assert time.monotonic() - begun < 20


def test_many_threads_fetch_the_keys_once(issuer: Issuer, verifier: TokenVerifier) -> None:
    token = issuer.token()
    issuer.faults(slow_s=1.5)
    outcomes: list[str] = []
    threads = [threading.Thread(target=lambda: outcomes.append(verifier.verify(token).username)) for _ in range(10)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert outcomes == ["alice"] * 10
    assert time.monotonic() - begun < 10  # one after the other they would take 15 s


def test_a_warm_check_takes_less_than_a_millisecond(issuer: Issuer, verifier: TokenVerifier) -> None:
    token = issuer.token()
    verifier.verify(token)
    times = []
    for _ in range(200):
        begun = time.perf_counter()
        verifier.verify(token)
        times.append(time.perf_counter() - begun)
    assert statistics.median(times) < 0.001


# -- groups that only userinfo knows


def test_groups_come_from_userinfo_when_the_token_has_none(issuer: Issuer, verifier: TokenVerifier) -> None:
    issuer.faults(groups_in_userinfo_only=True)
    token = issuer.token()
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert "groups" not in claims
    assert membership(verifier.verify(token), VIRTUAL_LAB, PROJECT) == "member"
    issuer.faults(down=True)
    assert membership(verifier.verify(token), VIRTUAL_LAB, PROJECT) == "member"  # remembered


def test_a_token_without_openid_is_told_from_an_invalid_one(issuer: Issuer, verifier: TokenVerifier) -> None:
    issuer.faults(groups_in_userinfo_only=True)
    narrow = issuer.token(scope="profile")
    with pytest.raises(NotAuthorized, match="scope=openid"):
        verifier.verify(narrow)
    ended = issuer.token()
    issuer.faults(end_sessions=True)
    with pytest.raises(NotAuthenticated, match="session has ended"):
        verifier.verify(ended)


def test_userinfo_of_somebody_else_is_not_believed(issuer: Issuer, verifier: TokenVerifier) -> None:
    payload = issuer.token("ada").split(".")[1]
    session = json.loads(base64.urlsafe_b64decode(payload + "=="))["sid"]
    with pytest.raises(NotAuthenticated, match="somebody else"):
        verifier.verify(issuer.forge(groups=None, sid=session))


def test_unknown_groups_are_not_no_groups(issuer: Issuer, verifier: TokenVerifier) -> None:
    issuer.faults(groups_in_userinfo_only=True)
    verifier.verify(issuer.token())
    other = issuer.token("ada")
    issuer.faults(down=True)
    with pytest.raises(IdentityUnavailable):
        verifier.verify(other)


def test_an_identity_is_looked_at_again_after_five_minutes(
    issuer: Issuer, verifier: TokenVerifier, clock: ShiftedClock
) -> None:
    issuer.faults(groups_in_userinfo_only=True, access_lifespan_s=3600)
    token = issuer.token()
    verifier.verify(token)
    issuer.faults(end_sessions=True)
    clock.ahead = 290
    verifier.verify(token)
    clock.ahead = 310
    with pytest.raises(NotAuthenticated, match="session has ended"):
        verifier.verify(token)


# -- flows


def test_a_wrong_password_is_refused_for_good(issuer: Issuer) -> None:
    with pytest.raises(NotAuthenticated, match="Invalid user credentials") as caught:
        issuer.login().password_login("alice", SecretStr("not-her-password"))
    assert not caught.value.retryable
    assert "not-her-password" not in str(caught.value)


def test_tokens_are_refreshed_until_the_session_ends(issuer: Issuer, verifier: TokenVerifier) -> None:
    login = issuer.login()
    first = login.password_login("alice", SecretStr("alice"))
    assert first.refresh is not None
    second = login.refresh(first.refresh)
    assert second.access != first.access
    assert verifier.verify(second.access.get_secret_value()).username == "alice"
    assert second.refresh is not None
    login.log_out(second.refresh)
    with pytest.raises(NotAuthenticated, match="Session not active") as caught:
        login.refresh(second.refresh)
    assert not caught.value.retryable
    with pytest.raises(NotAuthenticated, match="required client"):
        issuer.login(client_id=SERVICE_CLIENT).refresh(second.refresh)


def test_refresh_tokens_end_and_offline_ones_do_not(issuer: Issuer) -> None:
    issuer.faults(refresh_lifespan_s=1)
    login = issuer.login()
    short = login.password_login("alice", SecretStr("alice"))
    offline = login.password_login("alice", SecretStr("alice"), scope="openid offline_access")
    assert short.refresh is not None
    assert short.refresh_expires_at is not None
    assert offline.refresh is not None
    assert offline.refresh_expires_at is None
    said, deadline = "", time.monotonic() + 10
    while not said and time.monotonic() < deadline:
        try:
            login.refresh(short.refresh)
            time.sleep(0.1)
        except NotAuthenticated as error:
            said = error.message
    assert "Token is not active" in said
    assert login.refresh(offline.refresh).scope.split() == ["openid", "profile", "email", "groups", "offline_access"]


def test_the_service_has_an_account_of_its_own(issuer: Issuer, verifier: TokenVerifier) -> None:
    tokens = issuer.login(client_id=SERVICE_CLIENT).client_credentials()
    assert tokens.refresh is None
    identity = verifier.verify(tokens.access.get_secret_value())
    assert identity.username == f"service-account-{SERVICE_CLIENT}"
    assert membership(identity, VIRTUAL_LAB, PROJECT) is None


def test_a_wrong_client_secret_is_a_matter_of_configuration(issuer: Issuer) -> None:
    settings = issuer.settings(client_secret=SecretStr("some-other-secret"))
    with pytest.raises(InvalidConfig, match=SERVICE_CLIENT) as caught:
        Login(settings, SystemClock()).client_credentials()
    assert "some-other-secret" not in str(caught.value)
    with pytest.raises(InvalidConfig, match="direct access grants"):
        issuer.login(client_id=SERVICE_CLIENT).password_login("alice", SecretStr("alice"))


def test_an_issuer_that_is_down_is_worth_another_try(issuer: Issuer) -> None:
    login = issuer.login()
    issuer.faults(down=True)
    with pytest.raises(IdentityUnavailable, match="503") as caught:
        login.password_login("alice", SecretStr("alice"))
    assert caught.value.retryable
    stop(issuer.running)
    with pytest.raises(IdentityUnavailable) as caught:
        login.client_credentials()
    assert caught.value.retryable


def browse(url: str, username: str, password: str) -> requests.Response:
    """What a browser does: open the login page, fill its form in, and stop before the redirect to the caller."""
    with requests.Session() as browser:
        page = browser.get(url, timeout=10)
        action = re.search(r'<form id="kc-form-login" method="post" action="([^"]+)"', page.text)
        assert action is not None, page.text
        target = requests.compat.urljoin(url, action.group(1))
        form = {"username": username, "password": password}
        return browser.post(target, data=form, allow_redirects=False, timeout=10)


@pytest.mark.parametrize("client_id", [SERVICE_CLIENT, CLI_CLIENT])
def test_a_browser_login_brings_back_tokens_once(issuer: Issuer, verifier: TokenVerifier, client_id: str) -> None:
    login = issuer.login(client_id=client_id)
    begun = login.authorization(REDIRECT)
    answer = browse(begun.url, "ada", "ada")
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith(REDIRECT + "&")
    back = parse_qs(urlsplit(answer.headers["Location"]).query)
    tokens = login.exchange_code(begun, back["code"][0], back["state"][0])
    assert verifier.verify(tokens.access.get_secret_value()).username == "ada"
    with pytest.raises(NotAuthenticated, match="Code not valid"):
        login.exchange_code(begun, back["code"][0], back["state"][0])
    assert tokens.refresh is not None
    with pytest.raises(NotAuthenticated, match="Session not active"):  # a code shown twice ends the session
        login.refresh(tokens.refresh)


def test_a_browser_login_that_was_tampered_with_is_refused(issuer: Issuer) -> None:
    login = issuer.login()
    begun = login.authorization(REDIRECT)
    other = login.authorization(REDIRECT)

    def code() -> tuple[str, str]:
        back = parse_qs(urlsplit(browse(begun.url, "ada", "ada").headers["Location"]).query)
        return back["code"][0], back["state"][0]

    with pytest.raises(NotAuthenticated, match="state"):
        login.exchange_code(other, *code())
    stolen, _ = code()
    with pytest.raises(NotAuthenticated, match="PKCE"):
        login.exchange_code(other, stolen, other.state)


def test_the_login_page_says_when_the_password_is_wrong(issuer: Issuer) -> None:
    begun = issuer.login().authorization(REDIRECT)
    answer = browse(begun.url, "ada", "wrong")
    assert answer.status_code == 200
    assert "Invalid username or password" in answer.text


@pytest.mark.parametrize(
    "redirect",
    ["https://evil.example/cb", "http://evil.example/cb", "http://127.0.0.1.evil.example/", "", "javascript:1"],
)
def test_nobody_is_sent_to_a_foreign_address(issuer: Issuer, redirect: str) -> None:
    begun = issuer.login().authorization(redirect)
    answer = requests.get(begun.url, allow_redirects=False, timeout=10)
    assert answer.status_code == 400
    assert "redirect_uri" in answer.text


def test_a_terminal_login_waits_for_the_person(issuer: Issuer, verifier: TokenVerifier) -> None:
    issuer.faults(device_interval_s=0)
    shown: list[DevicePrompt] = []

    def agree(prompt: DevicePrompt) -> None:
        shown.append(prompt)
        form = {"user_code": prompt.user_code.lower(), "username": "alice", "password": "alice", "decision": "yes"}
        assert "successful" in requests.post(prompt.uri, data=form, timeout=10).text

    tokens = issuer.login(ShiftedClock()).device_login(agree)
    assert tokens is not None
    assert verifier.verify(tokens.access.get_secret_value()).username == "alice"
    assert shown[0].user_code in requests.get(shown[0].complete_uri, timeout=10).text


def test_a_terminal_login_can_be_refused_ignored_or_given_up(issuer: Issuer) -> None:
    issuer.faults(device_interval_s=0, device_lifespan_s=20)

    def refuse(prompt: DevicePrompt) -> None:
        form = {"user_code": prompt.user_code, "username": "alice", "password": "alice", "decision": "no"}
        assert "refused" in requests.post(prompt.uri, data=form, timeout=10).text

    with pytest.raises(NotAuthenticated, match="refused by the person"):
        issuer.login(ShiftedClock()).device_login(refuse)
    with pytest.raises(DeadlineExceeded, match="nobody confirmed"):
        issuer.login(ShiftedClock()).device_login(lambda _: None)
    assert issuer.login(ShiftedClock()).device_login(lambda _: None, cancelled=lambda: True) is None


def test_polling_too_quickly_slows_the_terminal_login_down(issuer: Issuer) -> None:
    issuer.faults(device_interval_s=3600)
    clock = ShiftedClock()
    begun = clock.monotonic()
    with pytest.raises(DeadlineExceeded):
        # the issuer's clock is real, so every poll but the first is too quick for it
        issuer.login(clock).device_login(lambda _: None)
    assert clock.monotonic() - begun >= 600


def test_a_restart_of_the_issuer_keeps_sessions_and_keys(issuer: Issuer, verifier: TokenVerifier) -> None:
    login = issuer.login()
    tokens = login.password_login("alice", SecretStr("alice"))
    assert tokens.refresh is not None
    issuer.restart()
    assert verifier.verify(tokens.access.get_secret_value()).username == "alice"
    assert login.refresh(tokens.refresh).access != tokens.access
    assert (issuer.state / "keys.json").stat().st_mode & 0o077 == 0


def test_introspection_tells_the_living_from_the_dead(issuer: Issuer) -> None:
    token = issuer.token()
    url = f"{issuer.url}/protocol/openid-connect/token/introspect"

    def active() -> bool:
        answer = requests.post(url, data={"token": token}, auth=(SERVICE_CLIENT, SECRET), timeout=10)
        return bool(answer.json()["active"])

    assert active()
    issuer.faults(end_sessions=True)
    assert not active()
    assert requests.post(url, data={"token": token, "client_id": CLI_CLIENT}, timeout=10).status_code == 403


def test_tokens_are_masked_and_do_not_pile_up_in_the_redactor(issuer: Issuer) -> None:
    redactor = Redactor()
    login = Login(issuer.settings(), SystemClock(), client_id=CLI_CLIENT, redactor=redactor)
    tokens = login.password_login("alice", SecretStr("alice"))
    assert tokens.refresh is not None
    for token in (tokens.access, tokens.refresh):
        assert redactor.mask(f"<{token.get_secret_value()}>") == "<[redacted]>"
    assert redactor.mask(f"<{tokens.refresh.get_secret_value()[4:]}>") != "<[redacted]>"  # by its looks, not by value


def test_a_misspelt_fault_is_an_error(issuer: Issuer) -> None:
    answer = requests.post(f"{issuer.origin}/_faults", json={"dwon": True}, timeout=10)
    assert answer.status_code == 422


@pytest.mark.parametrize("issuer_url", ["", "https://host", "/auth/realms/SBO", "https://host/auth/realms/", "x"])
def test_an_issuer_that_is_no_realm_is_refused_at_once(issuer_url: str) -> None:
    with pytest.raises(InvalidConfig):
        Login(OidcSettings(issuer=issuer_url), SystemClock())


def test_the_verifier_needs_an_issuer() -> None:
    with pytest.raises(InvalidConfig, match="BBPWF_OIDC__ISSUER"):
        TokenVerifier(OidcSettings(), SystemClock())
