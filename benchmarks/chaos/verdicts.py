"""What became of campaigns: the service's table of runs beside what their jobs wrote.

As in :mod:`benchmarks.chaos.history`, nothing of the engine is used.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos.campaigns import Campaign
from benchmarks.chaos.history import Ran, Verdict

_ENDS = {
    "well": ("COMPLETE", ""),
    "paused": ("COMPLETE", ""),
    "mended": ("COMPLETE", ""),
    "badly": ("EXECUTOR_ERROR", "exit code 7"),
    "cancelled": ("CANCELED", "canceled by alice"),
    "alone": ("COMPLETE", ""),
}
"""By kind of campaign: the state that its run is to end in, and what the reason must say."""


@dataclass(frozen=True)
class Run:
    """A run as the service's database has it."""

    state: str
    reason: str
    incarnation: int


def read_runs(database: Path) -> dict[str, Run]:
    """All runs, by id."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        rows = db.execute("SELECT run_id, state, reason, incarnation FROM runs").fetchall()
    return {run_id: Run(state, reason, incarnation) for run_id, state, reason, incarnation in rows}


def judge_campaigns(campaigns: Sequence[Campaign], runs: Mapping[str, Run], tally: Mapping[str, Ran]) -> Verdict:
    """Each campaign is one run with the end that it should have; each of its jobs ran as often as it should."""
    verdict = Verdict(sum(campaign.size for campaign in campaigns))
    wanted: set[str] = set()
    for campaign in campaigns:
        names = [f"{campaign.name}.{number}" for number in range(campaign.size)]
        wanted |= set(names)
        if problem := campaign.unanswered or _ended_otherwise(campaign, runs.get(campaign.run_id)):
            verdict.lost.append(f"{campaign.kind} campaign {campaign.name}, run {campaign.run_id}: {problem}")
        for number, name in enumerate(names):
            ran = tally.get(name, Ran())
            if problem := _doubled(campaign, number, ran):
                verdict.doubled.append(f"{campaign.kind} {name}: {problem}")
            elif problem := _lost(campaign, number, ran):
                verdict.lost.append(f"{campaign.kind} {name}: {problem}")
            else:
                verdict.effective += 1
    known = {campaign.run_id for campaign in campaigns}
    verdict.doubled += [f"run {run_id} was launched by nobody" for run_id in runs.keys() - known]
    verdict.orphans += [f"{name} was never wanted" for name in tally.keys() - wanted]
    return verdict


def _ended_otherwise(campaign: Campaign, run: Run | None) -> str:
    if run is None:
        return "the service does not know it"
    state, reason = _ENDS[campaign.kind]
    if run.state != state or reason not in run.reason:
        return f"it is {run.state} ({run.reason[:300]})"
    if run.incarnation > 1 and campaign.kind not in {"mended", "alone"}:
        return f"it ended in incarnation {run.incarnation}, though nobody resumed it"
    return ""


def _attempts(campaign: Campaign, number: int) -> list[int]:
    """The exit codes that a job's attempts are to end with."""
    if number == 0 and campaign.kind == "mended":
        return [7, 0]
    return [7] if number == 0 and campaign.kind == "badly" else [0]


def _doubled(campaign: Campaign, number: int, ran: Ran) -> str:
    if len(ran.begun) > len(_attempts(campaign, number)):
        return f"{len(ran.begun)} jobs began: {ran.begun}"
    return ""


def _lost(campaign: Campaign, number: int, ran: Ran) -> str:
    codes = [ran.ended[begun] for begun in ran.begun if begun in ran.ended]
    if campaign.kind == "cancelled":
        return "" if number == 0 or not codes else f"it was cancelled, and yet ended with {codes}"
    if campaign.kind == "badly" and number == campaign.size - 1:
        return "" if not ran.begun else "it began, though what it waits for had failed"
    if codes != _attempts(campaign, number):
        return f"its jobs ended with {codes} and not with {_attempts(campaign, number)}"
    return ""
