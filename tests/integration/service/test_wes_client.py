"""The public WES client as it is, through ``bbpwf proxy``: it knows nothing of our tokens."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.process import Process, accepts, free_ports, start, stop
from tests.integration.service.conftest import Service

CLIENT = Path(__file__).parents[3] / ".peers" / "bin" / "wes-client"
LIMIT = 120
WORKFLOW = """
import luigi

from bbpwf.workflow import RemoteTarget, SbatchTask


class Greeting(SbatchTask):
    who = luigi.Parameter()

    def command(self):
        return f"echo hello {self.who} > {self.output().path}"

    def output(self):
        return RemoteTarget("greeting.txt")


class PublicGreeting(luigi.WrapperTask):
    who = luigi.Parameter()

    def requires(self):
        return Greeting(who=self.who)
"""


@pytest.fixture(scope="module")
def proxy(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``host:port`` of a proxy of Alice's."""
    port = free_ports(1)[0]
    env = {name: value for name, value in service.env.items() if "SECRET" not in name}
    env["BBPWF_TOKEN"] = service.issuer.token("alice")
    argv = (sys.executable, "-m", "bbpwf.cli.main", "proxy", "--port", str(port))
    log = tmp_path_factory.mktemp("proxy") / "proxy.log"
    running = start(Process("proxy", argv, env, log, lambda: accepts(port)))
    yield f"127.0.0.1:{port}"
    stop(running, grace=10)


def ask(proxy: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [str(CLIENT), "--proto", "http", "--host", proxy, *words]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False)


def test_it_runs_waits_lists_and_reads(proxy: str, service: Service, tmp_path: Path) -> None:
    (tmp_path / "public_greeting.py").write_text(WORKFLOW)
    (tmp_path / "job.json").write_text('{"who": "world"}')
    ran = ask(proxy, tmp_path, "public_greeting.py", "job.json")
    assert ran.returncode == 0, ran.stderr
    assert "State is COMPLETE" in ran.stderr
    assert "the run is COMPLETE" in ran.stderr, "it reads the run's log at the URL that it is told"
    (run_id,) = re.findall(r"Workflow run id is (\S+)", ran.stderr)
    assert (service.data(run_id) / "greeting.txt").read_text() == "hello world\n"

    listed = ask(proxy, tmp_path, "--list")
    assert listed.returncode == 0, listed.stderr
    assert {"run_id": run_id, "state": "COMPLETE"}.items() <= json.loads(listed.stdout)["runs"][0].items()
    read = json.loads(ask(proxy, tmp_path, "--get", run_id).stdout)
    assert read["request"]["workflow_url"] == "public_greeting:PublicGreeting"
    assert read["request"]["workflow_type"] == "PY"
    assert "the run is COMPLETE" in ask(proxy, tmp_path, "--log", run_id).stdout
    info = json.loads(ask(proxy, tmp_path, "--info").stdout)
    assert info["supported_wes_versions"] == ["1.1.0"]


def test_it_is_told_what_is_wrong(proxy: str, tmp_path: Path) -> None:
    (tmp_path / "several.py").write_text(WORKFLOW)
    (tmp_path / "job.json").write_text('{"who": "world"}')
    ran = ask(proxy, tmp_path, "several.py", "job.json")
    assert ran.returncode != 0
    assert "has several tasks: Greeting, PublicGreeting" in ran.stderr
