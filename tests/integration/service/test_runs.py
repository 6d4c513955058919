"""Runs through the real service: launched by HTTP, executed by heads, survived by everything."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.integration.service.conftest import Service, processes, wait_until


def head_of(service: Service, run_id: str) -> int | None:
    """The process id of the run's head, if there is one."""
    mine = [pid for pid, command in processes(service).items() if "workflow.head" in command and run_id in command]
    assert len(mine) < 2, f"doubled heads: {mine}"
    return mine[0] if mine else None


def running_task(service: Service, run_id: str) -> bool:
    tasks = service.ask("GET", f"/runs/{run_id}/tasks").json()["tasks"]
    return any(task["state"] == "RUNNING" and task["started_at"] for task in tasks)


def test_a_launched_run_completes_and_tells_about_itself(service: Service) -> None:
    run_id = service.launch(who="ann")
    run = service.ended(run_id)
    assert run["state"] == "COMPLETE", run
    assert run["owner"]["username"] == "alice"
    assert (service.data(run_id) / "hello-ann.txt").read_text() == "ann\n"
    tasks = service.ask("GET", f"/runs/{run_id}/tasks").json()["tasks"]
    assert [(t["name"], t["state"]) for t in tasks] == [("Hello", "COMPLETE")]
    log = service.ask("GET", f"/runs/{run_id}/tasks/{tasks[0]['id']}/logs")
    assert "hello ann" in log.text
    following = int(log.headers["X-Next-Offset"])
    assert service.ask("GET", f"/runs/{run_id}/tasks/{tasks[0]['id']}/logs?offset={following}").text == ""
    part = service.ask("GET", f"/runs/{run_id}/tasks/{tasks[0]['id']}/logs", headers={"Range": "bytes=0-4"})
    assert (part.status_code, len(part.content)) == (206, 5)
    assert "the run is COMPLETE" in service.ask("GET", f"/runs/{run_id}/log").text


def test_a_failing_job_is_named_with_its_exit_code_and_log_and_resume_runs_only_what_is_missing(
    service: Service,
) -> None:
    module = (
        "from greeting import Hello, RemoteTarget, luigi\n"
        "class Moody(Hello):\n"
        "    def command(self):\n"
        "        return f'echo trying; test -e ../allowed-{self.who} && touch {self.output().path}'\n"
        "class Both(luigi.WrapperTask):\n"
        "    def requires(self):\n"
        "        return [Moody(who='eve'), Hello(who='bert')]\n"
    )
    run_id = service.launch("moody:Both", files=[("moody.py", module)])
    run = service.ended(run_id)
    assert run["state"] == "EXECUTOR_ERROR"
    (failed,) = [each for each in run["outcome"]["failed"] if each["exit_code"]]
    assert failed["exit_code"] == 1
    assert "Moody" in failed["task_id"]
    assert "trying" in failed["log_tail"]
    assert service.ask("GET", f"/ga4gh/wes/v1/runs/{run_id}").json()["run_log"]["exit_code"] == 1

    (service.data(run_id).parent / "allowed-eve").touch()
    assert service.ask("POST", f"/runs/{run_id}/resume").status_code == 200
    run = service.ended(run_id)
    assert (run["state"], run["incarnation"]) == ("COMPLETE", 2)
    assert (service.data(run_id) / "ran-bert").read_text() == "once\n"
    again = service.ask("POST", f"/runs/{run_id}/resume")
    assert again.status_code == 409
    assert "COMPLETE" in again.json()["detail"]


def test_cancel_ends_the_jobs_and_the_run(service: Service) -> None:
    run_id = service.launch(who="cecil", seconds=120)
    wait_until("its job runs", lambda: running_task(service, run_id))
    answer = service.ask("POST", f"/ga4gh/wes/v1/runs/{run_id}/cancel")
    assert answer.json() == {"run_id": run_id}
    run = service.ended(run_id, within=30)
    assert run["state"] == "CANCELED"
    assert "alice" in run["reason"]
    assert not (service.data(run_id) / "ran-cecil").exists()
    assert service.ask("POST", f"/ga4gh/wes/v1/runs/{run_id}/cancel").status_code == 200  # idempotent


def test_a_killed_head_is_replaced_and_no_job_runs_twice(service: Service) -> None:
    run_id = service.launch("greeting:Greetings", people=["dora", "emil"], seconds=5)
    wait_until("a job runs", lambda: running_task(service, run_id))
    first = wait_until("its head lives", lambda: head_of(service, run_id))
    os.kill(first, signal.SIGKILL)
    second = wait_until(
        "another head", lambda: head_of(service, run_id) not in {None, first} and head_of(service, run_id)
    )
    assert second != first
    run = service.ended(run_id)
    assert run["state"] == "COMPLETE", run
    for who in ("dora", "emil"):
        assert (service.data(run_id) / f"ran-{who}").read_text() == "once\n"


def test_a_head_that_always_dies_ends_the_run_with_the_end_of_its_log(service: Service) -> None:
    module = "import os, sys\nimport luigi\nclass Dies(luigi.Task):\n    def complete(self):\n        sys.stderr.write('about to die\\n'); sys.stderr.flush(); os._exit(9)\n"
    run_id = service.launch("deadly:Dies", files=[("deadly.py", module)])
    run = service.ended(run_id, within=60)
    assert run["state"] == "SYSTEM_ERROR"
    assert "exit code 9" in run["reason"]
    assert "about to die" in run["reason"]


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_runs_survive_the_end_of_the_service(make_service: Callable[..., Service], end: str) -> None:
    service = make_service()
    service.start()
    run_id = service.launch("greeting:Greetings", people=["fred", "gina"], seconds=4)
    wait_until("a job runs", lambda: running_task(service, run_id))
    if end == "kill":
        service.kill()
    else:
        service.stop()

    def gone() -> bool:
        left = [
            c for c in processes(service).values() if "workflow.head" in c or "bbpwf.cli.main" in c or "luigid" in c
        ]
        return not left

    wait_until("agent, scheduler and head end by themselves", gone, within=20)
    service.start()
    run = service.ended(run_id)
    assert run["state"] == "COMPLETE", run
    assert run["incarnation"] == 1
    for who in ("fred", "gina"):
        assert (service.data(run_id) / f"ran-{who}").read_text() == "once\n"
    service.stop()
    wait_until("nothing is left", lambda: not processes(service), within=20)


def test_more_runs_than_slots_wait_their_turn_and_can_be_canceled_while_waiting(
    make_service: Callable[..., Service],
) -> None:
    service = make_service(BBPWF_SERVICE__MAX_RUNS="1")
    service.start()
    first = service.launch(who="hans", seconds=3)
    second, third = service.launch(who="ines"), service.launch(who="jan")
    wait_until("the first runs", lambda: running_task(service, first))
    assert service.run(second)["state"] == "QUEUED"
    service.ask("POST", f"/ga4gh/wes/v1/runs/{second}/cancel")
    assert service.run(second)["state"] == "CANCELED"
    assert service.ended(third)["state"] == "COMPLETE"
    assert service.run(first)["state"] == "COMPLETE"


def test_a_second_service_on_the_same_state_is_refused(service: Service) -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "bbpwf.cli.main", "serve", "--port", "0"],
        env=service.env,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert "another service runs" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_agent_and_the_scheduler_come_back(service: Service) -> None:
    run_id = service.launch(who="kurt", seconds=6)
    wait_until("its job runs", lambda: running_task(service, run_id))
    for _ in range(20):
        assert service.ask("GET", "/cluster").status_code == 200
    victims = [p for p, c in processes(service).items() if "cli.main agent" in c or "luigid" in c]
    assert len(victims) == 2
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    run = service.ended(run_id, within=120)
    assert run["state"] == "COMPLETE", run
    assert (service.data(run_id) / "ran-kurt").read_text() == "once\n"
    for _ in range(45):  # every worker thread of the service, each with a line to the old agent or none
        assert service.ask("GET", "/cluster").status_code == 200
