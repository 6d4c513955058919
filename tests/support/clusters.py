"""A real Slurm behind a real sshd, for tests: started once a session, with a head node as agents meet it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbpwf.clock import SystemClock
from bbpwf.cluster.connectors import SshConnector
from bbpwf.settings import ClusterSettings
from sandbox import accounting, slurm, sshd
from sandbox.process import Process, Running, free_ports, start, stop


@dataclass
class RealCluster:
    """A running Slurm, its head node, and the shared disk."""

    folder: Path
    slurm: slurm.Slurm
    sshd: sshd.Sshd
    running: dict[str, Running]

    def settings(self, name: str) -> ClusterSettings:
        """Settings of an agent whose data lies in a folder of its own on the shared disk."""
        return ClusterSettings(
            kind="ssh",
            host="127.0.0.1",
            port=self.sshd.port,
            user=self.sshd.user,
            key_file=self.sshd.sim_key,
            data_root=str(self.folder / "shared" / name),
            poll_s=2,
            command_timeout_s=30,
        )

    def connector(self, settings: ClusterSettings) -> SshConnector:
        """How an agent reaches it."""
        return SshConnector(settings, SystemClock(), known_hosts=self.folder / "known_hosts")

    def logins(self) -> int:
        """SSH connections that were accepted so far."""
        return self.sshd.log.read_text().count("Accepted publickey")

    def cut_connections(self) -> None:
        """Kill what serves the open connections, as a broken network would."""
        for pid in sshd.connections(self.running["sshd"].pid):
            os.kill(pid, signal.SIGKILL)

    def jobs_started(self) -> list[str]:
        """Slurm's own log: one entry for each job or element that it ever started."""
        log = (self.slurm.folder / "log" / "slurmctld.log").read_text()
        marks = ("sched: Allocate JobId=", "backfill: Started JobId=", "sched/backfill: _start_job: Started JobId=")
        return [line.split("JobId=", 1)[1].split()[0] for line in log.splitlines() if any(m in line for m in marks)]


@contextmanager
def real_cluster(*, with_accounting: bool = False, **options: Any) -> Iterator[RealCluster]:
    """Start one in a short folder; end everything of it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bbpwf-c-", dir="/tmp"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        before: tuple[Process, ...] = ()
        if with_accounting:
            made = accounting.prepare(folder / "slurm")
            before = made.processes
            options["extra"] = options.get("extra", "") + made.lines
        prepared = slurm.prepare(folder / "slurm", **options)
        running: dict[str, Running] = {}
        stack.callback(prepared.end_jobs)
        munged, *others = prepared.processes
        for process in (munged, *before, *others):
            running[process.name] = start(process)
            stack.callback(stop, running[process.name])
        stack.callback(prepared.end_jobs)
        (folder / "bin").mkdir()
        homes = {name: folder / "home" / name for name in ("sim", "admin")}
        for home in homes.values():
            sshd.write_profile(home, first_on_path=folder / "bin", env=prepared.env)
        head = sshd.prepare(folder / "ssh", port=free_ports(1)[0], sim_home=homes["sim"], admin_home=homes["admin"])
        running["sshd"] = start(head.process)
        stack.callback(stop, running["sshd"])
        cluster = RealCluster(folder, prepared, head, running)
        stack.callback(cluster.cut_connections)
        yield cluster
