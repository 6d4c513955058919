"""The crash suite in short: a seeded storm over real processes, and the checker that must not be fooled."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.campaigns import Campaign
from benchmarks.chaos.campaigns import Kind as CampaignKind
from benchmarks.chaos.history import Ran, Step, judge, read_fenced
from benchmarks.chaos.run import Extent, run
from benchmarks.chaos.verdicts import Run, judge_campaigns
from benchmarks.chaos.workload import Intent

SHORT = Extent(faults=25, limit=30.0, slowest=2.0, sites=1, service=False, local=False, all_points=False)
"""It ends after so many seconds, with as many faults as a busy machine gets to: none of them may do harm."""

WELL = ("PLANNED", "SUBMITTING", "QUEUED", "RUNNING", "COMPLETED")


@pytest.mark.slurm
@pytest.mark.timeout(900)
def test_a_short_storm_harms_no_job() -> None:
    report = run(SHORT, seed=7)
    assert report.complaints == []
    assert report.result["faults"] > 0
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


def test_the_checker_counts_duplicates_that_were_fenced(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("S b 0 7 0 1.0 n1 .\nD b 0 8 0 1.0 .\n\nX b 0 7 0 0 0 1.0 2.0 n1 .\n")
    assert read_fenced([tmp_path / "events"]) == 1


def campaign(kind: CampaignKind, run: Run | None, *codes: list[int]) -> list[str]:
    """What is wrong with a campaign of as many jobs as there are lists of exit codes."""
    asked = Campaign("c", kind, len(codes), run_id="r")
    tally = {
        f"c.{number}": Ran([(str(i), 0) for i in range(len(each))], {(str(i), 0): code for i, code in enumerate(each)})
        for number, each in enumerate(codes)
        if each
    }
    judged = judge_campaigns([asked], {} if run is None else {"r": run}, tally)
    return [complaint.split(":")[0] for complaint in judged.complaints]


DONE = Run("COMPLETE", "", 1)


def test_the_checker_is_content_with_campaigns_that_ended_as_they_should() -> None:
    assert campaign("well", DONE, [0], [0]) == []
    assert campaign("badly", Run("EXECUTOR_ERROR", "Piece ended: exit code 7", 1), [7], [0], []) == []
    assert campaign("mended", Run("COMPLETE", "", 2), [7, 0], [0]) == []
    assert campaign("cancelled", Run("CANCELED", "canceled by alice", 1), [0], []) == []


def test_the_checker_sees_what_is_wrong_with_a_campaign() -> None:
    assert campaign("well", None, [0], [0]) == ["lost"]
    assert campaign("well", Run("RUNNING", "", 1), [0], [0]) == ["lost"]
    assert campaign("well", Run("SYSTEM_ERROR", "the head ended", 1), [0], [0]) == ["lost"]
    assert campaign("badly", Run("EXECUTOR_ERROR", "something failed", 1), [7], [0], []) == ["lost"], "an untrue reason"
    assert campaign("well", DONE, [0], []) == ["lost"], "COMPLETE, though a job never ran"
    assert campaign("well", DONE, [0, 0], [0]) == ["doubled"]
    assert campaign("well", Run("COMPLETE", "", 2), [0], [0]) == ["lost"], "resumed by nobody"
    assert campaign("cancelled", Run("CANCELED", "canceled by alice", 1), [0], [0]) == ["lost"]
    assert campaign("badly", Run("EXECUTOR_ERROR", "exit code 7", 1), [7], [0]) == ["lost"], "it was to wait for 0"
    stray = judge_campaigns([], {"r": DONE}, {"x.0": Ran([("1", 0)])})
    assert [complaint.split(":")[0] for complaint in stray.complaints] == ["doubled", "orphans"]
