"""The agent may restart under a head, and the cluster be out of reach: calls wait for them, for a limited time."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from bbpwf.clock import Clock
from bbpwf.cluster.api import READ_LIMIT, RunAgent
from bbpwf.cluster.client import AgentClient
from bbpwf.cluster.jobs import Archived, ClusterInfo, JobSpec, JobView, Observation, TaskReport
from bbpwf.errors import ConnectFailed, IdentityUnavailable, LoginNeeded, TransportError
from bbpwf.redact import Redactor
from bbpwf.transport.protocol import Completed, FileStat

if TYPE_CHECKING:
    from bbpwf.cluster.agent import BoundAgent

_log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE = 120.0
"""Seconds that the agent or the cluster may be away."""

CREATION_PATIENCE = 7200.0
"""Seconds that a cluster may take to be made: ParallelCluster's own limit is an hour, and it may have to queue."""

LOGIN_PATIENCE = 7200.0
"""Seconds that the identity provider may be away, or a login may be wanting; a parked run's head is ended before."""


class AgentGone(BaseException):
    """The agent did not come back in time.

    Not an ``Exception``: neither a task's own code nor Luigi may take it for a failure of the task.
    """


class ForkService:
    """An agent of this process, served on a socket that only this user reaches, for processes forked from it."""

    def __init__(self, agent: RunAgent) -> None:
        # late: these bring the ledger along, which a head with its agent elsewhere has no use for
        from bbpwf.cluster.rpc import Server
        from bbpwf.cluster.server import run_methods

        self._folder = tempfile.TemporaryDirectory(prefix="bbpwf-")
        self.path = Path(self._folder.name) / "agent.sock"
        # what is served is no more than the protocol has
        self._server = Server(self.path, run_methods(cast("BoundAgent", agent)), Redactor())
        self._server.start()

    def close(self) -> None:
        """Serve no more."""
        self._server.stop()
        self._folder.cleanup()


class PatientAgent:
    """A :class:`bbpwf.cluster.api.RunAgent` that repeats calls while the agent or the cluster does not answer.

    Every call but ``run`` may be repeated without harm; a ``run`` that may have happened is not.

    Args:
        agent: whom the calls go to.
        socket_path: the agent's own socket, if there is one: errors from *there* end as :class:`AgentGone`.
        clock: for the waits.
        patience: seconds that the agent, or the connection to the cluster, may be away.
    """

    def __init__(
        self, agent: RunAgent, clock: Clock, *, socket_path: Path | None = None, patience: float = PATIENCE
    ) -> None:
        self._owner = os.getpid()
        self._own = agent
        self._child: tuple[int, RunAgent] | None = None
        self._service: ForkService | None = None
        self._socket = str(socket_path) if socket_path else None
        self._clock = clock
        self._patience = patience
        self._thread = threading.get_ident()
        self.interrupt: Callable[[], None] = lambda: None
        """Called between tries, in the thread that made this object; raises to give up."""

    def prepare_fork(self) -> None:
        """Make this handle usable in processes that will be forked: an agent in this very process is not.

        Its connections must not be used by two processes, so that forked ones ask over a socket.
        """
        if self._socket is None and self._service is None:
            self._service = ForkService(self._own)

    def close(self) -> None:
        """End what was made for forked processes."""
        if self._service is not None and os.getpid() == self._owner:
            self._service.close()
            self._service = None

    @property
    def _agent(self) -> RunAgent:
        if os.getpid() == self._owner or self._service is None:
            return self._own
        if self._child is None or self._child[0] != os.getpid():
            self._socket = str(self._service.path)
            self._child = (os.getpid(), AgentClient(self._service.path, self._own.run_id))
        return self._child[1]

    @property
    def run_id(self) -> str:
        """The run that this handle is bound to."""
        return self._own.run_id

    def _call(self, what: str, function: Callable[[], T], *, cluster: str = "", once: bool = False) -> T:
        began = self._clock.monotonic()
        wait = 0.1
        while True:
            try:
                return function()
            except TransportError as error:
                agent_away = error.where == self._socket
                if once and not isinstance(error, ConnectFailed):  # which says that nothing was run
                    raise
                if not (agent_away or error.retryable):
                    raise
                waited = self._clock.monotonic() - began + wait
                if waited > self._patience:
                    if agent_away:
                        raise AgentGone(f"the agent has been away for {self._patience:.0f} s: {error}") from error
                    if waited > CREATION_PATIENCE or not (cluster and self._is_coming(cluster)):
                        raise
                _log.warning("%s is tried again: %s", what, error)
            except (IdentityUnavailable, LoginNeeded) as error:
                if not error.retryable or self._clock.monotonic() - began > LOGIN_PATIENCE:
                    raise
                _log.warning("%s is tried again: %s", what, error)
            self._clock.sleep(wait)
            if threading.get_ident() == self._thread:
                self.interrupt()
            wait = min(wait * 2, 5.0)

    def _is_coming(self, cluster: str) -> bool:
        return self.cluster(cluster).state in {"requested", "creating"}

    def submit(self, jobs: Sequence[JobSpec]) -> list[JobView]:
        """See the protocol."""
        return self._call("submit", lambda: self._agent.submit(jobs))

    def observe(self, since: int = 0, *, wait: float = 0.0) -> Observation:
        """See the protocol."""
        return self._call("observe", lambda: self._agent.observe(since, wait=wait))

    def job(self, key: str) -> JobView:
        """See the protocol."""
        return self._call("job", lambda: self._agent.job(key))

    def cancel(self, keys: Sequence[str] | None = None) -> None:
        """See the protocol."""
        return self._call("cancel", lambda: self._agent.cancel(keys))

    def cluster(self, name: str = "default") -> ClusterInfo:
        """See the protocol."""
        return self._call("cluster", lambda: self._agent.cluster(name))

    def stat(self, paths: Sequence[str], *, cluster: str = "default") -> list[FileStat | None]:
        """See the protocol."""
        return self._call("stat", lambda: self._agent.stat(paths, cluster=cluster), cluster=cluster)

    def exists(self, paths: Sequence[str], *, cluster: str = "default") -> list[bool]:
        """See the protocol."""
        return self._call("exists", lambda: self._agent.exists(paths, cluster=cluster), cluster=cluster)

    def glob(self, pattern: str, *, cluster: str = "default", limit: int = 10_000) -> list[str]:
        """See the protocol."""
        return self._call("glob", lambda: self._agent.glob(pattern, cluster=cluster, limit=limit), cluster=cluster)

    def read(self, path: str, *, cluster: str = "default", offset: int = 0, limit: int = READ_LIMIT) -> bytes:
        """See the protocol."""
        return self._call(
            "read", lambda: self._agent.read(path, cluster=cluster, offset=offset, limit=limit), cluster=cluster
        )

    def write(self, path: str, data: bytes, *, cluster: str = "default") -> None:
        """See the protocol."""
        return self._call("write", lambda: self._agent.write(path, data, cluster=cluster), cluster=cluster)

    def write_many(self, files: Sequence[tuple[str, bytes]], *, cluster: str = "default") -> None:
        """See the protocol."""
        return self._call("write_many", lambda: self._agent.write_many(files, cluster=cluster), cluster=cluster)

    def remove(self, paths: Sequence[str], *, cluster: str = "default") -> None:
        """See the protocol."""
        return self._call("remove", lambda: self._agent.remove(paths, cluster=cluster), cluster=cluster)

    def run(
        self, argv: Sequence[str], *, cluster: str = "default", stdin: bytes = b"", timeout: float = 60.0
    ) -> Completed:
        """See the protocol; a call that may have happened is not repeated."""
        return self._call(
            "run",
            lambda: self._agent.run(argv, cluster=cluster, stdin=stdin, timeout=timeout),
            cluster=cluster,
            once=True,
        )

    def archive(self, paths: Sequence[str], *, cluster: str = "default", timeout: float = 3600.0) -> list[Archived]:
        """See the protocol."""
        return self._call(
            "archive", lambda: self._agent.archive(paths, cluster=cluster, timeout=timeout), cluster=cluster
        )

    def access_token(self) -> str:
        """See the protocol."""
        return self._call("access_token", self._agent.access_token)

    def report(self, tasks: Sequence[TaskReport]) -> None:
        """See the protocol."""
        return self._call("report", lambda: self._agent.report(tasks))
