"""Submissions one by one, many live jobs, and a restart: the agent beside Slurm's own commands."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bbpwf.cluster.client import AgentClient
from bbpwf.cluster.control import AgentControl
from bbpwf.cluster.jobs import JobSpec, Resources, job_key
from bbpwf.errors import TransportError
from bbpwf.states import JobState
from benchmarks.results import Figure
from benchmarks.site import Site

SUBMISSIONS = 150
TURNS = 5
LIVE = 50_000
RESTARTED = 10_000
STEADY_S = 90
LATER = Resources(options=(("begin", "now+1day"),))
"""Jobs that stay pending."""


def submissions(site: Site) -> Iterator[Figure]:
    """Jobs that cannot share an array, against a loop of sbatch on the head node: in turns, the median counts."""
    raws, ours = [], []
    with _agent(site, "submissions") as (_, client):
        for turn in range(TURNS):
            began = time.monotonic()
            for number in range(SUBMISSIONS):
                named = f"--job-name=raw{number}"
                script = "#!/bin/bash\nsleep 1\n"
                site.slurm("sbatch", "--parsable", "--output=/dev/null", "--begin=now+1day", named, stdin=script)
            raws.append(SUBMISSIONS / (time.monotonic() - began))
            specs = [
                _spec(client.run_id, i, name=f"ours{i}") for i in range(turn * SUBMISSIONS, (turn + 1) * SUBMISSIONS)
            ]
            began = time.monotonic()
            client.submit(specs)
            _until(client, (turn + 1) * SUBMISSIONS, JobState.QUEUED)
            ours.append(SUBMISSIONS / (time.monotonic() - began))
    site.slurm("scancel", "--me")
    yield Figure("submissions: raw sbatch loop", statistics.median(raws), "jobs/s")
    yield Figure("submissions: one by one through the agent", statistics.median(ours), "jobs/s")
    ratio = statistics.median(our / raw for our, raw in zip(ours, raws, strict=True))
    yield Figure("submissions: against the raw loop", ratio, "x", 0.8, at_most=False)


def live_jobs(site: Site) -> Iterator[Figure]:
    """An agent with 50,000 pending jobs, in steady state; then a new one in its place, with 10,000 left."""
    queries = Calls(site, "squeue")
    logins = site.head.connections_so_far()
    with _agent(site, "live") as (pid, client):
        for start in range(0, LIVE, 5000):
            client.submit([_spec(client.run_id, i) for i in range(start, start + 5000)])
        _until(client, LIVE, JobState.QUEUED, timeout=600)
        time.sleep(30)  # let the first query after the submissions pass: steady state is what is measured
        before, cpu, began = len(queries()), _cpu(pid), time.monotonic()
        answers: list[float] = []
        while time.monotonic() - began < STEADY_S:
            asked = time.monotonic()
            client.job(job_key(client.run_id, "Live", len(answers) * 37 % LIVE))
            answers.append(time.monotonic() - asked)
            time.sleep(0.1)
        spent = time.monotonic() - began
        yield Figure("50,000 live jobs: SSH connections", site.head.connections_so_far() - logins, "", 1)
        yield Figure("50,000 live jobs: queue queries in 30 s", (len(queries()) - before) / spent * 30, "", 1.0)
        yield Figure("50,000 live jobs: agent, memory", _rss(pid), "MB", 500)
        yield Figure("50,000 live jobs: agent, share of one core", 100 * (_cpu(pid) - cpu) / spent, "%", 15)
        yield Figure("50,000 live jobs: a job's state, 99th percentile", _p99(answers) * 1000, "ms", 10)
        doomed = [job_key(client.run_id, "Live", i) for i in range(RESTARTED, LIVE)]
        for start in range(0, len(doomed), 5000):
            client.cancel(doomed[start : start + 5000])
        _until(client, LIVE - RESTARTED, JobState.CANCELLED, timeout=600)
    site.slurm("scancel", "--me", "--name=gone-meanwhile")
    began = time.monotonic()
    with _agent(site, "live") as (_, client):
        gone = [job_key(client.run_id, "Live", i) for i in range(0, RESTARTED, 1000)]
        while not all(client.job(key).state.terminal for key in gone):
            time.sleep(0.05)
        yield Figure("restart with 10,000 live jobs: true again", time.monotonic() - began, "s", 10)


def _spec(run_id: str, index: int, name: str = "") -> JobSpec:
    # the first of every thousand is to be cancelled behind the agent's back, and is told by its name
    named = name or ("gone-meanwhile" if index % 1000 == 0 and index < RESTARTED else "live")
    return JobSpec(
        key=job_key(run_id, "Live", index),
        run_id=run_id,
        task_id="Live",
        index=index,
        name=named,
        script="sleep 1",
        resources=LATER,
    )


@contextmanager
def _agent(site: Site, state: str) -> Iterator[tuple[int, AgentClient]]:
    """An agent process on a state folder, and a run's view of it."""
    env = site.env(state)
    Path(env["BBPWF_STATE_DIR"]).mkdir(parents=True, exist_ok=True)
    with (site.folder / f"{state}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "bbpwf.cli.main", "agent"], env=env, stdin=subprocess.DEVNULL, stderr=log
        )
    try:
        control = AgentControl(Path(env["BBPWF_STATE_DIR"]) / "agent.sock")
        deadline = time.monotonic() + 30
        while True:
            try:
                control.ensure_cluster()
                break
            except TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        client = AgentClient(control.open_run("bench", 1), "bench")
        yield process.pid, client
        client.close()
        control.close()
    finally:
        process.kill()
        process.wait()


def _until(client: AgentClient, count: int, state: JobState, timeout: float = 120.0) -> None:
    """Wait until ``count`` jobs have been in a state, or further."""
    seen: set[str] = set()
    version, deadline = 0, time.monotonic() + timeout
    while len(seen) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"only {len(seen)} of {count} jobs are {state} in time")
        observation = client.observe(version, wait=5.0)
        version = observation.version
        seen.update(view.key for view in observation.jobs if view.state.rank >= state.rank)


class Calls:
    """Counts how often the agent runs one of Slurm's commands, by a shim on its PATH."""

    def __init__(self, site: Site, command: str) -> None:
        self._log = site.file(f"{command}.calls")
        shim = site.head.folder / "cluster" / "bin-sim" / command
        shim.write_text(f'#!/bin/bash\nprintf "%s\\n" "$EPOCHREALTIME" >>{self._log}\nexec /usr/bin/{command} "$@"\n')
        shim.chmod(0o755)

    def __call__(self) -> Sequence[str]:
        """One line a call."""
        return self._log.read_text().split() if self._log.exists() else []


def _cpu(pid: int) -> float:
    """Processor seconds of a process and its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(fields[i]) for i in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")


def _rss(pid: int) -> float:
    """Peak resident memory of a process, MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the kernel does not tell a process's peak memory")


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98]
