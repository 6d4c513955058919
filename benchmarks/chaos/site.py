"""Everything that can be broken, with the levers to break it: cluster, disks, clock and agents."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bbpwf import faults
from bbpwf.cluster.jobs import JobSpec
from bbpwf.errors import ConnectFailed
from bbpwf.states import JobState
from benchmarks.chaos.agents import AgentProcess
from benchmarks.chaos.shims import Shims
from sandbox import headnode, sshd
from sandbox.headnode import HeadNode

_LIVE = tuple(state.value for state in JobState if not state.terminal)
_DISK_MB = 48
_FILLER = "filler"
_GONE_WITHIN_S = 30.0


class Site:
    """A ledger and its present agent, whose jobs run on this machine; :class:`SlurmSite` has a cluster for them."""

    def __init__(self, folder: Path, shared: Path, *, mounted: bool) -> None:
        self.folder = folder
        self.shared = shared
        self.mounted = mounted
        self.ledger = folder / "ledger" / "bbpwf.db"
        self.log = folder / "agent.log"
        self._clock = folder / "clock"
        self._agents = 0
        self._agent: AgentProcess | None = None
        self._all: list[AgentProcess] = []
        self.set_clock(0.0)

    # -- agents -----------------------------------------------------------------------------------------------

    @property
    def agent(self) -> AgentProcess:
        """The present one. Raises ConnectFailed when there is none."""
        if self._agent is None:
            raise ConnectFailed("no agent runs now")
        return self._agent

    def cluster_env(self) -> dict[str, str]:
        """How an agent is told of the cluster."""
        return {
            "BBPWF_CLUSTER__KIND": "local",
            "BBPWF_CLUSTER__MAX_LOCAL_JOBS": "8",
            "BBPWF_CLUSTER__DATA_ROOT": str(self.shared / "data"),
            "BBPWF_CLUSTER__POLL_S": "1",
        }

    def start_agent(self, armed: str = "", *, beside: bool = False) -> AgentProcess:
        """Start an agent, with armed fault points; ``beside`` another one, it has a state folder of its own."""
        if beside or self._agents == 0:
            self._agents += 1
        state = self.folder / f"s{self._agents}"
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "CHAOS_CLOCK": str(self._clock),
            faults.VARIABLE: armed,
            "BBPWF_STATE_DIR": str(state),
            "BBPWF_DATABASE_URL": f"sqlite:///{self.ledger}",
            **self.cluster_env(),
        }
        self._agent = AgentProcess(env, state, self.log)
        self._all.append(self._agent)
        return self._agent

    def close(self) -> None:
        """End every agent. A caller that was slow may have used one that was ended already: all are closed again."""
        for agent in self._all:
            agent.close()

    def submit(self, specs: list[JobSpec]) -> None:
        """Want jobs of the present agent."""
        self.agent.client().submit(specs)

    def cancel(self, keys: list[str]) -> None:
        """Want them no more."""
        self.agent.client().cancel(keys)

    def throttle(self, keys: list[str], limit: int) -> None:
        """Let few of them run at once."""
        self.agent.throttle(keys, limit)

    def release(self) -> None:
        """Give back what the run holds of the cluster."""
        self.agent.release()

    def live(self) -> int:
        """How many jobs have not ended, as the ledger says."""
        query = f"SELECT count(*) FROM jobs WHERE state IN ({','.join('?' * len(_LIVE))})"
        try:
            with contextlib.closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True, timeout=5.0)) as db:
                return int(db.execute(query, _LIVE).fetchone()[0])
        except sqlite3.OperationalError:  # not made yet, or its disk is full
            return 0

    # -- levers -----------------------------------------------------------------------------------------------

    @contextmanager
    def full_disk(self, near: bool) -> Iterator[None]:
        """No room: for the ledger (``near``), or for everything on the cluster's shared disk."""
        if not self.mounted:
            with _small_files(self.writers(near), 4096 if near else 0):
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

    def writers(self, near: bool) -> list[int]:
        """Processes that write to the ledger's disk, or to the shared one."""
        del near
        return [self.agent.popen.pid]

    def set_clock(self, shift: float) -> None:
        """Let the agent's time of day be off by ``shift`` seconds."""
        draft = self._clock.with_suffix(".new")
        draft.write_text(str(shift))
        draft.replace(self._clock)

    # -- what is left -----------------------------------------------------------------------------------------

    def remains(self) -> list[str]:
        """Jobs and processes of jobs that are still there."""
        marker = f"{self.shared}/data/.bbpwf/".encode()
        return [f"process {pid} of a job still runs" for pid, argv in _command_lines() if marker in argv]

    def end_remains(self) -> None:
        """Kill what is left, if there is anything."""
        marker = f"{self.shared}/data/.bbpwf/".encode()
        for pid, argv in _command_lines():
            if marker in argv:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def left(self) -> list[str]:
        """What is still there after it had time to go."""
        deadline = time.monotonic() + _GONE_WITHIN_S
        while (found := self.remains()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return found

    def started(self) -> int:
        """How many jobs the scheduler ever started."""
        return 0


class SlurmSite(Site):
    """A head node that can be broken, with a Slurm behind it."""

    def __init__(self, cluster: HeadNode, folder: Path, *, mounted: bool) -> None:
        super().__init__(folder, cluster.data_root, mounted=mounted)
        self.cluster = cluster
        self.shims = Shims(folder / "chaos", cluster.commands)
        self.shims.listener(cluster.running["sshd"].pid)

    def cluster_env(self) -> dict[str, str]:
        """How an agent reaches the head node."""
        return {
            "BBPWF_CLUSTER__KIND": "ssh",
            "BBPWF_CLUSTER__HOST": "127.0.0.1",
            "BBPWF_CLUSTER__PORT": str(self.cluster.sshd.port),
            "BBPWF_CLUSTER__USER": self.cluster.sshd.user,
            "BBPWF_CLUSTER__KEY_FILE": str(self.cluster.sshd.sim_key),
            "BBPWF_CLUSTER__DATA_ROOT": str(self.shared / "data"),
            "BBPWF_CLUSTER__POLL_S": "1",
            "BBPWF_CLUSTER__COMMAND_TIMEOUT_S": "30",
            "BBPWF_CLUSTER__UNCLEAR_S": "15",
            "BBPWF_CLUSTER__LOST_AFTER_S": "120",
        }

    def cut_connections(self) -> None:
        """Kill what serves the open SSH connections."""
        for pid in sshd.connections(self.cluster.running["sshd"].pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def restart_sshd(self, away: float) -> None:
        """Stop it with its connections, and start it again after ``away`` seconds."""
        self.cut_connections()
        self.cluster.end("sshd")
        time.sleep(away)
        self.cluster.begin("sshd")
        self.shims.listener(self.cluster.running["sshd"].pid)

    def restart_controller(self, away: float) -> None:
        """Stop slurmctld as an operator would, and start it again."""
        self.cluster.end("slurmctld")
        time.sleep(away)
        self.cluster.begin("slurmctld")

    @contextmanager
    def frozen_controller(self) -> Iterator[None]:
        """The controller neither answers nor refuses."""
        pid = self.cluster.running["slurmctld"].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def writers(self, near: bool) -> list[int]:
        """The agent, or its shells on the head node."""
        return super().writers(near) if near else sshd.connections(self.cluster.running["sshd"].pid)

    def remains(self) -> list[str]:
        """Jobs that Slurm still has, by its own word (and not through the shims), and processes of jobs."""
        listed = self.cluster.slurm.command("squeue", "--noheader", "--format=%i %T %k", timeout=30.0).stdout
        found = [f"Slurm still has {line}" for line in listed.split("\n") if line]
        return found + [f"process {pid} of a job still runs" for pid in self.cluster.slurm.job_processes()]

    def end_remains(self) -> None:
        """The cluster's end is theirs."""

    def started(self) -> int:
        """Slurm's own log tells."""
        return len(self.cluster.jobs_started())


@contextmanager
def slurm_site() -> Iterator[SlurmSite]:
    """A cluster with small disks, where mounting is allowed; ended and unmounted afterwards."""
    with ExitStack() as stack:
        folder = _folder(stack)
        started = headnode.running(folder, nodes=2, min_job_age=5, kill_wait=2, extra="MessageTimeout=5\n")
        cluster = stack.enter_context(started)
        made = SlurmSite(cluster, folder / "chaos", mounted=_mount(stack, (_ledger(folder), cluster.data_root)))
        stack.callback(made.close)
        yield made


@contextmanager
def local_site() -> Iterator[Site]:
    """This machine, with small disks, where mounting is allowed; what runs there is ended afterwards."""
    with ExitStack() as stack:
        folder = _folder(stack)
        shared = folder / "shared"
        shared.mkdir()
        made = Site(folder / "chaos", shared, mounted=_mount(stack, (_ledger(folder), shared)))
        stack.callback(made.end_remains)
        stack.callback(made.close)
        yield made


def _folder(stack: ExitStack) -> Path:
    """A new folder with a short name; kept until everything in it has ended."""
    folder = Path(tempfile.mkdtemp(prefix="bbpwf-c-", dir="/tmp"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _ledger(folder: Path) -> Path:
    path = folder / "chaos" / "ledger"
    path.mkdir(parents=True)
    return path


def _mount(stack: ExitStack, paths: Sequence[Path]) -> bool:
    """Give each path a small disk of its own; False, and none at all, where that is not allowed."""
    done: list[Callable[[], object]] = []
    for path in paths:
        argv = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "none", str(path)]
        if subprocess.run(argv, capture_output=True, check=False, timeout=10).returncode != 0:
            for undo in done:
                undo()
            return False
        done.append(partial(_unmount, path))
    for undo in done:
        stack.callback(undo)
    return True


def _unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=30)


@contextmanager
def _small_files(pids: Sequence[int], limit: int) -> Iterator[None]:
    """What an ordinary user can do instead of filling a disk: writes of these processes fail by a size limit."""
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


def _command_lines() -> Iterator[tuple[int, bytes]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                yield int(entry.name), (entry / "cmdline").read_bytes()
