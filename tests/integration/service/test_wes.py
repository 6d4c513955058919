"""WES 1.1 and the platform UI's routes, as their clients use them."""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import Any

import pytest
import requests

import bbpwf
from bbpwf.states import RunState
from tests.integration.service.conftest import Service

RUNS = "/ga4gh/wes/v1/runs"
FIELDS = {
    "workflow_type": "LUIGI",
    "workflow_type_version": "3.8",
    "workflow_url": "greeting:Hello",
    "workflow_params": '{"who": "wes"}',
}
CFG = "[Hello]\nwho = konrad\n"


def post(service: Service, files: Any = (), headers: Any = None, **changes: str | None) -> requests.Response:
    fields = {name: value for name, value in {**FIELDS, **changes}.items() if value is not None}
    parts: list[Any] = [(name, (None, value)) for name, value in fields.items()]
    parts += [("workflow_attachment", each) for each in files]
    return service.ask("POST", RUNS, files=parts, headers=headers or {})


def count(service: Service) -> int:
    return sum(service.ask("GET", "/ga4gh/wes/v1/service-info").json()["system_state_counts"].values())


def test_a_run_is_described_as_wes_wants_it(service: Service) -> None:
    answer = post(service, tags='{"campaign": "a", "n": 3}', workflow_engine_parameters='{"workers": 2}')
    assert answer.status_code == 200
    assert answer.json().keys() == {"run_id"}
    run_id = answer.json()["run_id"]
    service.ended(run_id)
    log = service.ask("GET", f"{RUNS}/{run_id}").json()
    assert log["state"] == "COMPLETE"
    assert log["request"]["workflow_params"] == {"who": "wes"}
    assert log["request"]["tags"] == {"campaign": "a", "n": "3"}
    assert log["request"]["workflow_engine_parameters"] == {"workers": "2"}
    assert "workflow_engine" not in log["request"]
    for moment in (log["run_log"]["start_time"], log["run_log"]["end_time"]):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", moment)
    assert log["run_log"]["exit_code"] == 0
    assert log["outputs"] == {}
    assert "null" not in json.dumps(log)
    assert "the run is COMPLETE" in service.ask("GET", log["run_log"]["stderr"].removeprefix(service.url)).text

    page = service.ask("GET", log["task_logs_url"].removeprefix(service.url)).json()
    (task,) = page["task_logs"]
    assert page["next_page_token"] == ""
    assert task["name"] == "Hello"
    assert task["exit_code"] == 0
    alone = service.ask("GET", f"{RUNS}/{run_id}/tasks/{task['id']}").json()
    assert "echo hello wes" in alone.pop("cmd")[0]
    assert alone == {name: value for name, value in task.items() if name != "cmd"}
    assert "hello wes" in service.ask("GET", task["stdout"].removeprefix(service.url)).text
    assert service.ask("GET", f"{RUNS}/{run_id}/status").json() == {"run_id": run_id, "state": "COMPLETE"}


def test_pages_are_stable_and_filters_hold(service: Service) -> None:
    made = [post(service, tags='{"page": "me"}').json()["run_id"] for _ in range(5)]
    seen: list[str] = []
    token = ""
    while True:
        page = service.ask("GET", RUNS, params={"page_size": 2, "page_token": token, "tag": "page:me"}).json()
        assert len(page["runs"]) <= 2
        seen += [run["run_id"] for run in page["runs"]]
        if len(seen) == 2:  # newer runs do not move what follows
            post(service, tags='{"page": "me"}')
        token = page["next_page_token"]
        if not token:
            break
    assert seen == made[::-1]
    for run_id in made:
        service.ended(run_id)
    states = service.ask("GET", RUNS, params={"state": "EXECUTOR_ERROR", "tag": "page:me"}).json()
    assert states["runs"] == []


def test_service_info_has_true_counts_and_what_the_standard_requires(service: Service) -> None:
    before = service.ask("GET", "/ga4gh/wes/v1/service-info").json()
    assert before["type"] == {"group": "org.ga4gh", "artifact": "wes", "version": "1.1.0"}
    assert set(before["system_state_counts"]) == {state.value for state in RunState}
    assert before["workflow_type_versions"] == {
        "LUIGI": {"workflow_type_version": ["3.8"]},
        "PY": {"workflow_type_version": ["3"]},
    }
    assert before["workflow_engine_versions"] == {"bbpwf": {"workflow_engine_version": [bbpwf.__version__]}}
    run_id = post(service).json()["run_id"]
    service.ended(run_id)
    after = service.ask("GET", "/ga4gh/wes/v1/service-info").json()["system_state_counts"]
    assert sum(after.values()) == sum(before["system_state_counts"].values()) + 1
    listed = service.ask("GET", RUNS, params={"page_size": 1000, "state": "COMPLETE"}).json()["runs"]
    assert after["COMPLETE"] == len(listed)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"workflow_type": None}, "workflow_type"),
        ({"workflow_type": "CWL"}, "CWL"),
        ({"workflow_type_version": "2.0"}, "2.0"),
        ({"workflow_type_version": None}, "workflow_type_version"),
        ({"workflow_url": None}, "workflow_url"),
        ({"workflow_url": "Hello"}, "Hello"),
        ({"workflow_url": "greeting.py"}, "greeting"),
        ({"workflow_url": "file:///etc/passwd"}, "workflow_url"),
        ({"workflow_url": "https://example.org/x.py"}, "workflow_url"),
        ({"workflow_url": "nowhere:Hello"}, "nowhere"),
        ({"workflow_url": "greeting:Nothing"}, "Nothing"),
        ({"workflow_url": "os:system"}, "system"),
        ({"workflow_params": "{"}, "workflow_params"),
        ({"workflow_params": "[1]"}, "workflow_params"),
        ({"workflow_params": "{}"}, "who"),
        ({"workflow_params": '{"who": "x", "whom": "y"}'}, "whom"),
        ({"workflow_params": '{"who": "x", "code": "many"}'}, "code"),
        ({"workflow_params": "[" * 100_000}, "workflow_params"),
        ({"tags": '{"a": {"b": 1}}'}, "tags.a"),
        ({"workflow_engine_parameters": '{"speed": "9"}'}, "speed"),
        ({"workflow_engine_parameters": '{"workers": "0"}'}, "workers"),
        ({"workflow_engine_parameters": '{"workers": "many"}'}, "workers"),
        ({"workflow_engine_parameters": '{"config": "../../etc/passwd"}'}, "passwd"),
        ({"workflow_engine_version": "1"}, "workflow_engine"),
        ({"workflow_engine": "cromwell"}, "cromwell"),
        ({"no_such_field": "1"}, "no_such_field"),
    ],
)
def test_what_is_wrong_is_named_and_no_run_is_left_behind(
    service: Service, changes: dict[str, str | None], names: str
) -> None:
    before = count(service)
    answer = post(service, **changes)
    assert answer.status_code == 400, answer.text
    assert answer.json().keys() == {"msg", "status_code"}
    assert names in answer.json()["msg"]
    assert count(service) == before


def test_requests_that_are_no_form_at_all(service: Service) -> None:
    for kind, body in [
        ("application/json", b"{}"),
        ("multipart/form-data", b"no boundary"),
        ("multipart/form-data; boundary=x", b"--y\r\n\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\nv\r\n--x--\r\n"),
        ("text/plain", b"\xff\xfe"),
    ]:
        answer = service.ask("POST", RUNS, data=body, headers={"Content-Type": kind})
        assert answer.status_code == 400, (kind, body, answer.text)


def test_uploads_that_would_do_harm_are_refused(service: Service) -> None:
    before = count(service)
    evil = io.BytesIO()
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("../../evil.py", "")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(30 * 1024 * 1024))
    for name, content in [
        ("../up.py", b""),
        ("/etc/x.py", b""),
        ("json.py", b""),
        ("x.zip", evil.getvalue()),
        ("x.zip", bomb.getvalue()),
        ("x.zip", b"no zip"),
    ]:
        answer = post(service, files=[(name, content)])
        assert answer.status_code in {400, 413}, (name, answer.text)
        assert name.strip("./")[:5] in answer.json()["msg"] or re.search("evil|zeros", answer.json()["msg"])
    assert post(service, files=[("a.txt", b"1"), ("a.txt", b"2")]).status_code == 400
    assert post(service, files=[("big.bin", bytes(2 * 1024 * 1024))]).status_code == 413
    assert count(service) == before
    assert not list(service.state.parent.rglob("evil.py"))


def test_an_unannounced_body_that_is_too_long_is_cut_off(service: Service) -> None:
    def endless() -> Any:
        yield b"--x\r\nContent-Disposition: form-data; name=workflow_attachment; filename=a\r\n\r\n"
        for _ in range(64):
            yield bytes(64 * 1024)

    answer = service.ask("POST", RUNS, data=endless(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 413
    assert answer.json()["status_code"] == 413


def test_a_module_that_cannot_be_imported_is_reported_not_waited_for(service: Service) -> None:
    answer = post(
        service, files=[("broken.py", "import luigi\nraise RuntimeError('out of coffee')\n")], workflow_url="broken:X"
    )
    assert answer.status_code == 400
    assert "out of coffee" in answer.json()["msg"]
    answer = post(service, files=[("quits.py", "import os\nos._exit(3)\n")], workflow_url="quits:X")
    assert answer.status_code == 400
    answer = post(
        service,
        files=[("loud.py", "print('{}' * 10)\nimport luigi\nclass X(luigi.Task): pass\n")],
        workflow_url="loud:X",
        workflow_params="{}",
    )
    assert answer.status_code == 200, answer.text


def test_modules_may_come_in_archives_and_folders(service: Service) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("mine/__init__.py", "")
        packed.writestr("mine/work.py", "from greeting import Hello\nclass Mine(Hello):\n    pass\n")
    for url in ("mine.work:Mine", "mine.work.Mine", "mine/work.py:Mine"):
        answer = post(service, files=[("code.zip", archive.getvalue())], workflow_url=url)
        assert answer.status_code == 200, answer.text
        run = service.ended(answer.json()["run_id"])
        assert (run["state"], run["task"]) == ("COMPLETE", "mine.work:Mine")


def test_an_attached_config_drives_the_task_and_is_checked(service: Service) -> None:
    named = '{"config": "my.cfg"}'
    answer = post(service, [("my.cfg", CFG)], workflow_params="{}", workflow_engine_parameters=named)
    assert answer.status_code == 200, answer.text
    run_id = answer.json()["run_id"]
    service.ended(run_id)
    assert (service.data(run_id) / "hello-konrad.txt").exists()
    for cfg, word in [("[Hello]\nwhoo = x\n", "whoo"), ("[Nothing]\na = 1\n", "Nothing"), ("no section", "my.cfg")]:
        answer = post(service, [("my.cfg", cfg)], workflow_params='{"who": "x"}', workflow_engine_parameters=named)
        assert answer.status_code == 400
        assert word in answer.json()["msg"]


def test_the_same_key_is_the_same_run(service: Service) -> None:
    key = {"Idempotency-Key": "click-1"}
    first = post(service, [("a.txt", "1")], headers=key)
    again = post(service, [("a.txt", "1")], headers=key)
    assert first.json() == again.json()
    assert post(service, [("a.txt", "2")], headers=key).status_code == 409
    other = service.ask("POST", RUNS, username="ada", files=[(n, (None, v)) for n, v in FIELDS.items()], headers=key)
    assert other.status_code == 200
    assert other.json() != first.json()
    assert post(service, headers={"Idempotency-Key": "x" * 300}).status_code == 400
    service.ended(first.json()["run_id"])


def test_unknown_runs_tasks_and_pages(service: Service) -> None:
    run_id = post(service).json()["run_id"]
    for path in ("nothing", "nothing/status", "nothing/tasks", f"{run_id}/tasks/nothing"):
        answer = service.ask("GET", f"{RUNS}/{path}")
        assert answer.status_code == 404, path
        assert answer.json()["status_code"] == 404
    assert service.ask("POST", f"{RUNS}/nothing/cancel").status_code == 404
    for query in (
        "page_size=0",
        "page_size=x",
        "page_token=x",
        "page_token=-1",
        "page_token=" + "9" * 40,
        "state=HAPPY",
        "tag=x",
    ):
        assert service.ask("GET", f"{RUNS}?{query}").status_code == 400, query
    for query in ("offset=-1", "offset=" + "9" * 40):
        assert service.ask("GET", f"/runs/{run_id}/log?{query}").status_code == 400
    for span in ("bytes=5-1", "bytes=-5", "lines=1-2", "bytes=0-1,3-4", "bytes=" + "9" * 40 + "-"):
        assert service.ask("GET", f"/runs/{run_id}/log", headers={"Range": span}).status_code == 400, span
    assert service.ask("GET", f"{RUNS}/%00").status_code == 404
    assert service.ask("GET", f"{RUNS}/%ff").status_code == 404
    assert service.ask("DELETE", f"{RUNS}/{run_id}").status_code == 405
    service.ended(run_id)


def test_launch_as_the_platform_ui_does(service: Service) -> None:
    files = {"cfg_name": (None, "ui.cfg"), "ui.cfg": ("ui.cfg", CFG)}
    for path in ("/launch/greeting.Hello/", "/launch/greeting.Hello"):
        answer = service.ask("POST", path, files=files)
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"].startswith("text/plain")
        run_id = answer.text
        assert answer.headers["Location"] == f"/runs/{run_id}"
        assert service.ended(run_id)["state"] == "COMPLETE"
    wrong = service.ask("POST", "/launch/greeting.Nothing/", files=files)
    assert wrong.status_code == 400
    assert "Nothing" in wrong.json()["detail"]
    missing = service.ask("POST", "/launch/greeting.Hello/", files={"cfg_name": (None, "other.cfg")})
    assert missing.status_code == 400
    assert "other.cfg" in missing.json()["detail"]
    assert service.ask("GET", "/version/").text == bbpwf.__version__


def test_the_catalogue_describes_tasks_for_a_form(service: Service) -> None:
    listed = service.ask("GET", "/tasks").json()
    assert {"greeting:Hello", "greeting:Greetings"} <= {task["name"] for task in listed["tasks"]}
    one = service.ask("GET", "/tasks/greeting:Hello").json()
    assert one["parameters"]["required"] == ["who"]
    assert one["parameters"]["properties"]["seconds"]["type"] == "number"
    assert service.ask("GET", "/tasks/greeting:Nothing").status_code == 400


def test_events_tell_every_change_and_end_with_the_run(service: Service) -> None:
    run_id = service.launch(who="nora", seconds=2)

    def read(last: str = "") -> list[tuple[str, str, dict[str, Any]]]:
        headers = {"Authorization": f"Bearer {service.issuer.token()}", "Last-Event-ID": last}
        found = []
        with requests.get(f"{service.url}/runs/{run_id}/events", headers=headers, stream=True, timeout=60) as stream:
            assert stream.headers["Content-Type"].startswith("text/event-stream")
            for block in stream.raw.read().decode().split("\n\n"):
                fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
                if fields:
                    found.append((fields["event"], fields["id"], json.loads(fields["data"])))
        return found

    events = read()
    assert events[-1][0] == "run"
    assert events[-1][2]["state"] == "COMPLETE"
    assert "COMPLETED" in {body["state"] for kind, _, body in events if kind == "job"}
    versions = [int(version) for _, version, _ in events]
    assert versions == sorted(versions)
    again = read(last=str(versions[-1]))
    assert [kind for kind, _, _ in again] == ["run"]


def test_the_cluster_is_shown(service: Service) -> None:
    run_id = service.launch(who="olga")
    service.ended(run_id)
    cluster = service.ask("GET", "/cluster").json()
    assert (cluster["kind"], cluster["state"]) == ("local", "ready")


def test_the_documentation_is_for_members(service: Service) -> None:
    schema = service.ask("GET", "/openapi.json").json()
    assert "/ga4gh/wes/v1/runs" in schema["paths"]
    assert requests.get(f"{service.url}/openapi.json", timeout=10).status_code == 401
