"""What happened, by those who were there: the jobs' own tally, the ledger's history, Slurm's queue and log.

Nothing of the engine is used: a defect in it must not hide itself.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from benchmarks.chaos.workload import Intent

_RANKS = {"PLANNED": 0, "SUBMITTING": 1, "QUEUED": 2, "RUNNING": 3}
_END = 4


@dataclass
class Ran:
    """What the jobs of one key wrote: one entry for each begin, ``(scheduler id, restart)``; and exit codes at ends."""

    begun: list[tuple[str, int]] = field(default_factory=list)
    ended: dict[tuple[str, int], int] = field(default_factory=dict)


@dataclass
class Verdict:
    """The four that must be 0 are lists of complaints, one for each intent concerned."""

    intents: int
    effective: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    backwards: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)

    @property
    def complaints(self) -> list[str]:
        """All of them."""
        return [
            f"{name}: {each}" for name in ("lost", "doubled", "backwards", "orphans") for each in getattr(self, name)
        ]


def read_tally(text: str) -> dict[str, Ran]:
    """By key. Raises ValueError for a line that is not whole: the tally's disk is none of those that are broken."""
    found: dict[str, Ran] = defaultdict(Ran)
    for line in text.splitlines():
        kind, key, scheduler_id, restart, _, *code = line.split(" ")
        if kind == "B":
            found[key].begun.append((scheduler_id, int(restart)))
        elif kind == "E":
            found[key].ended[scheduler_id, int(restart)] = int(code[0])
        else:
            raise ValueError(f"the tally has the line {line!r}")
    return found


def read_fenced(event_files: Iterable[Path]) -> int:
    """How many jobs of Slurm ended at once, because the lease of their work was taken: duplicates that did nothing."""
    return sum(line.startswith("D ") for file in event_files for line in file.read_text(errors="replace").splitlines())


@dataclass(frozen=True)
class Step:
    """One line of a job's history in the ledger."""

    attempt: int
    state: str
    reason: str = ""


def read_history(ledger: Path) -> dict[str, list[Step]]:
    """The ledger's history by key, oldest first."""
    found: dict[str, list[Step]] = defaultdict(list)
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        for key, attempt, state, reason in db.execute(
            "SELECT job_key, attempt, state, reason FROM transitions ORDER BY seq"
        ):
            found[key].append(Step(attempt, state, reason))
    return found


def judge_order(history: Mapping[str, Sequence[Step]]) -> list[str]:
    """Of all jobs of a ledger: which went back, and how."""
    return [f"{key}: {problem}" for key, steps in history.items() if (problem := _backwards(steps))]


def judge(
    intents: Mapping[str, Intent],
    history: Mapping[str, Sequence[Step]],
    tally: Mapping[str, Ran],
    alive: Sequence[str] = (),
) -> Verdict:
    """Compare what was wanted, what the ledger says, and what was done; ``alive`` names whatever still runs."""
    verdict = Verdict(len(intents), orphans=list(alive))
    verdict.backwards += judge_order(history)
    for key, intent in intents.items():
        steps = history.get(key, [])
        ran = tally.get(key, Ran())
        if problem := _doubled(steps, ran):
            verdict.doubled.append(f"{key}: {problem}")
        elif problem := _lost(intent, steps, ran):
            verdict.lost.append(f"{key}: {problem}; {' '.join(f'{s.attempt}:{s.state}' for s in steps)}")
        else:
            verdict.effective += 1
    verdict.orphans += [f"{key} was never wanted" for key in tally.keys() - intents.keys()]
    return verdict


def _backwards(steps: Sequence[Step]) -> str:
    for before, after in pairwise(steps):
        if (after.attempt, _rank(after)) <= (before.attempt, _rank(before)):
            return f"from {before.state} of attempt {before.attempt} to {after.state} of attempt {after.attempt}"
    return ""


def _rank(step: Step) -> int:
    return _RANKS.get(step.state, _END)


def _doubled(steps: Sequence[Step], ran: Ran) -> str:
    """More beginnings than attempts that got as far, or the same beginning twice."""
    if len(set(ran.begun)) < len(ran.begun):
        return f"one job of Slurm began twice: {ran.begun}"
    attempts = {step.attempt for step in steps}
    if len(ran.begun) > len(attempts):
        return f"{len(ran.begun)} jobs began for {len(attempts)} attempts: {ran.begun}"
    return ""


def _lost(intent: Intent, steps: Sequence[Step], ran: Ran) -> str:
    if not steps:
        return "the ledger does not know it"
    last = steps[-1]
    if _rank(last) < _END:
        return f"never ended, and is {last.state}"
    codes = [ran.ended[begun] for begun in ran.begun if begun in ran.ended]
    if last.state == "CANCELLED" and intent.cancelled:
        return "it was cancelled after it had ended well" if 0 in codes else ""
    if last.state == "REJECTED" and intent.refused:
        return "it was refused, and yet began" if ran.begun else ""
    wanted = ([1] * (intent.attempts - 1)) + [intent.code]
    if last.state != ("COMPLETED" if intent.code == 0 else "FAILED"):
        return f"ended {last.state} ({last.reason[:160]}), though its jobs ended with {codes}"
    if codes != wanted:
        return f"ended {last.state}, though its jobs ended with {codes} and not with {wanted}"
    return ""
