"""Whose is what: projects see nothing of each other, and members of one do not act on each other's runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from sandbox.tenants import OTHER_PROJECT, OTHER_VIRTUAL_LAB, PEOPLE
from tests.integration.service.conftest import Issuer, Service, wait_until

READS = {"GET", "HEAD"}


@dataclass
class Foreign:
    """Project A's service with a run that goes on, and project B's."""

    a: Service
    b: Service
    run_id: str
    task_id: str
    templates: list[tuple[str, str]]

    def paths(self) -> Iterator[tuple[str, str]]:
        """Method and path of every route about a run, with the ids of A's run filled in."""
        for method, template in self.templates:
            if "{run_id}" in template:
                path = template.replace("{run_id}", self.run_id).replace("{task_id}", self.task_id)
                yield method, "/".join("x" if part.startswith("{") else part for part in path.split("/"))


@pytest.fixture(scope="module")
def foreign(service: Service, make_service: Callable[..., Service], templates: list[tuple[str, str]]) -> Foreign:
    other = make_service(BBPWF_PROJECT__VIRTUAL_LAB_ID=OTHER_VIRTUAL_LAB, BBPWF_PROJECT__PROJECT_ID=OTHER_PROJECT)
    other.start()
    run_id = service.launch(who="private", seconds=600)

    def task() -> Any:
        found = service.ask("GET", f"/runs/{run_id}/tasks").json()["tasks"]
        return found and found[0]["state"] == "RUNNING" and found[0]["id"]

    return Foreign(service, other, run_id, str(wait_until("the run's job runs", task)), templates)


def ask(service: Service, method: str, path: str, token: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {token}"}
    with requests.request(
        method, service.url + path, headers=headers, timeout=60, allow_redirects=False, stream=True
    ) as answer:
        if "event-stream" not in answer.headers.get("Content-Type", ""):
            assert answer.content is not None
    return answer


def test_a_member_of_another_project_is_refused_on_every_route_about_a_run(foreign: Foreign, issuer: Issuer) -> None:
    bob = issuer.token("bob")
    paths = list(foreign.paths())
    assert len(paths) > 12
    assert ask(foreign.b, "GET", "/tags/", bob).status_code == 200
    found = {f"{method} {path}": ask(foreign.a, method, path, bob) for method, path in paths}
    assert {name for name, answer in found.items() if answer.status_code != 403} == set()
    assert {name for name, answer in found.items() if foreign.run_id in answer.text} == set()
    assert foreign.a.run(foreign.run_id)["state"] == "RUNNING"


def test_an_id_of_one_project_means_nothing_to_another(foreign: Foreign, issuer: Issuer) -> None:
    """Not even for somebody who belongs to both: an instance knows its own runs alone."""
    both = issuer.forge(groups=[group for person in PEOPLE for group in person.groups])
    assert ask(foreign.a, "GET", f"/runs/{foreign.run_id}", both).status_code == 200
    found = {f"{m} {p}": ask(foreign.b, m, p, both).status_code for m, p in foreign.paths() if "x" not in p.split("/")}
    assert {name: status for name, status in found.items() if status not in {404, 422, 400}} == {}
    listed = ask(foreign.b, "GET", "/ga4gh/wes/v1/runs", both)
    assert listed.json()["runs"] == []
    assert foreign.a.run(foreign.run_id)["state"] == "RUNNING"


def test_members_see_each_others_runs_and_leave_them_alone(foreign: Foreign, issuer: Issuer) -> None:
    groups = list(PEOPLE[0].groups)
    mallory = issuer.forge(sub="ma110000-0000-4000-8000-000000000009", preferred_username="mallory", groups=groups)
    assert ask(foreign.a, "GET", f"/runs/{foreign.run_id}", mallory).json()["owner"]["username"] == "alice"
    acts = [(method, path) for method, path in foreign.paths() if method not in READS]
    assert len(acts) >= 5
    found = {}
    for method, path in acts:
        query = "?limit=1" if path.endswith("/throttle") else ""
        found[f"{method} {path}"] = ask(foreign.a, method, path + query, mallory).status_code
    assert {name: status for name, status in found.items() if status != 403} == {}
    assert foreign.a.run(foreign.run_id)["state"] == "RUNNING"


def test_an_idempotency_key_is_its_users_own(service: Service, issuer: Issuer) -> None:
    key = {"Idempotency-Key": "the-same-for-both"}
    mine = service.launch(who="same", headers=key)
    assert service.launch(who="same", headers=key) == mine
    assert service.launch(who="same", headers=key, username="ada") != mine


def test_the_projects_administrators_act_on_everybodys_runs(foreign: Foreign) -> None:
    assert foreign.a.ask("POST", f"/runs/{foreign.run_id}/pause", username="ada").status_code == 200
    assert foreign.a.run(foreign.run_id)["state"] == "PAUSED"
    assert foreign.a.ask("POST", f"/runs/{foreign.run_id}/resume", username="ada").status_code == 200
    answer = foreign.a.ask("POST", f"/ga4gh/wes/v1/runs/{foreign.run_id}/cancel", username="ada")
    assert answer.status_code == 200
    run = foreign.a.ended(foreign.run_id)
    assert (run["state"], run["reason"]) == ("CANCELED", "canceled by ada")
