"""What the service answers is what its own description says, and the official WES 1.1 one; judged by Schemathesis."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.service.conftest import Service

ROOT = Path(__file__).parents[3]
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "allow_header_conformance",
)
LIMIT = 400


@pytest.fixture(scope="module")
def busy(make_service: Callable[..., Service]) -> Iterator[tuple[Service, str, str]]:
    """A service with a run that completed, and the ids of that run and of its task."""
    service = make_service()
    service.start()
    run_id = service.launch(who="schema")
    service.ended(run_id)
    (task,) = service.ask("GET", f"/ga4gh/wes/v1/runs/{run_id}/tasks").json()["task_logs"]
    yield service, run_id, task["id"]
    service.stop()


def official(folder: Path) -> Path:
    """The WES 1.1 document."""
    (found,) = (ROOT / ".peers").glob("lib/python*/site-packages/sapporo/ga4gh-wes-spec-1.1.0.yml")
    assert yaml.safe_load(found.read_text())["info"]["version"] == "1.1.0"
    return found


@pytest.mark.parametrize("ids", ["made up", "of a run"])
@pytest.mark.parametrize("document", ["ours", "WES 1.1"])
def test_every_answer_is_a_documented_one(
    busy: tuple[Service, str, str], document: str, ids: str, tmp_path: Path
) -> None:
    service, run_id, task_id = busy
    known = f'[parameters]\nrun_id = "{run_id}"\ntask_id = "{task_id}"\n' if ids == "of a run" else ""
    (tmp_path / "schemathesis.toml").write_text(known)
    where = (
        [f"{service.url}/openapi.json"]
        if document == "ours"
        else [str(official(tmp_path)), "--url", f"{service.url}/ga4gh/wes/v1"]
    )
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("st")), "run", *where),
            *("-H", f"Authorization: Bearer {service.issuer.token()}"),
            *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
            *("--max-examples", "15", "--seed", "1", "--generation-database", "none", "--request-timeout", "60"),
            *("--continue-on-failure", "--warnings", "off", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "No errors" in done.stdout or " passed" in done.stdout
    assert "Tested: 0" not in done.stdout
    log = (service.folder / "service.log").read_text()
    assert "Traceback" not in log
