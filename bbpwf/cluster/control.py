"""The agent as the service sees it: the control socket of the whole instance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import SecretStr

from bbpwf.cluster.jobs import ClusterInfo
from bbpwf.cluster.meters import AgentMeters
from bbpwf.cluster.rpc import Connection


class AgentControl:
    """Client of the agent's control socket (``<state>/agent.sock``). Every call has a limit of ``timeout`` seconds."""

    def __init__(self, socket_path: Path, *, timeout: float = 30.0) -> None:
        self._connection = Connection(socket_path, timeout=timeout)

    def ping(self) -> None:
        """Return if the agent answers. Raises ConnectFailed or ConnectionLost."""
        self._connection.call("ping")

    def meters(self) -> AgentMeters:
        """What the agent can tell of itself in numbers."""
        return AgentMeters.model_validate(self._connection.call("meters"))

    def ensure_cluster(self) -> ClusterInfo:
        """Have the project's cluster made or reached if it is not; answers its present state at once."""
        return ClusterInfo.model_validate(self._connection.call("ensure_cluster"))

    def cluster(self) -> ClusterInfo:
        """The cluster's present state; starts nothing."""
        return ClusterInfo.model_validate(self._connection.call("cluster"))

    def open_run(
        self,
        run_id: str,
        incarnation: int,
        token: SecretStr | None = None,
        *,
        folder: Path | None = None,
        uid: int | None = None,
    ) -> Path:
        """Open the run's own socket and answer its path; idempotent.

        Args:
            run_id: the run.
            incarnation: grows with each resume.
            token: its user's, kept in memory only.
            folder: where the socket is made; ``<state>/runs/<run id>`` if ``None``.
            uid: whose processes may ask; this user's if ``None``.
        """
        secret = token.get_secret_value() if token else ""
        where = str(folder) if folder else ""
        path = self._connection.call(
            "open_run", run_id=run_id, incarnation=incarnation, token=secret, folder=where, uid=uid
        )
        return Path(path)

    def close_run(self, run_id: str) -> None:
        """Close the run's socket; its jobs go on."""
        self._connection.call("close_run", run_id=run_id)

    def cancel_run(self, run_id: str, keys: Sequence[str] | None = None) -> None:
        """Cancel every job of the run, or these. Idempotent."""
        self._connection.call("cancel_run", run_id=run_id, keys=None if keys is None else list(keys))

    def throttle(self, run_id: str, keys: Sequence[str], limit: int) -> None:
        """Let at most ``limit`` of these jobs run at once; 0 lifts the limit."""
        self._connection.call("throttle", run_id=run_id, keys=list(keys), limit=limit)

    def live_jobs(self, run_id: str) -> int:
        """How many jobs of the run have not ended."""
        return int(self._connection.call("live_jobs", run_id=run_id))

    def read_log(self, run_id: str, job_key: str, offset: int = 0, limit: int = 1024 * 1024) -> bytes:
        """A part of a job's log. Raises NotFound when the job has written none."""
        return bytes(self._connection.call("read_log", run_id=run_id, job_key=job_key, offset=offset, limit=limit))

    def log_tail(self, run_id: str, job_key: str, limit: int = 4096) -> bytes:
        """The end of a job's log. Raises NotFound when the job has written none."""
        return bytes(self._connection.call("log_tail", run_id=run_id, job_key=job_key, limit=limit))

    def close(self) -> None:
        """Close the connections."""
        self._connection.close()
