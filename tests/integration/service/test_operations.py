"""What an operator sees: figures, readiness by part, and logs; with parts that really fail."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from sandbox.process import free_ports
from tests.integration.service.conftest import Service, wait_until

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations.md"
RULES = Path(__file__).parents[3] / "container" / "alarms.yml"


@pytest.fixture(scope="module")
def watched(make_service: Callable[..., Service]) -> Iterator[Service]:
    """A service with a port for Prometheus."""
    made = make_service(BBPWF_SERVICE__METRICS_PORT=str(free_ports(1)[0]), BBPWF_LOG_JSON="true")
    made.start()
    wait_until("it is ready", lambda: ready(made)["status"] == "ready")
    yield made
    made.stop()


def ready(service: Service) -> dict[str, object]:
    return dict(requests.get(f"{service.url}/readyz", timeout=60).json())


def figures(service: Service) -> dict[str, float]:
    """Every sample by its name with labels."""
    page = requests.get(f"http://127.0.0.1:{service.changes['BBPWF_SERVICE__METRICS_PORT']}/metrics", timeout=60)
    samples = (line.rpartition(" ") for line in page.text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def test_runs_jobs_and_answers_are_counted(watched: Service) -> None:
    run_id = watched.launch(who="prometheus")
    assert watched.ended(run_id)["state"] == "COMPLETE"
    assert watched.ask("GET", "/runs/r-none").status_code == 404
    found = figures(watched)
    assert found['bbpwf_runs{state="COMPLETE"}'] == 1
    assert found['bbpwf_jobs{state="COMPLETED"}'] == 1
    assert found["bbpwf_job_queue_wait_seconds_count"] == 1
    assert found['bbpwf_part_up{part="database"}'] == 1
    assert found['bbpwf_errors_total{kind="NotFound"}'] >= 1
    assert found['bbpwf_http_request_seconds_count{status="4xx"}'] >= 1
    assert found["bbpwf_process_resident_memory_bytes"] > 0


def test_members_may_read_figures_and_nobody_else(watched: Service) -> None:
    assert "bbpwf_runs" in watched.ask("GET", "/metrics").text
    assert watched.ask("GET", "/metrics", username="bob").status_code == 403
    assert requests.get(f"{watched.url}/metrics", timeout=60).status_code == 401


def test_a_line_of_the_log_says_which_run_it_is_about(watched: Service) -> None:
    run_id = watched.launch(who="log", code=3)
    assert watched.ended(run_id)["state"] == "EXECUTOR_ERROR"
    said = about(run_id, watched.folder / "service.log")
    assert any("EXECUTOR_ERROR" in str(line["message"]) for line in said)
    said = about(run_id, watched.state / "runs" / run_id / "head.log")
    (failed,) = [line for line in said if "job_key" in line]
    assert {"time", "level", "logger", "message", "task_id"} <= failed.keys()
    assert watched.ask("GET", f"/runs/{run_id}/log").status_code == 200


def about(run_id: str, log: Path) -> list[dict[str, object]]:
    """The lines of a log that say that they are about a run."""
    lines = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    return [line for line in lines if line.get("run_id") == run_id]


def test_readiness_names_the_part_that_fails(make_service: Callable[..., Service]) -> None:
    broken = make_service(BBPWF_OIDC__ISSUER=f"http://127.0.0.1:{free_ports(1)[0]}/auth/realms/SBO")
    broken.start()
    try:
        wait_until("all but the issuer is there", lambda: ready(broken)["failing"] == ["keycloak"])
        assert requests.get(f"{broken.url}/readyz", timeout=60).status_code == 200
        assert ready(broken)["status"] == "degraded"
    finally:
        broken.stop()


def test_every_alarm_is_about_a_figure_that_there_is_and_is_explained(watched: Service) -> None:
    names = {re.split(r"[{ ]", name)[0] for name in figures(watched)}
    told = set(re.findall(r"^# TYPE (\S+)", watched.ask("GET", "/metrics").text, re.MULTILINE))
    alarms = re.findall(r"- alert: (\S+)\n\s+expr: (.+)\n", RULES.read_text())
    assert len(alarms) >= 8
    manual = OPERATIONS.read_text()
    for alarm, expression in alarms:
        used = set(re.findall(r"\bbbpwf_[a-z_]+", expression))
        assert used, alarm
        assert used <= names | told | {f"{name}_total" for name in told}, alarm
        assert f"`{alarm}`" in manual, alarm
    for name in told:
        assert name.removesuffix("_total") in manual, f"{name} is in no manual"
