"""Everything that can be broken, with the levers to break it: cluster, disks, clock and agents."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bbpwf import faults
from bbpwf.cluster.client import AgentClient
from bbpwf.cluster.control import AgentControl
from bbpwf.errors import BbpwfError, ConnectFailed
from bbpwf.states import JobState
from benchmarks.chaos.shims import Shims
from benchmarks.chaos.workload import RUN
from sandbox import sshd
from sandbox.process import Running, start, stop
from tests.support.clusters import RealCluster, real_cluster

_LIVE = tuple(state.value for state in JobState if not state.terminal)
_DISK_MB = 48
_FILLER = "filler"


class AgentProcess:
    """One agent on a state folder of its own; all share one database."""

    def __init__(self, popen: subprocess.Popen[bytes], state: Path) -> None:
        self.popen = popen
        self._control = AgentControl(state / "agent.sock", timeout=5.0)
        self._client: AgentClient | None = None

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self.popen.poll() is None

    def client(self) -> AgentClient:
        """The run's handle. Raises ConnectFailed or ConnectionLost while there is nobody to answer."""
        if self._client is None:
            self._client = AgentClient(self._control.open_run(RUN, 1), RUN)
        return self._client

    def wait_open(self, within: float) -> bool:
        """Wait until it answers; False when it died or did not in time."""
        deadline = time.monotonic() + within
        while self.alive and time.monotonic() < deadline:
            with contextlib.suppress(BbpwfError):
                self.client()
                return True
            time.sleep(0.05)
        return False

    def kill(self) -> None:
        """``kill -9``, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self.popen.kill()
        self.popen.wait()

    def close(self) -> None:
        """Kill it and close the sockets."""
        self.kill()
        self._control.close()
        if self._client is not None:
            self._client.close()


class Site:
    """A cluster and its present agent."""

    def __init__(self, cluster: RealCluster, folder: Path, *, mounted: bool) -> None:
        self.cluster = cluster
        self.folder = folder
        self.mounted = mounted
        self.shared = cluster.folder / "shared"
        self.ledger = folder / "ledger" / "bbpwf.db"
        self.shims = Shims(folder / "chaos", cluster.folder / "bin")
        self.shims.listener(cluster.running["sshd"].pid)
        self.log = folder / "agent.log"
        self._clock = folder / "clock"
        self._agents = 0
        self._agent: AgentProcess | None = None
        self._all: list[AgentProcess] = []

    # -- agents -----------------------------------------------------------------------------------------------

    @property
    def agent(self) -> AgentProcess:
        """The present one. Raises ConnectFailed when there is none."""
        if self._agent is None:
            raise ConnectFailed("no agent runs now")
        return self._agent

    def start_agent(self, armed: str = "", *, beside: bool = False) -> AgentProcess:
        """Start an agent, with armed fault points; ``beside`` another one, it has a state folder of its own."""
        if beside or self._agents == 0:
            self._agents += 1
        state = self.folder / f"s{self._agents}"
        settings = self.cluster.settings("data")
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "CHAOS_CLOCK": str(self._clock),
            faults.VARIABLE: armed,
            "BBPWF_STATE_DIR": str(state),
            "BBPWF_DATABASE_URL": f"sqlite:///{self.ledger}",
            "BBPWF_CLUSTER__KIND": "ssh",
            "BBPWF_CLUSTER__HOST": settings.host,
            "BBPWF_CLUSTER__PORT": str(settings.port),
            "BBPWF_CLUSTER__USER": settings.user,
            "BBPWF_CLUSTER__KEY_FILE": str(settings.key_file),
            "BBPWF_CLUSTER__DATA_ROOT": settings.data_root,
            "BBPWF_CLUSTER__POLL_S": "1",
            "BBPWF_CLUSTER__COMMAND_TIMEOUT_S": "30",
            "BBPWF_CLUSTER__UNCLEAR_S": "15",
            "BBPWF_CLUSTER__LOST_AFTER_S": "120",
        }
        with self.log.open("ab") as log:
            popen = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.chaos.agent"],
                env=env,
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._agent = AgentProcess(popen, state)
        self._all.append(self._agent)
        return self._agent

    def close(self) -> None:
        """End every agent. A caller that was slow may have used one that was ended already: all are closed again."""
        for agent in self._all:
            agent.close()

    def live(self) -> int:
        """How many jobs have not ended, as the ledger says."""
        query = f"SELECT count(*) FROM jobs WHERE state IN ({','.join('?' * len(_LIVE))})"
        try:
            with contextlib.closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True, timeout=5.0)) as db:
                return int(db.execute(query, _LIVE).fetchone()[0])
        except sqlite3.OperationalError:  # not made yet, or its disk is full
            return 0

    # -- levers -----------------------------------------------------------------------------------------------

    def cut_connections(self) -> None:
        """Kill what serves the open SSH connections."""
        for pid in sshd.connections(self.cluster.running["sshd"].pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def restart_sshd(self, away: float) -> None:
        """Stop it with its connections, and start it again after ``away`` seconds."""
        self.cut_connections()
        stop(self.cluster.running["sshd"])
        time.sleep(away)
        self.cluster.running["sshd"] = start(self.cluster.sshd.process)
        self.shims.listener(self.cluster.running["sshd"].pid)

    def restart_controller(self, away: float) -> None:
        """Stop slurmctld as an operator would, and start it again."""
        stop(self.cluster.running["slurmctld"])
        time.sleep(away)
        made = next(p for p in self.cluster.slurm.processes if p.name == "slurmctld")
        self.cluster.running["slurmctld"] = start(made)

    @contextmanager
    def frozen_controller(self) -> Iterator[None]:
        """The controller neither answers nor refuses."""
        pid = self.cluster.running["slurmctld"].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @contextmanager
    def full_disk(self, near: bool) -> Iterator[None]:
        """No room: for the ledger (``near``), or for everything on the cluster's shared disk."""
        if not self.mounted:
            with self._small_files(near):
                yield
            return
        filler = (self.ledger.parent if near else self.shared) / _FILLER
        try:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(65_536))
            yield
        finally:
            filler.unlink(missing_ok=True)

    @contextmanager
    def _small_files(self, near: bool) -> Iterator[None]:
        """What an ordinary user can do instead: writes of the agent, or of its remote shells, fail by a size limit."""
        pids = [self.agent.popen.pid] if near else sshd.connections(self.cluster.running["sshd"].pid)
        limit = 4096 if near else 0
        before = {}
        for pid in pids:
            with contextlib.suppress(OSError):
                before[pid] = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, before[pid][1]))
        try:
            yield
        finally:
            for pid, limits in before.items():
                with contextlib.suppress(OSError):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)

    def set_clock(self, shift: float) -> None:
        """Let the agent's time of day be off by ``shift`` seconds."""
        draft = self._clock.with_suffix(".new")
        draft.write_text(str(shift))
        draft.replace(self._clock)


@contextmanager
def site(**options: Any) -> Iterator[Site]:
    """A cluster with small disks, where mounting is allowed; ended and unmounted afterwards."""
    with ExitStack() as stack:
        cluster = stack.enter_context(real_cluster(**options))
        folder = cluster.folder / "chaos"
        (folder / "ledger").mkdir(parents=True)
        (cluster.folder / "shared").mkdir()
        mounted = _mount(stack, folder / "ledger") and _mount(stack, cluster.folder / "shared")
        made = Site(cluster, folder, mounted=mounted)
        stack.callback(_stop_new, cluster, dict(cluster.running))
        try:
            yield made
        finally:
            made.close()


def _stop_new(cluster: RealCluster, first: dict[str, Running]) -> None:
    """Stop daemons that were started in place of the first ones: those are the cluster's own to stop."""
    for name, running in cluster.running.items():
        if running is not first[name]:
            cluster.slurm.end_jobs() if name == "slurmctld" else cluster.cut_connections()
            stop(running)


def _mount(stack: ExitStack, path: Path) -> bool:
    argv = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "none", str(path)]
    if subprocess.run(argv, capture_output=True, check=False, timeout=10).returncode != 0:
        return False
    stack.callback(subprocess.run, ["umount", "--lazy", str(path)], check=True, timeout=30)
    return True
