"""The service under load: every request authorised by a real signed token, client and server on the same cores."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from bbpwf.clock import SystemClock
from bbpwf.cluster.schema import jobs, runs, transitions
from bbpwf.platform.tokens import TokenVerifier
from bbpwf.settings import OidcSettings, ProjectSettings
from bbpwf.states import RunState
from benchmarks.instance import Instance, instance
from benchmarks.load import load
from benchmarks.results import Figure
from benchmarks.site import Site
from benchmarks.streams import listen
from sandbox.tenants import PROJECT, VIRTUAL_LAB
from service.authority import ProjectAuthority

EXISTING = 10_000
MAX_RUNS = 20
SECONDS = 10
FEW, MANY = 32, 500
FIRSTS = 5
CHECKS = 100
STREAMS = 200
_WES = "/ga4gh/wes/v1"


def service(site: Site) -> Iterator[Figure]:
    """Everything that the service has to reach."""
    limits = {"MAX_RUNS": MAX_RUNS, "MAX_RUNS_PER_USER": MAX_RUNS, "MAX_QUEUED": 10**6, "MAX_QUEUED_PER_USER": 10**6}
    changes = {f"BBPWF_SERVICE__{name}": str(most) for name, most in limits.items()}
    with instance(site, "service", existing=EXISTING, **changes) as it:
        yield from _idle(it)
        yield from _token_check(it)
        yield from _first_submission(it)
        fillers = _fill_slots(it)
        yield from _requests(it)
        yield from _streams(it, fillers)


def _idle(it: Instance) -> Iterator[Figure]:
    """Memory after the service got ready, before the first request of a user."""
    time.sleep(10)
    yield Figure("service: API process, idle, memory", _rss(it.pid), "MB", 150)
    for pid in _children(it.pid):
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        which = {"agent": "agent", "bbpwf.workflow.head": "head that waits"}
        known = next((name for word, name in which.items() if word in words), "Luigi's scheduler")
        yield Figure(f"service: {known}, idle, memory", _rss(pid), "MB")


def _token_check(it: Instance) -> Iterator[Figure]:
    """A token that was never seen, with the realm's keys at hand; and one that was checked before."""
    clock = SystemClock()
    verifier = TokenVerifier(OidcSettings(issuer=it.issuer), clock)
    authority = ProjectAuthority(verifier, ProjectSettings(virtual_lab_id=VIRTUAL_LAB, project_id=PROJECT), clock)
    first, *tokens = it.tokens(CHECKS + 1)
    authority.check(first)  # fetches the keys
    fresh, known = [], []
    for token in tokens:
        began = time.perf_counter()
        authority.check(token)
        fresh.append(time.perf_counter() - began)
        began = time.perf_counter()
        if authority.known(token) is None:
            raise RuntimeError("a checked token is not known")
        known.append(time.perf_counter() - began)
    yield Figure("service: token check, signature and all, median", 1000 * statistics.median(fresh), "ms", 1)
    yield Figure("service: token check, known token, median", 1000 * statistics.median(known), "ms", 1)


def _first_submission(it: Instance) -> Iterator[Figure]:
    """From POST /runs to the first sbatch accepted; the first launch of all is not counted: it makes the connection."""
    took = []
    for number in range(FIRSTS + 1):
        token = it.tokens()[0]
        began = time.time()
        run_id = it.launch(_form(f"first {number}"), token)
        took.append(_accepted_at(it, run_id) - began)
        it.ask("POST", f"{_WES}/runs/{run_id}/cancel")
        _until_ended(it, run_id)
    yield Figure("service: POST /runs to first sbatch accepted, median", statistics.median(took[1:]), "s", 1.0)
    yield Figure("service: POST /runs to first sbatch accepted, worst of five", max(took[1:]), "s")


def _fill_slots(it: Instance) -> list[str]:
    """Every slot for a run is taken by one whose job waits in the queue: launches are accepted, and wait."""
    run_ids = [it.launch(_form(f"filler {number}")) for number in range(MAX_RUNS)]
    for run_id in run_ids:
        _accepted_at(it, run_id)
    return run_ids


def _requests(it: Instance) -> Iterator[Figure]:
    kinds = {
        "run status": ([f"{_WES}/runs/{each}/status" for each in it.run_ids[:: len(it.run_ids) // 500]], None, 1500),
        "page of 20 runs": ([f"{_WES}/runs?page_size=20"], None, 500),
        "service-info": ([f"{_WES}/service-info"], None, 1500),
        "launches": ([f"{_WES}/runs"], _form("load NUMBER"), 200),
    }
    for connections in (FEW, MANY):
        for name, (paths, form, bar) in kinds.items():
            tokens = it.tokens(20)
            before = _cpu(it.pid)
            done = load(it.origin, paths, tokens, connections=connections, seconds=SECONDS, form=form)
            title, few = f"service: {name}, {connections} connections", connections == FEW
            yield Figure(title, done.rate, "/s", bar if few else None, at_most=False)
            yield Figure(f"{title}, 99th percentile", done.p99 * 1000, "ms", 100 if few else 1000)
            yield Figure(f"{title}, errors", done.errors, "", 0)
            yield Figure(f"{title}, processor a request", 1000 * (_cpu(it.pid) - before) / done.requests, "ms")


def _streams(it: Instance, run_ids: list[str]) -> Iterator[Figure]:
    """Readers of running runs' events, which are then paused."""

    async def pause() -> None:
        for run_id in run_ids:
            await asyncio.to_thread(it.ask, "POST", f"/runs/{run_id}/pause")

    before, began = _cpu(it.pid), time.monotonic()
    ready, late = asyncio.run(listen(it.origin, run_ids, it.tokens()[0], STREAMS, pause, '"PAUSED"'))
    share = (_cpu(it.pid) - before) / (time.monotonic() - began)
    yield Figure("service: event streams at once, all heard of a change", len(late), "", STREAMS, at_most=False)
    yield Figure("service: event streams, until each had its first event", ready, "s")
    yield Figure("service: event streams, news after the last change, worst", max(late), "s", 5)
    yield Figure("service: event streams, share of one core", 100 * share, "%")


def _form(name: str) -> dict[str, str]:
    return {
        "workflow_type": "LUIGI",
        "workflow_type_version": "3.8",
        "workflow_url": "benchmarks.graphs:Later",
        "workflow_params": json.dumps({"mark": name}),
        "tags": json.dumps({"of": "benchmark"}),
    }


def _accepted_at(it: Instance, run_id: str, within: float = 120.0) -> float:
    """When Slurm accepted the run's first job (Unix seconds)."""
    query = (
        sa.select(sa.func.min(transitions.c.at))
        .join_from(transitions, jobs, jobs.c.key == transitions.c.job_key)
        .where(jobs.c.run_id == run_id, transitions.c.state == "QUEUED")
    )
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        with it.database.connect() as db:
            at = db.execute(query).scalar()
        if at is not None:
            return float(at)
        time.sleep(0.05)
    raise RuntimeError(f"nothing of run {run_id} was submitted within {within:.0f} s; see {it.state}")


def _until_ended(it: Instance, run_id: str, within: float = 60.0) -> None:
    ended = [state.value for state in RunState if state.terminal]
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        with it.database.connect() as db:
            if db.execute(sa.select(runs.c.state).where(runs.c.run_id == run_id)).scalar() in ended:
                return
        time.sleep(0.05)
    raise RuntimeError(f"run {run_id} did not end")


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] or [
        int(status.parent.name)
        for status in Path("/proc").glob("[0-9]*/status")
        if f"\nPPid:\t{pid}\n" in status.read_text()
    ]


def _cpu(pid: int) -> float:
    """Processor seconds of the process so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _rss(pid: int) -> float:
    line = next(row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
