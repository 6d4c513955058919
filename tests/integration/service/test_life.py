"""The life of an instance and of its runs: how many at once, how it is stopped, and when it stops itself."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import requests

from tests.integration.service.conftest import Service, processes, wait_until

STOPPED_WITHIN_S = 50.0
"""Less than ECS waits before it kills (60 s); what an idle machine needs is told by the test's own duration."""


def test_beyond_the_limit_a_launch_is_refused_with_when_to_try_again(make_service: Callable[..., Service]) -> None:
    service = make_service(BBPWF_SERVICE__MAX_QUEUED_PER_USER="2", BBPWF_SERVICE__MAX_RUNS_PER_USER="1")
    service.start()
    first, second = service.launch(who="ada", seconds=30), service.launch(who="bob")
    fields = {"workflow_type": "LUIGI", "workflow_type_version": "3.8", "workflow_url": "greeting:Hello"}
    form: list[Any] = [(name, (None, value)) for name, value in fields.items()]
    form += [("workflow_params", (None, '{"who": "eve"}'))]
    for path, files in (
        ("/ga4gh/wes/v1/runs", form),
        ("/launch/greeting.Greetings/", [("x.cfg", "[Greetings]\npeople=[]\n")]),
    ):
        more: dict[str, Any] = {"data": {"cfg_name": "x.cfg"}} if "launch" in path else {}
        refused = service.ask("POST", path, files=files, **more)
        assert refused.status_code == 429, refused.text
        assert int(refused.headers["Retry-After"]) > 0
        assert "2 unfinished runs" in refused.text
    assert service.launch(who="other", username="ada")
    wait_until("the first runs", lambda: service.run(first)["state"] == "RUNNING")
    assert service.run(second)["state"] == "QUEUED"
    service.ask("POST", f"/ga4gh/wes/v1/runs/{first}/cancel")
    assert service.ended(second)["state"] == "COMPLETE"
    service.stop()


def test_a_stop_is_graceful_and_takes_no_longer_than_it_may(make_service: Callable[..., Service]) -> None:
    service = make_service()
    service.start()
    run_id = service.launch("greeting:Greetings", people=["ida", "jim"], seconds=6)
    wait_until("a job runs", lambda: any(t["state"] == "RUNNING" for t in _tasks(service, run_id)))
    begun = threading.Event()

    def follow() -> None:
        try:
            with service.ask("GET", f"/runs/{run_id}/events", stream=True) as events:
                for _ in events.iter_lines():
                    begun.set()
        except requests.RequestException:
            pass  # the service may hang up on it

    reader = threading.Thread(target=follow)
    reader.start()
    assert begun.wait(60)
    assert service.running is not None
    process = service.running.popen
    before = time.monotonic()
    process.terminate()
    code = process.wait(120)
    assert time.monotonic() - before < STOPPED_WITHIN_S
    assert code in {0, -signal.SIGTERM}
    service.running = None
    reader.join(60)
    assert not reader.is_alive()
    wait_until("nothing of it is left", lambda: not _own(service), within=60)

    service.start()
    ended = service.ended(run_id)
    assert ended["state"] == "COMPLETE", ended
    for who in ("ida", "jim"):
        assert (service.data(run_id) / f"ran-{who}").read_text() == "once\n"
    service.stop()


def test_an_instance_stops_itself_when_nothing_is_under_way_and_not_before(
    make_service: Callable[..., Service],
) -> None:
    service = make_service(BBPWF_SERVICE__IDLE_MINUTES="0.05")
    service.start()
    run_id = service.launch(who="kim", seconds=8)
    assert service.running is not None
    process = service.running.popen
    job = service.data(run_id) / "hello-kim.txt"
    wait_until("its job is done, which nobody asked after", job.exists)
    code = process.wait(120)
    assert code in {0, -signal.SIGTERM}
    service.running = None
    assert "nothing is under way" in (service.folder / "service.log").read_text()
    wait_until("nothing of it is left", lambda: not _own(service), within=60)
    service.changes["BBPWF_SERVICE__IDLE_MINUTES"] = "0"
    service.start()
    assert service.run(run_id)["state"] == "COMPLETE"
    service.stop()


def _tasks(service: Service, run_id: str) -> list[dict[str, Any]]:
    return list(service.ask("GET", f"/runs/{run_id}/tasks").json()["tasks"])


def _own(service: Service) -> list[str]:
    return [
        command
        for pid, command in processes(service).items()
        if ("workflow.head" in command or "bbpwf.cli.main" in command or "luigid" in command) and os.getpid() != pid
    ]
