"""A real Slurm behind a real sshd, for tests: the sandbox's head node, and how agents are told of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bbpwf.clock import SystemClock
from bbpwf.cluster.connectors import SshConnector
from bbpwf.settings import ClusterSettings
from sandbox import headnode
from sandbox.headnode import HeadNode


class RealCluster:
    """A running cluster."""

    def __init__(self, head: HeadNode) -> None:
        self.head = head
        self.folder = head.folder
        self.slurm = head.slurm
        self.sshd = head.sshd
        self.running = head.running

    @property
    def profile(self) -> Path:
        """What the ordinary user's login reads."""
        return self.folder / "cluster" / "home" / "sim" / ".bash_profile"

    def settings(self, name: str) -> ClusterSettings:
        """Settings of an agent whose data lies in a folder of its own on the shared disk."""
        return ClusterSettings(
            kind="ssh",
            host="127.0.0.1",
            port=self.sshd.port,
            user=self.sshd.user,
            key_file=self.sshd.sim_key,
            data_root=str(self.head.data_root / name),
            poll_s=2,
            command_timeout_s=30,
        )

    def connector(self, settings: ClusterSettings) -> SshConnector:
        """How an agent reaches it."""
        return SshConnector(settings, SystemClock(), known_hosts=self.folder / "known_hosts")


@contextmanager
def real_cluster(*, with_accounting: bool = False, **options: Any) -> Iterator[RealCluster]:
    """Start one in a short folder; end everything of it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bbpwf-c-", dir="/tmp"))
    try:
        with headnode.running(folder, with_accounting=with_accounting, **options) as head:
            yield RealCluster(head)
    finally:
        shutil.rmtree(folder)
