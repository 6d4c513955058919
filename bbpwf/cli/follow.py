"""Watching a run until it ends: a live table on a terminal, a line a change elsewhere, silence for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.live import Live

from bbpwf.cli import show
from bbpwf.clock import Clock
from bbpwf.errors import BbpwfError, TransportError
from bbpwf.states import RunState

EVERY_S = 1.0
SHARE = 20
"""At least this many times as long as a look takes passes before the next one: large runs are looked at less often."""
MANY_TASKS = 40
"""More tasks than these are told by family rather than one by one."""
PATIENCE_S = 300.0
"""How long the source of news may be out of reach, e.g. while the service restarts."""

News = Callable[[], tuple[dict[str, Any], list[dict[str, Any]]]]
"""Answers the run and its tasks, as they are now; or, for many tasks, :func:`digest`."""


def digest(families: Sequence[tuple[str, RunState, int]]) -> list[dict[str, Any]]:
    """Families of tasks in place of tasks: ``count`` of them are in ``state``."""
    return [
        {"id": f"{name} {state}", "name": name, "state": state.value, "count": count, "reason": ""}
        | {"started_at": None, "ended_at": None}
        for name, state, count in families
    ]


class Follower:
    """Draws what :data:`News` tells.

    Args:
        news: asked once a second.
        clock: for pauses.
        quiet: draw nothing, just wait.
    """

    def __init__(self, news: News, clock: Clock, *, quiet: bool) -> None:
        self._news = news
        self._clock = clock
        self._quiet = quiet
        self._console = show.console(err=True)
        self._told_run = ""
        self._told_tasks: dict[str, str] = {}

    def until_end(self, *, ended: Callable[[], bool] = lambda: False) -> dict[str, Any]:
        """Follow until the run is in a terminal state, or ``ended`` says so; the run as it was seen last.

        Raises:
            TransportError: nobody could be asked for five minutes.
        """
        if self._quiet or not self._console.is_terminal:
            return self._loop(self._lines, ended)
        with Live(console=self._console, auto_refresh=False, transient=False) as live:

            def draw(run: dict[str, Any], tasks: list[dict[str, Any]]) -> None:
                live.update(show.live_view(run, tasks, self._clock.now()), refresh=True)

            return self._loop(draw, ended)

    def _loop(
        self, draw: Callable[[dict[str, Any], list[dict[str, Any]]], None], ended: Callable[[], bool]
    ) -> dict[str, Any]:
        lost_since: float | None = None
        while True:
            last = ended()
            began = self._clock.monotonic()
            try:
                run, tasks = self._news()
            except BbpwfError as error:
                now = self._clock.monotonic()
                lost_since = lost_since or now
                if not _passing(error) or now - lost_since > PATIENCE_S:
                    raise
            else:
                lost_since = None
                draw(run, tasks)
                if last or RunState(run["state"]).terminal:
                    return run
            if not last:
                pause = max(EVERY_S, SHARE * (self._clock.monotonic() - began))
                until = self._clock.monotonic() + pause
                while not ended() and self._clock.monotonic() < until:
                    self._clock.sleep(min(0.1, EVERY_S))

    def _lines(self, run: dict[str, Any], tasks: Sequence[dict[str, Any]]) -> None:
        if self._quiet:
            return
        line = f"{run['run_id']} {run['state']}" + (f": {run['reason']}" if run["reason"] else "")
        if line != self._told_run:
            self._told_run = line
            self._console.print(line, soft_wrap=True, markup=False)
        folded = show.folded(tasks)
        if len(folded) > MANY_TASKS or any("count" in task for task, _ in folded):
            self._families([task for task, _ in folded])
            return
        for task, elements in folded:
            counts = Counter(element["state"] for element in elements)
            jobs = " (" + ", ".join(f"{n} {s}" for s, n in sorted(counts.items())) + ")" if counts else ""
            line = f"{task['name']} {task['state']}{jobs}"
            if self._told_tasks.get(task["id"]) != line:
                self._told_tasks[task["id"]] = line
                self._console.print(f"  {line}", soft_wrap=True, markup=False)

    def _families(self, tasks: Sequence[Mapping[str, Any]]) -> None:
        by_family: dict[str, Counter[str]] = {}
        for task in tasks:
            by_family.setdefault(task["name"], Counter())[task["state"]] += task.get("count", 1)
        for family, counts in by_family.items():
            line = f"{family}: " + ", ".join(f"{n} {s}" for s, n in sorted(counts.items()))
            if self._told_tasks.get(family) != line:
                self._told_tasks[family] = line
                self._console.print(f"  {line}", soft_wrap=True, markup=False)


def _passing(error: BbpwfError) -> bool:
    return isinstance(error, TransportError) or error.retryable


def conclude(run: dict[str, Any], *, json_output: bool) -> None:
    """Say how a run ended."""
    if json_output:
        show.print_json(run)
        return
    out = show.console()
    out.print(show.run_header(run, run["ended_at"] or run["created_at"]), soft_wrap=True)
    for failure in show.failures(run):
        out.print(failure, soft_wrap=True)
