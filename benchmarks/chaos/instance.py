"""A service that works for campaigns on a site's cluster, and the storm over it and its children."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from bbpwf import faults
from benchmarks.chaos.campaigns import Campaigns, Client
from benchmarks.chaos.points import HEAD, SERVICE, Points
from benchmarks.chaos.site import SlurmSite
from sandbox.process import Process, accepts, free_ports, start, stop
from sandbox.tenants import CLI_CLIENT, PROJECT, VIRTUAL_LAB

_SECRET = "the-secret-of-the-service-client"
_OPEN_WITHIN_S = 120.0
_HEAD_KILLS = 1
"""How often one run's head is killed at some instant; it may die two times more at points of its own."""
_CAMPAIGNS = 3
_AGENTS_POINTS = ("ledger.plan.after", "submit.after", "ledger.accept.after", "ledger.see.before", "cancel.after")
"""Where the service's own agent dies, too: points after which it has got on."""


class Instance:
    """A service on a state folder of its own, with an issuer beside it."""

    def __init__(self, site: SlurmSite, folder: Path, issuer: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.workflows = folder / "workflows"
        self.ledger = self.state / "bbpwf.db"
        self.log = folder / "service.log"
        self.spool = site.shared / "service"
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self.popen: subprocess.Popen[bytes] | None = None
        self.workflows.mkdir(parents=True)
        self._env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            **site.cluster_env(),
            "BBPWF_CLUSTER__DATA_ROOT": str(self.spool),
            "BBPWF_STATE_DIR": str(self.state),
            "BBPWF_URL": self.url,
            "BBPWF_PROJECT__VIRTUAL_LAB_ID": VIRTUAL_LAB,
            "BBPWF_PROJECT__PROJECT_ID": PROJECT,
            "BBPWF_OIDC__ISSUER": issuer,
            "BBPWF_OIDC__CLIENT_SECRET": _SECRET,
            "BBPWF_SERVICE__PORT": str(port),
            "BBPWF_SERVICE__SCHEDULER_PORT": "0",
            "BBPWF_SERVICE__SECURE_COOKIES": "false",
            "BBPWF_SERVICE__TASK_MODULES": '["stormy"]',
            "BBPWF_SERVICE__WORKFLOWS_PATH": json.dumps([str(self.workflows)]),
        }

    def let_heads_write(self, *paths: Path) -> None:
        """Heads are kept in; these files and folders are where they are told to die, and say that they did."""
        self._env["BBPWF_HEADS__WRITE_PATHS"] = json.dumps([str(path) for path in paths])

    def start(self, armed: str = "") -> None:
        """Start it, with armed fault points: of its own, and of its agent, which has the same environment."""
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "bbpwf.cli.main", "serve"],
                env=self._env | {faults.VARIABLE: armed},
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether the service's own process is there."""
        return self.popen is not None and self.popen.poll() is None

    def wait_open(self, within: float) -> bool:
        """Wait until it answers; False when it died or did not in time."""
        deadline = time.monotonic() + within
        while self.alive and time.monotonic() < deadline:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.url}/healthz", timeout=5).status_code < 300:
                    return True
            time.sleep(0.1)
        return False

    def children(self, what: str) -> dict[int, str]:
        """Processes that the service started and whose command line has this in it: it, and where they are, by id."""
        found: dict[int, str] = {}
        if self.popen is None:
            return found
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, IndexError):
                if entry.name.isdigit() and _parent(entry) == self.popen.pid:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if what in command:
                        found[int(entry.name)] = f"{command}in {(entry / 'cwd').readlink()}"
        return found

    def kill(self) -> None:
        """``kill -9``, of the service alone: its children have to notice by themselves."""
        if self.popen is not None:
            with contextlib.suppress(ProcessLookupError):
                self.popen.kill()
            self.popen.wait()

    def stop(self, within: float = 60.0) -> None:
        """End it in good order, or else."""
        if self.popen is not None and self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(within)
        self.kill()


def _parent(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])


@contextmanager
def instance(site: SlurmSite) -> Iterator[tuple[Instance, Callable[[], str]]]:
    """A service that was not started yet, and where a user gets a token; all is ended afterwards."""
    folder = site.folder / "i"
    (port,) = free_ports(1)
    secret = folder / "secret"
    folder.mkdir()
    secret.write_text(_SECRET)
    argv = (sys.executable, "-m", "sandbox.oidc", "--port", str(port), "--state", str(folder / "oidc"))
    process = Process(
        "oidc",
        (*argv, "--client-secret-file", str(secret)),
        {"PATH": os.environ["PATH"]},
        folder / "oidc.log",
        lambda: accepts(port),
    )
    issuer = f"http://127.0.0.1:{port}/auth/realms/SBO"
    made = Instance(site, folder, issuer)
    running = start(process)
    try:
        yield made, lambda: _token(issuer)
    finally:
        made.stop()
        stop(running)


def _token(issuer: str) -> str:
    form = {
        "grant_type": "password",
        "client_id": CLI_CLIENT,
        "username": "alice",
        "password": "alice",
        "scope": "openid",
    }
    answer = requests.post(f"{issuer}/protocol/openid-connect/token", data=form, timeout=30)
    answer.raise_for_status()
    return str(answer.json()["access_token"])


class InstanceStorm:
    """Kills the service, its heads, its agent and Luigi's scheduler: at named points, and at any instant."""

    def __init__(self, made: Instance, token: Callable[[], str], chance: random.Random, points: Points) -> None:
        self.counts: Counter[str] = Counter()
        self.complaints: list[str] = []
        self.campaigns = Campaigns(
            Client(made.url, token), random.Random(chance.random()), made.folder / "work", most=_CAMPAIGNS
        )
        self._made = made
        self._chance = chance
        self._points = points
        made.let_heads_write(self.campaigns.folder, points.file)
        self._killed: Counter[str] = Counter()

    def rage(self, go_on: Callable[[], bool]) -> None:
        """One life of the service after the other."""
        while go_on():
            self._life(go_on)

    def calm(self) -> None:
        """A service that nothing threatens."""
        self._made.start()
        if not self._made.wait_open(_OPEN_WITHIN_S):
            self.complaints.append("the service did not start after the storm")

    def _life(self, go_on: Callable[[], bool]) -> None:
        names = self._points.choose(SERVICE, self._chance, 1)
        if self._chance.random() < 0.5:
            names += self._points.choose(_AGENTS_POINTS, self._chance, 1)
        for name in self._points.choose(HEAD, self._chance, 2):
            self.campaigns.doom(self._points.armed([name], self._chance))
        self._made.start(self._points.armed(names, self._chance))
        if not self._made.wait_open(_OPEN_WITHIN_S) and self._made.alive:
            self.complaints.append("the service did not open")
        until = time.monotonic() + self._chance.uniform(6.0, 30.0)
        while self._made.alive and time.monotonic() < until and go_on():
            time.sleep(self._chance.uniform(1.0, 7.0))
            self._chance.choice([self._kill_head, self._kill_head, self._kill_agent, self._kill_scheduler])()
        if self._made.alive:
            self._made.kill()
            self.counts["kill -9 of the service at some instant"] += 1
        elif self._made.popen is not None and self._made.popen.returncode != -signal.SIGKILL:
            self.complaints.append(f"the service ended by itself with code {self._made.popen.returncode}")

    def _kill_head(self) -> None:
        heads = [
            (pid, command)
            for pid, command in self._made.children("workflow.head").items()
            if self._killed[command] < _HEAD_KILLS
        ]
        if heads:
            pid, command = self._chance.choice(heads)
            self._killed[command] += 1
            self._kill(pid, "a head")

    def _kill_agent(self) -> None:
        for pid in self._made.children(" agent "):
            self._kill(pid, "the service's agent")

    def _kill_scheduler(self) -> None:
        for pid in self._made.children("--state-path"):
            self._kill(pid, "Luigi's scheduler")

    def _kill(self, pid: int, what: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.counts[f"kill -9 of {what} at some instant"] += 1
