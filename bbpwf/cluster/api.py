"""What a run may ask of the cluster agent.

The agent holds the key and the connection; heads, the service and ``bbpwf run`` hold one of these, bound to
one run. There are two implementations: the agent's own, in its process, and :mod:`bbpwf.cluster.client`, which
speaks to it over the run's Unix socket. Both raise the same errors.

Paths are absolute on the cluster, or relative to the run's folder there (``<data_root>/<run's folder>``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bbpwf.cluster.jobs import Archived, ClusterInfo, JobSpec, JobView, Observation, TaskReport
from bbpwf.transport.protocol import Completed, FileStat

READ_LIMIT = 8 * 1024 * 1024


class RunAgent(Protocol):
    """The agent, as one run sees it."""

    @property
    def run_id(self) -> str:
        """The run that this handle is bound to."""
        ...

    def submit(self, jobs: Sequence[JobSpec]) -> list[JobView]:
        """Record the jobs and let the agent run them; returns when the intents are durable.

        Asking again for a key that is known answers what is known. A job that ended is tried again only if
        the run was resumed since, and then unless it COMPLETED before its output was asked for again.

        Raises:
            Conflict: a key is known with another script or other resources.
        """
        ...

    def observe(self, since: int = 0, *, wait: float = 0.0) -> Observation:
        """The run's jobs that changed after version ``since``; waits up to ``wait`` seconds (≤ 30) for one.

        Tells of at most 5,000 jobs; ask again from the version it answers for the rest.
        """
        ...

    def job(self, key: str) -> JobView:
        """What is known of one job of the run now. Raises NotFound."""
        ...

    def cancel(self, keys: Sequence[str] | None = None) -> None:
        """Cancel these jobs, or all of the run's. Idempotent; :meth:`observe` tells when they are gone."""
        ...

    def cluster(self, name: str = "default") -> ClusterInfo:
        """The cluster's state and folders. Asking starts nothing."""
        ...

    def stat(self, paths: Sequence[str], *, cluster: str = "default") -> list[FileStat | None]:
        """One entry a path, ``None`` where nothing is there."""
        ...

    def exists(self, paths: Sequence[str], *, cluster: str = "default") -> list[bool]:
        """Whether something is at each path: what :meth:`stat` says, sooner."""
        ...

    def glob(self, pattern: str, *, cluster: str = "default", limit: int = 10_000) -> list[str]:
        """Absolute paths that match a shell pattern, sorted.

        Raises:
            LimitExceeded: there are more than ``limit``.
        """
        ...

    def read(self, path: str, *, cluster: str = "default", offset: int = 0, limit: int = READ_LIMIT) -> bytes:
        """At most ``limit`` bytes from ``offset``. Raises NotFound when there is no such file."""
        ...

    def write(self, path: str, data: bytes, *, cluster: str = "default") -> None:
        """Put a small file (≤ 8 MiB) atomically, making its folders."""
        ...

    def write_many(self, files: Sequence[tuple[str, bytes]], *, cluster: str = "default") -> None:
        """Put many small files in one round trip, each atomically."""
        ...

    def remove(self, paths: Sequence[str], *, cluster: str = "default") -> None:
        """Remove files or folders below the cluster's data root; absent ones are fine."""
        ...

    def run(
        self, argv: Sequence[str], *, cluster: str = "default", stdin: bytes = b"", timeout: float = 60.0
    ) -> Completed:
        """A short command on the head node, as the cluster's ordinary user."""
        ...

    def archive(self, paths: Sequence[str], *, cluster: str = "default", timeout: float = 3600.0) -> list[Archived]:
        """Bring files of a Lustre file system into its archive and confirm each there.

        Blocks until every file is confirmed: archived, not dirty, not lost, and its object present with the same size.

        Raises:
            ArchiveError: names each file that could not be confirmed, and why.
            DeadlineExceeded: the limit was reached first; what was archived stays archived.
        """
        ...

    def access_token(self) -> str:
        """A short-lived token of the run's user, for Nexus. Never stored by the caller."""
        ...

    def report(self, tasks: Sequence[TaskReport]) -> None:
        """Record what became of Luigi tasks, for the run's task list."""
        ...
