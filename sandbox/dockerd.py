"""A Docker daemon of one's own: its images, sockets and containers live in one folder and end with it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import requests
from docker.errors import DockerException

from sandbox.process import Process, start, stop

READY_S = 60.0
_MEMORY = "4g"
"""What an in-memory daemon may keep at most; it takes what is used."""


def url(folder: Path) -> str:
    """Where the daemon of ``folder`` listens."""
    return f"unix://{folder / 'docker.sock'}"


@contextmanager
def running(folder: Path, *, in_memory: bool = False) -> Iterator[docker.DockerClient]:
    """Start a daemon in ``folder``, whose path is to be short; end it and all its containers afterwards.

    It changes nothing of the machine's firewall and knows no network but those that one makes. With ``in_memory`` its
    images and containers are kept in memory alone, which is much faster for short lives. Needs root.

    Raises:
        StartFailed: this kernel or user cannot run one.
    """
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    if in_memory:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={_MEMORY},mode=0711", "tmpfs", str(data)]
        subprocess.run(mount, check=True, capture_output=True, timeout=30)
    config = folder / "daemon.json"
    config.write_text(
        json.dumps(
            {
                "data-root": str(data),
                "exec-root": str(folder / "exec"),
                "pidfile": str(folder / "docker.pid"),
                "hosts": [url(folder)],
                "iptables": False,
                "ip6tables": False,
                "ip-masq": False,
                "bridge": "none",
                "userland-proxy": False,
            }
        )
    )
    process = Process(
        name="dockerd",
        argv=("dockerd", "--config-file", str(config)),
        env={"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin", "HOME": str(folder)},
        log=folder / "dockerd.log",
        ready=lambda: _answers(folder),
        ready_within=READY_S,
    )
    daemon = start(process)
    client = docker.DockerClient(base_url=url(folder), timeout=300)
    try:
        yield client
    finally:
        try:
            _clear(client)
        finally:
            client.close()
            stop(daemon, grace=30)
            _unmount(folder)


def remove(folder: Path) -> None:
    """Remove what an ended daemon left."""
    _unmount(folder)
    shutil.rmtree(folder)


def _answers(folder: Path) -> bool:
    if not (folder / "docker.sock").exists():
        return False
    try:
        probe = docker.DockerClient(base_url=url(folder), timeout=2)
    except DockerException:
        return False
    try:
        return bool(probe.ping())
    except (DockerException, requests.RequestException):
        return False
    finally:
        probe.close()


def _clear(client: docker.DockerClient) -> None:
    """End every container and remove every network; a bridge would outlive its daemon."""
    for container in client.containers.list(all=True, ignore_removed=True):
        with contextlib.suppress(DockerException):
            container.remove(force=True, v=True)
    for network in client.networks.list():
        if network.name not in {"none", "host", "bridge"}:
            with contextlib.suppress(DockerException):
                network.remove()


def _unmount(folder: Path) -> None:
    """Undo the mounts that a daemon leaves when it was killed; innermost first."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for point in reversed(points):
        if point.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True, timeout=30)
