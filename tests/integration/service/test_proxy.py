"""``bbpwf proxy``: clients that know of no tokens, as they are."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from sandbox.process import Process, accepts, free_ports, start, stop
from sandbox.tenants import PROJECT, VIRTUAL_LAB
from tests.integration.service.conftest import Service

BBPWF = (sys.executable, "-m", "bbpwf.cli.main")


@pytest.fixture(scope="module")
def laptop(service: Service, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of somebody who is logged in."""
    env = {**service.env, "BBPWF_STATE_DIR": str(tmp_path_factory.mktemp("laptop"))}
    command = [*BBPWF, "login", "--username", "alice", "--password-stdin"]
    subprocess.run(command, env=env, input="alice\n", text=True, check=True, timeout=120, capture_output=True)
    return env


@pytest.fixture(scope="module")
def proxy(laptop: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    (port,) = free_ports(1)
    log = tmp_path_factory.mktemp("proxy") / "log"
    argv = (*BBPWF, "proxy", "--port", str(port))
    running = start(Process("proxy", argv, laptop, log, lambda: accepts(port), ready_within=60))
    yield f"http://127.0.0.1:{port}"
    stop(running)
    assert "eyJ" not in log.read_text()
    assert "Traceback" not in log.read_text()


def test_a_client_without_a_token_launches_and_watches(proxy: str) -> None:
    assert requests.get(f"{proxy}/tags/", timeout=60).json() == {"virtual_lab": VIRTUAL_LAB, "project": PROJECT}
    fields = {
        "workflow_type": "LUIGI",
        "workflow_type_version": "3.8",
        "workflow_url": "sent:Hi",
        "workflow_params": "{}",
    }
    module = "import luigi\nfrom pathlib import Path\n\n\nclass Hi(luigi.Task):\n"
    module += "    def complete(self):\n        return Path('hi').exists()\n\n"
    module += "    def run(self):\n        Path('hi').touch()\n"
    parts: list[tuple[str, tuple[str | None, str]]] = [(name, (None, value)) for name, value in fields.items()]
    parts.append(("workflow_attachment", ("sent.py", module)))
    launched = requests.post(f"{proxy}/ga4gh/wes/v1/runs", files=parts, timeout=60)
    assert launched.status_code == 200, launched.text
    run_id = launched.json()["run_id"]
    states = []
    with requests.get(f"{proxy}/runs/{run_id}/events", stream=True, timeout=120) as events:
        assert events.headers["Content-Type"].startswith("text/event-stream")
        for line in events.iter_lines(decode_unicode=True):
            if line.startswith("data:") and "state" in line:
                states.append(json.loads(line[5:]).get("state"))
            if states and states[-1] == "COMPLETE":
                break
    assert states[-1] == "COMPLETE"


def test_a_browser_sees_the_dashboard(proxy: str) -> None:
    page = requests.get(f"{proxy}/dashboard/", headers={"Accept": "text/html"}, timeout=60)
    assert page.url.startswith(proxy)
    assert page.status_code == 200
    assert "<html" in page.text


def test_a_body_of_unknown_length_goes_through(proxy: str) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"--x\r\nContent-Disposition: form-data; name=workflow_type\r\n\r\n"
        yield b"LUIGI\r\n--x--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = requests.post(f"{proxy}/ga4gh/wes/v1/runs", data=pieces(), headers=kind, timeout=60)
    assert answer.status_code == 400
    assert "workflow_" in answer.json()["msg"]


def test_other_sites_pages_do_not_get_through(proxy: str) -> None:
    port = int(proxy.rpartition(":")[2])
    for headers in (
        {"Host": "rebound.example"},
        {"Host": f"127.0.0.1:{port}", "Origin": "https://evil.example"},
        {"Host": f"127.0.0.1:{port}", "Sec-Fetch-Site": "cross-site"},
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", "/tags/", headers=headers)
            answer = connection.getresponse()
            assert answer.status == 403
            assert VIRTUAL_LAB not in answer.read().decode()
        finally:
            connection.close()


def test_a_token_near_its_end_is_renewed(proxy: str, laptop: dict[str, str]) -> None:
    file = Path(laptop["BBPWF_STATE_DIR"]) / "credentials.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({**stored, "expires_at": 1.0}))
    assert requests.get(f"{proxy}/tags/", timeout=60).status_code == 200
    renewed = json.loads(file.read_text())
    assert renewed["access"] != stored["access"]
    assert renewed["expires_at"] > stored["expires_at"] - 300


def test_without_a_login_there_is_no_proxy(service: Service, tmp_path: Path) -> None:
    env = {**service.env, "BBPWF_STATE_DIR": str(tmp_path)}
    done = subprocess.run([*BBPWF, "proxy", "--port", "0"], env=env, capture_output=True, timeout=120, check=False)
    assert done.returncode == 3
    assert b"bbpwf login" in done.stderr
