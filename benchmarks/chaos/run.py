"""One storm from beginning to end: start a site, let it rage, wait until all is quiet, and judge."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.chaos.history import judge, read_history, read_tally
from benchmarks.chaos.site import Site, site
from benchmarks.chaos.storm import Storm
from benchmarks.chaos.workload import Workload

_QUIET_WITHIN_S = 300.0
_FEWEST_SECONDS = 1.0
_JOBS_IN_FLIGHT = 40
_SUMS = ("faults", "intents", "effective", "lost", "doubled", "backwards", "orphans", "slurm_jobs")


@dataclass
class Report:
    """``result`` is what is written; it is clean if no job was harmed and ``complaints`` is empty."""

    result: dict[str, Any]
    complaints: list[str]

    @property
    def clean(self) -> bool:
        """Whether everything is as it should be."""
        return not self.complaints


def run(faults: int, seed: int, *, limit: float, slowest: float, sites: int = 1, keep: Path | None = None) -> Report:
    """Let ``faults`` faults happen on ``sites`` clusters at once, at most for ``limit`` seconds."""
    began = time.monotonic()
    share = -(-faults // sites)
    with ThreadPoolExecutor(sites) as pool:
        storms = [
            pool.submit(_one, share, f"{seed}.{i}", limit, slowest, None if keep is None else keep / str(i))
            for i in range(sites)
        ]
        parts = [storm.result() for storm in storms]
    total: dict[str, Any] = {name: sum(part.result[name] for part in parts) for name in _SUMS}
    kinds: Counter[str] = sum((Counter(part.result["by_kind"]) for part in parts), Counter())
    total |= {"seed": seed, "sites": sites, "wall_s": round(time.monotonic() - began, 1)}
    return Report(total | {"by_kind": dict(sorted(kinds.items()))}, [c for part in parts for c in part.complaints])


def _one(faults: int, seed: str, limit: float, slowest: float, keep: Path | None) -> Report:
    """One cluster's storm."""
    began = time.monotonic()
    chance = random.Random(seed)
    with site(nodes=2, min_job_age=5, kill_wait=2, extra="MessageTimeout=5\n") as made:
        made.set_clock(0.0)
        workload = Workload(
            random.Random(chance.random()),
            made.folder / "work",
            lambda specs: made.agent.client().submit(specs),
            lambda keys: made.agent.client().cancel(keys),
            made.live,
            most=_JOBS_IN_FLIGHT,
        )
        storm = Storm(made, workload, chance, faults, slowest=slowest)
        workload.start()
        try:
            storm.rage(began + limit)
            storm.calm()
            storm.freeze_long()
        finally:
            workload.stop()
        _wait_quiet(made)
        verdict = judge(
            workload.intents,
            read_history(made.ledger),
            read_tally(workload.tally.read_text() if workload.tally.exists() else ""),
            _alive(made),
        )
        made.agent.close()
        if keep is not None:
            _keep(made, workload, keep)
        complaints = [*verdict.complaints, *storm.complaints, *filter(None, [workload.unanswered])]
        if storm.total() < faults:
            complaints.append(f"only {storm.total()} of {faults} faults happened within {limit:.0f} s")
        result = {
            "faults": storm.total(),
            "intents": verdict.intents,
            "effective": verdict.effective,
            "lost": len(verdict.lost),
            "doubled": len(verdict.doubled),
            "backwards": len(verdict.backwards),
            "orphans": len(verdict.orphans),
            "slurm_jobs": len(made.cluster.jobs_started()),
            "by_kind": storm.by_kind(),
        }
        return Report(result, complaints)


def _wait_quiet(made: Site) -> None:
    deadline = time.monotonic() + _QUIET_WITHIN_S
    while made.live() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(_FEWEST_SECONDS)


def _alive(made: Site) -> list[str]:
    """Jobs that Slurm still has, by its own word (and not through the shims), and processes of jobs."""
    patience = time.monotonic() + 15.0
    while True:
        listed = made.cluster.slurm.command("squeue", "--noheader", "--format=%i %T %k").stdout.split("\n")
        found = [f"Slurm still has {line}" for line in listed if line]
        found += [f"process {pid} of a job still runs" for pid in made.cluster.slurm.job_processes()]
        if not found or time.monotonic() > patience:
            return found
        time.sleep(0.5)


def _keep(made: Site, workload: Workload, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*made.ledger.parent.iterdir(), workload.tally, made.log):
        if path.is_file():
            shutil.copy(path, folder)
    shutil.copytree(made.cluster.slurm.folder / "log", folder / "slurm", dirs_exist_ok=True)
