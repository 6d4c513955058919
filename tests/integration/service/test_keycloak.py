"""A real Keycloak before a real service: logins, groups, rotation, revocation, offline logins, outages."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from cryptography.fernet import Fernet

from bbpwf.cluster.tokens import EARLY_S
from sandbox.keycloak_realm import OTHER_REALM, PLAIN_CLIENT
from sandbox.tenants import PROJECT, SERVICE_CLIENT, VIRTUAL_LAB
from tests.integration.service.conftest import Service, wait_until
from tests.support.issuer import SECRET
from tests.support.keycloak import Keycloak, browser, log_in, running_keycloak, submit

pytestmark = pytest.mark.keycloak

OFFLINE_KEY = Fernet.generate_key().decode()

MODULE = '''
import time
from pathlib import Path

import luigi

from bbpwf.workflow.context import current


class Registers(luigi.Task):
    """Wants a token when it is told to."""

    def complete(self):
        return Path("registered").exists()

    def run(self):
        while not Path("go").exists():
            time.sleep(0.05)
        Path("registered").write_text(current().agent.access_token().split(".")[1])
'''
"""A run that needs a token at a time that the test chooses, and says what claims it was given."""


@pytest.fixture(scope="module")
def keycloak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keycloak]:
    with running_keycloak(tmp_path_factory.mktemp("kc")) as made:
        yield made


@pytest.fixture(scope="module")
def service(keycloak: Keycloak, make_service: Callable[..., Service]) -> Service:
    made = make_service(
        BBPWF_OIDC__OFFLINE_KEYS=json.dumps([OFFLINE_KEY]), BBPWF_SERVICE__TASK_MODULES='["registering"]'
    )
    made.issuer = keycloak
    (made.folder / "workflows" / "registering.py").write_text(MODULE)
    made.start()
    return made


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def status(service: Service, token: str, path: str = "/tags/") -> int:
    return requests.get(service.url + path, headers=bearer(token), timeout=60).status_code


def bbpwf(service: Service, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**service.env, "BBPWF_STATE_DIR": str(service.folder / "laptop"), "COLUMNS": "500", **variables}
    command = [sys.executable, "-m", "bbpwf.cli.main", *argv]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


# -- who gets in


def test_members_get_in_whether_the_token_or_userinfo_tells_their_groups(service: Service, keycloak: Keycloak) -> None:
    for client in ("obi-entitysdk-auth", PLAIN_CLIENT):
        for username in ("alice", "ada"):
            token = keycloak.tokens(username, client=client)["access_token"]
            answer = requests.get(f"{service.url}/tags/", headers=bearer(token), timeout=60)
            assert answer.json() == {"virtual_lab": VIRTUAL_LAB, "project": PROJECT}, client


def test_others_do_not(service: Service, keycloak: Keycloak) -> None:
    alice = keycloak.tokens()
    form = {"grant_type": "client_credentials", "client_id": SERVICE_CLIENT, "client_secret": SECRET}
    robot = requests.post(f"{keycloak.url}/protocol/openid-connect/token", data=form, timeout=60).json()
    bad = {
        "of another project": (keycloak.token("bob"), 403),
        "virtual lab's administrator": (keycloak.token("victor"), 403),
        "administrator, by userinfo": (keycloak.tokens("victor", client=PLAIN_CLIENT)["access_token"], 403),
        "service account": (robot["access_token"], 403),
        "without openid, no groups can be read": (
            keycloak.tokens(client=PLAIN_CLIENT, scope="profile")["access_token"],
            403,
        ),
        "ID token": (alice["id_token"], 401),
        "refresh token": (alice["refresh_token"], 401),
        "offline token": (keycloak.tokens(scope="openid offline_access")["refresh_token"], 401),
        "other realm": (keycloak.tokens(realm=OTHER_REALM)["access_token"], 401),
    }
    found = {name: status(service, token) for name, (token, _) in bad.items()}
    assert found == {name: expected for name, (_, expected) in bad.items()}


# -- logins


def test_a_browser_reaches_the_dashboard_through_keycloaks_login_page(service: Service, keycloak: Keycloak) -> None:
    with browser() as window:
        page = window.get(f"{service.url}/dashboard/", timeout=60)
        assert page.url.startswith(keycloak.url)
        assert "code_challenge_method=S256" in page.history[-1].headers["Location"]
        wrong = submit(window, page, username="alice", password="not-hers")
        assert "Invalid username or password" in wrong.text
        dashboard = log_in(window, wrong, "alice")
        assert dashboard.url.startswith(f"{service.url}/dashboard/")
        assert dashboard.status_code == 200
        (cookie,) = [each for each in window.cookies if each.name == "bbpwf"]
        assert cookie.has_nonstandard_attr("HttpOnly")
        assert cookie.get_nonstandard_attr("SameSite") == "lax"
        assert "." not in (cookie.value or "")  # no token, but a name for a session that is kept over there
        assert window.get(f"{service.url}/auth/", timeout=60).status_code == 204
        # the session may look, and not act
        assert window.post(f"{service.url}/ga4gh/wes/v1/runs", timeout=60).status_code == 401
    with browser() as stranger:
        foreign = log_in(stranger, stranger.get(f"{service.url}/dashboard/", timeout=60), "bob")
        assert foreign.status_code == 403
        assert "bbpwf" not in stranger.cookies


def device_login(service: Service, username: str, *options: str) -> str:
    """``bbpwf login`` with its code confirmed in a browser elsewhere; what it printed."""
    env = {**service.env, "BBPWF_STATE_DIR": str(service.folder / "laptop")}
    with subprocess.Popen(
        [sys.executable, "-m", "bbpwf.cli.main", "login", *options],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        try:
            assert command.stderr is not None
            link = re.search(r"https?://\S+", command.stderr.readline())
            assert link is not None
            with browser() as window:
                asked = log_in(window, window.get(link[0], timeout=60), username)
                done = submit(window, asked, accept="Yes")
                assert "Device Login Successful" in done.text
            out, _ = command.communicate(timeout=120)
        finally:
            command.kill()
    assert command.returncode == 0, out
    return out


def test_a_terminal_logs_in_by_a_browser_elsewhere(service: Service) -> None:
    assert "logged in as alice, member of project" in device_login(service, "alice")
    listed = bbpwf(service, "runs", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    assert isinstance(json.loads(listed.stdout), list)
    assert bbpwf(service, "logout").returncode == 0
    assert bbpwf(service, "runs", "list").returncode == 3


# -- keys and sessions that end


def test_rotated_keys_are_found_and_withdrawn_ones_refused(service: Service, keycloak: Keycloak) -> None:
    assert status(service, keycloak.token()) == 200
    unseen = keycloak.tokens()["access_token"]
    keycloak.rotate_keys(drop_old=True)
    new = keycloak.tokens()["access_token"]
    # an unknown kid has the keys fetched, at most every ten seconds
    wait_until("the new key is known", lambda: status(service, new) == 200)
    assert status(service, unseen) == 401


def test_an_ended_session_ends_what_depends_on_it(service: Service, keycloak: Keycloak) -> None:
    tokens = keycloak.tokens("ada", client=PLAIN_CLIENT)
    with browser() as window:
        log_in(window, window.get(f"{service.url}/dashboard/", timeout=60), "ada")
        keycloak.log_out("ada")
        # groups from userinfo: the end is known at once
        assert status(service, tokens["access_token"]) == 401
        # this one's refresh token is void, so that with its access token the browser's session ends too
        form = {
            "grant_type": "refresh_token",
            "client_id": PLAIN_CLIENT,
            "refresh_token": tokens["refresh_token"],
        }
        refused = requests.post(f"{keycloak.url}/protocol/openid-connect/token", data=form, timeout=60)
        assert refused.json()["error"] == "invalid_grant"


# -- offline logins


def test_a_run_parks_when_consent_is_gone_and_goes_on_after_a_new_login(service: Service, keycloak: Keycloak) -> None:
    assert "your runs act for you" in device_login(service, "alice", "--offline")
    about = service.ask("GET", "/consent").json()
    assert (about["state"], about["parked_runs"]) == ("given", [])
    database = (service.state / "bbpwf.db").read_bytes() + (service.state / "bbpwf.db-wal").read_bytes()
    assert b"eyJ" not in database

    with keycloak.short_tokens(SHORT_S):
        run_id = launched_a_while_ago(service, "alice")
        let_go(service, run_id)
        run = service.ended(run_id)
        assert run["state"] == "COMPLETE", run
        renewed = (service.work_of(run_id) / "registered").read_text()
        assert claims(renewed)["preferred_username"] == "alice"
        assert claims(renewed)["iss"] == keycloak.url

        run_id = launched_a_while_ago(service, "alice")
        keycloak.revoke_offline("alice")
        let_go(service, run_id)
        wait_until("the run is parked", lambda: service.run(run_id)["state"] == "PAUSED")
        shown = bbpwf(service, "runs", "show", run_id, BBPWF_TOKEN=keycloak.token())
        assert shown.returncode == 0, shown.stderr
        assert "parked: the owner's offline login is gone" in shown.stdout
        assert "bbpwf login --offline" in shown.stdout
        wes = service.ask("GET", f"/ga4gh/wes/v1/runs/{run_id}/status").json()
        assert wes["state"] == "PAUSED"
        about = service.ask("GET", "/consent").json()
        assert (about["state"], about["parked_runs"]) == ("lost", [run_id])
        # somebody else's login does not do
        assert leave(service, keycloak, "ada") == []
        assert service.run(run_id)["state"] == "PAUSED"

        assert f"run {run_id} goes on" in device_login(service, "alice", "--offline")
        run = service.ended(run_id)
        assert run["state"] == "COMPLETE", run
    assert bbpwf(service, "logout", "--offline").returncode == 0
    assert service.ask("GET", "/consent").json()["state"] == "lost"


def test_a_browser_leaves_an_offline_login_by_a_button_and_not_by_a_link(service: Service, keycloak: Keycloak) -> None:
    with browser() as window:
        page = window.get(f"{service.url}/auth/offline", timeout=60)
        elsewhere = {"Origin": "https://evil.example"}
        assert window.post(page.url, headers=elsewhere, timeout=60).status_code == 403
        assert window.post(page.url, timeout=60).status_code == 403
        asked = window.post(page.url, headers={"Origin": service.url}, timeout=60)
        assert asked.url.startswith(keycloak.url)
        done = log_in(window, asked, "ada")
        assert "offline login is kept" in done.text, done.text
    assert service.ask("GET", "/consent", username="ada").json()["state"] == "given"
    assert service.ask("GET", "/consent").json()["state"] != "given"  # alice's is her own
    assert service.ask("DELETE", "/consent", username="ada").status_code == 204


def test_nobody_can_leave_anothers_offline_login_or_none_at_all(service: Service, keycloak: Keycloak) -> None:
    def give(token: str) -> int:
        return service.ask("PUT", "/consent", json={"refresh_token": token}).status_code

    adas = keycloak.tokens("ada", scope="openid offline_access")["refresh_token"]
    others = keycloak.tokens(client=PLAIN_CLIENT, scope="openid offline_access")["refresh_token"]
    online = keycloak.tokens()
    assert give(adas) == 403
    assert give(others) == 400  # of a client that is nothing to us
    assert give(online["refresh_token"]) == 400
    assert give(online["access_token"]) == 400
    assert give("x.y.z") == 400
    header, payload, signature = keycloak.tokens(scope="openid offline_access")["refresh_token"].split(".")
    assert give(f"{header}.{payload}.{signature[::-1]}") == 401


# -- outages; the last, as they take a while


def test_an_outage_lets_nobody_new_in_and_loses_nothing(service: Service, keycloak: Keycloak) -> None:
    seen, unseen = keycloak.tokens("ada")["access_token"], keycloak.tokens("ada")["access_token"]
    asks_userinfo = keycloak.tokens("ada", client=PLAIN_CLIENT)["access_token"]
    assert status(service, seen) == 200
    assert leave(service, keycloak, "ada") == []
    run_id = service.launch("registering:Registers", username="ada")
    wait_until("it runs", lambda: service.run(run_id)["state"] == "RUNNING")
    keycloak.stop()
    assert status(service, seen) == 200
    assert status(service, unseen) == 200  # the keys are known
    assert status(service, asks_userinfo) == 503  # not 401 or 403: nobody knows
    service.kill()
    service.start()
    answer = requests.get(f"{service.url}/tags/", headers=bearer(seen), timeout=60)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert requests.get(f"{service.url}/healthz", timeout=60).status_code == 204
    let_go(service, run_id)
    keycloak.start()
    wait_until("it is known who calls", lambda: status(service, seen) == 200)
    run = service.ended(run_id)
    assert run["state"] == "COMPLETE", run
    # the launch's own token was lost with the service: the offline login stood in
    renewed = (service.work_of(run_id) / "registered").read_text()
    assert claims(renewed)["preferred_username"] == "ada"


SHORT_S = 35
"""Access tokens this short are handed out for their first five seconds (``bbpwf.cluster.tokens.EARLY_S``)."""


def launched_a_while_ago(service: Service, username: str) -> str:
    """A run whose launch's own token is handed out no more."""
    run_id = service.launch("registering:Registers", username=username)
    began = time.monotonic()
    wait_until("the token of the launch nears its end", lambda: time.monotonic() - began > SHORT_S - EARLY_S + 1)
    return run_id


def leave(service: Service, keycloak: Keycloak, username: str) -> list[str]:
    """Leave an offline login by the API; the runs that go on."""
    token = keycloak.tokens(username, scope="openid offline_access")["refresh_token"]
    answer = service.ask("PUT", "/consent", username=username, json={"refresh_token": token})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["resumed"])


def let_go(service: Service, run_id: str) -> None:
    (service.work_of(run_id) / "go").touch()


def claims(payload: str) -> dict[str, Any]:
    return dict(json.loads(base64.urlsafe_b64decode(payload + "==")))
