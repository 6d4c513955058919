"""The processes that a sandbox consists of, in chains: within a chain one after the other, chains side by side."""

from __future__ import annotations

import dataclasses
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sandbox import environment, keycloak, lfs, moto, slurm, sshd, users
from sandbox.layout import REPOSITORY, Layout
from sandbox.pids import MARKER
from sandbox.process import Process
from sandbox.state import SandboxState

LISTENERS = ("moto", "oidc", "provisioner", "nexus", "sshd", "service", "scheduler")
"""Parts with a port that the sandbox chooses; Slurm's daemons choose their own."""
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_USER, _ADMIN = "sim", "ec2-user"


@dataclass(frozen=True)
class Step:
    """A process to start, and how the part is known afterwards."""

    process: Process
    port: int | None = None
    url: str = ""


@dataclass(frozen=True)
class Chain:
    """Steps in order, and what to do when all are ready."""

    steps: Sequence[Step]
    afterwards: Callable[[], None] = lambda: None


def missing_for_slurm() -> list[str]:
    """What this machine lacks for a real cluster."""
    lacking = slurm.missing()
    if sshd.available() is None:
        lacking.append("sshd")
    if users.library() is None:
        lacking.append("libnss-wrapper")
    return lacking


def answers(url: str, *, timeout: float = 2.0) -> bool:
    """Whether something at ``url`` speaks HTTP and has not failed (a status below 500)."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310 our own loopback URLs
            return bool(answer.status < 500)
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


class Parts:
    """The parts of one sandbox. Building them writes their configuration below its folder."""

    def __init__(self, state: SandboxState) -> None:
        self._state = state
        self._layout = Layout(state.short)
        self._env = {
            "PATH": f"{Path(sys.executable).parent}:{_SYSTEM_PATH}",
            "HOME": str(self._layout.home(_USER)),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            MARKER: str(state.folder),
            # of the caller's environment, nothing but this
            **{name: os.environ[name] for name in ("TZ", "TMPDIR") if name in os.environ},
        }
        self._aws_env = {**self._env, **moto.CREDENTIALS, "AWS_DEFAULT_REGION": moto.REGION}

    def chains(self) -> list[Chain]:
        """Everything but the service, which needs all of it; the slowest first.

        Raises:
            OSError: a file cannot be written, or a program or port is lacking.
            ValueError: the folder's path is too long for Slurm.
        """
        aws = self._state.urls["aws"]
        secret = str(self._layout.client_secret)
        buckets = ("--bucket", moto.NEXUS_BUCKET, "--bucket", moto.SCRATCH_BUCKET)
        names = ("--org", environment.NEXUS_ORG, "--project", environment.NEXUS_PROJECT)
        issuer = ("--issuer", self._state.urls["issuer"])
        chains = [
            Chain([self._moto()], afterwards=lambda: moto.make_buckets(aws)),
            Chain([self._double("nexus", *issuer, "--s3-endpoint", aws, *buckets, *names)]),
            Chain([self._keycloak() if self._state.keycloak else self._double("oidc", "--client-secret-file", secret)]),
        ]
        return [*self._cluster(), *chains] if self._state.backend == "slurm" else chains

    def service(self, client_secret: str) -> Chain:
        """The service of the project's instance. Its environment alone holds the client secret."""
        process = Process(
            name="service",
            argv=(sys.executable, "-m", "bbpwf.cli.main", "serve"),
            env={**self._env, **environment.service_env(self._state, client_secret)},
            log=self._layout.logs / "service.log",
            ready_within=60.0,
            cwd=self._layout.service_state,
        )
        return Chain([self._http(process, "service", "/healthz")])

    def _moto(self) -> Step:
        process = moto.process(self._state.ports["moto"], self._env, self._layout.logs / "moto.log")
        return self._http(process, "moto", "/moto-api/")

    def _double(self, name: str, *options: str) -> Step:
        argv = (sys.executable, "-m", f"sandbox.{name}", "--port", str(self._state.ports[name]))
        process = Process(
            name=name,
            argv=(*argv, "--state", str(self._layout.root / name), *options),
            env=self._aws_env,
            log=self._layout.logs / f"{name}.log",
            cwd=REPOSITORY,
        )
        return self._http(process, name, "/_faults")

    def _keycloak(self) -> Step:
        layout, port = self._layout, self._state.ports["oidc"]
        secret = layout.client_secret.read_text().strip()
        log = layout.logs / "keycloak.log"
        process = keycloak.process(layout.root / "keycloak", port, client_secret=secret, log=log)
        return Step(self._marked(process), port, keycloak.issuer_url(port))

    def _http(self, process: Process, name: str, path: str) -> Step:
        port = self._state.ports[name]
        url = f"http://127.0.0.1:{port}{path}"
        return Step(dataclasses.replace(process, ready=lambda: answers(url)), port, url)

    def _cluster(self) -> list[Chain]:
        layout, ports, aws = self._layout, self._state.ports, self._state.urls["aws"]
        disk = layout.shared_disk
        lfs.install(disk, layout.data_root, aws, moto.SCRATCH_BUCKET, environment.ARCHIVE_PREFIX)
        cluster = slurm.prepare(layout.slurm)
        homes = {name: layout.home(name) for name in (_USER, _ADMIN)}
        for name, commands in ((_USER, "bin-sim"), (_ADMIN, "bin-admin")):
            sshd.write_profile(homes[name], first_on_path=disk / commands, env={**cluster.env, **self._mark})
        head_node = sshd.prepare(layout.ssh, port=ports["sshd"], sim_home=homes[_USER], admin_home=homes[_ADMIN])
        login = users.knowing(head_node.process, homes, layout.ssh / "users")
        keys = ("--sim-key", str(head_node.sim_key), "--admin-key", str(head_node.admin_key))
        pace = ("--absent-seconds", "1", "--create-seconds", "2", "--delete-seconds", "1")
        return [
            Chain([Step(self._marked(each)) for each in cluster.processes]),
            Chain([self._double("provisioner", "--aws-endpoint", aws, *keys, *pace)]),
            Chain([Step(self._marked(login), ports["sshd"])]),
        ]

    @property
    def _mark(self) -> dict[str, str]:
        return {MARKER: str(self._state.folder)}

    def _marked(self, process: Process) -> Process:
        return dataclasses.replace(process, env={**process.env, **self._mark})
