"""Fan-out, chain and submissions: bbpwf beside raw Slurm."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from benchmarks.graphs import SCRIPT
from benchmarks.results import Figure
from benchmarks.site import Site

FAN_OUT = 1000
CHAIN = 20
CHAIN_ROUNDS = 3


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
    """20 dependent tasks, as jobs and as steps in one allocation, against a chain submitted up front; thrice in turn.

    Slurm starts a dependent job when it next looks, about once a second: one chain may take a quarter longer than the
    next, and so the ratios' median counts.
    """
    rounds = [_chain_round(site, number) for number in range(CHAIN_ROUNDS)]

    def median(value: Callable[[_ChainRound], float]) -> float:
        return statistics.median(value(each) for each in rounds)

    yield Figure("chain of 20: raw afterok chain", median(lambda each: each.raw), "s")
    yield Figure("chain of 20: launch to the last job's end", median(lambda each: each.jobs), "s")
    yield Figure("chain of 20: against the raw chain", median(lambda each: each.jobs / each.raw), "x", 1.03)
    gaps = [gap for each in rounds for gap in each.gaps]
    yield Figure(
        "chain of 20: from a job's end to the next sbatch accepted, median", statistics.median(gaps) * 1000, "ms", 100
    )
    yield Figure("chain of 20 in one allocation: launch to the last step's end", median(lambda each: each.steps), "s")
    ratio = median(lambda each: each.steps / each.raw)
    yield Figure("chain of 20 in one allocation: against the raw chain", ratio, "x", 0.65)


@dataclass(frozen=True)
class _ChainRound:
    """One chain each way: seconds from the start to the last end, and those from an end to the next acceptance."""

    raw: float
    jobs: float
    steps: float
    gaps: list[float]


def _chain_round(site: Site, number: int) -> _ChainRound:
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
    state = f"chain-{number}"
    jobs = _our_chain(site, state)
    gaps = [after - end for end, after in _turnarounds(site, state)]
    site.wait_empty()
    config = site.file(f"steps-{number}.cfg")
    config.write_text("[DEFAULT]\nallocation = chain\n")
    steps = _our_chain(site, f"steps-{number}", "--config", str(config))
    site.wait_empty()
    return _ChainRound(raw, jobs, steps, gaps)


def _our_chain(site: Site, state: str, *more: str) -> float:
    ends = site.file(f"{state}-ends")
    asked = ("--number", str(CHAIN - 1), "--ends", str(ends), *more)
    ran = site.bbpwf("run", "benchmarks.graphs", "Link", *asked, state=state)
    times = _times(ends)
    if len(times) != CHAIN:
        raise RuntimeError(f"{len(times)} jobs ran, not {CHAIN}")
    return max(times) - ran.began


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


def _turnarounds(site: Site, state: str) -> Iterator[tuple[float, float]]:
    """End of each job, and when the scheduler had accepted the next."""
    query = sa.text(
        "select ended_at, (select at from transitions t where t.job_key = jobs.key and t.state = 'QUEUED')"
        " from jobs order by ended_at"
    )
    with _database(site, state).connect() as db:
        rows = db.execute(query).all()
    for (ended, _), (_, accepted) in itertools.pairwise(rows):
        yield float(ended), float(accepted)
