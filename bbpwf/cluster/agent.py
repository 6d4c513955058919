"""The cluster agent: the one place that holds connections, keys and the ledger.

:class:`Agent` is the whole; :class:`BoundAgent` is what one run gets of it (:class:`bbpwf.cluster.api.RunAgent`).
"""

from __future__ import annotations

import contextlib
import io
import logging
import posixpath
import tarfile
from collections.abc import Callable, Mapping, Sequence

from pydantic import SecretStr

from bbpwf import faults
from bbpwf.clock import Clock
from bbpwf.cluster.api import READ_LIMIT
from bbpwf.cluster.jobs import Archived, ClusterInfo, JobSpec, JobView, Observation, TaskReport
from bbpwf.cluster.ledger import Ledger
from bbpwf.cluster.meters import AgentMeters, Archives
from bbpwf.cluster.runs import RunStore
from bbpwf.cluster.runtime import ClusterRuntime, Connected
from bbpwf.cluster.tokens import PARKED, Tokens
from bbpwf.errors import (
    ArchiveError,
    CommandFailed,
    Conflict,
    InvalidInput,
    InvalidParameter,
    LimitExceeded,
    LoginNeeded,
    NotFound,
)
from bbpwf.states import RunState
from bbpwf.transport.protocol import Completed, FileStat, Transport

_log = logging.getLogger(__name__)

MAX_JOBS_PER_CALL = 50_000
MAX_WAIT_S = 30.0
_WRITE_LIMIT = READ_LIMIT
_PART = ".bbpwf-part"
_UNPACK = """
for ((i = 0; i < $1; i++)); do IFS= read -r name || exit 1; names+=("$name"); done
tar -xf - -C / --no-same-owner || exit 1
for name in "${names[@]}"; do mv -fT "/$name" "/${name%"$2"}" || exit 1; done
"""
"""Reads names (one a line), then an archive of files so named; gives each its final name when all are whole."""

Archive = Callable[[Connected, Sequence[str], str, float], list[Archived]]
"""Archives absolute paths of a connected cluster for a run within a time limit; see :mod:`bbpwf.data.archive`."""


class Agent:
    """Clusters, ledger, runs and tokens of one project. :meth:`start` claims the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        runs: RunStore,
        clusters: Mapping[str, ClusterRuntime],
        tokens: Tokens,
        clock: Clock,
        archive: Archive | None = None,
    ) -> None:
        self.ledger = ledger
        self.runs = runs
        self.tokens = tokens
        self.clock = clock
        self.archive = archive
        self._clusters = dict(clusters)
        self._archives = Archives(clock)
        self.parks_runs = False
        """Whether there is a service that ends the heads of paused runs, and resumes them after a login."""

    def start(self) -> None:
        """Pick up every job that has not ended: clusters with such jobs are reached at once."""
        for name, cluster in self._clusters.items():
            if self.ledger.live_count(cluster=name):
                cluster.ensure()

    def stop(self, within: float = 10.0) -> None:
        """End all threads and connections, at most ``within`` seconds each. Jobs go on."""
        for cluster in self._clusters.values():
            cluster.stop(within)

    def meters(self) -> AgentMeters:
        """What there is to tell in numbers."""
        return self._archives.meters({name: cluster.meters() for name, cluster in self._clusters.items()})

    def archive_for(self, run_id: str, connected: Connected, paths: Sequence[str], timeout: float) -> list[Archived]:
        """Archive absolute paths of a connected cluster for a run. Raises ArchiveError and its kind."""
        if self.archive is None:
            raise ArchiveError("this instance has no archive: no bucket is configured", hint="Set BBPWF_S3__BUCKET.")
        with self._archives.under_way(run_id):
            return self.archive(connected, paths, run_id, timeout)

    def cluster(self, name: str = "default") -> ClusterRuntime:
        """A cluster by name. Raises InvalidParameter for an unknown one."""
        if name not in self._clusters:
            known = ", ".join(sorted(self._clusters))
            raise InvalidParameter(f"there is no cluster {name!r}", hint=f"Known clusters: {known}.")
        return self._clusters[name]

    def for_run(self, run_id: str, incarnation: int = 1, token: SecretStr | None = None) -> BoundAgent:
        """The agent as this run may use it."""
        if token is not None:
            self.tokens.put(run_id, token)
        return BoundAgent(self, run_id, incarnation)

    def cancel_run(self, run_id: str, keys: Sequence[str] | None = None) -> None:
        """Cancel jobs of a run. Idempotent."""
        self.ledger.cancel(run_id, keys)
        for cluster in self._clusters.values():
            cluster.cancel_marked()

    def release_run(self, run_id: str) -> None:
        """The run has ended: give back the nodes that it still holds. Idempotent."""
        for cluster in self._clusters.values():
            cluster.release(run_id)

    def park(self, run_id: str, why: str) -> None:
        """Pause a run that needs its owner to log in; one that is not RUNNING stays as it is."""
        if not self.parks_runs or self.runs.get(run_id).state is not RunState.RUNNING:
            return
        with contextlib.suppress(Conflict):  # somebody moved it this very moment
            self.runs.move(run_id, RunState.PAUSED, f"{PARKED}{why}")

    def read_log(self, run_id: str, job_key: str, offset: int, limit: int) -> bytes:
        """A part of a job's log. Raises NotFound when the job is not this run's or has written none."""
        view = self.ledger.view(job_key)
        if view.run_id != run_id:
            raise NotFound(f"run {run_id} has no job {job_key!r}")
        if not view.stdout:
            raise NotFound(f"job {job_key} has not been submitted yet: it has no log")
        transport = self.cluster(view.cluster).connected().backend.transport
        return transport.read(view.stdout, offset=max(0, offset), limit=max(0, min(limit, READ_LIMIT)))

    def throttle(self, run_id: str, keys: Sequence[str], limit: int) -> None:
        """Let at most ``limit`` of these jobs of a run run at once, from now on; 0 lifts the limit. Idempotent.

        Raises:
            Conflict: a submission of them is on its way; retryable.
            ConnectFailed, TransportError, SlurmError: noted, but arrays that wait in the queue were not told.
        """
        if limit < 0:
            raise InvalidInput("a throttle cannot be negative")
        for name, arrays in self.ledger.throttle(run_id, keys, limit).items():
            self.cluster(name).connected().backend.throttle(arrays, limit)

    def log_tail(self, run_id: str, job_key: str, limit: int) -> bytes:
        """The last ``limit`` bytes of a job's log. Raises NotFound as :meth:`read_log` does."""
        view = self.ledger.view(job_key)
        if view.run_id != run_id or not view.stdout:
            raise NotFound(f"run {run_id} has no job {job_key!r} with a log")
        transport = self.cluster(view.cluster).connected().backend.transport
        (stat,) = transport.stat([view.stdout])
        if stat is None:
            raise NotFound(f"job {job_key} has written no log yet")
        limit = max(0, min(limit, READ_LIMIT))
        return transport.read(view.stdout, offset=max(0, stat.size - limit), limit=limit)


class BoundAgent:
    """See :class:`bbpwf.cluster.api.RunAgent` for every method."""

    def __init__(self, agent: Agent, run_id: str, incarnation: int) -> None:
        self._agent = agent
        self._run_id = run_id
        self._incarnation = incarnation

    @property
    def run_id(self) -> str:
        """The run that this handle is bound to."""
        return self._run_id

    def submit(self, jobs: Sequence[JobSpec]) -> list[JobView]:
        """Record jobs and let them run."""
        if len(jobs) > MAX_JOBS_PER_CALL:
            raise LimitExceeded(f"{len(jobs)} jobs in one call are over the limit of {MAX_JOBS_PER_CALL}")
        for spec in jobs:
            if spec.run_id != self._run_id:
                raise InvalidInput(f"job {spec.key} is for run {spec.run_id}, this handle is bound to {self._run_id}")
            self._agent.cluster(spec.cluster)
        if len({spec.key for spec in jobs}) != len(jobs):
            raise InvalidInput("one call asks for the same job key twice")
        views = self._agent.ledger.plan(jobs, self._incarnation)
        faults.point("agent.planned")
        for name in {spec.cluster for spec in jobs}:
            cluster = self._agent.cluster(name)
            cluster.ensure()
            cluster.wake()
        return views

    def observe(self, since: int = 0, *, wait: float = 0.0) -> Observation:
        """Jobs that changed after ``since``."""
        return self._agent.ledger.observe(self._run_id, since, min(max(wait, 0.0), MAX_WAIT_S))

    def job(self, key: str) -> JobView:
        """What is known of one job."""
        view = self._agent.ledger.view(key)
        if view.run_id != self._run_id:
            raise NotFound(f"run {self._run_id} has no job {key!r}")
        return view

    def cancel(self, keys: Sequence[str] | None = None) -> None:
        """Cancel jobs."""
        self._agent.cancel_run(self._run_id, keys)

    def cluster(self, name: str = "default") -> ClusterInfo:
        """State and folders of a cluster."""
        return self._agent.cluster(name).info()

    def stat(self, paths: Sequence[str], *, cluster: str = "default") -> list[FileStat | None]:
        """What is at these paths."""
        return self._transport(cluster).stat([self._absolute(p, cluster) for p in paths])

    def exists(self, paths: Sequence[str], *, cluster: str = "default") -> list[bool]:
        """Whether something is there."""
        return self._transport(cluster).exists([self._absolute(p, cluster) for p in paths])

    def glob(self, pattern: str, *, cluster: str = "default", limit: int = 10_000) -> list[str]:
        """Paths that match."""
        script = 'shopt -s nullglob; IFS=; for f in $1; do printf "%s\\0" "$f"; done'
        absolute = self._absolute(pattern, cluster)
        done = self._transport(cluster).run(["bash", "-c", script, "glob", absolute], cap=64 * 1024 * 1024)
        _check(done, f"listing {absolute}")
        found = sorted(done.out.split("\0")[:-1])
        if len(found) > limit:
            raise LimitExceeded(f"{len(found)} files match {absolute}, more than the limit of {limit}")
        return found

    def read(self, path: str, *, cluster: str = "default", offset: int = 0, limit: int = READ_LIMIT) -> bytes:
        """A part of a file."""
        return self._transport(cluster).read(self._absolute(path, cluster), offset=offset, limit=min(limit, READ_LIMIT))

    def write(self, path: str, data: bytes, *, cluster: str = "default") -> None:
        """Put a small file."""
        if len(data) > _WRITE_LIMIT:
            raise LimitExceeded(f"{path}: {len(data)} bytes are over the limit of {_WRITE_LIMIT} for one write")
        self._transport(cluster).write(self._absolute(path, cluster), data)

    def write_many(self, files: Sequence[tuple[str, bytes]], *, cluster: str = "default") -> None:
        """Put many small files in one round trip, each atomically."""
        if not files:
            return
        if sum(len(data) for _, data in files) > 4 * _WRITE_LIMIT:
            raise LimitExceeded(f"{len(files)} files are over the limit of {4 * _WRITE_LIMIT} bytes for one call")
        parts = [(self._absolute(path, cluster).lstrip("/") + _PART, data) for path, data in files]
        if any("\n" in name for name, _ in parts):
            raise InvalidInput("a file name contains a line break")
        archive = io.BytesIO()
        archive.write("".join(f"{name}\n" for name, _ in parts).encode())
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, data in parts:
                member = tarfile.TarInfo(name)
                member.size, member.mtime, member.mode = len(data), int(self._agent.clock.now()), 0o644
                tar.addfile(member, io.BytesIO(data))
        done = self._transport(cluster).run(
            ["bash", "-c", _UNPACK, "write", str(len(parts)), _PART], stdin=archive.getvalue(), timeout=300.0
        )
        _check(done, f"writing {len(files)} files")

    def remove(self, paths: Sequence[str], *, cluster: str = "default") -> None:
        """Remove files or folders below the data root."""
        root = self._agent.cluster(cluster).info().data_root
        absolute = [self._absolute(p, cluster) for p in paths]
        for path in absolute:
            if not path.startswith(root.rstrip("/") + "/") or path.startswith(f"{root.rstrip('/')}/.bbpwf"):
                raise InvalidInput(f"{path} is not below the run data in {root}: it is not removed")
        if absolute:
            _check(self._transport(cluster).run(["rm", "-rf", "--", *absolute], timeout=300.0), "removing files")

    def run(
        self, argv: Sequence[str], *, cluster: str = "default", stdin: bytes = b"", timeout: float = 60.0
    ) -> Completed:
        """A short command on the head node."""
        return self._transport(cluster).run(argv, stdin=stdin, timeout=min(timeout, 600.0))

    def archive(self, paths: Sequence[str], *, cluster: str = "default", timeout: float = 3600.0) -> list[Archived]:
        """Archive files and confirm each."""
        connected = self._agent.cluster(cluster).connected()
        absolute = [self._absolute(path, cluster) for path in paths]
        return self._agent.archive_for(self._run_id, connected, absolute, timeout)

    def access_token(self) -> str:
        """A short-lived token for Nexus."""
        try:
            return self._agent.tokens.get(self._run_id).get_secret_value()
        except LoginNeeded as error:
            self._agent.park(self._run_id, str(error))
            raise

    def report(self, tasks: Sequence[TaskReport]) -> None:
        """Record Luigi tasks. Everybody of the project reads what they say: known secrets are masked."""
        mask = self._agent.tokens.mask
        masked = [each.model_copy(update={"message": mask(each.message)}) if each.message else each for each in tasks]
        self._agent.runs.report(self._run_id, masked)

    def _transport(self, cluster: str) -> Transport:
        runtime = self._agent.cluster(cluster)
        runtime.ensure()  # a task may look at a cluster before any job is sent there
        return runtime.connected().backend.transport

    def _absolute(self, path: str, cluster: str) -> str:
        """``path`` made absolute from the run's folder, without ``..``. Raises InvalidInput for empty or NUL."""
        if not path or "\0" in path:
            raise InvalidInput(f"{path!r} is not a path")
        root = self._agent.cluster(cluster).info().data_root
        return posixpath.normpath(posixpath.join(root, "runs", self._run_id, path))


def _check(done: Completed, what: str) -> None:
    if done.exit_code != 0:
        raise CommandFailed(
            f"{what} failed: {done.err.strip()[-500:]}", exit_code=done.exit_code, stderr=done.err[-2000:]
        )
    if done.truncated:
        raise LimitExceeded(f"{what}: the answer is larger than its cap")
