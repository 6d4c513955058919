"""The agent as a head sees it: :class:`bbpwf.cluster.api.RunAgent` over the run's own Unix socket."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bbpwf.cluster.api import READ_LIMIT
from bbpwf.cluster.jobs import Archived, ClusterInfo, JobSpec, JobView, Observation, TaskReport
from bbpwf.cluster.rpc import Connection
from bbpwf.transport.protocol import Completed, FileStat


class AgentClient:
    """See :class:`bbpwf.cluster.api.RunAgent` for every method. Usable from threads and after a fork."""

    def __init__(self, socket_path: Path, run_id: str) -> None:
        self._connection = Connection(socket_path)
        self._run_id = run_id

    @property
    def run_id(self) -> str:
        """The run that the socket speaks for."""
        return self._run_id

    def submit(self, jobs: Sequence[JobSpec]) -> list[JobView]:
        """Record jobs and let them run."""
        answer = self._connection.call("submit", jobs=list(jobs))
        return [JobView.model_validate(each) for each in answer]

    def observe(self, since: int = 0, *, wait: float = 0.0) -> Observation:
        """Jobs that changed after ``since``."""
        answer = self._connection.call("observe", patience=wait + 30.0, since=since, wait=wait)
        return Observation.model_validate(answer)

    def job(self, key: str) -> JobView:
        """What is known of one job."""
        return JobView.model_validate(self._connection.call("job", key=key))

    def cancel(self, keys: Sequence[str] | None = None) -> None:
        """Cancel jobs."""
        self._connection.call("cancel", keys=None if keys is None else list(keys))

    def cluster(self, name: str = "default") -> ClusterInfo:
        """State and folders of a cluster."""
        return ClusterInfo.model_validate(self._connection.call("cluster", name=name))

    def stat(self, paths: Sequence[str], *, cluster: str = "default") -> list[FileStat | None]:
        """What is at these paths."""
        answer = self._connection.call("stat", paths=list(paths), cluster=cluster)
        return [None if each is None else FileStat(**each) for each in answer]

    def exists(self, paths: Sequence[str], *, cluster: str = "default") -> list[bool]:
        """Whether something is at these paths."""
        return [bool(each) for each in self._connection.call("exists", paths=list(paths), cluster=cluster)]

    def glob(self, pattern: str, *, cluster: str = "default", limit: int = 10_000) -> list[str]:
        """Paths that match."""
        return list(self._connection.call("glob", pattern=pattern, cluster=cluster, limit=limit))

    def read(self, path: str, *, cluster: str = "default", offset: int = 0, limit: int = READ_LIMIT) -> bytes:
        """A part of a file."""
        return bytes(self._connection.call("read", path=path, cluster=cluster, offset=offset, limit=limit))

    def write(self, path: str, data: bytes, *, cluster: str = "default") -> None:
        """Put a small file."""
        self._connection.call("write", path=path, data=data, cluster=cluster)

    def write_many(self, files: Sequence[tuple[str, bytes]], *, cluster: str = "default") -> None:
        """Put many small files."""
        self._connection.call("write_many", files=[list(each) for each in files], cluster=cluster)

    def remove(self, paths: Sequence[str], *, cluster: str = "default") -> None:
        """Remove files or folders."""
        self._connection.call("remove", paths=list(paths), cluster=cluster)

    def run(
        self, argv: Sequence[str], *, cluster: str = "default", stdin: bytes = b"", timeout: float = 60.0
    ) -> Completed:
        """A short command on the head node."""
        answer = self._connection.call(
            "run", patience=timeout + 60.0, argv=list(argv), cluster=cluster, stdin=stdin, timeout=timeout
        )
        return Completed(**answer)

    def archive(self, paths: Sequence[str], *, cluster: str = "default", timeout: float = 3600.0) -> list[Archived]:
        """Archive files and confirm each."""
        answer = self._connection.call(
            "archive", patience=timeout + 120.0, paths=list(paths), cluster=cluster, timeout=timeout
        )
        return [Archived.model_validate(each) for each in answer]

    def access_token(self) -> str:
        """A short-lived token for Nexus."""
        return str(self._connection.call("access_token"))

    def report(self, tasks: Sequence[TaskReport]) -> None:
        """Record Luigi tasks."""
        self._connection.call("report", tasks=list(tasks))

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()
