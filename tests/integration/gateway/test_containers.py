"""The gateway in front of real containers of the real image."""

from __future__ import annotations

import io
import json
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker
import pytest
import requests

from bbpwf.settings import HeadsSettings, Settings
from container import sbom
from tests.integration.gateway.conftest import CANARIES, NETWORK, SERVICE_UID, Gateway, Member
from tests.integration.service.conftest import wait_until
from tests.support.canary import settings_secrets

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]

LONGEST = 120.0
KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----(\s|\\n)+[A-Za-z0-9+/]{40}")
"""A private key and not just the mention of one, as libraries that read keys have it."""
LIBRARIES = re.compile(r"(\./)?(usr/|opt/bbpwf/)?lib/(?!python3[.0-9]+/site-packages/(bbpwf|service|tasks)/)")
"""Some bring the keys of their own tests along, which everybody knows: GnuTLS, Tornado, jwcrypto."""


def made_since(daemon: docker.DockerClient, since: int, project: str) -> int:
    """How many containers Docker says were made for a project."""
    events = daemon.events(since=since, until=int(time.time()) + 1, decode=True, filters={"event": "create"})
    return sum(each["Actor"]["Attributes"].get("org.bbpwf.project") == project for each in events)


def test_twenty_first_requests_start_one_container_and_two_projects_get_two(
    daemon: docker.DockerClient, make_gateway: Callable[..., Gateway]
) -> None:
    gateway = make_gateway(BBPWF_GATEWAY__MAX_INSTANCES="2")
    one, two, three = (gateway.project() for _ in range(3))
    since = int(time.time()) - 1
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: one.ask("GET", "/tags/"), range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.text for answer in answers} == {answers[0].text}
    assert answers[0].json() == {"virtual_lab": one.virtual_lab, "project": one.project}
    assert made_since(daemon, since, one.project) == 1
    assert len(gateway.containers()) == 1

    assert two.ask("GET", "/tags/").json()["project"] == two.project
    assert len(gateway.containers()) == 2
    assert one.ask("GET", "/tags/").json()["project"] == one.project

    over = three.ask("GET", "/ga4gh/wes/v1/service-info")
    assert over.status_code == 503
    assert int(over.headers["Retry-After"]) > 0
    assert "all 2 project instances that may run at once are in use" in over.json()["msg"]
    assert len(gateway.containers()) == 2

    # one goes to rest: it stays so, and its place is free
    resting = two.container()
    resting.stop(timeout=30)
    resting.reload()
    assert not resting.attrs["State"]["Running"]
    assert three.ask("GET", "/tags/").json()["project"] == three.project
    running = [each.labels["org.bbpwf.project"] for each in gateway.containers() if each.status == "running"]
    assert sorted(running) == sorted([one.project, three.project])

    # the gateway dies and forgets everything: it finds its instances again
    gateway.kill()
    (gateway.folder / "state" / "gateway" / "roster.json").unlink()
    gateway.start()
    wait_until("the instances are found again", lambda: two.ask("GET", "/tags/").status_code == 503, within=LONGEST)
    ids = {each.id for each in gateway.containers() if each.status == "running"}
    assert one.ask("GET", "/tags/").status_code == 200
    assert {each.id for each in gateway.containers() if each.status == "running"} == ids


def test_nobody_gets_past_the_gateway(make_gateway: Callable[..., Gateway]) -> None:
    gateway = make_gateway()
    member, stranger = gateway.project(), gateway.project()
    assert member.ask("GET", "/version/").status_code == 200
    address = member.container().attrs["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
    inside = f"http://{address}:8100"
    bearer = {"Authorization": f"Bearer {member.token}"}

    assert requests.get(f"{inside}/healthz", timeout=30).status_code == 204
    for path in ("/version/", "/ga4gh/wes/v1/runs", "/dashboard/", "/auth/login"):
        direct = requests.get(inside + path, headers=bearer, timeout=30, allow_redirects=False)
        assert direct.status_code == 401, path
        assert "gateway" in direct.text
    assert requests.get(f"{inside}/version/", headers={**bearer, "bbpwf-pass": "x.y.z"}, timeout=30).status_code == 401

    assert requests.get(f"{gateway.url}/version/", timeout=30).status_code == 401
    foreign = {"virtual-lab-id": member.virtual_lab, "project-id": member.project}
    assert stranger.ask("GET", "/version/", headers=foreign).status_code == 403
    assert stranger.ask("GET", "/version/", headers={"project-id": member.project}).status_code == 403
    assert len(gateway.containers()) == 1, "nothing is started for those who may not"


def test_a_killed_container_comes_back_and_its_run_goes_on(
    make_gateway: Callable[..., Gateway], on_slurm: dict[str, str]
) -> None:
    data_root = Path(on_slurm.pop("data_root"))
    gateway = make_gateway(**on_slurm)
    member = gateway.project()
    run = member.launch("greeting:Greetings", people=["ada", "eve"], seconds=20)

    def state() -> dict[str, Any]:
        return dict(member.ask("GET", f"/ga4gh/wes/v1/runs/{run}").json())

    folder = data_root / "runs" / run
    wait_until("jobs run", lambda: at_work(member, run), within=LONGEST)
    before = member.container()
    generation = member.generation()
    before.kill("SIGKILL")

    # nobody asks for the project: the gateway brings it back all the same
    wait_until("another one comes", lambda: came_back(gateway, member, generation), within=LONGEST)
    wait_until("the run ends", lambda: state()["state"] not in {"QUEUED", "INITIALIZING", "RUNNING"}, within=LONGEST)
    assert state()["state"] == "COMPLETE", state()
    for person in ("ada", "eve"):
        assert (folder / f"ran-{person}").read_text() == "once\n"
        assert (folder / f"hello-{person}.txt").read_text() == f"{person}\n"
    assert "137" in gateway.log


def at_work(member: Member, run: str) -> bool:
    tasks = member.ask("GET", f"/ga4gh/wes/v1/runs/{run}/tasks")
    assert tasks.status_code == 200, tasks.text
    return sum(bool(each.get("start_time")) for each in tasks.json()["task_logs"]) >= 2


def came_back(gateway: Gateway, member: Member, generation: int) -> bool:
    found = [each for each in gateway.containers() if each.labels["org.bbpwf.project"] == member.project]
    return any(int(each.labels["org.bbpwf.generation"]) > generation and each.status == "running" for each in found)


def test_an_instance_has_no_rights_that_it_does_not_need(make_gateway: Callable[..., Gateway]) -> None:
    gateway = make_gateway()
    member = gateway.project()
    assert member.ask("GET", "/version/").status_code == 200
    container = member.container()
    wait_until("Docker calls it healthy", lambda: _health(container) == "healthy", within=LONGEST)
    host: dict[str, Any] = container.attrs["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["Privileged"]
    assert host["Memory"] == 1024 * 1024 * 1024
    assert host["PidsLimit"] > 0

    script = (
        "for each in /proc/[0-9]*; do echo $(cat $each/comm) $(grep -E '^(Uid|CapEff|NoNewPrivs)' $each/status); done"
    )
    code, said = container.exec_run(["sh", "-c", script], user=str(SERVICE_UID))
    assert code == 0
    mine = [line for line in said.decode().splitlines() if re.match(r"(bbpwf|python)", line)]
    assert mine
    for line in mine:
        assert "NoNewPrivs: 1" in line, line
        held = int(re.findall(r"CapEff: ([0-9a-f]+)", line)[0], 16)
        if f"Uid: {SERVICE_UID} " not in line:  # the head that waits for a run
            assert int(re.findall(r"Uid: (\d+)", line)[0]) >= HeadsSettings().first_uid, line
            assert held == 0, line
        assert held & ~(1 << 0 | 1 << 5 | 1 << 6 | 1 << 7) == 0, f"more than CHOWN, KILL, SETGID, SETUID: {line}"
    code, _ = container.exec_run(["sh", "-c", "echo x > /opt/bbpwf/x || echo x > /usr/local/bin/x"], user="0")
    assert code != 0, "the file system of the image can be written to"
    secrets = [each for each in container.attrs["Config"]["Env"] if re.search(r"(?i)secret|password|token|\"d\"", each)]
    assert secrets == []


def _health(container: Any) -> str:
    container.reload()
    return str(container.attrs["State"].get("Health", {}).get("Status"))


def test_no_secret_is_in_any_layer_of_the_image(daemon: docker.DockerClient, built: str) -> None:
    canaries = [each.encode() for each in CANARIES]
    names: set[str] = set()
    for name, content in _files(daemon, built):
        names.add(name)
        assert LIBRARIES.match(name) or not KEY.search(content), f"a private key is in {name}"
        for canary in canaries:
            assert canary not in content, f"{canary!r} is in {name}"
    assert "usr/local/bin/entry" in names  # the layers were really read
    assert not [each for each in names if re.search(r"(^|/)(\.env|id_rsa.*|credentials\.json|sandbox/\w+\.py)$", each)]
    assert not [each for each in names if each.endswith("/site-packages/pip/__init__.py")]
    given = {each.partition("=")[0] for each in daemon.images.get(built).attrs["Config"]["Env"]}
    assert given
    assert not given & settings_secrets(Settings).keys()
    assert not [each for each in given if re.search("SECRET|TOKEN|PASSWORD|CREDENTIAL", each)]


def test_the_image_is_small_and_its_contents_are_listed(
    daemon: docker.DockerClient, built: str, tmp_path: Path
) -> None:
    assert daemon.images.get(built).attrs["Size"] < 300e6
    listed = sbom.write(daemon, built, tmp_path / "sbom.json")
    bill = json.loads((tmp_path / "sbom.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert listed == len(bill["components"])
    purls = {each["purl"].partition("@")[0] for each in bill["components"]}
    assert {"pkg:pypi/bbpwf", "pkg:pypi/fastapi", "pkg:pypi/paramiko", "pkg:deb/debian/libssl3"} <= purls
    assert not {"pkg:pypi/pytest", "pkg:pypi/moto", "pkg:pypi/docker", "pkg:pypi/pip"} & purls
    pins = dict(line.split("==") for line in Path("constraints.txt").read_text().splitlines() if "==" in line)
    wanted = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    for each in bill["components"]:
        if each["purl"].startswith("pkg:pypi/") and each["name"] != "bbpwf":
            assert wanted[each["purl"].removeprefix("pkg:pypi/").partition("@")[0]] == each["version"]


def _files(daemon: docker.DockerClient, tag: str) -> Iterator[tuple[str, bytes]]:
    """Every file of every layer, and the image's own configuration."""
    whole = io.BytesIO(b"".join(daemon.images.get(tag).save()))
    with tarfile.open(fileobj=whole) as saved:
        for part in saved:
            content = saved.extractfile(part)
            if content is None:
                continue
            if not part.name.endswith("layer.tar"):
                yield part.name, content.read()
                continue
            with tarfile.open(fileobj=content) as layer:
                for member in layer:
                    file = layer.extractfile(member) if member.isfile() else None
                    if file is not None:
                        yield member.name, file.read()
