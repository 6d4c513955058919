"""The platform's data side as real processes: S3, the issuer, Nexus Delta, and a shared disk with ``lfs``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
import requests
from pydantic import SecretStr

from bbpwf.errors import CommandTimeout
from bbpwf.settings import AwsSettings, NexusSettings
from bbpwf.transport.protocol import Completed
from sandbox import lfs
from sandbox.nexus.storages import s3_storage_id
from sandbox.oidc import issuer_url
from sandbox.process import Process, Running, accepts, free_ports, start, stop

NEXUS_BUCKET = "nexus-bucket"
SCRATCH_BUCKET = "scratch-bucket"
CLIENT_SECRET = "the-services-secret"


def serve(name: str, argv: Sequence[str], port: int, folder: Path) -> Running:
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}
    process = Process(
        name, (sys.executable, *argv), env, folder / f"{name}.log", ready=lambda: accepts(port), ready_within=60
    )
    return start(process)


@dataclass
class Bucket:
    """S3 as the tests look at it."""

    endpoint: str

    def __post_init__(self) -> None:
        self.client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="x",
            aws_secret_access_key="y",
        )

    def get(self, bucket: str, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket=bucket, Key=key)["Body"].read()
        return content

    def keys(self, bucket: str, prefix: str = "") -> set[str]:
        found = self.client.list_objects_v2(Bucket=bucket, Prefix=prefix)
        return {each["Key"] for each in found.get("Contents", [])}


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    (port,) = free_ports(1)
    folder = tmp_path_factory.mktemp("moto")
    running = serve("moto", ("-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)), port, folder)
    bucket = Bucket(f"http://127.0.0.1:{port}")
    for name in (NEXUS_BUCKET, SCRATCH_BUCKET):
        bucket.client.create_bucket(Bucket=name)
    yield bucket
    bucket.client.close()
    stop(running)


@dataclass
class Realm:
    """The issuer as the tests use it."""

    url: str

    def token(self, username: str) -> SecretStr:
        return self._grant({"grant_type": "password", "username": username, "password": username} | CLI)

    def service_token(self) -> SecretStr:
        secret = {"client_id": "bbp-workflow", "client_secret": CLIENT_SECRET}
        return self._grant({"grant_type": "client_credentials"} | secret)

    def faults(self, **knobs: object) -> None:
        origin = self.url.split("/auth/")[0]
        requests.post(f"{origin}/_faults", json=knobs, timeout=10).raise_for_status()

    def _grant(self, form: dict[str, str]) -> SecretStr:
        url = f"{self.url}/protocol/openid-connect/token"
        answer = requests.post(url, data=form | {"scope": "openid"}, timeout=10)
        answer.raise_for_status()
        return SecretStr(answer.json()["access_token"])


CLI = {"client_id": "obi-entitysdk-auth"}


@pytest.fixture(scope="session")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    (port,) = free_ports(1)
    folder = tmp_path_factory.mktemp("oidc")
    secret = folder / "secret"
    secret.write_text(CLIENT_SECRET)
    argv = ("-m", "sandbox.oidc", "--port", str(port), "--state", str(folder), "--client-secret-file", str(secret))
    running = serve("oidc", argv, port, folder)
    yield Realm(issuer_url(port))
    stop(running)


@dataclass
class Nexus:
    """The double of Delta as a process."""

    port: int
    folder: Path
    issuer: str
    s3_endpoint: str
    running: Running | None = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        argv = ["-m", "sandbox.nexus", "--port", str(self.port), "--state", str(self.folder), "--issuer", self.issuer]
        argv += ["--s3-endpoint", self.s3_endpoint, "--bucket", NEXUS_BUCKET]
        self.running = serve("nexus", argv, self.port, self.folder)

    def stop(self) -> None:
        if self.running is not None:
            stop(self.running)

    def faults(self, **knobs: object) -> None:
        requests.post(f"http://127.0.0.1:{self.port}/_faults", json=knobs, timeout=10).raise_for_status()

    def settings(self, *, s3: bool = False) -> NexusSettings:
        storage = s3_storage_id(NEXUS_BUCKET) if s3 else ""
        return NexusSettings.model_validate(
            {"url": self.base, "org": "bbp", "project": "sandbox", "storage_id": storage, "timeout_s": 10}
        )


@pytest.fixture(scope="session")
def nexus_process(realm: Realm, s3: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nexus]:
    (port,) = free_ports(1)
    nexus = Nexus(port, tmp_path_factory.mktemp("nexus"), realm.url, s3.endpoint)
    nexus.start()
    yield nexus
    nexus.stop()


@pytest.fixture
def nexus(nexus_process: Nexus) -> Iterator[Nexus]:
    yield nexus_process
    requests.delete(f"http://127.0.0.1:{nexus_process.port}/_faults", timeout=10).raise_for_status()


@dataclass
class Shared:
    """A cluster's shared disk with ``lfs``, and commands run there as its two users."""

    disk: Path
    root: Path
    prefix: str

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float = 60, admin: bool = False) -> Completed:
        folder = self.disk / ("bin-admin" if admin else "bin-sim")
        try:
            done = self._run(argv, stdin, timeout, folder)
        except subprocess.TimeoutExpired as error:
            raise CommandTimeout(f"{argv[0]} took longer than {timeout} s") from error
        return Completed(done.returncode, done.stdout, done.stderr)

    def _run(
        self, argv: Sequence[str], stdin: bytes, timeout: float, folder: Path
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["/bin/sh", "-c", 'exec "$@"', "sh", *argv],  # as a login's shell: 127 for an unknown command
            input=stdin,
            capture_output=True,
            timeout=timeout,
            env={"PATH": f"{folder}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            cwd=self.root,
            check=False,
        )

    def privileged(self, script: str, *, name: str, timeout: float) -> Completed:
        done = self.run(["bash", "-s"], stdin=script.encode(), timeout=timeout, admin=True)
        return Completed(done.exit_code, done.stdout + done.stderr, b"")

    def file(self, name: str, content: bytes | str = "content\n") -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def faults(self, **knobs: object) -> None:
        lfs.set_faults(self.disk, lfs.LustreFaults.model_validate({"delay_s": 0.05} | knobs))


@pytest.fixture
def shared(s3: Bucket, tmp_path: Path) -> Iterator[Shared]:
    disk = tmp_path / "cluster"
    # one bucket serves all tests: each has a prefix of its own
    prefix = tmp_path.name
    shared = Shared(disk, (disk / "obi/data/scratch").absolute(), prefix)
    lfs.install(disk, shared.root, s3.endpoint, SCRATCH_BUCKET, prefix)
    shared.faults()
    yield shared
    lfs.stop(disk)


@pytest.fixture
def aws(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> AwsSettings:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    return AwsSettings(region="us-east-1", endpoint_url=s3.endpoint)
