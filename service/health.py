"""Whether the instance can do its work, and which of its parts cannot: ``/readyz``, and the same for metrics.

The answer goes to anybody who asks, and so it names parts and nothing else: what is wrong with one is in the log, and
in ``/cluster`` for members of the project.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bbpwf.clock import Clock
from bbpwf.cluster.control import AgentControl
from bbpwf.cluster.meters import AgentMeters
from bbpwf.cluster.runs import RunStore
from bbpwf.errors import BbpwfError
from bbpwf.settings import Settings
from service.containment import Containment, Level
from service.supervisor import Supervisor

FRESH_S = 5.0
"""An answer is good for this long, however many ask."""
ISSUER_FRESH_S = 30.0
ISSUER_LIMIT_S = 5.0
ROOM_BYTES = 256 * 1024 * 1024
"""A state folder with less room than this is as good as full."""

OWN = ("database", "agent", "luigid", "disk")
"""Parts without which the instance can take no launch; the others are somebody else's, and runs wait for them."""
PARTS = (*OWN, "ssh", "provisioner", "keycloak")


@dataclass(frozen=True)
class Health:
    """The names of parts that fail, and what the agent told, if it did."""

    failing: frozenset[str] = frozenset()
    meters: AgentMeters | None = field(default=None, compare=False)
    user_code: Level = "not contained"

    @property
    def status(self) -> str:
        """``ready``; ``degraded`` when only others' parts fail; else ``not ready``."""
        if not self.failing:
            return "ready"
        return "not ready" if self.failing & set(OWN) else "degraded"

    def body(self) -> dict[str, object]:
        """As it is answered."""
        parts = {name: "failing" if name in self.failing else "ok" for name in PARTS}
        return {
            "status": self.status,
            "failing": sorted(self.failing),
            "parts": parts,
            "user_code": self.user_code,
        }


class Readiness:
    """Looks at all parts; thread-safe. Every look has a limit, and answers are shared."""

    def __init__(
        self,
        settings: Settings,
        store: RunStore,
        control: AgentControl,
        supervisor: Supervisor,
        containment: Containment,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._containment = containment
        self._store = store
        self._control = control
        self._supervisor = supervisor
        self._clock = clock
        self._guard = threading.Lock()
        self._seen: tuple[float, Health] | None = None
        self._issuer_seen: tuple[float, bool] | None = None

    def look(self) -> Health:
        """What is so now, or was a few seconds ago. Blocks: use a worker thread."""
        with self._guard:
            now = self._clock.monotonic()
            if self._seen is None or now - self._seen[0] > FRESH_S:
                self._seen = now, self._looked()
            return self._seen[1]

    def _looked(self) -> Health:
        failing = {name for name, sound in self._checks().items() if not _holds(sound)}
        failing |= self._supervisor.failing()
        meters: AgentMeters | None = None
        if "agent" not in failing:
            try:
                meters = self._control.meters()
            except BbpwfError:
                failing.add("agent")
        if meters is not None:
            failing |= self._of_cluster(meters)
        return Health(frozenset(failing), meters, self._containment.level)

    def _checks(self) -> dict[str, Callable[[], bool]]:
        return {
            "database": lambda: bool(self._store.counts()),
            "disk": lambda: has_room(self._settings.state),
            "keycloak": self._issuer_answers,
        }

    def _of_cluster(self, meters: AgentMeters) -> set[str]:
        cluster = meters.clusters.get("default")
        if cluster is None or self._settings.cluster.kind == "local":
            return set()
        if cluster.state == "failed":
            return {"provisioner" if self._settings.cluster.kind == "provisioned" else "ssh"}
        lost = cluster.state == "ready" and cluster.ssh and not cluster.connected
        return {"ssh"} if lost or (cluster.state == "connecting" and cluster.reason) else set()

    def _issuer_answers(self) -> bool:
        now = self._clock.monotonic()
        if self._issuer_seen is None or now - self._issuer_seen[0] > ISSUER_FRESH_S:
            url = self._settings.oidc.issuer.rstrip("/") + "/.well-known/openid-configuration"
            try:
                answers = httpx.get(url, timeout=ISSUER_LIMIT_S).status_code == 200
            except httpx.HTTPError:
                answers = False
            self._issuer_seen = now, answers
        return self._issuer_seen[1]


def has_room(folder: Path) -> bool:
    """Whether the disk under a folder has room for the instance to go on."""
    return shutil.disk_usage(folder).free >= ROOM_BYTES


def _holds(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except (BbpwfError, OSError):
        return False
