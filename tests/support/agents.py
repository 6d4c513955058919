"""A real agent on a real backend, for tests: built as the CLI builds it, with short intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bbpwf.clock import SystemClock
from bbpwf.cluster.agent import Agent, BoundAgent
from bbpwf.cluster.database import open_database
from bbpwf.cluster.jobs import JobSpec, JobView, job_key
from bbpwf.cluster.ledger import Ledger
from bbpwf.cluster.runs import RunStore
from bbpwf.cluster.runtime import ClusterRuntime, Connector
from bbpwf.cluster.tokens import Tokens
from bbpwf.redact import Redactor
from bbpwf.settings import ClusterSettings


class Site:
    """A ledger and a cluster; :meth:`agent` starts an agent on them, again and again if a test kills one."""

    def __init__(self, state: Path, settings: ClusterSettings, connector: Callable[[], Connector]) -> None:
        self.url = f"sqlite:///{state / 'bbpwf.db'}"
        self.settings = settings
        self._connector = connector
        self._agents: list[Agent] = []

    def agent(self) -> Agent:
        """A new agent, ready; an earlier one is fenced off but not stopped."""
        clock = SystemClock()
        database = open_database(self.url)
        ledger = Ledger(database, clock)
        ledger.claim()
        runtime = ClusterRuntime(
            "default",
            self._connector(),
            ledger,
            clock,
            self.settings,
            spool=f"{self.settings.data_root}/.bbpwf/{ledger.ledger_id}",
        )
        made = Agent(ledger, RunStore(database, clock), {"default": runtime}, Tokens(clock, Redactor()), clock)
        self._agents.append(made)
        runtime.ensure()
        info = runtime.wait_ready(60)
        assert info.state == "ready", info.reason
        made.start()
        return made

    def close(self) -> None:
        """Stop all agents."""
        for agent in self._agents:
            agent.stop()


def spec(run_id: str, task: str, script: str, **more: object) -> JobSpec:
    """A job as a task would ask for it."""
    index = more.get("index")
    key = job_key(run_id, task, index if isinstance(index, int) else None)
    return JobSpec.model_validate({"key": key, "run_id": run_id, "task_id": task, "script": script} | more)


def wait_ended(agent: BoundAgent, keys: Iterable[str], timeout: float = 60.0) -> dict[str, JobView]:
    """Observe until all these jobs have ended. Fails with what is known if they do not in time."""
    return wait_for(agent, keys, lambda view: view.state.terminal, timeout)


def wait_for(
    agent: BoundAgent, keys: Iterable[str], reached: Callable[[JobView], bool], timeout: float = 60.0
) -> dict[str, JobView]:
    """Observe until ``reached`` is true of every one of these jobs."""
    wanted = set(keys)
    seen: dict[str, JobView] = {}
    version = 0
    deadline = time.monotonic() + timeout
    while not all(key in seen and reached(seen[key]) for key in wanted):
        left = deadline - time.monotonic()
        if left <= 0:
            missing = [seen.get(key, key) for key in sorted(wanted) if key not in seen or not reached(seen[key])]
            raise AssertionError(f"{len(missing)} jobs did not get there within {timeout:.0f} s: {missing[:3]}")
        observation = agent.observe(version, wait=min(left, 5.0))
        version = observation.version
        seen |= {view.key: view for view in observation.jobs}
    return {key: seen[key] for key in wanted}
