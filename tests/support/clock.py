"""A clock that tests move."""

from __future__ import annotations

import threading


class ManualClock:
    """Stands still until it is told to go on; ``sleep`` goes on by itself."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._monotonic = 1000.0
        self._guard = threading.Lock()

    def now(self) -> float:
        """Unix seconds."""
        return self._now

    def monotonic(self) -> float:
        """Seconds from an arbitrary start."""
        return self._monotonic

    def sleep(self, seconds: float) -> None:
        """Go on by ``seconds``."""
        self.advance(seconds)

    def jump(self, seconds: float) -> None:
        """Somebody sets the time of day; nothing goes on."""
        with self._guard:
            self._now += seconds

    def advance(self, seconds: float) -> None:
        """Go on by ``seconds``."""
        with self._guard:
            self._now += seconds
            self._monotonic += seconds
