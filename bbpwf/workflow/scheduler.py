"""Luigi's scheduler as one run sees it: inside the head, or a central one shared with other runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from luigi.rpc import RemoteScheduler

from bbpwf.workflow.flat import FlatScheduler
from bbpwf.workflow.guarded import mark_of

MOST_TOLD = 500
"""Tasks in one call to a central scheduler: a request of about 300 kB."""


def in_process() -> FlatScheduler:
    """A scheduler for this run alone. A failed task stays failed: trying again is the agent's or a resume's."""
    return FlatScheduler(prune_on_get_work=True, record_task_history=False, retry_delay=-1.0)


def central(url: str, run_id: str) -> RunScheduler:
    """The run's view of the ``luigid`` at ``url``; with a pass in the URL it is ours (:mod:`bbpwf.workflow.luigid`)."""
    return RunScheduler(RemoteScheduler(url), run_id, many=bool(urlsplit(url).password))


class RunScheduler:
    """A central scheduler that many runs share, with the run's id in every task id.

    Luigi takes equal tasks of different workers for one task. Two runs that launch the same task want two: each
    has its own folder, its own jobs and its own end. Everything else passes through.

    What there is to tell one that takes ``many`` tasks in a call, as only ours does, waits for the next question and
    goes with it: one request for hundreds of tasks of a graph, and none for what is followed by a question anyway. A
    worker asks at least every second.
    """

    def __init__(self, scheduler: RemoteScheduler, run_id: str, *, many: bool) -> None:
        self._scheduler: Any = scheduler  # its methods are made at import of luigi.rpc
        self._suffix = mark_of(run_id)
        self._many = many
        self.more = True
        """Whether asking for work again may bring another task."""
        self._owner = os.getpid()
        self._guard = threading.RLock()
        self._told: list[dict[str, Any]] = []

    def _out(self, task_id: str) -> str:
        return f"{task_id}{self._suffix}"

    def _all_out(self, task_ids: Iterable[str] | None) -> list[str] | None:
        return None if task_ids is None else [self._out(each) for each in task_ids]

    def _in(self, task_id: str | None) -> str | None:
        return task_id.removesuffix(self._suffix) if task_id else task_id

    def add_task(self, **call: Any) -> None:
        """Tell of a task and its dependencies, with the next question at the latest. Raises RPCError."""
        call["task_id"] = self._out(call["task_id"])
        for name in ("deps", "new_deps"):
            if name in call:
                call[name] = self._all_out(call[name])
        if not self._many or os.getpid() != self._owner:  # forked tasks have a copy of what their worker will tell
            self._scheduler.add_task(**call)
            return
        with self._guard:
            self._told.append(call)
            if len(self._told) >= MOST_TOLD:
                self._tell()

    def _tell(self) -> None:
        """Send what waits to be told. Raises RPCError."""
        with self._guard:
            if self._told and os.getpid() == self._owner:
                self._scheduler._request("/api/add_tasks", {"tasks": self._told})
                self._told = []

    def get_work(self, **call: Any) -> Any:
        """Ask for a task to run. Raises RPCError."""
        call["current_tasks"] = self._all_out(call.get("current_tasks"))
        if not self._many:
            return self._answer(self._scheduler.get_work(**call))
        with self._guard:
            answer = self._scheduler._request("/api/get_work", {**call, "tasks": self._told}, allow_null=False)
            self._told = []
        self.more = answer.get("more", True)
        return self._answer(answer)

    def count_pending(self, **call: Any) -> Any:
        """Ask how much is left."""
        self._tell()
        return self._answer(self._scheduler.count_pending(**call))

    def _answer(self, answer: dict[str, Any]) -> dict[str, Any]:
        translated = {**answer}
        if "task_id" in answer:
            translated["task_id"] = self._in(answer["task_id"])
        if "batch_task_ids" in answer:
            translated["batch_task_ids"] = [self._in(each) for each in answer["batch_task_ids"]]
        translated["running_tasks"] = [
            {**each, "task_id": self._in(each["task_id"])} for each in answer.get("running_tasks") or []
        ]
        return translated

    def ping(self, **call: Any) -> Any:
        """Say that the worker lives; hear what the dashboard's users want of it."""
        answer = self._scheduler.ping(**call)
        for message in (answer or {}).get("rpc_messages", []):
            if "task_id" in message["kwargs"]:
                message["kwargs"]["task_id"] = self._in(message["kwargs"]["task_id"])
        return answer

    def set_task_status_message(self, task_id: str, status_message: str) -> Any:
        """A line about a running task."""
        return self._scheduler.set_task_status_message(task_id=self._out(task_id), status_message=status_message)

    def set_task_progress_percentage(self, task_id: str, progress_percentage: int) -> Any:
        """How far a running task is."""
        return self._scheduler.set_task_progress_percentage(
            task_id=self._out(task_id), progress_percentage=progress_percentage
        )

    def decrease_running_task_resources(self, task_id: str, decrease_resources: dict[str, int]) -> Any:
        """Let go of Luigi resources early."""
        return self._scheduler.decrease_running_task_resources(
            task_id=self._out(task_id), decrease_resources=decrease_resources
        )

    def report_task_statistics(self, task_id: str, statistics: Any) -> Any:
        """Metrics of a task."""
        return self._scheduler.report_task_statistics(task_id=self._out(task_id), statistics=statistics)

    def add_scheduler_message_response(self, task_id: str, message_id: str, response: str) -> Any:
        """Answer a message from the dashboard."""
        return self._scheduler.add_scheduler_message_response(
            task_id=self._out(task_id), message_id=message_id, response=response
        )

    def __getattr__(self, name: str) -> Any:
        self._tell()
        return getattr(self._scheduler, name)
