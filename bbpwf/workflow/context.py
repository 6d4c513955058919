"""The run that this process works for, as its tasks and targets see it.

The head or ``bbpwf run`` activates one context before the task graph is built; nothing is read at import. A
plain Luigi task that runs in a forked process finds the same context there: the agent's client opens a socket
of its own after a fork.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from bbpwf.clock import Clock, SystemClock
from bbpwf.cluster.api import RunAgent
from bbpwf.cluster.jobs import ClusterInfo
from bbpwf.errors import Conflict, InvalidConfig, InvalidInput
from bbpwf.workflow.knowledge import JobTable
from bbpwf.workflow.request import HeadRequest

if TYPE_CHECKING:
    from bbpwf.data.nexus import NexusClient


@dataclass
class RunContext:
    """One run: its agent, what was asked for, and what is known of its jobs."""

    agent: RunAgent
    request: HeadRequest
    jobs: JobTable = field(default_factory=JobTable)
    clock: Clock = field(default_factory=SystemClock)
    defaults: dict[type, dict[str, Any]] = field(default_factory=dict, repr=False)
    """Parameter defaults by task class: the configuration does not change during a run."""
    _clusters: dict[str, ClusterInfo] = field(default_factory=dict, repr=False)
    _nexus: tuple[int, NexusClient] | None = field(default=None, repr=False)

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.request.run_id

    def cluster(self, name: str = "default") -> ClusterInfo:
        """The cluster's facts; asked for until it is ready, remembered from then on."""
        known = self._clusters.get(name)
        if known is None:
            known = self.agent.cluster(name)
            if known.state == "ready":
                self._clusters[name] = known
        return known

    def folder(self, cluster: str = "default") -> PurePosixPath:
        """The run's folder on a cluster, absolute.

        Raises:
            Conflict: the cluster has no data folder yet.
        """
        root = self.cluster(cluster).data_root
        if not root:
            raise Conflict(f"the cluster {cluster!r} has no data folder yet: it is {self.cluster(cluster).state}")
        return PurePosixPath(root) / "runs" / self.run_id

    def absolute(self, path: str, cluster: str = "default") -> str:
        """``path`` on the cluster, from the root; a relative one is taken from the run's folder."""
        return path if path.startswith("/") else str(self.folder(cluster) / path)

    def catch_up(self) -> None:
        """Learn what became of the run's jobs meanwhile: a forked process hears of it only by asking."""
        seen = self.agent.observe(self.jobs.complete_to)
        while seen.jobs:
            self.jobs.update(seen.jobs)
            self.jobs.complete_to = seen.version
            seen = self.agent.observe(seen.version)

    def nexus(self) -> NexusClient:
        """The run's Nexus project, as its user; each process has a client of its own.

        Raises:
            InvalidConfig: the instance has no Nexus.
        """
        if self._nexus is None or self._nexus[0] != os.getpid():
            from bbpwf.data.nexus import NexusClient
            from bbpwf.settings import NexusSettings

            given = self.request.nexus
            if not given.url:
                raise InvalidConfig("this instance has no Nexus", hint="Set BBPWF_NEXUS__URL, __ORG and __PROJECT.")
            settings = NexusSettings.model_validate(given.model_dump())
            client = NexusClient(settings, lambda: SecretStr(self.agent.access_token()), self.clock)
            self._nexus = (os.getpid(), client)
        return self._nexus[1]


class _Holder:
    """Shared by all threads: a task's own threads work for the same run."""

    context: RunContext | None = None


_holder = _Holder()


@contextlib.contextmanager
def activated(context: RunContext) -> Iterator[RunContext]:
    """Make ``context`` the one that :func:`current` answers, in this process and in those forked from it.

    Raises:
        Conflict: another run is active: a process works for one at a time, as Luigi's configuration does.
    """
    if _holder.context is not None:
        raise Conflict(f"this process already works for run {_holder.context.run_id}")
    _holder.context = context
    try:
        yield context
    finally:
        _holder.context = None


def active() -> RunContext | None:
    """The active context, if there is one."""
    return _holder.context


def current() -> RunContext:
    """The active context.

    Raises:
        InvalidInput: there is none: a task or target is used outside a run.
    """
    if _holder.context is None:
        raise InvalidInput(
            "this needs a run: remote targets and job tasks work only inside one",
            hint="Start it with `bbpwf run MODULE TASK` or `bbpwf launch MODULE TASK`.",
        )
    return _holder.context
