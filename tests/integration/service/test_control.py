"""Runs that are paused, and tasks and elements that are canceled, through the real service."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.integration.service.conftest import Service, wait_until
from tests.integration.service.test_runs import head_of

SWEEP = """
import luigi
from bbpwf.workflow import ArrayTask, Element, SbatchTask

class Sweep(ArrayTask):
    seconds = luigi.ListParameter()
    throttle = 2

    def elements(self):
        return [
            Element(label=f"e{i}", command=f"echo begun >> begun-{i}; sleep {s}; echo ended >> ended-{i}")
            for i, s in enumerate(self.seconds)
        ]

class Chain(SbatchTask):
    def requires(self):
        return Sweep(seconds=(1, 4, 1, 1))

    def command(self):
        return "touch chained"
"""


def tasks(service: Service, run_id: str) -> dict[str, dict[str, Any]]:
    """The run's tasks and elements, by name."""
    found = service.ask("GET", f"/runs/{run_id}/tasks").json()["tasks"]
    return {task["name"]: task for task in found}


def state(service: Service, run_id: str, name: str) -> str:
    return str(tasks(service, run_id).get(name, {}).get("state"))


def test_a_paused_run_begins_nothing_new_and_goes_on_when_it_is_resumed(service: Service) -> None:
    run_id = service.launch("sweep:Chain", files=[("sweep.py", SWEEP)])
    wait_until("the first elements run", lambda: state(service, run_id, "e1") == "RUNNING")
    paused = service.ask("POST", f"/runs/{run_id}/pause")
    assert (paused.json()["state"], paused.json()["reason"]) == ("PAUSED", "paused by alice")
    assert service.ask("POST", f"/runs/{run_id}/pause").status_code == 200
    wait_until("its head ends", lambda: head_of(service, run_id) is None)
    wait_until("its jobs go on", lambda: all(state(service, run_id, f"e{i}") == "COMPLETE" for i in range(4)))
    assert service.run(run_id)["state"] == "PAUSED"
    assert not (service.data(run_id) / "chained").exists()
    assert service.ask("POST", f"/runs/{run_id}/resume").json()["state"] == "QUEUED"
    run = service.ended(run_id)
    assert (run["state"], run["incarnation"]) == ("COMPLETE", 1)
    assert [(service.data(run_id) / f"begun-{i}").read_text() for i in range(4)] == ["begun\n"] * 4
    assert (service.data(run_id) / "chained").exists()
    assert service.ask("POST", f"/runs/{run_id}/pause").status_code == 409


def test_a_paused_run_can_be_canceled(service: Service) -> None:
    run_id = service.launch(who="hugo", seconds=120)
    wait_until("its job runs", lambda: state(service, run_id, "Hello") == "RUNNING")
    service.ask("POST", f"/runs/{run_id}/pause")
    wait_until("its head ends", lambda: head_of(service, run_id) is None)
    service.ask("POST", f"/ga4gh/wes/v1/runs/{run_id}/cancel")
    assert service.ended(run_id)["state"] == "CANCELED"
    assert not (service.data(run_id) / "ran-hugo").exists()


def bbpwf(service: Service, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {**service.env, "BBPWF_TOKEN": service.issuer.token(), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "bbpwf.cli.main", *argv]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=90, check=False)


def test_an_element_and_a_task_are_canceled_and_seen_to_be_gone(service: Service) -> None:
    run_id = service.launch("sweep:Sweep", files=[("sweep.py", SWEEP)], seconds=[120, 0, 120, 0])
    wait_until("the first element runs", lambda: state(service, run_id, "e0") == "RUNNING")
    wait_until("a short one is over", lambda: state(service, run_id, "e1") == "COMPLETE")
    sweep = tasks(service, run_id)["Sweep"]["id"]
    done = bbpwf(service, "runs", "cancel", run_id, f"{sweep}.0")
    assert (done.returncode, done.stdout) == (0, "its jobs are gone\n"), done.stderr
    assert (state(service, run_id, "e0"), state(service, run_id, "e2")) == ("CANCELED", "RUNNING")
    again = service.ask("POST", f"/runs/{run_id}/tasks/{sweep}.0/cancel")
    assert again.json() == {"task_id": f"{sweep}.0", "jobs": 1, "left": 0}
    assert bbpwf(service, "runs", "cancel", run_id, sweep).returncode == 0
    run = service.ended(run_id)
    assert run["state"] == "EXECUTOR_ERROR"
    assert [each["reason"].split(" (")[0] for each in run["outcome"]["failed"]] == ["cancelled", "cancelled"]
    assert not (service.data(run_id) / "ended-0").exists()
    assert not (service.data(run_id) / "ended-2").exists()
    missing = service.ask("POST", f"/runs/{run_id}/tasks/nothing/cancel")
    assert missing.status_code == 404


@pytest.mark.parametrize("verb", ["pause", "tasks/x/cancel"])
def test_others_may_not(service: Service, verb: str) -> None:
    run_id = service.launch(who="ines")
    assert service.ask("POST", f"/runs/{run_id}/{verb}", username="bob").status_code in {401, 403}
    service.ended(run_id)


def test_a_job_is_explained_with_its_attempts_submission_and_last_lines(service: Service) -> None:
    run_id = service.launch(who="jo", code=3)
    service.ended(run_id)
    task = tasks(service, run_id)["Hello"]["id"]
    job = service.ask("GET", f"/runs/{run_id}/tasks/{task}/explain").json()["job"]
    assert job["why"] == "ended FAILED: exit code 3"
    assert job["log_tail"] == "hello jo"
    assert "echo hello jo" in job["script"]
    (attempt,) = job["attempts"]
    assert "job.sh" in attempt["command"]
    assert attempt["exit"]["code"] == 3
    assert attempt["exit"]["cpu_s"] is not None
    shown = bbpwf(service, "runs", "show", run_id, "--why", task)
    assert shown.returncode == 0, shown.stderr
    assert "ended FAILED: exit code 3" in shown.stdout
    assert "│ hello jo" in shown.stdout
    assert "ended FAILED" in bbpwf(service, "runs", "show", run_id, "--why").stdout


def test_the_throttle_of_a_running_array_can_be_lifted(service: Service) -> None:
    run_id = service.launch("sweep:Sweep", files=[("sweep.py", SWEEP)], seconds=[120, 120, 0, 0])
    wait_until("both slots are taken", lambda: state(service, run_id, "e1") == "RUNNING")
    sweep = tasks(service, run_id)["Sweep"]["id"]
    done = bbpwf(service, "runs", "throttle", run_id, sweep, "4")
    assert done.returncode == 0, done.stderr
    wait_until("the others run beside them", lambda: state(service, run_id, "e3") == "COMPLETE", within=30)
    assert state(service, run_id, "e0") == "RUNNING"
    service.ask("POST", f"/ga4gh/wes/v1/runs/{run_id}/cancel")
    service.ended(run_id)


def test_a_log_is_followed_while_it_grows_and_to_its_end(service: Service) -> None:
    run_id = service.launch(who="kim", seconds=4)
    wait_until("its job runs", lambda: state(service, run_id, "Hello") == "RUNNING")
    task = tasks(service, run_id)["Hello"]["id"]
    url = f"/runs/{run_id}/tasks/{task}/logs?follow=1"
    with service.ask("GET", url, stream=True) as answer:
        first = next(answer.iter_lines())
        assert (answer.status_code, first) == (200, b"hello kim")
        assert state(service, run_id, "Hello") == "RUNNING", "told before the job ended"
        assert list(answer.iter_lines()) == []
    assert service.ended(run_id)["state"] == "COMPLETE"
    assert service.ask("GET", f"{url}&offset=6").text == "kim\n"
    assert service.ask("GET", url, headers={"Range": "bytes=6-"}).text == "kim\n"
