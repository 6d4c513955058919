"""The ledger in numbers: how many jobs are in which state, and how long things have waited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from bbpwf.clock import Clock
from bbpwf.cluster.database import Database
from bbpwf.cluster.schema import jobs, runs
from bbpwf.states import JobState, RunState

WAIT_BUCKETS = (1.0, 10.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 24 * 3600.0)
"""Upper edges of the histogram of queue waits, in seconds."""
_ENDED = [state.value for state in JobState if state.terminal]
_WAIT = jobs.c.started_at - jobs.c.submitted_at


@dataclass(frozen=True)
class Figures:
    """Counts, and ages in seconds; an age is 0 where nothing waits.

    ``waited[i]`` is how many began within ``WAIT_BUCKETS[i]`` of their submission, ``began`` of all that did.
    """

    jobs: dict[JobState, int]
    waited: tuple[int, ...]
    began: int
    waited_s: float
    oldest_run_s: float
    oldest_job_s: float
    unregistered_s: float


class LedgerFigures:
    """Looks them up. One look reads every job's row once."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._db = database
        self._clock = clock

    def look(self, *, archiving: Sequence[str] = ()) -> Figures:
        """All of them now; ``archiving`` are runs whose results are on their way to the archive. Raises LedgerError."""
        now = self._clock.now()
        with self._db.reading() as db:
            states = {JobState(state): int(count) for state, count in db.execute(_STATES)}
            waits = db.execute(_WAITS).one()
            oldest_run = db.execute(_OLDEST_RUN).scalar()
            oldest_job = db.execute(_OLDEST_JOB).scalar()
            idle = db.execute(_IDLE).all()
        ends = [row.ended for row in idle if row.ended is not None and row.run_id not in set(archiving)]
        return Figures(
            jobs=dict.fromkeys(JobState, 0) | states,
            waited=tuple(int(count or 0) for count in waits[2:]),
            began=int(waits[0] or 0),
            waited_s=float(waits[1] or 0.0),
            oldest_run_s=max(0.0, now - oldest_run) if oldest_run else 0.0,
            oldest_job_s=max(0.0, now - oldest_job) if oldest_job else 0.0,
            unregistered_s=max((now - end for end in ends), default=0.0),
        )


_STATES = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
_WAITS = sa.select(
    sa.func.count(),
    sa.func.sum(sa.case((_WAIT > 0, _WAIT), else_=0.0)),
    *(sa.func.sum(sa.case((edge >= _WAIT, 1), else_=0)) for edge in WAIT_BUCKETS),
).where(jobs.c.started_at.is_not(None), jobs.c.submitted_at.is_not(None))
_OLDEST_RUN = sa.select(sa.func.min(runs.c.created_at)).where(runs.c.state == RunState.QUEUED.value)
_OLDEST_JOB = sa.select(sa.func.min(jobs.c.submitted_at)).where(jobs.c.state == JobState.QUEUED.value)
_IDLE = (
    sa.select(runs.c.run_id, sa.func.max(jobs.c.ended_at).label("ended"))
    .join_from(runs, jobs, jobs.c.run_id == runs.c.run_id)
    .where(runs.c.state == RunState.RUNNING.value)
    .group_by(runs.c.run_id)
    .having(sa.func.sum(sa.case((jobs.c.state.in_(_ENDED), 0), else_=1)) == 0)
)
"""Running runs none of whose jobs is left."""
