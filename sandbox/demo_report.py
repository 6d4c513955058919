"""What the demo shows: progress while the campaign runs, and what came of it at the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sandbox.state import SandboxError

Json = dict[str, Any]
_COLOURS = {"COMPLETE": "green", "RUNNING": "cyan", "QUEUED": "yellow", "INITIALIZING": "yellow"}
_ENDED = frozenset({"COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED", "PREEMPTED"})
_SHOWN = 6


def ended(run: Json) -> bool:
    """Whether a run has come to its end."""
    return run["state"] in _ENDED


@dataclass(frozen=True)
class Seen:
    """A task of a run with the states of its array elements, if it has any."""

    name: str
    state: str
    elements: Counter[str]
    seconds: float | None


def state_of(task: Json) -> str:
    """A task's state: WES has no field for it, the service puts it first in ``system_logs``."""
    return str((task.get("system_logs") or ["QUEUED"])[0])


def seen(tasks: Iterable[Json]) -> list[Seen]:
    """Tasks in the order in which they began; array elements (``<task>.<index>``) counted with their task."""
    heads: dict[str, Json] = {}
    elements: dict[str, Counter[str]] = {}
    for task in tasks:
        parent, dot, index = task["id"].rpartition(".")
        if dot and index.isdigit():
            elements.setdefault(parent, Counter())[state_of(task)] += 1
        else:
            heads[task["id"]] = task
    order = sorted(heads.values(), key=_began)
    return [Seen(task["name"], state_of(task), elements.get(task["id"], Counter()), _seconds(task)) for task in order]


def _began(task: Json) -> tuple[str, str]:
    """What was complete beforehand never began and comes first; what has not begun comes last."""
    otherwise = "" if state_of(task) == "COMPLETE" else "9"
    return str(task.get("start_time") or otherwise), str(task.get("end_time") or otherwise)


def _seconds(timed: Json) -> float | None:
    began, over = timed.get("start_time"), timed.get("end_time")
    return (datetime.fromisoformat(over) - datetime.fromisoformat(began)).total_seconds() if began and over else None


def live(run: Json, tasks: list[Seen], elapsed: float) -> RenderableType:
    """The picture that a terminal shows again and again."""
    head = Text.assemble("  ", _coloured(run["state"]), f"  {elapsed:.0f} s")
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
    for task in tasks:
        total = task.elements.total()
        bar: RenderableType = ProgressBar(total, task.elements["COMPLETE"], width=24) if total else ""
        table.add_row("  " + task.name, _coloured(task.state), bar, _counts(task))
    return Group(head, table)


def changes(before: dict[str, str], run: Json, tasks: list[Seen]) -> list[str]:
    """One line for each thing that is not as in ``before``, which is brought up to date."""
    lines = []
    for name, now in [("run", str(run["state"])), *((task.name, _words(task)) for task in tasks)]:
        if before.get(name) != now:
            before[name] = now
            lines.append(f"{name}: {now}")
    return lines


def _words(task: Seen) -> str:
    return f"{task.state} ({_counts(task)})" if task.elements else task.state


def _counts(task: Seen) -> str:
    total = task.elements.total()
    if not total:
        return ""
    others = [f"{count} {state.lower()}" for state, count in sorted(task.elements.items()) if state != "COMPLETE"]
    return ", ".join([f"{task.elements['COMPLETE']} of {total} complete", *others])


def _coloured(state: str) -> Text:
    return Text(state, _COLOURS.get(state, "bold red"))


@dataclass(frozen=True)
class Results:
    """The documents that a campaign leaves in its folder; empty where it did not come so far."""

    folder: Path
    report: Json = field(default_factory=dict)
    publication: Json = field(default_factory=dict)

    @property
    def complete(self) -> int:
        """How many points are simulated."""
        return sum(1 for point in self.report.get("points", []) if point["state"] == "complete")


def read_results(campaigns: Path, name: str) -> Results | None:
    """The results of the campaign ``name``; ``None`` if it has no folder yet.

    Raises:
        SandboxError: a document cannot be understood.
    """
    folder = next(iter(sorted(campaigns.glob(f"{name}-*"))), None)
    if folder is None:
        return None
    return Results(folder, _document(folder / "report" / "report.json"), _document(folder / "publication.json"))


def _document(path: Path) -> Json:
    if not path.exists():
        return {}
    try:
        content: Json = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SandboxError(f"{path} cannot be read: {error}") from error
    return content


def points_table(report: Json) -> Table:
    """All points with their coordinates and spikes."""
    points = report.get("points", [])
    names = list(points[0]["coords"]) if points else []
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for header in ("point", *names, "spikes", "rate (Hz)", "state"):
        table.add_column(header, overflow="fold")
    for point in points:
        coords = [f"{point['coords'][name]:g}" for name in names]
        state = Text(point["state"], "green" if point["state"] == "complete" else "bold red")
        table.add_row(str(point["index"]), *coords, str(point["spikes"]), f"{point['rate_hz']:.1f}", state)
    return table


def resource_lines(publication: Json) -> list[str]:
    """What was registered: of each type how many there are, and the first with its address."""
    of_type: dict[str, list[Json]] = {}
    for resource in publication.get("resources", []):
        of_type.setdefault(resource["type"], []).append(resource)
    lines = []
    for kind, found in of_type.items():
        lines.append(f"{len(found):>3} {kind:<20} {found[0]['name']}{' …' if len(found) > 1 else ''}")
        lines.append(f"    {found[0]['url']}")
    return lines


def file_lines(publication: Json) -> list[str]:
    """The first files with their sizes, checksums and places, results before inputs."""
    lines = []
    files = publication.get("files", [])
    for file in sorted(files, key=lambda each: (not each["name"].startswith("report/"), each["point"] is None))[
        :_SHOWN
    ]:
        lines.append(f"{file['name']}  {file['size']:,} bytes")
        lines.append(f"    sha256 {file['sha256']}")
        lines.append(f"    {file['url'] or file['content_url']}")
    return lines


def phases_table(phases: Mapping[str, float], tasks: list[Seen]) -> Table:
    """Seconds that each phase took; tasks of the run are indented below it."""
    table = Table("phase", "seconds", box=None, pad_edge=False, padding=(0, 2))
    for name, seconds in phases.items():
        table.add_row(name, f"{seconds:.1f}")
        if name == "campaign":
            for task in tasks:
                if task.seconds is not None and task.name != "SimulationCampaign":
                    table.add_row(f"  {task.name}", f"{task.seconds:.0f}")
    table.add_row("all", f"{sum(phases.values()):.1f}")
    return table


def show_failures(out: Console, run: Json, failed: list[tuple[Json, str]]) -> None:
    """Why a run did not complete: its reason, and each failed job with its exit code and the end of its log."""
    for reason in run.get("run_log", {}).get("system_logs", []):
        out.print(f"  {reason}", style="bold red", soft_wrap=True)
    for task, log in failed:
        code = task.get("exit_code")
        words = "; ".join(task.get("system_logs", [])[1:])
        out.print(f"  {task['name']}: exit code {code}; {words}", style="red", soft_wrap=True)
        for line in log.rstrip().splitlines()[-10:]:
            out.print(Text(f"    | {line}", "dim"), soft_wrap=True)
