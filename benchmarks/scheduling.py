"""Luigi's own work, without a cluster: bbpwf's scheduler and worker beside plain Luigi's, each for a limited time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luigi.scheduler import Scheduler

from bbpwf.workflow.flat import FlatScheduler
from benchmarks.results import Figure
from benchmarks.site import Site

PENDING = (10_000, 100_000)
QUESTIONS = 5
"""``get_work`` calls that are timed: half a second each, of Luigi's, with 100,000 tasks."""

TOUCHES = 500
ASKED = 200
LIMIT_S = 60.0
"""What did not end within these seconds is reported as having taken them."""


def graphs(site: Site) -> Iterator[Figure]:
    """What a large graph costs, whoever's scheduler and worker it is."""
    for count in PENDING:
        for name, made in (("bbpwf", FlatScheduler), ("plain Luigi", Scheduler)):
            yield Figure(f"graphs: next task of {count:,} pending, {name}", _question_ms(made, count), "ms")
    for what, task, count in (("plain tasks", "Touches", TOUCHES), ("tasks asked for one by one", "Asking", ASKED)):
        yield Figure(f"graphs: {count:,} {what}, bbpwf", _ours(site, task, count), "s")
        yield Figure(f"graphs: {count:,} {what}, plain Luigi", _theirs(task, count), "s")


def _question_ms(made: Any, count: int) -> float:
    scheduler = made(prune_on_get_work=True, record_task_history=False, retry_delay=-1.0)
    for number in range(count):
        scheduler.add_task(task_id=f"Task_{number}", worker="w", family="Task")
    running: list[str] = []
    began = time.perf_counter()
    for _ in range(QUESTIONS):
        running.append(scheduler.get_work(worker="w", host="h", current_tasks=running)["task_id"])
    return (time.perf_counter() - began) / QUESTIONS * 1000


def _ours(site: Site, task: str, count: int) -> float:
    with tempfile.TemporaryDirectory(prefix="bbpwf-g-") as folder:
        state = f"graphs-{task}"
        env = site.env(state, BBPWF_CLUSTER__KIND="local")
        argv = [*("-m", "bbpwf.cli.main", "run", "benchmarks.graphs", task), "--count", str(count), "--folder", folder]
        return _timed(argv, env)


def _theirs(task: str, count: int) -> float:
    with tempfile.TemporaryDirectory(prefix="bbpwf-g-") as folder:
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parent.parent)}
        argv = [*("-m", "luigi", "--module", "benchmarks.graphs", task, "--count", str(count), "--folder", folder)]
        argv += ["--local-scheduler", "--workers", "4", "--log-level", "WARNING"]
        return _timed(argv, env)


def _timed(argv: list[str], env: dict[str, str]) -> float:
    began = time.monotonic()
    try:
        subprocess.run(
            [sys.executable, "-P", *argv], env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S,
            check=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return LIMIT_S
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"{' '.join(argv)} failed: {error.stderr[-2000:].decode(errors='replace')}") from error
    return time.monotonic() - began
