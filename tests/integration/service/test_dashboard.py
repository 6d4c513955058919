"""Luigi's dashboard behind our login: in a real browser, and against those who should not see it."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from bbpwf.workflow.guarded import LOOKS
from tests.integration.service.conftest import Service, processes, wait_until
from tests.support.browser import browser

PAGE = "/dashboard/static/visualiser/index.html"


def log_in(session: requests.Session, service: Service, username: str) -> requests.Response:
    """Go to the dashboard as a browser would; the page after the login form was sent."""
    form = session.get(f"{service.url}/dashboard/", headers={"Accept": "text/html"}, timeout=10)
    action = re.search(r'action="([^"]+)"', form.text)
    assert action, form.text
    target = action[1].replace("&amp;", "&")
    return session.post(
        requests.compat.urljoin(form.url, target),
        data={"username": username, "password": username},
        headers={"Accept": "text/html"},
        timeout=10,
    )


@pytest.mark.browser
def test_a_person_logs_in_and_sees_the_tasks_of_a_run(service: Service, tmp_path: Path) -> None:
    run_id = service.launch("greeting:Greetings", people=["paul", "quinn"])
    service.ended(run_id)
    with browser(tmp_path) as page:
        page.open(f"{service.url}/dashboard/")
        page.wait_for("!!document.getElementById('kc-form-login')")
        page.evaluate(
            "document.getElementById('username').value='alice';document.getElementById('password').value='alice';"
            "document.querySelector('#kc-form-login button').click()"
        )
        page.wait_for("location.pathname.startsWith('/dashboard/static/visualiser/')")
        page.wait_for("document.querySelectorAll('#taskTable tbody tr').length > 2")
        assert "Greetings" in page.evaluate("document.getElementById('familySidebar').innerText")
        page.evaluate("$('#taskTable').DataTable().search('paul').draw()")
        rows = page.wait_for("document.querySelector('#taskTable tbody').innerText")
        assert "Hello" in rows
        assert "paul" in rows
        assert "DONE" in rows
        shot = tmp_path / "dashboard.png"
        page.screenshot(shot)
        assert shot.stat().st_size > 20_000
        (cookie,) = [each for each in page.cookies() if each["name"] == "bbpwf"]
        assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (True, "Lax", "/")
        assert page.evaluate("document.cookie") == ""
        # what the dashboard's own buttons would do is refused
        status = page.evaluate("fetch('/dashboard/api/pause').then(a => a.status)")
        assert status == 403


def test_only_looking_is_possible(service: Service) -> None:
    assert service.ask("GET", "/api/task_list", params={"data": '{"status": "", "upstream_status": ""}'}).ok
    assert service.ask("GET", "/dashboard/api/worker_list").json().keys() == {"response"}
    for method in (
        "pause",
        "add_task",
        "get_work",
        "re_enable_task",
        "disable_worker",
        "prune",
        "nothing",
        "..%2fmetrics",
    ):
        assert method not in LOOKS
        for prefix in ("/api", "/dashboard/api"):
            assert service.ask("GET", f"{prefix}/{method}").status_code in {403, 404}, method
    for verb in ("POST", "PUT", "DELETE", "PATCH"):
        assert service.ask(verb, "/api/task_list").status_code == 403
    for data in ("[]", "{", "[" * 5000, json.dumps({"a": "x" * 20_000})):
        assert service.ask("GET", "/api/task_list", params={"data": data}).status_code in {400, 414, 431}
    assert service.ask("GET", "/dashboard/history").status_code == 404


def test_the_page_may_load_nothing_from_elsewhere(service: Service) -> None:
    answer = service.ask("GET", PAGE)
    assert answer.ok
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_a_session_reads_and_nothing_more(service: Service) -> None:
    with requests.Session() as session:
        page = log_in(session, service, "alice")
        assert page.url == service.url + PAGE, page.text
        assert session.get(f"{service.url}/api/task_list", timeout=10).ok
        assert session.get(f"{service.url}/auth/", timeout=10).status_code == 204
        run_id = service.launch(who="rosa")
        for method, path in [
            ("POST", "/ga4gh/wes/v1/runs"),
            ("POST", f"/ga4gh/wes/v1/runs/{run_id}/cancel"),
            ("POST", f"/runs/{run_id}/resume"),
            ("POST", "/launch/greeting.Hello/"),
            ("GET", f"/runs/{run_id}"),
        ]:
            assert session.request(method, service.url + path, timeout=10).status_code == 401, path
        service.ended(run_id)
        assert session.get(f"{service.url}/auth/logout", timeout=10).ok
        assert session.get(f"{service.url}/api/task_list", timeout=10).ok, "a GET must not log out"
        session.post(f"{service.url}/auth/logout", timeout=10)
        assert session.get(f"{service.url}/api/task_list", timeout=10).status_code == 401


@pytest.mark.parametrize("username", ["bob", "victor"])
def test_people_of_other_projects_get_no_session(service: Service, username: str) -> None:
    with requests.Session() as session:
        page = log_in(session, service, username)
        assert page.status_code == 403
        assert "bbpwf" not in session.cookies
        assert session.get(f"{service.url}/api/task_list", timeout=10).status_code == 401


def test_a_login_that_somebody_else_began_is_not_finished(service: Service) -> None:
    with requests.Session() as mine, requests.Session() as victim:
        begun = mine.get(f"{service.url}/auth/login", timeout=10, allow_redirects=False)
        state = parse_qs(urlsplit(begun.headers["Location"]).query)["state"][0]
        for forged in (state, "x" * 32):
            answer = victim.get(f"{service.url}/auth/callback", params={"code": "c", "state": forged}, timeout=10)
            assert answer.status_code == 401
        assert "bbpwf" not in victim.cookies
        again = mine.get(f"{service.url}/auth/callback", params={"code": "c", "state": state}, timeout=10)
        assert again.status_code == 401, "a state is good for one attempt"
        query = parse_qs(urlsplit(begun.headers["Location"]).query)
        assert query["code_challenge_method"] == ["S256"]
        assert query["nonce"][0]


@pytest.mark.parametrize(
    "target", ["https://example.org/", "//example.org/", "/\\example.org", "javascript:alert(1)", "/\r\nx: y"]
)
def test_the_login_leads_nowhere_else(service: Service, target: str) -> None:
    with requests.Session() as session:
        form = session.get(f"{service.url}/auth/login", params={"next": target}, timeout=10)
        action = re.search(r'action="([^"]+)"', form.text)
        assert action
        page = session.post(
            requests.compat.urljoin(form.url, action[1].replace("&amp;", "&")),
            data={"username": "alice", "password": "alice"},
            timeout=10,
        )
        assert page.url == service.url + PAGE


def test_programs_are_told_401_and_not_sent_to_a_page(service: Service) -> None:
    answer = requests.get(f"{service.url}/dashboard/", timeout=10, allow_redirects=False)
    assert answer.status_code == 401


def test_the_dashboard_says_so_while_the_scheduler_is_away(service: Service) -> None:
    (scheduler,) = [pid for pid, command in processes(service).items() if "luigid" in command]
    os.kill(scheduler, signal.SIGKILL)
    answer = service.ask("GET", "/api/task_list")
    assert answer.status_code in {200, 502}
    wait_until("it is back", lambda: service.ask("GET", "/api/task_list").ok, within=30)
