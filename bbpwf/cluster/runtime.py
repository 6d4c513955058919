"""One cluster's life inside the agent: being made, reached, used, let go of.

How a cluster is obtained is a :class:`Connector`'s business (:mod:`bbpwf.cluster.connectors`); what is done with
it once it is there is the same for all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from bbpwf.clock import Clock
from bbpwf.cluster.allocations import AllocatingBackend
from bbpwf.cluster.backend import Backend
from bbpwf.cluster.budget import Budget
from bbpwf.cluster.jobs import ClusterInfo
from bbpwf.cluster.ledger import Ledger
from bbpwf.cluster.meters import ClusterMeters
from bbpwf.cluster.monitor import Monitor
from bbpwf.cluster.submission import Submitter
from bbpwf.errors import BbpwfError, ClusterFailed, ConnectFailed, SlurmError, TransportError
from bbpwf.settings import ClusterSettings
from bbpwf.transport.protocol import Traffic, Transport

_log = logging.getLogger(__name__)

Progress = Callable[[str, str], None]
"""Called with a state word (``requested``, ``creating``, ``connecting``) and a sentence."""


@dataclass
class Connected:
    """A cluster that can be used now.

    ``privileged`` opens a transport of an account that may use ``sudo`` on the cluster, for archiving; ``None``
    where there is none.
    """

    backend: Backend
    where: str
    lustre: bool
    tier: str = ""
    privileged: Callable[[], AbstractContextManager[Transport]] | None = field(default=None, repr=False)


class Connector(Protocol):
    """Obtains one cluster."""

    def connect(self, progress: Progress, stopping: threading.Event) -> Connected:
        """Have the cluster made if need be, reach it, and answer when it can be used.

        Raises:
            ClusterFailed, DeadlineExceeded: it cannot be had.
            BbpwfError: anything else that went wrong; if retryable, it is tried again.
        """
        ...


class ClusterRuntime:
    """A cluster by its name, with the threads that submit to it and watch it."""

    def __init__(
        self, name: str, connector: Connector, ledger: Ledger, clock: Clock, settings: ClusterSettings, *, spool: str
    ) -> None:
        self.name = name
        self.spool = spool
        self._connector = connector
        self._ledger = ledger
        self._clock = clock
        self._settings = settings
        self._guard = threading.Condition()
        self._state, self._reason = "none", ""
        self._connected: Connected | None = None
        self._starting: threading.Thread | None = None
        self._stopping = threading.Event()
        self._submitter: Submitter | None = None
        self._monitor: Monitor | None = None
        self._allocating: AllocatingBackend | None = None
        self._threads: list[threading.Thread] = []
        self._budget = Budget(clock)

    def info(self) -> ClusterInfo:
        """State and folders."""
        with self._guard:
            connected = self._connected
            return ClusterInfo(
                name=self.name,
                kind="local" if self._settings.kind == "local" else "slurm",
                state=self._state,
                reason=self._reason,
                where=connected.where if connected else "",
                data_root=self._settings.data_root,
                software=self._settings.software,
                lustre=connected.lustre if connected else bool(self._settings.lustre),
                tier=connected.tier if connected else "",
                calls=self._budget.calls(),
            )

    def meters(self) -> ClusterMeters:
        """What there is to tell in numbers."""
        with self._guard:
            connected, state, reason = self._connected, self._state, self._reason
        # only what goes over a network has any
        traffic: Traffic | None = getattr(connected.backend.transport, "traffic", None) if connected else None
        return ClusterMeters(
            state=state,
            reason=reason,
            ssh=traffic is not None,
            connected=traffic is not None and traffic.connected,
            logins=traffic.logins if traffic else 0,
            round_trips=traffic.round_trips if traffic else 0,
            calls=self._budget.calls(),
            seconds=self._budget.seconds(),
        )

    def ensure(self) -> ClusterInfo:
        """Begin to obtain the cluster unless that is done or under way. A failed one is tried again."""
        with self._guard:
            if self._connected is None and self._starting is None and not self._stopping.is_set():
                self._state, self._reason = "requested", ""
                self._starting = threading.Thread(target=self._start, name=f"connect {self.name}", daemon=True)
                self._starting.start()
        return self.info()

    def wait_ready(self, timeout: float) -> ClusterInfo:
        """Wait until the cluster is ready or has failed, at most ``timeout`` seconds."""
        with self._guard:
            self._guard.wait_for(lambda: self._state in {"ready", "failed"}, timeout)
        return self.info()

    def connected(self) -> Connected:
        """What there is to use. Raises ClusterFailed or ConnectFailed (retryable) when there is nothing yet."""
        with self._guard:
            if self._connected is not None:
                return self._connected
            if self._state == "failed":
                raise ClusterFailed(f"cluster {self.name!r} cannot be used: {self._reason}")
            raise ConnectFailed(f"cluster {self.name!r} is not ready yet ({self._state})")

    def wake(self) -> None:
        """There are new intents."""
        if self._submitter is not None:
            self._submitter.wake()

    def cancel_marked(self) -> None:
        """Jobs were marked to be cancelled: ask the scheduler now if it can be reached, else when it can."""
        if self._submitter is not None:
            self._submitter.wake()
        if self._monitor is not None:
            self._monitor.poll_soon()

    def stop(self, within: float = 10.0) -> None:
        """End all threads and connections; wait at most ``within`` seconds for each thread. Jobs go on."""
        self._stopping.set()
        for part in (self._submitter, self._monitor):
            if part is not None:
                part.stop()
        if self._connected is not None:
            self._connected.backend.transport.close()
            self._connected.backend.close()
        for thread in (*self._threads, self._starting):
            if thread is not None and thread is not threading.current_thread():
                thread.join(within)

    def _progress(self, state: str, reason: str) -> None:
        with self._guard:
            self._state, self._reason = state, reason
            self._guard.notify_all()
        _log.info("cluster %s: %s %s", self.name, state, reason)

    def _start(self) -> None:
        pause = 2.0
        while not self._stopping.is_set():
            try:
                connected = self._connector.connect(self._progress, self._stopping)
                self._use(connected)
                return
            except BbpwfError as error:
                if error.retryable and not isinstance(error, ClusterFailed):
                    self._progress("connecting", f"{error}; trying again")
                    self._stopping.wait(pause)
                    pause = min(60.0, pause * 2)
                    continue
                self._fail(str(error))
                return
            except Exception as error:  # noqa: BLE001 a thread's last line of defence: shown, not swallowed
                _log.exception("connecting cluster %s failed", self.name)
                self._fail(f"unexpected {type(error).__name__}; the agent's log has the details")
                return

    def _fail(self, reason: str) -> None:
        self._progress("failed", reason)
        with self._guard:
            self._starting = None

    def release(self, run_id: str) -> None:
        """The run has ended: what it still holds of the cluster is given back, now or by its own time limit."""
        if self._allocating is None:
            return
        try:
            self._allocating.release(run_id)
        except (TransportError, SlurmError) as error:
            _log.warning("allocations of run %s could not be released, they will end by themselves: %s", run_id, error)
        self.cancel_marked()

    def _use(self, connected: Connected) -> None:
        backend = connected.backend
        backend.transport.run(["mkdir", "-p", f"{self.spool}/batches", f"{self._settings.data_root}/runs"])
        if backend.kind != "local":
            backend = self._allocating = AllocatingBackend(
                backend, self._ledger, self._clock, cluster=self.name, spool=self.spool, on_planned=self.wake
            )
        submitter = Submitter(
            self._ledger,
            backend,
            self._clock,
            cluster=self.name,
            spool=self.spool,
            data_root=self._settings.data_root,
            software=self._settings.software,
            unclear_s=self._settings.unclear_s,
            budget=self._budget,
        )
        monitor = Monitor(
            self._ledger,
            backend,
            self._clock,
            cluster=self.name,
            spool=self.spool,
            poll_s=self._settings.poll_s,
            lost_after_s=self._settings.lost_after_s,
            on_change=submitter.wake,
            budget=self._budget,
        )
        self._ledger.know_limits(self.name, backend.limits)
        submitter.readopt()
        with self._guard:
            self._connected, self._submitter, self._monitor = connected, submitter, monitor
            loops = {"submit": submitter.loop, "events": monitor.follow, "poll": monitor.poll_loop}
            self._threads = [
                threading.Thread(target=loop, name=f"{word} {self.name}", daemon=True) for word, loop in loops.items()
            ]
        for thread in self._threads:
            thread.start()
        submitter.wake()
        self._progress("ready", "")
