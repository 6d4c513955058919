"""What an agent can tell of itself in numbers, for whoever watches over the instance."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import BaseModel, ConfigDict

from bbpwf.clock import Clock


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ClusterMeters(_Frozen):
    """One cluster. Counts are since the agent started; ``logins`` and ``round_trips`` are of SSH."""

    state: str
    reason: str = ""
    ssh: bool = False
    connected: bool = False
    logins: int = 0
    round_trips: int = 0
    calls: dict[str, int] = {}
    seconds: dict[str, float] = {}


class AgentMeters(_Frozen):
    """All clusters by name, and archiving. ``oldest_archive_s`` is how long the oldest one under way has taken."""

    clusters: dict[str, ClusterMeters] = {}
    archives: int = 0
    oldest_archive_s: float = 0.0
    archives_failed: int = 0
    runs_archiving: tuple[str, ...] = ()


class Archives:
    """Which archivings are under way. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._open: dict[int, tuple[float, str]] = {}
        self._number = 0
        self._failed = 0

    @contextmanager
    def under_way(self, run_id: str) -> Iterator[None]:
        """One archiving of a run happens in this block."""
        with self._guard:
            self._number += 1
            number = self._number
            self._open[number] = self._clock.monotonic(), run_id
        try:
            yield
        except BaseException:
            with self._guard:
                self._failed += 1
            raise
        finally:
            with self._guard:
                del self._open[number]

    def meters(self, clusters: dict[str, ClusterMeters]) -> AgentMeters:
        """Everything in numbers, with what clusters say of themselves."""
        now = self._clock.monotonic()
        with self._guard:
            began = [at for at, _ in self._open.values()]
            return AgentMeters(
                clusters=clusters,
                archives=len(began),
                oldest_archive_s=max((now - at for at in began), default=0.0),
                archives_failed=self._failed,
                runs_archiving=tuple(sorted({run_id for _, run_id in self._open.values()})),
            )
