"""The one thread of a head that waits for news of its jobs."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from bbpwf.cluster.api import RunAgent
from bbpwf.cluster.jobs import JobView, Observation
from bbpwf.errors import BbpwfError
from bbpwf.workflow.patience import AgentGone

_log = logging.getLogger(__name__)

LONG_POLL = 20.0
"""Seconds that one question to the agent may wait for news."""


class Watcher:
    """Asks the agent what changed, again and again, and rings when something did.

    Args:
        agent: whom to ask.
        since: the version to ask from.
        ring: called from the watcher's thread after news were stored.
    """

    def __init__(self, agent: RunAgent, since: int, ring: Callable[[], None]) -> None:
        self._agent = agent
        self._since = self.taken = since
        self._ring = ring
        self._news: deque[Observation] = deque()
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more; the question that is open ends by itself and its answer is dropped."""
        self._stopping.set()

    def take(self) -> list[JobView]:
        """What changed since the last call, up to the version :attr:`taken`.

        Raises:
            AgentGone: the agent went away for good.
        """
        if self._error is not None:
            raise self._error
        taken: list[JobView] = []
        while self._news:
            seen = self._news.popleft()
            taken.extend(seen.jobs)
            self.taken = seen.version
        return taken

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                seen = self._agent.observe(self._since, wait=LONG_POLL)
            except AgentGone as error:
                self._error = error
                self._announce()
                return
            except BbpwfError as error:
                _log.warning("cannot see the jobs now: %s", error)
                self._stopping.wait(2.0)
                continue
            except Exception as error:  # noqa: BLE001 a defect here must end the run, not leave it waiting for ever
                self._error = error
                self._announce()
                return
            self._since = seen.version
            if seen.jobs and not self._stopping.is_set():
                self._news.append(seen)
                self._announce()

    def _announce(self) -> None:
        if not self._stopping.is_set():
            self._ring()
