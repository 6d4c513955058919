"""Getting a project's cluster ready: asking, waiting, and knowing when to stop.

::

    ASKING ──► ABSENT ──► CREATING ──► STARTING ──► READY
                 ▲            │            │
                 └─ DELETING ◄┴────────────┘   somebody deletes it meanwhile; asked for again when gone

A failed cluster is never deleted here: it may hold data that nobody exported, and the reason of the failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from bbpwf.clock import Clock
from bbpwf.errors import ClusterFailed, DeadlineExceeded, ProvisionerError
from bbpwf.platform.cluster import ClusterDescription, ClusterKeys, ClusterStatus
from bbpwf.platform.provisioner import ProvisionerClient
from bbpwf.settings import ProvisionerSettings

_SLICE_S = 1.0  # a wait looks this often whether it was cancelled
_BACKOFF_LIMIT = 8  # times the poll interval


class Phase(StrEnum):
    """Where a cluster stands on its way."""

    ASKING = "asking"
    ABSENT = "requested"  # asked for, not to be seen yet: the provisioner answers 404 for up to minutes
    CREATING = "creating"
    STARTING = "starting"  # the stack is there; its head node is not up, or the stack is being updated
    DELETING = "deleting"
    READY = "ready"


@dataclass(frozen=True)
class Progress:
    """One look: ``message`` is for people, ``elapsed_s`` counts from the first look."""

    phase: Phase
    message: str
    elapsed_s: float


@dataclass(frozen=True)
class ClusterAccess:
    """A cluster that can be used: where to log in, and where the keys are."""

    address: str
    keys: ClusterKeys
    description: ClusterDescription


class Provisioning:
    """Brings one project's cluster to READY, one look at a time.

    Call :meth:`step` every :attr:`next_look_s` seconds, or :meth:`wait_until_ready`. The limits of ``settings`` count
    from the first step.
    """

    def __init__(self, client: ProvisionerClient, settings: ProvisionerSettings, clock: Clock) -> None:
        self.phase = Phase.ASKING
        self.access: ClusterAccess | None = None
        self._client = client
        self._settings = settings
        self._clock = clock
        self._started: float | None = None
        self._asked_at: float | None = None
        self._troubles = 0
        self._last = "not asked yet"

    @property
    def next_look_s(self) -> float:
        """How long to wait before the next step; longer while the provisioner has trouble."""
        return self._settings.poll_s * min(2.0**self._troubles, _BACKOFF_LIMIT)

    def step(self) -> Progress:
        """Look once, and ask for the cluster if there is none.

        Raises:
            ClusterFailed: the cluster cannot be used and will not get better by waiting; says why and what to do.
            DeadlineExceeded: the overall limit is over.
            ProvisionerError: the provisioner refuses us.
        """
        if self._started is None:
            self._started = self._clock.monotonic()
        if self.phase is not Phase.READY:
            self._check_deadline()
            try:
                self._last = self._look()
                self._troubles = 0
            except ProvisionerError as error:
                if not error.retryable:
                    raise
                self._troubles += 1
                self._last = f"{error.message}; trying again"
        return Progress(self.phase, self._last, self._clock.monotonic() - self._started)

    def wait_until_ready(
        self,
        progress: Callable[[Progress], None] = lambda _: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> ClusterAccess | None:
        """Step until the cluster is ready; ``None`` if ``cancelled`` said so first. Raises what :meth:`step` raises.

        ``progress`` hears of every look.
        """
        while not cancelled():
            progress(self.step())
            if self.access is not None:
                return self.access
            left = self.next_look_s
            while left > 0 and not cancelled():
                self._clock.sleep(min(left, _SLICE_S))
                left -= _SLICE_S
        return None

    def _look(self) -> str:
        name = self._client.name
        found = self._client.describe()
        if found is None:
            return self._absent()
        self._asked_at = None
        status = found.status
        if status in {ClusterStatus.DELETE_IN_PROGRESS, ClusterStatus.DELETE_COMPLETE}:
            # asked for now, keys would be renewed and no cluster follow (contracts §1.6, 3)
            self.phase = Phase.DELETING
            self._client.keys = None
            return f"{name} is being deleted; a new one is asked for when it is gone"
        if status in {ClusterStatus.CREATE_FAILED, ClusterStatus.DELETE_FAILED} or _broken_by_update(found):
            raise self._failed(found)
        if self._client.keys is None:
            self._client.request()  # changes nothing of a cluster that exists, and tells where its keys are
        if status is ClusterStatus.CREATE_IN_PROGRESS:
            self.phase = Phase.CREATING
            return f"{name} is being created" + (", its head node is booting" if found.head_node else "")
        self.phase = Phase.STARTING
        if status is None:
            return f"{name} is in the unknown state {found.status_name!r}"
        if status is ClusterStatus.UPDATE_IN_PROGRESS:
            return f"{name} is being updated"
        return self._started_up(found)

    def _absent(self) -> str:
        name = self._client.name
        now = self._clock.monotonic()
        if self._asked_at is None:
            # also when it vanished while we waited: asking again is right, and bounded by the overall limit
            self.phase = Phase.ABSENT
            self._client.keys = None
            self._client.request()
            self._asked_at = now
            return f"{name} was asked for"
        waited = now - self._asked_at
        if waited > self._settings.absent_tolerance_s:
            raise ClusterFailed(
                f"{name} was asked for {waited:.0f} s ago and never appeared",
                hint=f"The provisioner does not say why. Check that the tier {self._settings.tier!r} exists, that "
                "the account has a free subnet, and the provisioner's own log.",
            )
        return f"{name} was asked for {waited:.0f} s ago and is not to be seen yet"

    def _started_up(self, found: ClusterDescription) -> str:
        name = self._client.name
        head = found.head_node
        if head is None or not head.address or head.state == "pending":
            return f"{name} is there, its head node is not up yet"
        if head.state != "running":
            if head.state == "stopping":
                return f"the head node of {name} is stopping"
            raise ClusterFailed(
                f"the head node of {name} is {head.state or 'in no known state'}",
                where=head.address,
                hint="Start the instance again, or delete the cluster and launch anew.",
            )
        if self._client.keys is None:
            return f"{name} is there, its keys are not known yet"
        self.access = ClusterAccess(head.address, self._client.keys, found)
        self.phase = Phase.READY
        fleet = f"; its compute fleet is {found.fleet}, so jobs will wait" if found.fleet not in _FLEETS_AT_WORK else ""
        return f"{name} is ready{fleet}"

    def _failed(self, found: ClusterDescription) -> ClusterFailed:
        reasons = "; ".join(f"{code}: {reason}" for code, reason in found.failures[:5])
        return ClusterFailed(
            f"{found.name} is in {found.status_name}" + (f" ({reasons})" if reasons else ""),
            hint="It stays so until somebody deletes it: save what its file system holds, delete the cluster "
            "(DELETE of the provisioner), then launch again.",
        )

    def _check_deadline(self) -> None:
        elapsed = self._clock.monotonic() - (self._started or 0.0)
        if elapsed > self._settings.deadline_s:
            raise DeadlineExceeded(
                f"{self._client.name} was not ready within {self._settings.deadline_s:.0f} s; last: {self._last}",
                hint="Look at the cluster with the provisioner, or raise BBPWF_PROVISIONER__DEADLINE_S.",
            )


_FLEETS_AT_WORK = frozenset({"RUNNING", "START_REQUESTED", "STARTING", "UNKNOWN"})


def _broken_by_update(found: ClusterDescription) -> bool:
    """An update that was rolled back completely leaves a cluster that works as before (contracts §1.5)."""
    return found.status is ClusterStatus.UPDATE_FAILED and found.stack_status != "UPDATE_ROLLBACK_COMPLETE"
