"""An instance on PostgreSQL: runs, restarts and figures as on the embedded database."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import requests

from tests.integration.service.conftest import Service, wait_until
from tests.support import postgres

pytestmark = pytest.mark.postgresql


@pytest.fixture(scope="module")
def on_postgres(make_service: Callable[..., Service]) -> Iterator[Service]:
    with postgres.running() as server:
        made = make_service(BBPWF_DATABASE_URL=server.empty())
        made.start()
        yield made
        made.stop()


def test_an_instance_runs_on_postgresql_and_survives_its_death(on_postgres: Service) -> None:
    done = on_postgres.launch(who="world")
    assert on_postgres.ended(done)["state"] == "COMPLETE"
    slow = on_postgres.launch("greeting:Greetings", people=["a", "b", "c"], seconds=1.5)
    wait_until("its jobs run", lambda: len(on_postgres.ask("GET", f"/runs/{slow}/tasks").json()["tasks"]) >= 3)
    on_postgres.kill()
    on_postgres.start()
    assert on_postgres.ended(slow)["state"] == "COMPLETE"
    for name in "abc":
        assert (on_postgres.data(slow) / f"ran-{name}").read_text() == "once\n"
    listed = on_postgres.ask("GET", "/ga4gh/wes/v1/runs").json()["runs"]
    assert [run["run_id"] for run in listed] == [slow, done]
    counts = on_postgres.ask("GET", "/ga4gh/wes/v1/service-info").json()["system_state_counts"]
    assert counts["COMPLETE"] == 2
    assert 'bbpwf_runs{state="COMPLETE"} 2.0' in on_postgres.ask("GET", "/metrics").text
    wait_until("it is ready", lambda: requests.get(f"{on_postgres.url}/readyz", timeout=60).json()["status"] == "ready")
