"""A Docker daemon of our own, the image built from this tree, and a gateway in front of its containers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import pytest
import requests

from container import image
from sandbox import dockerd
from sandbox.process import Process, Running, accepts, free_ports, start, stop
from tests.integration.service.conftest import MODULE
from tests.support.clusters import RealCluster
from tests.support.issuer import SECRET, Issuer
from tests.support.relay import relay

NETWORK = "bbpwf-test"
SERVICE_UID = 10001
CANARIES = tuple(f"canary{name}0c9f2e41" for name in ("Environment", "Dotenv", "Key", "Module", "Folder", "Ignored"))
"""Secrets that lie about where the image is built; none may get into it."""


@pytest.fixture(scope="session")
def daemon() -> Iterator[docker.DockerClient]:
    folder = Path(tempfile.mkdtemp(prefix="bbpwf-d-", dir="/tmp"))
    try:
        with dockerd.running(folder, in_memory=True) as client:
            yield client
    finally:
        dockerd.remove(folder)


@pytest.fixture(scope="session")
def built(daemon: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image's tag. It is built amid secrets, as on a careless developer's machine."""
    environment, dotenv, key, module, folder, ignored = CANARIES
    tree = tmp_path_factory.mktemp("tree") / "checkout"
    _copy_checkout(tree)
    (tree / ".env").write_text(f"BBPWF_OIDC__CLIENT_SECRET={dotenv}\n")
    (tree / "service" / "id_rsa.pem").write_text(f"-----BEGIN PRIVATE KEY-----\n{key}\n")
    (tree / "bbpwf" / "credentials.json").write_text(json.dumps({"secret": module}))
    (tree / ".sandbox").mkdir()
    (tree / ".sandbox" / "env").write_text(f"export AWS_SECRET_ACCESS_KEY={folder}\n")
    (tree / "tasks" / ".secret.py").write_text(f"SECRET = {ignored!r}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", environment)
        patch.setenv("BBPWF_OIDC__CLIENT_SECRET", environment)
        return image.build(daemon, source=tree)


def _copy_checkout(target: Path) -> None:
    """This tree's files under the packages, and a repository that knows them."""
    source = image.HERE.parent
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("bbpwf", "service", "tasks", "sandbox"):
        shutil.copytree(source / name, target / name, ignore=left_out)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(source / name, target / name)
    subprocess.run(["git", "init", "-q", str(target)], check=True, timeout=60)
    subprocess.run(["git", "-C", str(target), "add", "."], check=True, timeout=60)


@pytest.fixture(scope="session")
def bridge(daemon: docker.DockerClient) -> str:
    """This machine's address on the containers' network."""
    network = daemon.networks.create(NETWORK, driver="bridge")
    network.reload()
    (settings,) = network.attrs["IPAM"]["Config"]
    return str(settings["Gateway"]).partition("/")[0]


@pytest.fixture(scope="session")
def issuer(bridge: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    """An issuer that this machine and the containers reach by the same URL."""
    folder = tmp_path_factory.mktemp("oidc")
    (folder / "secret").write_text(SECRET)
    (port,) = free_ports(1)
    with relay(bridge, port) as outside:
        origin = f"http://{bridge}:{outside}"
        argv = [sys.executable, "-m", "tests.integration.gateway.issuer", origin, str(port), str(folder)]
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(image.HERE.parent)}
        process = Process("oidc", tuple(argv), env, folder / "oidc.log", lambda: accepts(port), 60)
        running = start(process)
        try:
            yield Issuer(process, running, folder / "state", origin)
        finally:
            stop(running)


@dataclass
class Gateway:
    """A gateway with a state folder of its own."""

    daemon: docker.DockerClient
    issuer: Issuer
    folder: Path
    port: int
    changes: dict[str, str]
    running: Running | None = None
    projects: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    def start(self) -> None:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "BBPWF_STATE_DIR": str(self.folder / "state"),
            "BBPWF_OIDC__ISSUER": self.issuer.url,
            "BBPWF_GATEWAY__PORT": str(self.port),
            "BBPWF_GATEWAY__DOCKER_URL": str(self.daemon.api.base_url).replace("http+docker://localhost", "")
            or self.changes["BBPWF_GATEWAY__DOCKER_URL"],
            "BBPWF_GATEWAY__NETWORK": NETWORK,
            "BBPWF_GATEWAY__WAIT_S": "120",
            "BBPWF_GATEWAY__MEMORY_MB": "1024",
            **self.changes,
        }
        argv = (sys.executable, "-W", "error::ResourceWarning", "-m", "bbpwf.cli.main", "gateway")
        log = self.folder / "gateway.log"
        self.running = start(Process("gateway", argv, env, log, lambda: accepts(self.port), 60))

    def kill(self) -> None:
        assert self.running is not None
        self.running.popen.kill()
        self.running.popen.wait()
        self.running = None

    def project(self) -> Member:
        """A member of a project that nobody else has."""
        virtual_lab, project = str(uuid.uuid4()), str(uuid.uuid4())
        self.projects.append(project)
        groups = [f"/proj/{virtual_lab}/{project}/member"]
        token = self.issuer.forge(
            sub=str(uuid.uuid4()), preferred_username="member", groups=groups, exp=int(time.time()) + 3600
        )
        return Member(self, virtual_lab, project, token)

    def containers(self) -> list[Any]:
        """Every container of our projects, ended ones too."""
        found = self.daemon.containers.list(all=True, ignore_removed=True, filters={"label": "org.bbpwf.project"})
        return [each for each in found if each.labels["org.bbpwf.project"] in self.projects]

    def end(self) -> None:
        if self.running is not None:
            stop(self.running, grace=30)
            self.running = None
        for container in self.containers():
            with contextlib.suppress(docker.errors.NotFound):
                container.remove(force=True)


@dataclass
class Member:
    """Somebody with one project."""

    gateway: Gateway
    virtual_lab: str
    project: str
    token: str = field(repr=False)

    def ask(self, method: str, path: str, **request: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.token}", **request.pop("headers", {})}
        return requests.request(method, self.gateway.url + path, headers=headers, timeout=150, **request)

    def container(self) -> Any:
        """The project's only container."""
        (found,) = [each for each in self.gateway.containers() if each.labels["org.bbpwf.project"] == self.project]
        return found

    def generation(self) -> int:
        return int(self.container().labels["org.bbpwf.generation"])

    def launch(self, url: str, **params: Any) -> str:
        fields = {
            "workflow_type": "LUIGI",
            "workflow_type_version": "3.8",
            "workflow_url": url,
            "workflow_params": json.dumps(params),
        }
        answer = self.ask("POST", "/ga4gh/wes/v1/runs", files=[(name, (None, value)) for name, value in fields.items()])
        assert answer.status_code == 200, answer.text
        return str(answer.json()["run_id"])


@pytest.fixture(scope="session")
def docker_url(daemon: docker.DockerClient) -> str:
    return str(daemon.info()["DockerRootDir"]).removesuffix("/data")


@pytest.fixture
def make_gateway(
    daemon: docker.DockerClient, built: str, issuer: Issuer, docker_url: str, tmp_path: Path
) -> Iterator[Callable[..., Gateway]]:
    made: list[Gateway] = []

    def make(**changes: str) -> Gateway:
        url = dockerd.url(Path(docker_url))
        settings = {"BBPWF_GATEWAY__DOCKER_URL": url, "BBPWF_GATEWAY__IMAGE": built, **changes}
        folder = tmp_path / f"gateway{len(made)}"
        folder.mkdir()
        gateway = Gateway(daemon, issuer, folder, free_ports(1)[0], settings)
        made.append(gateway)
        gateway.start()
        return gateway

    yield make
    for gateway in made:
        gateway.end()


@pytest.fixture
def on_slurm(shared_cluster: RealCluster, bridge: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Settings of a gateway whose instances run their jobs on the sandbox's Slurm."""
    cluster = shared_cluster.settings(f"gateway-{uuid.uuid4().hex[:8]}")
    assert cluster.key_file is not None
    given = tmp_path / "given"
    (given / "workflows").mkdir(parents=True)
    (given / "workflows" / "greeting.py").write_text(MODULE)
    key = given / "key"
    key.write_bytes(cluster.key_file.read_bytes())
    key.chmod(0o400)
    os.chown(key, SERVICE_UID, SERVICE_UID)
    with relay(bridge, cluster.port) as port:
        config = given / "instance.toml"
        config.write_text(
            f"""
[cluster]
kind = "ssh"
host = "{bridge}"
port = {port}
user = "{cluster.user}"
key_file = "/etc/bbpwf/key"
data_root = "{cluster.data_root}"
poll_s = 2
[service]
workflows_path = ["/etc/bbpwf/workflows"]
task_modules = ["greeting"]
"""
        )
        config.chmod(0o444)
        yield {
            "BBPWF_GATEWAY__INSTANCE_CONFIG": str(config),
            "BBPWF_GATEWAY__MOUNTS": json.dumps(
                [f"{key}:/etc/bbpwf/key", f"{given / 'workflows'}:/etc/bbpwf/workflows"]
            ),
            "data_root": cluster.data_root,
        }
