"""What the head knows of its run's jobs: the newest sighting of each, small enough for tens of thousands."""

from __future__ import annotations

from collections.abc import Iterable

from bbpwf.cluster.jobs import JobView
from bbpwf.states import JobState


class JobTable:
    """States by key. Written by one thread, read by any; a forked process keeps the copy it was born with."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[JobState, int]] = {}
        self.complete_to = 0
        """The version up to which everything is known."""

    def update(self, views: Iterable[JobView]) -> list[JobView]:
        """Take these sightings in; answers those that are news, older or equal ones are dropped."""
        news = []
        for view in views:
            known = self._known.get(view.key)
            if known is None or view.version > known[1]:
                self._known[view.key] = (view.state, view.version)
                news.append(view)
        return news

    def state(self, key: str) -> JobState | None:
        """The last known state of a job; ``None`` if it was never asked for."""
        known = self._known.get(key)
        return known[0] if known else None

    def unfinished(self) -> int:
        """How many jobs are not in a terminal state."""
        return sum(1 for state, _ in self._known.values() if not state.terminal)
