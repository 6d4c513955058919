"""A real Slurm behind a real sshd, shared by the tests of a session."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from bbpwf.clock import SystemClock
from bbpwf.transport.hostkeys import HostKeyPins
from bbpwf.transport.ssh import SshTransport
from bbpwf.transport.ssh_connection import Login
from sandbox import headnode, moto
from sandbox.headnode import HeadNode
from tests.support.canary import Canary, Home
from tests.support.issuer import SECRET


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[HeadNode]:
    """Four nodes of 16 slots, nothing running. Tests look at their own jobs only.

    Slurm's commands try for ``MessageTimeout`` to reach a controller that is down: 60 s on a ParallelCluster, 5 here.
    """
    folder = Path(tempfile.mkdtemp(prefix="bbpwf-s-", dir="/tmp"))
    try:
        with headnode.running(folder, extra="MessageTimeout=5\n") as head:
            yield head
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def head_transport(slurm_cluster: HeadNode, tmp_path: Path) -> Iterator[SshTransport]:
    """A connection to its head node as the ordinary user."""
    login = Login("127.0.0.1", slurm_cluster.sshd.port, slurm_cluster.sshd.user)
    key = SecretStr(slurm_cluster.sshd.sim_key.read_text())
    transport = SshTransport(login, key, HostKeyPins(tmp_path / "known_hosts"), clock=SystemClock())
    yield transport
    transport.close()


LOGINS = (Home("*/credentials.json", "a JWT", "somebody's own login, which `bbpwf login` keeps for them"),)


@pytest.fixture(scope="session", autouse=True)
def _no_secrets_are_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After all tests of this process: no state folder, spool or log that any of them left holds a secret."""
    yield
    canary = Canary()
    canary.plant("the service's client secret", SECRET)
    canary.plant("the AWS secret key", moto.CREDENTIALS["AWS_SECRET_ACCESS_KEY"])
    base = tmp_path_factory.getbasetemp()
    leaks = {f"{leak.secret}: {leak.where}" for leak in canary.in_what_was_written(base, LOGINS)}
    assert not leaks, "secrets in what tests left:\n" + "\n".join(sorted(leaks))
