"""What became of the run's Luigi tasks: told to the agent in batches, and summed up at the end."""

from __future__ import annotations

import json
import time
from typing import Any

from luigi.task_status import DONE, FAILED, PENDING, RUNNING

from bbpwf.cluster.api import RunAgent
from bbpwf.cluster.jobs import TaskReport
from bbpwf.redact import Redactor
from bbpwf.workflow.request import Failure

BATCH = 500
"""Reports in one call."""

INTERVAL = 1.0
"""Seconds between calls, at least."""

LINGER = 0.15
"""Seconds for which news wait for more of them: when something ends, what comes next is more urgent than to tell."""

MESSAGE_CHARS = 8000

_STATES = {DONE: "DONE", PENDING: "PENDING", RUNNING: "RUNNING"}


class Reporter:
    """The newest state of every task; changes go to the agent in the order in which they happened.

    What tasks say may quote what they were given, a token say: what looks like a secret is masked.
    """

    def __init__(self, agent: RunAgent) -> None:
        self._agent = agent
        self._redactor = Redactor()
        self._reports: dict[str, TaskReport] = {}
        self._changed: dict[str, None] = {}
        self._not_before = 0.0
        self.failures: dict[str, list[Failure]] = {}
        self.platform_failures: set[str] = set()

    def masked(self, text: str) -> str:
        """``text`` without what looks like a secret. To be done before anything is cut off."""
        return self._redactor.mask(text) if text else text

    def note(self, task: Any, status: str, message: str = "") -> None:
        """A task is in this Luigi status now; anything but DONE, PENDING and RUNNING is a failure."""
        message = self.masked(message)
        state: Any = _STATES.get(status, "FAILED")
        known = self._reports.get(task.task_id)
        now = time.time()
        if known is None:
            params = task.to_str_params(only_public=True)
            known = TaskReport(task_id=task.task_id, family=task.task_family, params=params, state="PENDING")
        elif known.state == state and known.message == message:
            return
        started = now if state == "RUNNING" and known.state != "RUNNING" else known.started_at
        ended = now if state in {"DONE", "FAILED"} and known.state != state else None
        if known.state == state:
            ended = known.ended_at
        if state == "PENDING":
            started = None
        self._reports[task.task_id] = known.model_copy(
            update={
                "state": state,
                "message": message[-MESSAGE_CHARS:],
                "started_at": started,
                "ended_at": ended,
            }
        )
        self._note_change(task.task_id)
        if state != "FAILED":
            self.failures.pop(task.task_id, None)

    def message(self, task_id: str, message: str) -> None:
        """How far a running task is."""
        message = self.masked(message)
        known = self._reports.get(task_id)
        if known is not None and known.message != message:
            self._reports[task_id] = known.model_copy(update={"message": message[-MESSAGE_CHARS:]})
            self._note_change(task_id)

    def _note_change(self, task_id: str) -> None:
        if not self._changed:
            self._not_before = max(self._not_before, time.monotonic() + LINGER)
        self._changed[task_id] = None

    def failed(self, task_id: str, details: list[Failure], *, platform: bool = False) -> None:
        """Why a task failed; ``platform`` when it was not the task's doing."""
        self.failures[task_id] = details
        if platform:
            self.platform_failures.add(task_id)
        else:
            self.platform_failures.discard(task_id)

    def state(self, task_id: str) -> str:
        """DONE, PENDING, RUNNING or FAILED; empty if the task was never seen."""
        known = self._reports.get(task_id)
        return known.state if known else ""

    def unsuccessful(self) -> list[TaskReport]:
        """Tasks that failed, in the order in which they were first seen."""
        return [each for each in self._reports.values() if each.state == FAILED]

    def flush(self, *, force: bool = False) -> None:
        """Send what changed, if it is time."""
        if not self._changed or not (force or time.monotonic() >= self._not_before):
            return
        while self._changed:
            batch = list(self._changed)[:BATCH]
            self._agent.report([self._reports[task_id] for task_id in batch])
            for task_id in batch:
                del self._changed[task_id]
        self._not_before = time.monotonic() + INTERVAL

    def due(self) -> float | None:
        """When there is something to :meth:`flush`, by the monotonic clock; ``None`` if there is nothing."""
        return self._not_before if self._changed else None


def readable(explanation: Any) -> str:
    """Luigi's ``expl``, which may be JSON of a string, as text."""
    if explanation is None:
        return ""
    if isinstance(explanation, str):
        try:
            decoded = json.loads(explanation)
        except ValueError:
            return explanation
        return decoded if isinstance(decoded, str) else ("" if decoded is None else explanation)
    return str(explanation)
