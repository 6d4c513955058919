"""Following a run: what is told of few tasks, and of many."""

from __future__ import annotations

from typing import Any

import pytest

from bbpwf.cli.follow import Follower, digest
from bbpwf.states import RunState
from tests.support.clock import ManualClock

RUN = {"run_id": "r1", "state": "COMPLETE", "reason": "", "task": "m:T"}


def told(capsys: pytest.CaptureFixture[str], tasks: list[dict[str, Any]]) -> str:
    Follower(lambda: (RUN, tasks), ManualClock(), quiet=False).until_end()
    return capsys.readouterr().err


def test_few_tasks_are_told_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [{"id": f"One_{n}", "name": "One", "state": "COMPLETE"} for n in range(2)]
    assert told(capsys, tasks).count("One COMPLETE") == 2


def test_many_tasks_are_told_by_family(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [{"id": f"One_{n}", "name": "One", "state": "COMPLETE"} for n in range(50)]
    assert "One: 50 COMPLETE" in told(capsys, tasks)


def test_counts_stand_for_the_tasks_they_count(capsys: pytest.CaptureFixture[str]) -> None:
    families = [("One", RunState.COMPLETE, 900), ("One", RunState.RUNNING, 100), ("All", RunState.QUEUED, 1)]
    text = told(capsys, digest(families))
    assert "One: 900 COMPLETE, 100 RUNNING" in text
    assert "All: 1 QUEUED" in text
