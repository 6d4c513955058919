"""A canary: secrets are planted everywhere, the platform is lived in, and nobody may have seen one of them.

What lives is the real service on the whole sandbox: a cluster that the provisioner makes, reached with the key that
Secrets Manager hands out. Runs complete, fail and raise what they were given; callers err in every way; parts go away.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from bbpwf.settings import Settings
from bbpwf.workflow.guarded import LOOKS
from sandbox import environment, lifecycle, moto
from sandbox.layout import Layout
from sandbox.process import free_ports
from sandbox.state import SandboxState
from sandbox.tenants import CLI_CLIENT
from tests.integration.service.conftest import Service, wait_until
from tests.integration.service.test_dashboard import log_in
from tests.support.canary import Canary, Home, Leak, Processes, Seen, made_up, settings_secrets
from tests.support.curious import FLOW

pytestmark = pytest.mark.slurm

CLIENT_SECRET, AWS_SECRET = "BBPWF_OIDC__CLIENT_SECRET", "AWS_SECRET_ACCESS_KEY"
HOMES = (
    Home("ssh/sim.pem", "*", "the cluster's own: the provisioner double puts it into Secrets Manager"),
    Home("ssh/admin.pem", "*", "the same"),
    Home("ssh/ssh_host_*_key", "a private key", "the head node's"),
    Home("secrets/client-secret", CLIENT_SECRET, "the issuer's copy"),
    Home("env*", AWS_SECRET, "what `bbpwf sandbox env` prints for this sandbox's own users"),
    Home("env.service", CLIENT_SECRET, "what `bbpwf sandbox env --service` prints"),
    Home("oidc/*", "*token*", "the issuer knows the sessions that it gave"),
    Home("laptop/state/credentials.json", "*token*", "a user's own login"),
    Home("laptop/state/credentials.json", "a JWT", "the same"),
)
"""Where the sandbox's files may hold a secret. The service's folder is not among them."""

SHIM = """#!/bin/bash
{ tr '\\0' ' ' </proc/$$/cmdline; env; } >>"$HOME/called"
exec /usr/bin/%s "$@"
"""
"""Notes how one of Slurm's commands is called, and goes on as it."""
SLURM = ("sbatch", "squeue", "scancel", "scontrol", "sinfo")


@dataclass
class Realm:
    """The sandbox's issuer. Every token that it gives is planted."""

    url: str
    canary: Canary
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def tokens(self, username: str, scope: str = "openid") -> dict[str, Any]:
        form = {"grant_type": "password", "client_id": CLI_CLIENT, "username": username, "password": username}
        answer = requests.post(f"{self.url}/protocol/openid-connect/token", data={**form, "scope": scope}, timeout=30)
        answer.raise_for_status()
        given = dict(answer.json())
        for kind in ("access_token", "refresh_token", "id_token"):
            self.canary.plant(f"{kind} of {username} ({scope})", given[kind])
        return given

    def token(self, username: str = "alice") -> str:
        if username not in self.known:
            self.known[username] = self.tokens(username)
        return str(self.known[username]["access_token"])


@dataclass
class Watched(Service):
    """A service whose every answer is kept."""

    answers: list[tuple[str, bytes]] = field(default_factory=list)

    def listen(self, session: requests.Session) -> requests.Session:
        session.hooks["response"].append(self._heard)
        return session

    def _heard(self, answer: requests.Response, *_: Any, **__: Any) -> None:
        if answer.url.startswith(self.url):
            method = answer.request.method
            self.answers.append((f"{method} {answer.url}: {answer.status_code}", repr(answer.headers).encode()))
            self.answers.append((f"{method} {answer.url}: {answer.status_code}", answer.content))

    def ask(self, method: str, path: str, *, username: str = "alice", **request: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.issuer.token(username)}", **request.pop("headers", {})}
        with self.listen(requests.Session()) as session:
            return session.request(
                method, self.url + path, headers=headers, timeout=60, allow_redirects=False, **request
            )


@dataclass
class Life:
    """What happened, and what was noticed of it."""

    canary: Canary
    sandbox: SandboxState
    service: Watched
    processes: Processes
    pid: int = 0
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    said: list[tuple[str, bytes]] = field(default_factory=list)
    """What the command line wrote."""

    def run(self, task: str, **params: Any) -> None:
        """Launch a task and see how it ends."""
        run_id = self.service.launch(f"curious:{task}", files=[("curious.py", FLOW)], **params)
        self.runs[task] = {"run_id": run_id}

    def ends(self) -> None:
        for task, run in self.runs.items():
            self.runs[task] = self.service.ended(run["run_id"], within=150)

    def bbpwf(self, *words: str, stdin: str = "") -> str:
        """One command of somebody with a machine of their own."""
        home = self.sandbox.short / "laptop"
        home.mkdir(exist_ok=True)
        env = {**environment.client_env(self.sandbox), "BBPWF_URL": self.service.url, "HOME": str(home)}
        env |= {"PATH": os.environ["PATH"], "BBPWF_STATE_DIR": str(home / "state"), "BBPWF_DEBUG": "1"}
        del env[AWS_SECRET]
        argv = [sys.executable, "-m", "bbpwf.cli.main", *words]
        done = subprocess.run(
            argv, env=env, cwd=home, input=stdin.encode(), capture_output=True, timeout=120, check=False
        )
        self.said.append((" ".join(words), done.stdout + done.stderr))
        return done.stdout.decode()


@pytest.fixture(scope="module")
def life(templates: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    canary, folder = Canary(), tmp_path_factory.mktemp("k").resolve()
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setitem(moto.CREDENTIALS, AWS_SECRET, canary.plant(AWS_SECRET, made_up()))
        stack.callback(lifecycle.down, folder, lambda _: None)
        sandbox = lifecycle.up(folder, lambda _: None, service=False, backend="slurm")
        service = _service(canary, sandbox)
        processes = Processes(canary)
        lived = Life(canary, sandbox, service, processes)
        with processes:
            stack.callback(service.stop)
            _live(lived, templates)
            service.stop()
        yield lived


def _service(canary: Canary, sandbox: SandboxState) -> Watched:
    layout = Layout(sandbox.short)
    client_secret = layout.client_secret.read_text().strip()
    for name in ("sim", "admin"):
        canary.plant(f"the private key of {name}", (layout.ssh / f"{name}.pem").read_text())
    for command in SLURM:
        shim = layout.shared_disk / "bin-sim" / command
        shim.write_text(SHIM % command)
        shim.chmod(0o755)
    (layout.root / "workflows").mkdir()
    (layout.root / "workflows" / "curious.py").write_text(FLOW)
    (nobody,) = free_ports(1)
    changes = {
        **environment.service_env(sandbox, client_secret),
        **canary.plant_settings(Settings, {CLIENT_SECRET: client_secret}),
        "AWS_SESSION_TOKEN": canary.plant("AWS_SESSION_TOKEN", made_up()),
        "BBPWF_LOG_LEVEL": "DEBUG",
        "BBPWF_SERVICE__TASK_MODULES": '["curious"]',
        "BBPWF_OUTBOUND__HOSTS": json.dumps([f"127.0.0.1:{nobody}"]),
        "BBPWF_OUTBOUND__PRIVATE_NETWORKS": '["127.0.0.1/32"]',
        "BBPWF_NOTIFY__SMTP_HOST": "127.0.0.1",
        "BBPWF_NOTIFY__SMTP_PORT": str(nobody),
        "BBPWF_NOTIFY__SMTP_USER": "postman",
        "BBPWF_NOTIFY__MAIL_DOMAINS": '["example.org"]',
    }
    port = sandbox.ports["service"]
    changes["BBPWF_URL"] = f"http://127.0.0.1:{port}"
    return Watched(layout.root, Realm(sandbox.urls["issuer"], canary), port, changes)


def _live(life: Life, templates: list[tuple[str, str]]) -> None:
    service, sandbox, realm = life.service, life.sandbox, life.service.issuer
    assert isinstance(realm, Realm)
    _faults(sandbox, "provisioner", crash_next=2)
    service.start()
    assert service.running is not None
    life.pid = service.running.pid
    offline = str(realm.tokens("alice", "openid offline_access")["refresh_token"])
    service.ask("PUT", "/consent", json={"refresh_token": offline}).raise_for_status()
    life.bbpwf("login", "--username", "ada", "--password-stdin", stdin="ada\n")
    _plant_login(life)

    life.run("Looks", who="one")
    for task in ("Raises", "CannotBeScheduled", "CannotBeAsked", "AsksNexus"):
        life.run(task)
    _err(life, offline)
    life.ends()
    failing = service.launch("curious:Looks", who="two", code=7)
    _tell(service)
    life.runs["fails"] = service.ended(failing, within=150)
    with service.listen(requests.Session()) as browser:
        assert log_in(browser, service, "alice").status_code == 200
        _look_at_the_dashboard(service, browser)
    _go_everywhere(life, templates, offline)
    for words in (("runs", "list"), ("runs", "show"), ("runs", "logs"), ("runs", "show", "--why", "x")):
        life.bbpwf(*words, *([life.runs["Raises"]["run_id"]] if words != ("runs", "list") else []))
    life.bbpwf("--debug", "runs", "show", life.runs["fails"]["run_id"], "--json")
    life.bbpwf("runs", "show", "no-such-run", "--json")
    _lose_the_cluster(life)


def _plant_login(life: Life) -> None:
    stored = json.loads((life.sandbox.short / "laptop" / "state" / "credentials.json").read_text())
    for name in ("access", "refresh"):
        life.canary.plant(f"{name}_token of ada on a laptop", stored[name])


def _faults(sandbox: SandboxState, double: str, **knobs: object) -> None:
    url = f"http://127.0.0.1:{sandbox.ports[double]}/_faults"
    requests.post(url, json=knobs, timeout=10).raise_for_status()


def _tell(service: Watched) -> None:
    """Have the end of a run told to hosts that do not answer."""
    nobody = json.loads(service.env["BBPWF_OUTBOUND__HOSTS"])[0]
    for engine in ({"mail": "alice@example.org"}, {"webhook": f"https://{nobody}/told"}):
        fields = {"workflow_type": "LUIGI", "workflow_type_version": "3.8", "workflow_url": "curious:Raises"}
        fields["workflow_engine_parameters"] = json.dumps(engine)
        parts = [(name, (None, value)) for name, value in fields.items()]
        answer = service.ask("POST", "/ga4gh/wes/v1/runs", files=parts)
        assert answer.status_code == 200, answer.text
        service.ended(str(answer.json()["run_id"]), within=150)


def _err(life: Life, offline: str) -> None:
    """Do what callers should not."""
    service = life.service
    shows = "import os, pathlib\nraise ValueError(dict(os.environ), pathlib.Path('/proc/self/environ').read_bytes())\n"
    bad: list[dict[str, Any]] = [
        {"workflow_url": "shows:Task", "attachment": shows},
        {"workflow_url": "curious:NoSuchTask", "attachment": ""},
        {"workflow_url": "https://user:" + offline[:40] + "@example.org/x.py", "attachment": ""},
        {"workflow_url": "curious:Looks", "workflow_params": json.dumps({"nothing": 1}), "attachment": ""},
    ]
    for launch in bad:
        parts: list[Any] = [("workflow_type", (None, "LUIGI")), ("workflow_type_version", (None, "3.8"))]
        attachment = launch.pop("attachment")
        parts += [(name, (None, value)) for name, value in launch.items()]
        parts += [("workflow_attachment", ("shows.py", attachment))] if attachment else []
        assert 400 <= service.ask("POST", "/ga4gh/wes/v1/runs", files=parts).status_code < 500
    for body in ({"refresh_token": {"value": offline}}, {"refresh_token": offline, "x": offline}, [offline], offline):
        assert service.ask("PUT", "/consent", json=body).status_code == 400
    assert service.ask("PUT", "/consent", json={"refresh_token": offline[:-8]}).status_code in {400, 401}
    assert service.ask("PUT", "/consent", data=offline).status_code == 400
    assert service.ask("PUT", "/consent", json={"refresh_token": offline}, username="ada").status_code == 403


def _go_everywhere(life: Life, templates: list[tuple[str, str]], offline: str) -> None:
    """Every route as a member, and with tokens that are bad: of a foreigner, cut, of another kind."""
    service = life.service
    good = service.issuer.token()
    (task, *_) = service.ask("GET", f"/runs/{life.runs['fails']['run_id']}/tasks").json()["tasks"]
    bad = (good[:-6], good + good[-6:], offline, service.issuer.token("bob"), good.replace(".", "..", 1))
    with service.listen(requests.Session()) as session:
        for method, template in templates:
            changes_nothing = method in {"GET", "HEAD", "OPTIONS"}
            for run_id in [life.runs[name]["run_id"] for name in ("Raises", "fails")] if changes_nothing else ["x"]:
                path = template.replace("{run_id}", run_id).replace("{task_id}", task["id"])
                path = "/".join("x" if part.startswith("{") else part for part in path.split("/"))
                for token in (good, *bad):
                    headers = {"Authorization": f"Bearer {token}"}
                    ask: dict[str, Any] = {"headers": headers, "timeout": 60, "allow_redirects": False}
                    if changes_nothing:
                        session.request(method, service.url + path, **ask)
                    elif (template, method) != ("/consent", "DELETE"):
                        session.request(method, service.url + path, json={"token": offline}, **ask)
                session.request("GET", service.url + path, params={"access_token": good}, timeout=60)
        session.get(f"{service.url}/auth/callback", params={"code": offline[:50], "state": "x"}, timeout=60)


def _look_at_the_dashboard(service: Watched, browser: requests.Session) -> None:
    listed = browser.get(f"{service.url}/dashboard/api/task_list", params={"data": "{}"}, timeout=30).json()
    tasks = list(listed["response"])
    assert tasks
    for method in sorted(LOOKS):
        for task in tasks[:10] if method in {"fetch_error", "dep_graph", "inverse_dep_graph"} else [""]:
            data = {"task_id": task, "status": "", "upstream_status": "", "task_str": "Raises", "worker": "x"}
            asked = {"data": json.dumps(data if task or method != "task_list" else {})}
            browser.get(f"{service.url}/dashboard/api/{method}", params=asked, timeout=30)


def _lose_the_cluster(life: Life) -> None:
    """The head node goes away for good, and with it a run that needs it."""
    service = life.service
    part = life.sandbox.part("sshd")
    assert part is not None
    children = Path(f"/proc/{part.process.pid}/task/{part.process.pid}/children").read_text().split()
    for pid in [part.process.pid, *map(int, children)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run_id = service.launch("curious:Looks", who="three")
    log = service.state / "log" / "agent.log"
    before = log.stat().st_size
    wait_until("the agent misses the head node", lambda: b"127.0.0.1" in log.read_bytes()[before:])
    requests.get(f"{service.url}/readyz", timeout=60)
    service.ask("GET", f"/runs/{run_id}")
    service.ask("POST", f"/ga4gh/wes/v1/runs/{run_id}/cancel")


def none_of(leaks: list[Leak]) -> None:
    """Fails with all of them, one a line."""
    assert not leaks, "\n".join(sorted({f"{leak.secret}: {leak.where}" for leak in leaks}))


def test_the_secrets_were_there_to_be_found(life: Life) -> None:
    """What follows would otherwise show nothing."""
    states = {task: run["state"] for task, run in life.runs.items()}
    assert states.pop("Looks") == "COMPLETE", life.runs["Looks"]
    assert set(states.values()) <= {"EXECUTOR_ERROR", "SYSTEM_ERROR"}, states
    assert set(settings_secrets(Settings)) <= life.canary.names
    commands = "\n".join(life.processes.commands)
    for expected in ("bbpwf.workflow.head", "main agent", "bbpwf.workflow.luigid", "bbpwf.cli.main serve"):
        assert expected in commands, f"{expected} was not seen"
    assert len(life.service.answers) > 500
    assert any(b"nobody takes" in content for _, content in life.service.answers)
    called = (life.sandbox.short / "cluster" / "home" / "sim" / "called").read_text()
    assert "sbatch" in called
    sealed = (life.service.state / "bbpwf.db").read_bytes()
    assert b"gAAAA" in sealed  # the offline login, encrypted
    looked = list(life.sandbox.short.rglob("looked-*"))
    assert len(looked) == 2
    assert all("SLURM_JOB_ID" in each.read_text() for each in looked)


def test_no_answer_tells_one(life: Life) -> None:
    answers = life.service.answers
    none_of([Leak(name, where) for where, content in answers for name in life.canary.search(content)])


def test_the_command_line_tells_none(life: Life) -> None:
    none_of([Leak(name, words) for words, said in life.said for name in life.canary.search(said)])


def test_no_process_is_given_one_that_is_not_its_own(life: Life) -> None:
    doubles = {part.process.pid for part in life.sandbox.parts if part.name in {"oidc", "nexus", "provisioner"}}

    def rightful(seen: Seen, name: str) -> bool:
        if seen.pid == life.pid:
            return True  # the service: it was given all of them
        if seen.parent == life.pid and " -m bbpwf.cli.main agent" in seen.command:
            return True  # it reads the same settings
        return seen.pid in doubles and name == AWS_SECRET  # signatures are checked with it

    none_of(life.processes.leaks(rightful))


def test_no_column_of_the_database_holds_one(life: Life) -> None:
    none_of(life.canary.in_database(life.service.state / "bbpwf.db"))


def test_no_file_of_the_platform_holds_one(life: Life) -> None:
    """State, logs, job scripts, spools, what jobs wrote, and what heads left."""
    none_of(life.canary.in_files(life.sandbox.short, HOMES))


def test_a_database_that_does_not_answer_is_named_without_its_password(life: Life, tmp_path: Path) -> None:
    password, (nobody,) = life.canary.plant("the database's password", made_up()), free_ports(1)
    url = f"postgresql://bbpwf:{password}@127.0.0.1:{nobody}/bbpwf?connect_timeout=2"
    env = {**life.service.env, "BBPWF_DATABASE_URL": url, "BBPWF_STATE_DIR": str(tmp_path)}
    for words in (("serve",), ("db", "upgrade"), ("agent",)):
        argv = [sys.executable, "-m", "bbpwf.cli.main", "--debug", *words]
        done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, timeout=120, check=False)
        assert done.returncode != 0
        assert str(nobody).encode() in done.stderr
        assert life.canary.search(done.stdout + done.stderr) == set()
    none_of(life.canary.in_files(tmp_path))
