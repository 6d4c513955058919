"""Agents as processes: started with armed fault points, asked as a head and a service ask them, killed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from bbpwf.cluster.client import AgentClient
from bbpwf.cluster.control import AgentControl
from bbpwf.errors import BbpwfError, ConnectFailed
from benchmarks.chaos.workload import RUN


class AgentProcess:
    """One agent on a state folder of its own; all of a site share one database."""

    def __init__(self, env: Mapping[str, str], state: Path, log: Path) -> None:
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.chaos.agent"],
                env=dict(env),
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self._control = AgentControl(state / "agent.sock", timeout=5.0)
        self._client: AgentClient | None = None
        self._clients: list[AgentClient] = []
        self._guard = threading.Lock()
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self.popen.poll() is None

    def client(self) -> AgentClient:
        """The run's handle. Raises ConnectFailed or ConnectionLost while there is nobody to answer."""
        with self._guard:
            if self._closed:
                raise ConnectFailed("this agent was ended")
            if self._client is None:
                self._client = AgentClient(self._control.open_run(RUN, 1), RUN)
                self._clients.append(self._client)
            return self._client

    def throttle(self, keys: list[str], limit: int) -> None:
        """As the service does."""
        with self._guard:
            if self._closed:
                raise ConnectFailed("this agent was ended")
            self._control.throttle(RUN, keys, limit)

    def release(self) -> None:
        """The run ends, and is taken up again when somebody wants something of it."""
        with self._guard:
            if self._closed:
                raise ConnectFailed("this agent was ended")
            self._control.close_run(RUN)
            self._client = None

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
        """Kill it and close the sockets. A call that was under way may have opened one more: close it again then."""
        self.kill()
        with self._guard:
            self._closed = True
            self._control.close()
            for client in self._clients:
                client.close()
