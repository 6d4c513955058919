"""Runs and tasks for people: tables, ages, and lines that tell what changed. JSON for programs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

STYLES = {
    "COMPLETE": "green",
    "RUNNING": "cyan",
    "QUEUED": "yellow",
    "INITIALIZING": "yellow",
    "CANCELING": "yellow",
    "CANCELED": "magenta",
    "EXECUTOR_ERROR": "bold red",
    "SYSTEM_ERROR": "bold red",
    "PREEMPTED": "bold red",
}
_FAILED = {"EXECUTOR_ERROR", "SYSTEM_ERROR", "PREEMPTED"}
_MOST_FAILURES = 10
_UNWATCHED = 500

View = Mapping[str, Any]


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    json.dump(value, sys.stdout, indent=None if not sys.stdout.isatty() else 1)
    sys.stdout.write("\n")


def console(*, err: bool = False) -> Console:
    """Where people read; plain text without a limit to its width where nobody watches."""
    found = Console(stderr=err, highlight=False)
    return found if found.is_terminal else Console(stderr=err, highlight=False, width=_UNWATCHED)


def table(*headers: str) -> Table:
    """A table whose last column gives way when there is no room; the others are never cut."""
    made = Table(box=None, pad_edge=False)
    for header in headers[:-1]:
        made.add_column(header, no_wrap=True, overflow="ignore")
    made.add_column(headers[-1], overflow="fold")
    return made


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, STYLES.get(state, ""))


def duration(start: float | None, end: float | None) -> str:
    """``1:02:03``, empty if either is unknown."""
    if start is None or end is None:
        return ""
    seconds = max(0, int(end - start))
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def moment(seconds: float | str | None) -> str:
    """Local time, to the second."""
    if not seconds:
        return ""
    when = datetime.fromisoformat(seconds) if isinstance(seconds, str) else datetime.fromtimestamp(seconds, UTC)
    return when.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def runs_table(runs: Sequence[View]) -> Table:
    """WES run summaries as a table."""
    made = table("run", "state", "started", "ended", "tags")
    for run in runs:
        tags = " ".join(f"{name}={value}" for name, value in run.get("tags", {}).items())
        started, ended = moment(run.get("start_time")), moment(run.get("end_time"))
        made.add_row(run["run_id"], state_text(run["state"]), started, ended, tags)
    return made


def tasks_table(tasks: Sequence[View], now: float) -> Table:
    """Tasks with their array elements folded into counts."""
    made = table("task", "state", "time", "jobs", "")
    for task, elements in folded(tasks):
        states = Counter(element["state"] for element in elements)
        jobs = ", ".join(f"{count} {state.lower()}" for state, count in sorted(states.items()))
        took = duration(task["started_at"], task["ended_at"] or (now if task["started_at"] else None))
        reason = str(task["reason"]).partition("\n")[0][:100] if task["state"] in _FAILED else ""
        name = f"{task['count']} {task['name']}" if "count" in task else str(task["name"])
        made.add_row(name, state_text(task["state"]), took, jobs, Text(reason, "dim"))
    return made


def folded(tasks: Sequence[View]) -> list[tuple[View, list[View]]]:
    """Each task with its array's elements, whose ids are ``<task id>.<index>``."""
    heads: dict[str, tuple[View, list[View]]] = {}
    for task in tasks:
        parent, dot, index = str(task["id"]).rpartition(".")
        if dot and index.isdigit() and parent in heads:
            heads[parent][1].append(task)
        else:
            heads[str(task["id"])] = (task, [])
    return list(heads.values())


def run_header(run: View, now: float) -> Text:
    """One line about a run; its reason below, if there is one."""
    took = duration(run["started_at"] or run["created_at"], run["ended_at"] or now)
    line = Text.assemble(("run ", "dim"), run["run_id"], "  ", state_text(run["state"]), f"  {took}  {run['task']}")
    if run["reason"]:
        line.append(f"\n  {run['reason']}", "dim")
    return line


def live_view(run: View, tasks: Sequence[View], now: float) -> Group:
    """A run and its tasks, to be drawn again and again."""
    return Group(run_header(run, now), tasks_table(tasks, now)) if tasks else Group(run_header(run, now))


def failures(run: View) -> list[Text]:
    """What failed in a finished run: the name, the code, the last lines of the log."""
    failed = (run.get("outcome") or {}).get("failed", [])
    texts: list[Text] = []
    for each in failed[:_MOST_FAILURES]:
        text = Text.assemble(("✗ ", "bold red"), (str(each.get("label") or each.get("task_id")), "bold"))
        if each.get("exit_code") is not None and "exit code" not in str(each.get("reason")):
            text.append(f"  exit code {each['exit_code']}")
        if each.get("reason"):
            text.append(f"  {each['reason']}")
        for line in str(each.get("log_tail") or "").rstrip().splitlines()[-8:]:
            text.append(f"\n    │ {line}", "dim")
        texts.append(text)
    if len(failed) > _MOST_FAILURES:
        texts.append(Text(f"  … and {len(failed) - _MOST_FAILURES} more", "dim"))
    return texts
