"""The crash suite in short: a seeded storm over real processes, and the checker that must not be fooled."""

from __future__ import annotations

import pytest

from benchmarks.chaos.history import Ran, Step, judge
from benchmarks.chaos.run import run
from benchmarks.chaos.workload import Intent

FAULTS = 25

WELL = ("PLANNED", "SUBMITTING", "QUEUED", "RUNNING", "COMPLETED")


@pytest.mark.slurm
@pytest.mark.timeout(240)
def test_a_short_storm_harms_no_job() -> None:
    report = run(FAULTS, seed=7, limit=60.0, slowest=2.0)
    assert report.complaints == []
    assert report.result["faults"] >= FAULTS
    assert report.result["intents"] == report.result["effective"] > 0


def verdict(states: tuple[str, ...], ran: Ran, *, cancelled: bool = False, alive: tuple[str, ...] = ()) -> list[str]:
    intent = Intent("k", code=0, attempts=1, cancelled=cancelled)
    history = {"k": [Step(1, state) for state in states]} if states else {}
    judged = judge({"k": intent}, history, {"k": ran}, alive)
    assert judged.effective == (0 if [c for c in judged.complaints if c.startswith(("lost", "doubled"))] else 1)
    return [complaint.split(":")[0] for complaint in judged.complaints]


ONCE = Ran([("7", 0)], {("7", 0): 0})


def test_the_checker_is_content_with_a_job_that_ran_once() -> None:
    assert verdict(WELL, ONCE) == []


def test_the_checker_sees_a_job_that_ran_twice() -> None:
    assert verdict(WELL, Ran([("7", 0), ("8", 0)], {("7", 0): 0, ("8", 0): 0})) == ["doubled"]
    assert verdict(WELL, Ran([("7", 0), ("7", 0)], {("7", 0): 0})) == ["doubled"]


def test_the_checker_sees_a_job_that_was_lost() -> None:
    assert verdict((), Ran()) == ["lost"]
    assert verdict(WELL[:-1], ONCE) == ["lost"]
    assert verdict(WELL, Ran()) == ["lost"], "COMPLETED, though it never ran"
    assert verdict(WELL, Ran([("7", 0)], {("7", 0): 3})) == ["lost"], "COMPLETED, though it failed"
    assert verdict((*WELL[:-1], "LOST"), ONCE) == ["lost"]
    assert verdict((*WELL[:-1], "CANCELLED"), Ran([("7", 0)])) == ["lost"], "nobody asked for it to be cancelled"


def test_the_checker_sees_a_state_that_went_back() -> None:
    assert verdict(("PLANNED", "SUBMITTING", "RUNNING", "QUEUED", "COMPLETED"), ONCE) == ["backwards"]
    assert verdict((*WELL, "COMPLETED"), ONCE) == ["backwards"]


def test_the_checker_sees_what_was_left_running() -> None:
    ended = (*WELL[:-1], "CANCELLED")
    assert verdict(ended, Ran([("7", 0)]), cancelled=True) == []
    assert verdict(ended, Ran([("7", 0)]), cancelled=True, alive=("Slurm still has 7",)) == ["orphans"]
