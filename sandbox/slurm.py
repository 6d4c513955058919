"""A real Slurm on one machine: munged, slurmctld and one slurmd for each of a few nodes, run as the current user.

Seen to work on Debian 12 (Slurm 22.05.8), as root and as an ordinary user. Differences from a ParallelCluster:

- every node is this host, so a node's cores are a number in the configuration (``config_overrides``);
- no cgroups: memory that a job asks for is checked against a node's size, but not enforced while it runs;
- ``KillWait`` is short, so that a time limit or a cancel takes effect within seconds;
- the scheduler looks more often, so that a batch job starts within 1 s of its submission rather than 3 (measured), and
  one that was held back within 2 s of its time rather than 60; requeued jobs are held back 5 s, not 70.

The rest follows the cluster's ``slurm.conf``: partitions named after tiers with their time limits, ``MinJobAge``,
``EnforcePartLimits``, requeueable jobs, and no accounting.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sandbox.process import Process, free_ports

_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "sinfo", "scancel")
_LONGEST_SOCKET = 107
"""Bytes that a Unix socket's path may have (sun_path, Linux)."""


@dataclass(frozen=True)
class Slurm:
    """A prepared Slurm. ``processes`` are to be started in order and stopped in the opposite one.

    ``env`` is what a login needs beside PATH to use it: ``SLURM_CONF``.
    """

    folder: Path
    conf: Path
    nodes: tuple[str, ...]
    processes: tuple[Process, ...]
    env: dict[str, str]

    def command(self, *argv: str, timeout: float = 10.0) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands on this cluster; its exit code is the caller's to look at."""
        env = {**self.env, "PATH": _PATH, "HOME": os.environ.get("HOME", "/")}
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=timeout, check=False)

    def end_jobs(self, *, within: float = 15.0) -> None:
        """Cancel all jobs and end every process that belongs to one: slurmd does not when it is stopped.

        To be called before the processes are stopped (jobs are cancelled) and after (what is left is killed).
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self.command("scontrol", "ping", timeout=5).returncode == 0:
                self.command("scancel", "--quiet", f"--user={_user()}")
                self._wait_until_empty(within)
                return
        for pid in self.job_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def job_processes(self) -> list[int]:
        """Ids of running processes that carry this cluster's ``SLURM_CONF`` and are none of its daemons."""
        daemons = {"munged", "slurmctld", "slurmscriptd", "slurmd"}
        marker = f"SLURM_CONF={self.conf}".encode()
        found = []
        for pid, environ, name in _processes():
            if marker in environ.split(b"\0") and name not in daemons and pid != os.getpid():
                found.append(pid)
        return found

    def _wait_until_empty(self, within: float) -> None:
        deadline = time.monotonic() + within
        while time.monotonic() < deadline and self.command("squeue", "--noheader").stdout.strip():
            time.sleep(0.1)


def missing() -> list[str]:
    """Programs that a real Slurm needs and this machine lacks; empty when it can run here."""
    return [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]


def prepare(
    folder: Path,
    *,
    nodes: int = 4,
    cpus: int = 16,
    memory_mb: int = 32_000,
    min_job_age: int = 300,
    max_job_count: int = 10_000,
    max_array_size: int = 1001,
    kill_wait: int = 5,
    requeue_wait: int = 5,
    select: str = "CR_CPU",
    accounting: str = "accounting_storage/none",
    extra: str = "",
) -> Slurm:
    """Write a cluster's keys and configuration below ``folder``, on ports that are free now.

    State that is there already (jobs, job numbers) is kept, so that a stopped cluster can go on.

    Args:
        folder: short enough for a Unix socket in it; made if absent.
        nodes: number of nodes, named n1, n2, …
        cpus: slots of each node; more than the machine's cores is fine.
        memory_mb: RealMemory of each node, MiB.
        min_job_age: seconds for which Slurm remembers an ended job (300 in production).
        max_job_count: MaxJobCount: jobs in the controller's memory, array elements included.
        max_array_size: MaxArraySize: one more than the highest array index.
        kill_wait: seconds between SIGTERM and SIGKILL.
        requeue_wait: seconds for which a requeued job is held back at least (``cred_expire``; 70 in production).
            Told to start at once instead, it may fail without a word: its node still refuses its credential.
        select: SelectTypeParameters; ``CR_CPU_Memory`` makes memory a resource that jobs use up.
        accounting: AccountingStorageType.
        extra: lines appended to ``slurm.conf``; a repeated key there wins.

    Raises:
        FileNotFoundError: a program is missing; names each.
        ValueError: ``folder`` is too long a path.
    """
    if lacking := missing():
        raise FileNotFoundError(f"{', '.join(lacking)} not found (Debian packages slurm-wlm and munge)")
    folder = folder.absolute()
    munge_socket = folder / "munge" / "s"
    if len(os.fsencode(munge_socket)) > _LONGEST_SOCKET:
        raise ValueError(f"{folder} is too long a path: munge's socket in it may have {_LONGEST_SOCKET} bytes")
    for name in ("munge", "ctld", "log", *(f"d/n{i}" for i in range(1, nodes + 1))):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "munge").chmod(0o711)
    key = folder / "munge" / "key"
    if not key.exists():
        descriptor = os.open(key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(128))

    ports = free_ports(1 + nodes)
    user = _user()
    host = socket.gethostname().split(".")[0]
    names = tuple(f"n{i}" for i in range(1, nodes + 1))
    node_lines = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory={memory_mb} "
        "State=UNKNOWN"
        for name, port in zip(names, ports[1:], strict=True)
    )
    conf = folder / "slurm.conf"
    conf.write_text(
        f"""ClusterName=sandbox
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={munge_socket},cred_expire={requeue_wait}
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/ctld
SlurmdSpoolDir={folder}/d/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/d/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
AccountingStorageType={accounting}
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters={select}
EnforcePartLimits=ALL
ReturnToService=1
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=5
MinJobAge={min_job_age}
MaxJobCount={max_job_count}
MaxArraySize={max_array_size}
KillWait={kill_wait}
MessageTimeout=60
SlurmctldTimeout=300
SlurmdTimeout=180
{node_lines}
PartitionName=debug Nodes=ALL Default=YES MaxTime=1-00:00:00 DefaultTime=1:00:00 State=UP
PartitionName=prod-mpi Nodes=ALL MaxTime=12:00:00 DefaultTime=1:00:00 State=UP
PartitionName=prod-batch Nodes=ALL MaxNodes=4 MaxTime=2:00:00 DefaultTime=1:00:00 State=UP
{extra}"""
    )
    slurm = Slurm(folder=folder, conf=conf, nodes=names, processes=(), env={"SLURM_CONF": str(conf)})
    daemon_env = {"PATH": _PATH, "HOME": os.environ.get("HOME", "/"), "USER": user, **slurm.env}

    def idle(wanted: tuple[str, ...]) -> bool:
        listed = slurm.command("sinfo", "--noheader", "--Node", "--partition=debug", "--format=%N %T").stdout
        seen = dict(line.split() for line in listed.splitlines() if line)
        return all(seen.get(name) in {"idle", "mixed", "allocated"} for name in wanted)

    munged = Process(
        name="munged",
        argv=(
            _which("munged"),
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={munge_socket}",
            f"--pid-file={folder}/munge/pid",
            f"--log-file={folder}/log/munged.log",
            f"--seed-file={folder}/munge/seed",
            "--num-threads=2",
        ),
        env=daemon_env,
        log=folder / "log" / "munged.out",
        ready=lambda: _listens(munge_socket),
        ready_within=15.0,
    )
    slurmctld = Process(
        name="slurmctld",
        argv=(_which("slurmctld"), "-D", "-f", str(conf)),
        env=daemon_env,
        log=folder / "log" / "slurmctld.out",
        ready=lambda: slurm.command("scontrol", "ping").returncode == 0,
        ready_within=30.0,
    )
    # slurmds start at once; only the last is waited for, until all are usable
    slurmds = [
        Process(
            name=f"slurmd-{name}",
            argv=(_which("slurmd"), "-D", "-N", name, "-f", str(conf)),
            env=daemon_env,
            log=folder / "log" / f"slurmd-{name}.out",
            ready=(lambda: idle(names)) if name == names[-1] else (lambda: True),
            ready_within=45.0,
        )
        for name in names
    ]
    return Slurm(folder=folder, conf=conf, nodes=names, processes=(munged, slurmctld, *slurmds), env=slurm.env)


def _user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def _which(name: str) -> str:
    return shutil.which(name, path=_PATH) or name


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(str(path)) == 0


def _processes() -> Iterator[tuple[int, bytes, str]]:
    """``(pid, environ, name)`` of every process that we may look into."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "environ").read_bytes(), (entry / "comm").read_text().strip()
