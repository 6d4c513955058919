"""A cluster alone, without the platform around it: real Slurm, real sshd and a shared disk. For tests.

::

    slurm/ ssh/                        configuration, keys, state and logs
    cluster/obi/data/scratch           the data root
    cluster/home/{sim,ec2-user}        HOME of the two keys; their profiles find Slurm and the folders below
    cluster/bin-sim, cluster/bin-admin first on the PATH of each login: a place for doubles
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import accounting, slurm, sshd
from sandbox.process import Process, Running, free_ports, start, stop
from sandbox.slurm import Slurm
from sandbox.sshd import Sshd


@dataclass
class HeadNode:
    """A running cluster."""

    folder: Path
    slurm: Slurm
    sshd: Sshd
    running: dict[str, Running]
    """By name: ``munged``, ``slurmctld``, ``slurmd-n1`` …, ``sshd``."""

    @property
    def data_root(self) -> Path:
        """The part of the shared disk that runs keep data on."""
        return self.folder / "cluster" / "obi" / "data" / "scratch"

    @property
    def commands(self) -> Path:
        """First on the PATH of the ordinary user's login: a place for doubles."""
        return self.folder / "cluster" / "bin-sim"

    def jobs_started(self) -> list[str]:
        """Slurm's own log: one entry for each job or element that it ever started."""
        log = (self.slurm.folder / "log" / "slurmctld.log").read_text()
        marks = ("sched: Allocate JobId=", "backfill: Started JobId=", "sched/backfill: _start_job: Started JobId=")
        return [line.split("JobId=", 1)[1].split()[0] for line in log.splitlines() if any(m in line for m in marks)]

    def connections_so_far(self) -> int:
        """SSH logins since the start."""
        return self.sshd.log.read_text().count("Accepted publickey") if self.sshd.log.exists() else 0

    def cut_connections(self) -> None:
        """Kill what serves the open SSH connections, as a rebooting head node would."""
        sshd.cut(self.running["sshd"].pid)

    def end(self, name: str) -> None:
        """Stop one process."""
        stop(self.running.pop(name))

    def begin(self, name: str) -> None:
        """Start one process again."""
        for process in (*self.slurm.processes, self.sshd.process):
            if process.name == name:
                self.running[name] = start(process)


@contextmanager
def running(folder: Path, *, with_accounting: bool = False, **options: Any) -> Iterator[HeadNode]:
    """Start a cluster in ``folder``, which is to be short, and end it with all its jobs and sessions.

    ``options`` are those of :func:`sandbox.slurm.prepare`; ``with_accounting`` adds ``mariadbd`` and ``slurmdbd``.
    """
    cluster = folder / "cluster"
    before: tuple[Process, ...] = ()
    if with_accounting:
        accounts = accounting.prepare(folder / "slurm")
        before = accounts.processes
        options["extra"] = options.get("extra", "") + accounts.lines
    made = slurm.prepare(folder / "slurm", **options)
    munged, *others = made.processes
    homes = {}
    for user, commands in (("sim", "bin-sim"), ("ec2-user", "bin-admin")):
        homes[user] = cluster / "home" / user
        (cluster / commands).mkdir(parents=True, exist_ok=True)
        sshd.write_profile(homes[user], first_on_path=cluster / commands, env=made.env)
    login = sshd.prepare(folder / "ssh", port=free_ports(1)[0], sim_home=homes["sim"], admin_home=homes["ec2-user"])
    head = HeadNode(folder, made, login, {})
    head.data_root.mkdir(parents=True, exist_ok=True)
    try:
        for process in (munged, *before, *others, login.process):
            head.running[process.name] = start(process)
        yield head
    finally:
        made.end_jobs()
        if "sshd" in head.running:
            head.cut_connections()
        for name in reversed(list(head.running)):
            head.end(name)
        made.end_jobs()
