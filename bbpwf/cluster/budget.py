"""What one cluster's scheduler is asked to do by us: counted, and less of it when it is slow to answer.

Queries of the queue are at least the polling interval apart, or a second when something needs its word; submissions
and cancels go many in one command. On top of that a query that took long is followed by a rest, so that asking never
takes more than a tenth of the scheduler's time.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from bbpwf.clock import Clock

REST = 9.0
"""Rest after a query, in units of what it took."""
LONGEST_REST_S = 60.0


class Budget:
    """Of one cluster. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._rest_until = 0.0

    @contextmanager
    def spend(self, command: str, calls: int = 1) -> Iterator[None]:
        """Count ``calls`` of a command of the scheduler's that are made in this block, whether or not they succeed."""
        with self._guard:
            self._calls[command] += calls
        began = self._clock.monotonic()
        try:
            yield
        finally:
            with self._guard:
                took = self._clock.monotonic() - began
                self._seconds[command] = self._seconds.get(command, 0.0) + took
        if command == "queue":  # one that failed is followed by a pause that grows from failure to failure
            now = self._clock.monotonic()
            with self._guard:
                self._rest_until = now + min(LONGEST_REST_S, REST * (now - began))

    def rest(self) -> float:
        """Seconds for which the queue is not to be asked again."""
        with self._guard:
            return max(0.0, self._rest_until - self._clock.monotonic())

    def seconds(self) -> dict[str, float]:
        """How long all the commands of each kind took since the agent started, round trip included."""
        with self._guard:
            return dict(self._seconds)

    def calls(self) -> dict[str, int]:
        """How often the scheduler was asked for what since the agent started."""
        with self._guard:
            return dict(self._calls)
