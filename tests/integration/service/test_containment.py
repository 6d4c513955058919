"""A hostile workflow against a service as the image runs it: its own user, with four of root's capabilities."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests

from sandbox.process import Process, accepts, free_ports, start
from tests.integration.service.conftest import MODULE, SECRET, Issuer, Service, processes, wait_until
from tests.support import hostile, outsiders

pytestmark = pytest.mark.timeout(300)

SERVICE_UID = 10_001
FIRST_UID, UIDS = 300_000, 50_000
AWS_KEY = "AKIACANARY0000000001"
_CAPS = "-all,+chown,+kill,+setgid,+setuid"


@dataclass
class AsInTheImage(Service):
    """A service of a user of its own, with the capabilities that the image leaves it."""

    python: str = ""
    heads: Path = field(default_factory=Path)

    @property
    def env(self) -> dict[str, str]:
        return super().env | {"PATH": os.environ["PATH"], "AWS_SECRET_ACCESS_KEY": AWS_KEY}

    def start(self) -> None:
        rights = [f"--inh-caps={_CAPS}", f"--ambient-caps={_CAPS}", "--no-new-privs"]
        who = [f"--reuid={SERVICE_UID}", f"--regid={SERVICE_UID}", "--clear-groups"]
        argv = ("setpriv", *who, *rights, "--", self.python, "-W", "error::ResourceWarning", "-P")
        argv += ("-m", "bbpwf.cli.main", "serve")
        log = self.folder / "service.log"
        self.running = start(Process("service", argv, self.env, log, lambda: accepts(self.port)))

    def cell(self, run_id: str) -> Path:
        return self.state / "heads" / run_id


class Listener:
    """Somebody who only notes that they were called."""

    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.calls = 0
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        while True:
            try:
                call, _ = self.server.accept()
            except OSError:
                return
            self.calls += 1
            call.close()


@pytest.fixture(scope="module")
def metadata() -> Iterator[Listener]:
    """Stands in for the cloud's metadata, and counts who asks."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Listener(server)


@pytest.fixture(scope="module")
def abstract() -> Iterator[str]:
    """A server on a socket without a file."""
    with socket.socket(socket.AF_UNIX) as server:
        name = f"bbpwf-{os.getpid()}"
        server.bind("\0" + name)
        server.listen()
        Listener(server)
        yield "@" + name


@pytest.fixture(scope="module")
def instance(issuer: Issuer) -> Iterator[AsInTheImage]:
    with outsiders.open_folder() as folder:
        python = outsiders.python_for_all(folder)
        (folder / "workflows").mkdir(mode=0o755)
        (folder / "workflows" / "greeting.py").write_text(MODULE)
        (folder / "state").mkdir()
        os.chown(folder / "state", SERVICE_UID, SERVICE_UID)
        config = folder / "instance.toml"
        config.write_text(f'[oidc]\nclient_secret = "{SECRET}"\n')
        config.chmod(0o400)
        os.chown(config, SERVICE_UID, SERVICE_UID)
        made = AsInTheImage(
            folder,
            issuer,
            free_ports(1)[0],
            {
                "BBPWF_CONFIG_FILE": str(config),
                "BBPWF_HEADS__REQUIRE_ISOLATION": "true",
                "BBPWF_HEADS__FIRST_UID": str(FIRST_UID),
                "BBPWF_HEADS__UIDS": str(UIDS),
                "BBPWF_HEADS__PROCESSES": "100",
                "BBPWF_HEADS__FILE_MB": "64",
                "BBPWF_SERVICE__MAX_UPLOAD_MB": "8",
            },
            python=python,
        )
        made.start()
        yield made
        made.stop()
        left = [pid for pid in _all() if FIRST_UID <= _uid(pid) < FIRST_UID + UIDS]
        assert not left, "user code outlived the service"


def _all() -> list[int]:
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]


def _uid(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return -1
    return -1 if "\nState:\tZ" in status else int(re.findall(r"\nUid:\t(\d+)", status)[0])


@dataclass
class Victim:
    """Somebody else's run, with its head at work."""

    run_id: str
    head: int


@pytest.fixture(scope="module")
def victim(instance: AsInTheImage) -> Iterator[Victim]:
    run_id = instance.launch(who="victim", seconds=600, files=[("mine.cfg", "[core]\nsecret_of_mine = 1\n")])
    head = wait_until("its head is at work", lambda: _head(instance, run_id))
    wait_until("it is listened to", (instance.cell(run_id) / "agent.sock").exists)
    yield Victim(run_id, head)
    instance.ask("POST", f"/ga4gh/wes/v1/runs/{run_id}/cancel")


def _head(instance: AsInTheImage, run_id: str) -> int | None:
    found = [pid for pid, command in processes(instance).items() if "workflow.head" in command and run_id in command]
    found = [pid for pid in found if _uid(pid) >= FIRST_UID and "confine.py" not in processes(instance).get(pid, "")]
    return found[0] if found else None


def _named(instance: AsInTheImage, word: str) -> int:
    return next(pid for pid, command in processes(instance).items() if word in command)


@pytest.fixture(scope="module")
def targets(instance: AsInTheImage, victim: Victim, metadata: Listener, abstract: str) -> dict[str, Any]:
    state, cell = instance.state, instance.cell(victim.run_id)
    assert instance.running is not None
    agent, scheduler = _named(instance, "cli.main agent"), _named(instance, "workflow.luigid")
    key = state / "key.pem"
    key.write_text("-----BEGIN PRIVATE KEY-----")
    key.chmod(0o400)
    os.chown(key, SERVICE_UID, SERVICE_UID)
    return {
        "files": [
            *(str(state / name) for name in ("bbpwf.db", "bbpwf.db-wal", "agent.lock", "log/agent.log", "key.pem")),
            *(str(cell / name) for name in ("request.json", "attachments/mine.cfg")),
            str(state / "runs" / victim.run_id / "attachments" / "mine.cfg"),
            str(instance.folder / "instance.toml"),
        ],
        "folders": [str(state / "runs"), str(state / "heads"), str(cell), str(cell / "work"), str(state / "uploads")],
        "processes": [instance.running.pid, agent, scheduler, victim.head],
        "sockets": [str(state / "agent.sock"), str(cell / "agent.sock"), abstract],
        "addresses": [metadata.server.getsockname(), ("127.0.0.1", instance.port)],
        "replace": [str(cell / "request.json"), str(cell / "agent.sock"), str(state / "bbpwf.db")],
        "uid": _uid(victim.head),
    }


def test_what_is_refused_could_be_done_by_a_process_of_the_services_user(
    instance: AsInTheImage, targets: dict[str, Any]
) -> None:
    (instance.folder / "targets.json").write_text(json.dumps(targets))
    script = shutil.copy(hostile.__file__, instance.folder / "hostile.py")
    Path(script).chmod(0o644)
    done = subprocess.run(
        [instance.python, str(script), str(instance.folder / "targets.json")],
        user=SERVICE_UID,
        group=SERVICE_UID,
        extra_groups=[],
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    possible = {name for name, what in found.items() if not what.startswith(hostile.REFUSED)}
    for name in (
        *(f"read {path}" for path in targets["files"]),
        *(f"list {path}" for path in targets["folders"] if "/work" not in path),
        *(f"talk to {path}" for path in targets["sockets"][:1]),
        *(f"connect to {host}:{port}" for host, port in targets["addresses"]),
        f"environment of {targets['processes'][2]}",
        f"trace {targets['processes'][2]}",
        f"signal {targets['processes'][0]}",
        "listen",
    ):
        assert name in possible, (name, found.get(name))
    left = list(instance.folder.rglob("left-by-hostile"))
    assert left
    for each in left:
        each.unlink()


def test_a_hostile_workflow_gets_nowhere(
    instance: AsInTheImage, victim: Victim, metadata: Listener, targets: dict[str, Any]
) -> None:
    before = {pid: _uid(pid) for pid in targets["processes"]}
    calls = metadata.calls
    files = [("hostile.py", Path(hostile.__file__).read_text())]
    addresses = [*targets["addresses"], ("169.254.169.254", 80), ("169.254.170.2", 80)]
    run_id = instance.launch("hostile:Hostile", files=files, targets={**targets, "addresses": addresses})
    own = instance.cell(run_id)
    ended = instance.ended(run_id, within=180)
    assert ended["state"] == "COMPLETE", ended
    report = json.loads((own / "work" / "report.json").read_text())

    got = {name: what for name, what in report["attempts"].items() if not what.startswith(hostile.REFUSED)}
    assert got == {}
    got = {name: what for name, what in report["violence"].items() if not what.startswith(hostile.REFUSED)}
    assert got == {}
    assert len(report["attempts"]) > 40
    assert report["processes"] < 100
    assert metadata.calls == calls

    itself = report["itself"]
    (uid,) = set(itself["uids"])
    assert FIRST_UID <= int(uid) < FIRST_UID + UIDS
    assert int(uid) != targets["uid"]
    assert set(itself["gids"]) == {uid}
    assert set(itself["groups"]) <= {"", uid}
    assert {int(held, 16) for held in itself["capabilities"]} == {0}
    assert itself["no_new_privileges"] == "1"
    assert itself["environment"].keys() <= {
        *("PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE", "TZ", "PYTHONPATH", "PYTHONUNBUFFERED"),
        *("PYTHONNOUSERSITE", "PYTHONDONTWRITEBYTECODE", "BBPWF_LOG_JSON"),
    }
    assert itself["environment"].get("PYTHONPATH") == str(own / "attachments")
    assert not [each for each in itself["descriptors"].values() if ".db" in each or "agent.lock" in each]

    assert {pid: _uid(pid) for pid in targets["processes"]} == before
    assert not list(Path(instance.folder).rglob("left-by-hostile"))
    assert instance.run(victim.run_id)["state"] == "RUNNING"
    assert instance.ask("GET", "/ga4gh/wes/v1/service-info").status_code == 200


def test_looking_at_a_hostile_module_gets_it_nowhere(instance: AsInTheImage, targets: dict[str, Any]) -> None:
    module = Path(hostile.__file__).read_text() + (
        f"\nfound = attempts(json.loads({json.dumps(json.dumps(targets))}))\n"
        "got = {name: what for name, what in found.items() if not what.startswith(REFUSED)}\n"
        "raise ValueError(f'{len(found)} tried, got {got}')\n"
    )
    fields = {"workflow_type": "LUIGI", "workflow_type_version": "3.8", "workflow_url": "curious:Hostile"}
    parts: list[Any] = [(name, (None, value)) for name, value in fields.items()]
    parts += [("workflow_attachment", ("curious.py", module))]
    refused = instance.ask("POST", "/ga4gh/wes/v1/runs", files=parts)
    assert refused.status_code == 400
    tried = re.search(r"ValueError: (\d+) tried, got \{\}", refused.json()["msg"])
    assert tried, refused.text
    assert int(tried[1]) > 40
    assert not [each for each in (instance.state / "heads").iterdir() if each.name.startswith("check-")]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("link", "cannot be read"),
        ("hard link", "not a plain file"),
        ("pipe", "not a plain file"),
        ("huge", "longer than"),
        ("garbage", "not what heads write"),
        ("folder", "cannot be read"),
    ],
)
def test_what_is_left_in_place_of_an_outcome_is_not_trusted(
    instance: AsInTheImage, targets: dict[str, Any], how: str, said: str
) -> None:
    files = [("hostile.py", Path(hostile.__file__).read_text())]
    run_id = instance.launch("hostile:Ends", files=files, how=how, secret=targets["files"][0])
    ended = instance.ended(run_id, within=120)
    assert ended["state"] == "SYSTEM_ERROR"
    assert said in ended["reason"], ended["reason"]
    assert "SQLite" not in json.dumps(ended)


def test_readiness_and_log_say_what_is_missing(instance: AsInTheImage) -> None:
    answer = requests.get(f"{instance.url}/readyz", timeout=60).json()
    assert answer["user_code"] == "partly contained"  # for its jobs run on this very machine
    warnings = [line for line in (instance.folder / "service.log").read_text().splitlines() if "containment:" in line]
    assert len(warnings) == 1, warnings
    assert "jobs on this machine run as the agent's own user" in warnings[0]


def test_nothing_stays_behind(instance: AsInTheImage) -> None:
    files = [("hostile.py", Path(hostile.__file__).read_text())]
    run_id = instance.launch("hostile:Stays", files=files)
    work = instance.cell(run_id) / "work"
    wait_until("it has hidden", (work / "stays").exists)
    uid = work.stat().st_uid
    wait_until("its processes are there", lambda: len([pid for pid in _all() if _uid(pid) == uid]) >= 6)
    assert instance.ask("POST", f"/ga4gh/wes/v1/runs/{run_id}/cancel").status_code == 200
    ended = instance.ended(run_id, within=150)
    assert ended["state"] == "CANCELED"
    assert [pid for pid in _all() if _uid(pid) == uid] == []
    assert (instance.cell(run_id).stat().st_mode & 0o777) == 0o700


def test_a_log_without_end_is_cut(instance: AsInTheImage) -> None:
    files = [("hostile.py", Path(hostile.__file__).read_text())]
    run_id = instance.launch("hostile:Shouts", files=files)
    instance.ended(run_id, within=150)
    kept = sum(each.stat().st_size for each in (instance.state / "runs" / run_id).glob("head.log*"))
    assert kept < 12 * 1024 * 1024


def test_who_may_not_be_kept_apart_is_not_served(instance: AsInTheImage) -> None:
    other = instance.folder / "other"
    other.mkdir()
    other.chmod(0o777)
    refused = subprocess.run(
        [instance.python, "-P", "-m", "bbpwf.cli.main", "serve", "--port", "0"],
        env=instance.env | {"BBPWF_STATE_DIR": str(other), "BBPWF_CONFIG_FILE": ""},
        user=65_534,
        group=65_534,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 2, refused.stderr
    assert "CHOWN, KILL, SETGID, SETUID" in refused.stderr
    assert "Traceback" not in refused.stderr
