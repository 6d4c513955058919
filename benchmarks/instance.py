"""The instance that is measured: a real ``bbpwf serve`` on the site's Slurm, with an issuer and a full database."""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import sqlalchemy as sa

from bbpwf.cluster.database import open_database
from bbpwf.cluster.schema import run_tags, runs
from bbpwf.states import RunState
from benchmarks.site import Site
from sandbox.process import Process, accepts, free_ports, start, stop
from sandbox.tenants import CLI_CLIENT, PROJECT, VIRTUAL_LAB

_ENDS = (RunState.COMPLETE, RunState.COMPLETE, RunState.EXECUTOR_ERROR, RunState.CANCELED)


@dataclass
class Instance:
    """A running instance."""

    origin: str
    issuer: str
    state: Path
    pid: int
    run_ids: list[str]

    @property
    def database(self) -> sa.Engine:
        """Its database, to look into."""
        return sa.create_engine(f"sqlite:///{self.state / 'bbpwf.db'}")

    def tokens(self, count: int = 1) -> list[str]:
        """Fresh access tokens of members of the project."""
        made = []
        for number in range(count):
            name = ("alice", "ada")[number % 2]
            form = {"grant_type": "password", "client_id": CLI_CLIENT, "username": name, "password": name}
            answer = requests.post(f"{self.issuer}/protocol/openid-connect/token", data=form, timeout=10)
            answer.raise_for_status()
            made.append(str(answer.json()["access_token"]))
        return made

    def ask(self, method: str, path: str, token: str = "", **request: Any) -> requests.Response:
        """One request of a member, with a token of his or a fresh one."""
        headers = {"Authorization": f"Bearer {token or self.tokens()[0]}"}
        answer = requests.request(method, self.origin + path, headers=headers, timeout=60, **request)
        answer.raise_for_status()
        return answer

    def launch(self, form: dict[str, str], token: str = "") -> str:
        """Launch by WES; the run's id."""
        parts = {name: (None, text) for name, text in form.items()}
        return str(self.ask("POST", "/ga4gh/wes/v1/runs", token, files=parts).json()["run_id"])


@contextmanager
def instance(site: Site, name: str, *, existing: int, **more: str) -> Iterator[Instance]:
    """Start an instance whose database holds ``existing`` runs; ended afterwards."""
    port, issuer_port = free_ports(2)
    issuer = f"http://127.0.0.1:{issuer_port}/auth/realms/SBO"
    env = site.env(
        name,
        BBPWF_PROJECT__VIRTUAL_LAB_ID=VIRTUAL_LAB,
        BBPWF_PROJECT__PROJECT_ID=PROJECT,
        BBPWF_OIDC__ISSUER=issuer,
        BBPWF_SERVICE__PORT=str(port),
        BBPWF_SERVICE__SCHEDULER_PORT="0",
        BBPWF_SERVICE__SECURE_COOKIES="false",
        BBPWF_SERVICE__TASK_MODULES='["benchmarks.graphs"]',
        BBPWF_SERVICE__WORKFLOWS_PATH=json.dumps([str(Path(__file__).parent.parent)]),
        **more,
    )
    state = Path(env["BBPWF_STATE_DIR"])
    state.mkdir(parents=True)
    run_ids = _fill(f"sqlite:///{state / 'bbpwf.db'}", existing) if existing else []
    secret = state / "client-secret"
    secret.write_text(secrets.token_hex(16))
    oidc = [sys.executable, "-m", "sandbox.oidc", "--port", str(issuer_port), "--state", str(state / "oidc")]
    programs = [
        Process(
            "oidc",
            (*oidc, "--client-secret-file", str(secret)),
            {"PATH": os.environ["PATH"], "PYTHONPATH": env["PYTHONPATH"]},
            state / "oidc.log",
            lambda: accepts(issuer_port),
        ),
        Process(
            "service",
            (sys.executable, "-P", "-m", "bbpwf.cli.main", "serve"),
            env,
            state / "service.log",
            lambda: accepts(port),
        ),
    ]
    running = []
    try:
        for program in programs:
            running.append(start(program))
        yield Instance(f"http://127.0.0.1:{port}", issuer, state, running[1].pid, run_ids)
    finally:
        for each in reversed(running):
            stop(each, grace=60.0)


def _fill(url: str, count: int) -> list[str]:
    """Runs that ended before, in the shape that launches give them."""
    run_ids = ["r" + secrets.token_hex(10) for _ in range(count)]
    now = time.time()
    rows: list[dict[str, Any]] = []
    for number, run_id in enumerate(run_ids):
        request = {
            "workflow_type": "LUIGI",
            "workflow_type_version": "3.8",
            "workflow_url": "tasks.simulation:SimulationCampaign",
            "workflow_params": {"name": f"campaign {number}", "amplitudes": [0.1 * i for i in range(20)]},
            "workflow_engine": "",
            "workflow_engine_version": "",
            "workflow_engine_parameters": {},
            "tags": {"campaign": str(number % 100), "of": "benchmark"},
            "attachments": [],
        }
        rows.append(
            {
                "run_id": run_id,
                "state": _ENDS[number % len(_ENDS)].value,
                "reason": "",
                "request": request,
                "fingerprint": secrets.token_hex(32),
                "sub": f"user-{number % 10}",
                "username": "somebody",
                "incarnation": 1,
                "created_at": now - count + number,
                "started_at": now - count + number + 1,
                "ended_at": now - count + number + 60,
                "outcome": {"state": _ENDS[number % len(_ENDS)].value, "reason": "", "failed": []},
            }
        )
    database = open_database(url)
    with database.begin() as db:
        db.execute(runs.insert(), rows)
        db.execute(
            run_tags.insert(),
            [
                {"run_id": row["run_id"], "name": k, "value": v}
                for row in rows
                for k, v in row["request"]["tags"].items()
            ],
        )
    database.close()
    return run_ids
