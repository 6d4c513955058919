"""What ``bbpwf run`` begins before it reads the task module: its state folder, its agent, the way to the cluster.

Logging in and importing Luigi take about as long, and neither needs the other.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bbpwf import memory, settings
from bbpwf.cli.wiring import build_agent
from bbpwf.clock import Clock, SystemClock
from bbpwf.cluster.agent import Agent
from bbpwf.cluster.server import lock_state
from bbpwf.redact import Redactor
from bbpwf.settings import Settings

_WITHIN_S = 2.0
"""How long an attempt to connect may hold up the end of the command."""


@dataclass(frozen=True)
class Ahead:
    """An agent of this process, which holds the state folder."""

    settings: Settings
    clock: Clock
    redactor: Redactor
    agent: Agent


@contextmanager
def begin() -> Iterator[Ahead]:
    """Read the settings, take the state folder, and begin to connect; ended with the block.

    A cluster that would first have to be made is not asked for yet: the request may turn out to make no sense.

    Raises:
        InvalidConfig, LedgerError: what there is cannot be used.
        Conflict: another agent serves this state folder.
    """
    memory.share_one_arena()
    gc.set_threshold(*memory.COLLECT_AFTER)
    configured, clock, redactor = settings.load(), SystemClock(), Redactor()
    configured.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = lock_state(configured.state)
    try:
        agent = build_agent(configured, clock, redactor)
        try:
            if configured.cluster.kind == "ssh":
                agent.cluster().ensure()
            yield Ahead(configured, clock, redactor, agent)
        finally:
            agent.stop(_WITHIN_S)
    finally:
        os.close(lock)
