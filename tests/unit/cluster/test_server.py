"""The agent on its sockets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bbpwf.clock import SystemClock
from bbpwf.cluster.agent import Agent
from bbpwf.cluster.control import AgentControl
from bbpwf.cluster.database import open_database
from bbpwf.cluster.ledger import Ledger
from bbpwf.cluster.runs import RunStore
from bbpwf.cluster.server import AgentServer
from bbpwf.cluster.tokens import Tokens
from bbpwf.redact import Redactor


@pytest.fixture
def control(tmp_path: Path) -> Iterator[AgentControl]:
    database, clock = open_database(f"sqlite:///{tmp_path / 'l.db'}"), SystemClock()
    ledger = Ledger(database, clock)
    ledger.claim()
    server = AgentServer(tmp_path / "s", Redactor())
    server.start(Agent(ledger, RunStore(database, clock), {}, Tokens(clock, Redactor()), clock))
    made = AgentControl(tmp_path / "s" / "agent.sock")
    yield made
    made.close()
    server.stop()
    database.close()


def test_a_run_that_many_open_at_once_is_opened_for_all_of_them(control: AgentControl) -> None:
    together = threading.Barrier(8)

    def ask(run_id: str) -> Path:
        together.wait(10)
        return control.open_run(run_id, 1)

    with ThreadPoolExecutor(8) as pool:
        for turn in range(10):
            paths = list(pool.map(ask, [f"r{turn}"] * 8))
            assert len(set(paths)) == 1
            assert paths[0].is_socket()
