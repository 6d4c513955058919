"""Fan-out, chain and submissions: bbpwf beside raw Slurm."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from benchmarks.graphs import SCRIPT
from benchmarks.instance import Instance, instance
from benchmarks.results import Figure
from benchmarks.site import Site

FAN_OUT = 1000
CHAIN = 20
CHAIN_ROUNDS = 5


def fan_out(site: Site) -> Iterator[Figure]:
    """1,000 independent tasks against a raw array."""
    ends = site.file("raw-ends")
    raw = _raw_array(site, ends, FAN_OUT)
    yield Figure("fan-out: raw array of 1,000, makespan", raw, "s")
    ours = site.file("ends")
    logins = site.head.connections_so_far()
    ran = site.bbpwf("run", "benchmarks.graphs", "FanOut", "--count", str(FAN_OUT), "--ends", str(ours), state="fan")
    times = _times(ours)
    if len(times) != FAN_OUT:
        raise RuntimeError(f"{len(times)} jobs ran, not {FAN_OUT}")
    yield Figure("fan-out: launch to COMPLETE", ran.wall, "s")
    yield Figure("fan-out: launch to COMPLETE, against the raw array", ran.wall / raw, "x", 1.15)
    yield Figure("fan-out: from the last job's end to COMPLETE", _run_ended(site, "fan") - max(times), "s", 1.0)
    yield Figure("fan-out: driver, peak memory", ran.peak_mb, "MB", 150)
    yield Figure("fan-out: driver, processor", ran.cpu, "s", 5)
    yield Figure("fan-out: SSH connections", site.head.connections_so_far() - logins, "", 1)


def chain(site: Site) -> Iterator[Figure]:
    """20 dependent tasks, as jobs and as steps in one allocation, against a chain submitted up front; in turns.

    They are launched as users do, at a service that is ready; ``bbpwf run``, which has to begin with reading Python and
    connecting, is shown beside it. Slurm starts a dependent job when it next looks, about once a second: one chain may
    take a quarter longer than the next, and so the ratios' median counts.
    """
    with instance(site, "chain", existing=0) as it:
        for task in (_JOBS, _STEPS):  # the first of a kind is checked by a process, and the first of all connects
            _launched(site, it, task, f"first-{task}", 1)
        rounds = [_chain_round(site, it, number) for number in range(CHAIN_ROUNDS)]
    raw = statistics.median(each.raw for each in rounds)
    yield Figure("chain of 20: raw afterok chain", raw, "s")
    yield from _against("chain of 20", [(each.raw, each.jobs) for each in rounds], 1.03)
    gaps = [gap for each in rounds for gap in each.gaps]
    yield Figure(
        "chain of 20: from a job's end to the next sbatch accepted, median", statistics.median(gaps) * 1000, "ms", 100
    )
    yield from _against("chain of 20 in one allocation", [(each.raw, each.steps) for each in rounds], 0.65)
    for title, task in (("chain of 20, bbpwf run", _JOBS), ("chain of 20 in one allocation, bbpwf run", _STEPS)):
        yield from _against(title, [(raw, _run_here(site, task))], None)


_JOBS, _STEPS = "Link", "SharedLink"


def _against(title: str, times: list[tuple[float, float]], bar: float | None) -> Iterator[Figure]:
    yield Figure(f"{title}: launch to the last end", statistics.median(ours for _, ours in times), "s")
    ratio = statistics.median(ours / raw for raw, ours in times)
    yield Figure(f"{title}: against the raw chain", ratio, "x", bar)


@dataclass(frozen=True)
class _ChainRound:
    """One chain each way: seconds from the start to the last end, and those from an end to the next acceptance."""

    raw: float
    jobs: float
    steps: float
    gaps: list[float]


def _chain_round(site: Site, it: Instance, number: int) -> _ChainRound:
    ends = site.file(f"raw-chain-{number}")
    began = time.time()
    before = ""
    for _ in range(CHAIN):
        depends = [f"--dependency=afterok:{before}"] if before else []
        before = site.slurm(
            "sbatch", "--parsable", "--output=/dev/null", *depends, stdin=f"#!/bin/bash\nENDS={ends}\n{SCRIPT}\n"
        ).strip()
    raw = _last(ends, CHAIN, 300) - began
    site.wait_empty()
    run_id, jobs = _launched(site, it, _JOBS, f"jobs-{number}", CHAIN)
    gaps = [after - end for end, after in _turnarounds(it, run_id)]
    _, steps = _launched(site, it, _STEPS, f"steps-{number}", CHAIN)
    return _ChainRound(raw, jobs, steps, gaps)


def _launched(site: Site, it: Instance, task: str, name: str, count: int) -> tuple[str, float]:
    """Launch a chain at the service: its run, and the seconds from the request to the last end."""
    ends, token = site.file(name), it.tokens()[0]
    began = time.time()
    run_id = it.launch(
        {
            "workflow_type": "LUIGI",
            "workflow_type_version": "3.8",
            "workflow_url": f"benchmarks.graphs:{task}",
            "workflow_params": json.dumps({"number": count - 1, "ends": str(ends)}),
        },
        token,
    )
    last = _last(ends, count, 300)
    site.wait_empty()
    return run_id, last - began


def _run_here(site: Site, task: str) -> float:
    ends = site.file(f"ends-here-{task}")
    asked = ("--number", str(CHAIN - 1), "--ends", str(ends))
    ran = site.bbpwf("run", "benchmarks.graphs", task, *asked, state=f"here-{task}")
    site.wait_empty()
    return _last(ends, CHAIN, 1) - ran.began


def _raw_array(site: Site, ends: Path, count: int) -> float:
    script = f"#!/bin/bash\nENDS={ends}\n{SCRIPT}\n"
    began = time.time()
    site.slurm("sbatch", "--parsable", f"--array=0-{count - 1}", "--output=/dev/null", stdin=script)
    makespan = _last(ends, count, 600) - began
    site.wait_empty()
    return makespan


def _times(ends: Path) -> list[float]:
    return [float(line) for line in ends.read_text().split()] if ends.exists() else []


def _last(ends: Path, count: int, timeout: float) -> float:
    """When the last of ``count`` jobs noted its end."""
    deadline = time.monotonic() + timeout
    while len(_times(ends)) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"only {len(_times(ends))} of {count} jobs ended in time")
        time.sleep(0.2)
    return max(_times(ends))


def _database(site: Site, state: str) -> sa.Engine:
    return sa.create_engine(f"sqlite:///{site.folder / state / 'bbpwf.db'}")


def _run_ended(site: Site, state: str) -> float:
    with _database(site, state).connect() as db:
        return float(db.execute(sa.text("select max(ended_at) from runs")).scalar_one())


def _turnarounds(it: Instance, run_id: str) -> Iterator[tuple[float, float]]:
    """End of each job, and when the scheduler had accepted the next."""
    query = sa.text(
        "select ended_at, (select at from transitions t where t.job_key = jobs.key and t.state = 'QUEUED')"
        " from jobs where run_id = :run order by ended_at"
    )
    with it.database.connect() as db:
        rows = db.execute(query, {"run": run_id}).all()
    for (ended, _), (_, accepted) in itertools.pairwise(rows):
        yield float(ended), float(accepted)
