"""What the supervisor remembers of a run that is under way, what it works with, and how long it waits for what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import SecretStr

from bbpwf.clock import Clock
from bbpwf.cluster.control import AgentControl
from bbpwf.cluster.records import RunRecord
from bbpwf.cluster.runs import RunStore
from bbpwf.redact import Redactor
from service.children import Child
from service.daemons import Daemon
from service.heads import RunFolder, Spare

TICK_S = 0.2
IDLE_TICK_S = 2.0
HEAD_RESTARTS = 3
"""A head that ends without an outcome is started again this often; then the run ends as SYSTEM_ERROR."""
START_AGAIN = 4
"""A head's exit code when it lost the agent or the scheduler and wants to be started anew."""
FRESH_STARTS = 20
"""How often a head may ask for that in a row."""
HEAD_BACKOFF_S = 1.0
HEAD_STEADY_S = 600.0
"""A head that lasted this long has its earlier ends forgiven."""
CANCEL_GRACE_S = 20.0
"""How long a head may take to cancel its jobs before it is killed and the agent asked to."""
CANCEL_LIMIT_S = 600.0
"""How long jobs may take to be gone before a cancel is given up as failed."""
HEADS_GRACE_S = 5.0
"""How long heads may take to end when the service does; they touch no job."""
DAEMONS_GRACE_S = 8.0
"""How long the agent and the scheduler may take then."""
OUTCOME_GRACE_S = 30.0
"""How long a head may live on after it wrote its outcome."""
CLUSTER_POLL_S = 0.5
CONNECT_LIMIT_S = 300.0
"""How long a cluster that is there may stay out of reach before a run that waits for it ends."""
AGENT_LIMIT_S = 900.0
"""A run that no agent could be asked about for this long ends as SYSTEM_ERROR."""
DEFECTS = 5
"""So many defects of ours in a row while moving a run end it as SYSTEM_ERROR."""


@dataclass
class Waiting:
    """A run that has no slot yet. ``sub`` is its owner's."""

    sub: str
    token: SecretStr | None = None


@dataclass
class Watched:
    """What this process knows of a run, beyond the database."""

    run_id: str
    sub: str
    folder: RunFolder
    token: SecretStr | None = None
    run: RunRecord | None = None
    """As it was read last."""
    head: Child | None = None
    head_since: float = 0.0
    restarts: int = 0
    started_again: int = 0
    not_before: float = 0.0
    blocked_since: float | None = None
    outcome_since: float | None = None
    cancel_since: float | None = None
    jobs_told: bool = False
    no_agent_since: float | None = None
    asked_for_cluster: bool = False
    cluster_since: float | None = None
    connecting_since: float | None = None
    agent_generation: int = 0
    defects: int = 0


@dataclass
class Surroundings:
    """Everything the supervisor works with."""

    store: RunStore
    control: AgentControl
    agent: Daemon
    scheduler: Daemon
    folder_of: Callable[[str], RunFolder]
    spare: Spare
    redactor: Redactor
    clock: Clock
    max_runs: int
    scheduler_url: Callable[[str], str]
    """Luigi's scheduler, with the pass of a run in it."""
    cluster_limit_s: float
    public_url: str = ""
    max_runs_per_user: int = 10
