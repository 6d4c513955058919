"""The agent on its sockets: one for the service, and one for each run that is open.

::

    <state>/agent.sock               control: the service's
    <state>/agent.lock               held while an agent serves this state folder
    <folder of the head>/agent.sock  a run's own: answers for that run alone

A head reaches nothing but its run's socket: it is in the head's folder, where no other head gets, and asks the kernel
for the uid of whoever connects.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from bbpwf import faults
from bbpwf.cluster.agent import Agent, BoundAgent
from bbpwf.cluster.jobs import JobSpec, TaskReport
from bbpwf.cluster.rpc import Server
from bbpwf.errors import Conflict, InvalidInput
from bbpwf.log import about
from bbpwf.redact import Redactor

_log = logging.getLogger(__name__)

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


class AgentServer:
    """Takes the state folder at once; answers for an agent from :meth:`start` on.

    Raises:
        Conflict: another process already serves this state folder.
    """

    def __init__(self, state: Path, redactor: Redactor) -> None:
        self._state = state
        self._redactor = redactor
        self._open: dict[str, tuple[tuple[int, Path, int | None], Server]] = {}
        self._opening = threading.Lock()
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = lock_state(state)
        faults.point("server.lock")
        self._control: Server | None = None

    def start(self, agent: Agent) -> None:
        """Answer from now on."""
        self._control = Server(
            self._state / "agent.sock",
            {
                "ping": lambda: "pong",
                "meters": agent.meters,
                "ensure_cluster": lambda: agent.cluster().ensure(),
                "cluster": lambda: agent.cluster().info(),
                "open_run": partial(self._open_run, agent),
                "close_run": lambda run_id: self._close_run(agent, run_id),
                "cancel_run": agent.cancel_run,
                "live_jobs": lambda run_id: agent.ledger.live_count(run_id=run_id),
                "throttle": agent.throttle,
                "read_log": agent.read_log,
                "log_tail": agent.log_tail,
            },
            self._redactor,
        )
        self._control.start()

    def stop(self) -> None:
        """Answer no more."""
        if self._control is not None:
            self._control.stop()
        for _, server in self._open.values():
            server.stop()
        self._open.clear()
        os.close(self._lock)

    def _open_run(self, agent: Agent, run_id: str, incarnation: int, token: str, folder: str, uid: int | None) -> str:
        if not _RUN_ID.match(run_id):
            raise InvalidInput(f"{run_id[:80]!r} is not a run id")
        if token:
            agent.tokens.put(run_id, SecretStr(token))
        with self._opening:  # two may ask for the same run at once
            path = (Path(folder) if folder else self._state / "runs" / run_id) / "agent.sock"
            present = self._open.get(run_id)
            if present is not None:
                if present[0] == (incarnation, path, uid) and path.exists():
                    return str(path)
                present[1].stop()
            bound = agent.for_run(run_id, incarnation)
            methods = {name: partial(_about, run_id, method) for name, method in run_methods(bound).items()}
            server = Server(path, methods, self._redactor, uid=uid)
            server.start()
            self._open[run_id] = ((incarnation, path, uid), server)
            faults.point("server.open")
            return str(path)

    def _close_run(self, agent: Agent, run_id: str) -> None:
        with self._opening:
            present = self._open.pop(run_id, None)
        if present is not None:
            present[1].stop()
        agent.release_run(run_id)
        agent.tokens.forget(run_id)


def _about(run_id: str, method: Callable[..., Any], /, **arguments: Any) -> Any:
    with about(run_id=run_id):
        return method(**arguments)


def run_methods(bound: BoundAgent) -> Mapping[str, Callable[..., Any]]:
    """What a run's socket answers to; arguments arrive as JSON and are checked here."""
    return {
        "submit": lambda jobs: bound.submit([JobSpec.model_validate(each) for each in jobs]),
        "observe": bound.observe,
        "job": bound.job,
        "cancel": bound.cancel,
        "cluster": bound.cluster,
        "stat": bound.stat,
        "exists": bound.exists,
        "glob": bound.glob,
        "read": bound.read,
        "write": bound.write,
        "write_many": lambda files, cluster: bound.write_many([(p, d) for p, d in files], cluster=cluster),
        "remove": bound.remove,
        "run": bound.run,
        "archive": bound.archive,
        "access_token": bound.access_token,
        "report": lambda tasks: bound.report([TaskReport.model_validate(each) for each in tasks]),
    }


def lock_state(state: Path) -> int:
    """Take the state folder's lock; the descriptor holds it. Raises Conflict when another process has it."""
    descriptor = os.open(state / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise Conflict(
            f"another agent already serves {state}",
            hint="Wait for it to end, or choose another BBPWF_STATE_DIR.",
            retryable=True,
        ) from None
    return descriptor
