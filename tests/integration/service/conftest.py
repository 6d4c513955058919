"""A real issuer and a real service, each a process of its own, with jobs as processes of this machine."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from sandbox.process import Process, Running, accepts, free_ports, start, stop
from sandbox.tenants import PROJECT, VIRTUAL_LAB
from tests.support import routes
from tests.support.issuer import SECRET, Issuer, Realm, running_issuer

__all__ = ["MODULE", "SECRET", "Issuer", "Service", "processes", "wait_until"]

MODULE = '''
import time
from pathlib import Path

import luigi

from bbpwf.workflow import ArrayTask, Element, RemoteTarget, SbatchTask


class Hello(SbatchTask):
    """Says hello."""

    who = luigi.Parameter(description="Whom to greet.")
    seconds = luigi.FloatParameter(default=0.0)
    code = luigi.IntParameter(default=0)

    def command(self):
        return f"echo hello {self.who}; sleep {self.seconds}; echo once >> ran-{self.who}; " + (
            f"exit {self.code}" if self.code else f"echo {self.who} > {self.output().path}"
        )

    def output(self):
        return RemoteTarget(f"hello-{self.who}.txt")


class Greetings(luigi.WrapperTask):
    """Greets several people."""

    people = luigi.ListParameter()
    seconds = luigi.FloatParameter(default=0.0)

    def requires(self):
        return [Hello(who=each, seconds=self.seconds) for each in self.people]
'''
"""A task module of a user."""


def wait_until(what: str, condition: Callable[[], Any], *, within: float = 60.0) -> Any:
    """The first true answer of ``condition``; fails after ``within`` seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    pytest.fail(f"not within {within} s: {what}")


@pytest.fixture(scope="session")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    with running_issuer(tmp_path_factory.mktemp("oidc")) as made:
        yield made


@dataclass
class Service:
    """A service with a state folder of its own; can be killed and started again."""

    folder: Path
    issuer: Realm
    port: int
    changes: dict[str, str] = field(default_factory=dict)
    running: Running | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "BBPWF_STATE_DIR": str(self.state),
            "BBPWF_URL": self.url,
            "BBPWF_PROJECT__VIRTUAL_LAB_ID": VIRTUAL_LAB,
            "BBPWF_PROJECT__PROJECT_ID": PROJECT,
            "BBPWF_OIDC__ISSUER": self.issuer.url,
            "BBPWF_OIDC__CLIENT_SECRET": SECRET,
            "BBPWF_CLUSTER__KIND": "local",
            "BBPWF_CLUSTER__DATA_ROOT": str(self.state / "data"),
            "BBPWF_CLUSTER__MAX_LOCAL_JOBS": "4",
            "BBPWF_SERVICE__PORT": str(self.port),
            "BBPWF_SERVICE__SCHEDULER_PORT": "0",
            "BBPWF_SERVICE__SECURE_COOKIES": "false",
            "BBPWF_SERVICE__MAX_UPLOAD_MB": "1",
            "BBPWF_SERVICE__TASK_MODULES": '["greeting"]',
            "BBPWF_SERVICE__WORKFLOWS_PATH": json.dumps([str(self.folder / "workflows")]),
            **self.changes,
        }

    def start(self) -> None:
        argv = (sys.executable, "-W", "error::ResourceWarning", "-m", "bbpwf.cli.main", "serve")
        log = self.folder / "service.log"
        self.running = start(Process("service", argv, self.env, log, lambda: accepts(self.port)))

    def kill(self) -> None:
        """SIGKILL to the service's process alone: its children have to notice by themselves."""
        assert self.running is not None
        os.kill(self.running.pid, signal.SIGKILL)
        self.running.popen.wait()
        self.running = None

    def stop(self) -> None:
        if self.running is not None:
            stop(self.running, grace=30)
            self.running = None

    def ask(self, method: str, path: str, *, username: str = "alice", **request: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.issuer.token(username)}", **request.pop("headers", {})}
        return requests.request(method, self.url + path, headers=headers, timeout=60, allow_redirects=False, **request)

    def launch(
        self, url: str = "greeting:Hello", files: Any = (), headers: Any = None, username: str = "alice", **params: Any
    ) -> str:
        """Launch by WES; the run's id."""
        fields = {
            "workflow_type": "LUIGI",
            "workflow_type_version": "3.8",
            "workflow_url": url,
            "workflow_params": json.dumps(params),
        }
        parts = [(name, (None, value)) for name, value in fields.items()]
        parts += [("workflow_attachment", each) for each in files]
        answer = self.ask("POST", "/ga4gh/wes/v1/runs", username=username, files=parts, headers=headers or {})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["run_id"])

    def run(self, run_id: str) -> dict[str, Any]:
        answer = self.ask("GET", f"/runs/{run_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def work_of(self, run_id: str) -> Path:
        """The folder that the run's own code starts in and may write into."""
        return self.state / "heads" / run_id / "work"

    def ended(self, run_id: str, *, within: float = 90.0) -> dict[str, Any]:
        """The run once it ended."""

        def over() -> dict[str, Any] | None:
            run = self.run(run_id)
            return run if run["ended_at"] else None

        return dict(wait_until(f"run {run_id} ends: {self.run(run_id)}", over, within=within))

    def data(self, run_id: str) -> Path:
        """The run's folder on the local cluster."""
        return self.state / "data" / "runs" / run_id


def processes(service: Service) -> dict[int, str]:
    """Command lines and working folders of live processes that work on the service's state folder, by id."""
    found: dict[int, str] = {}
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environ = (process / "environ").read_bytes().decode(errors="replace")
            command = f"{command}in {(process / 'cwd').readlink()}" if command else ""
        except (OSError, NotADirectoryError):
            continue
        if str(service.state) in command + environ and command:
            found[int(process.name)] = command
    return found


@pytest.fixture(scope="session")
def make_service(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def make(**changes: str) -> Service:
        folder = tmp_path_factory.mktemp("s")
        (folder / "workflows").mkdir()
        (folder / "workflows" / "greeting.py").write_text(MODULE)
        service = Service(folder, issuer, free_ports(1)[0], changes)
        made.append(service)
        return service

    yield make
    for service in made:
        service.stop()


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Method and path template of every route of the application."""
    return routes.templates(tmp_path_factory.mktemp("routes"))


@pytest.fixture(scope="session")
def service(make_service: Callable[..., Service]) -> Service:
    """One service for all tests that do it no harm."""
    made = make_service()
    made.start()
    return made
