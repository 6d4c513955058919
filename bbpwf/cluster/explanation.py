"""Why a job waits, how it ended and why, what it asked for and used: told from the ledger, without the cluster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field

from bbpwf import shell
from bbpwf.cluster.database import Database
from bbpwf.cluster.jobs import ExitRecord, JobView, Resources
from bbpwf.cluster.schema import batch_jobs, batches, jobs, runs, transitions
from bbpwf.cluster.views import job_view
from bbpwf.errors import NotFound
from bbpwf.states import JobState, RunState

MOST_EXAMPLES = 5
"""Elements that are named for one reason."""
MOST_ATTEMPTS = 50
"""Attempts that are told of, the latest."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Change(_Frozen):
    """One change of a job, and who saw it. ``at`` is when the agent learned of it, Unix seconds."""

    at: float
    state: JobState
    witness: str
    reason: str = ""


class Attempt(_Frozen):
    """One attempt of a job.

    ``asked`` has the resources that were asked for, by the names of :class:`bbpwf.cluster.jobs.Resources`;
    ``command`` is the exact command of its submission, which an array's elements share; ``exit`` is its exit record.
    """

    number: int
    scheduler_id: str = ""
    asked: dict[str, Any] = {}
    command: str = ""
    exit: ExitRecord | None = None
    history: tuple[Change, ...] = ()


class JobExplanation(_Frozen):
    """Everything about one job."""

    why: str = Field(description="One sentence: why it waits, or how it ended and why.")
    job: JobView
    attempts: tuple[Attempt, ...]
    script: str = Field(description="What the present attempt executes, as its task gave it.")


class Reason(_Frozen):
    """How many jobs of a task are in a state for one reason, and the ids of some of them."""

    why: str
    state: JobState
    jobs: int
    examples: tuple[str, ...]


class Explanations:
    """Reads the ledger. Safe to use from several processes at once."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def job(self, key: str) -> JobExplanation:
        """All that is known of a job. Raises NotFound."""
        with self._db.engine.connect().execution_options(reading=True) as db:
            row = db.execute(sa.select(jobs).where(jobs.c.key == key)).first()
            if row is None:
                raise NotFound(f"there is no job {key!r}")
            paused = _paused(db, row.run_id)
            changes = db.execute(
                sa.select(transitions).where(transitions.c.job_key == key).order_by(transitions.c.seq)
            ).all()
            submissions = db.execute(
                sa.select(batch_jobs.c.attempt, batches.c.resources, batches.c.command, batches.c.scheduler_id)
                .join_from(batch_jobs, batches, batch_jobs.c.batch_id == batches.c.batch_id)
                .where(batch_jobs.c.job_key == key)
                .order_by(batch_jobs.c.attempt)
            ).all()
        view = job_view(row)
        asked = Resources.model_validate(row.resources or row.spec["resources"])
        return JobExplanation(
            why=sentence(view, paused=paused),
            job=view,
            attempts=_attempts(view, asked, changes, submissions),
            script=row.spec["script"],
        )

    def reasons(self, run_id: str, keys: Sequence[str]) -> list[Reason]:
        """Why many jobs of a run are where they are, the most frequent reason first."""
        wanted = set(keys)
        with self._db.engine.connect().execution_options(reading=True) as db:
            paused = _paused(db, run_id)
            found = [job_view(r) for r in db.execute(sa.select(jobs).where(jobs.c.run_id == run_id)) if r.key in wanted]
        groups: dict[tuple[JobState, str], list[JobView]] = {}
        for view in found:
            general = view.model_copy(update={"scheduler_id": "", "started_at": None})
            groups.setdefault((view.state, sentence(general, paused=paused)), []).append(view)
        counted = Counter({group: len(views) for group, views in groups.items()})
        return [
            Reason(
                why=group[1],
                state=group[0],
                jobs=count,
                examples=tuple(
                    view.task_id if view.index is None else f"{view.task_id}.{view.index}"
                    for view in groups[group][:MOST_EXAMPLES]
                ),
            )
            for group, count in counted.most_common()
        ]


def sentence(view: JobView, *, paused: bool = False) -> str:
    """Why the job is where it is, in one sentence without its name."""
    named = f" as {view.scheduler_id}" if view.scheduler_id else ""
    because = f": {view.reason}" if view.reason else ""
    if view.state is JobState.PLANNED:
        held = "its run is paused" if paused else "it will be submitted when the cluster can be reached and has room"
        return f"is not submitted: {held}" + (f" ({view.reason})" if view.reason else "")
    if view.state is JobState.SUBMITTING:
        return f"is being submitted{because}"
    if view.state is JobState.QUEUED:
        return f"waits in the queue{named}: {view.reason or 'the scheduler has not said why'}"
    if view.state is JobState.RUNNING:
        return f"runs{named}"
    again = f" in attempt {view.attempt}" if view.attempt > 1 else ""
    return f"ended {view.state}{again}{because}"


def _paused(db: sa.Connection, run_id: str) -> bool:
    state = db.execute(sa.select(runs.c.state).where(runs.c.run_id == run_id)).scalar()
    return bool(state == RunState.PAUSED.value)


def _attempts(
    view: JobView, asked: Resources, changes: Sequence[Any], submissions: Sequence[Any]
) -> tuple[Attempt, ...]:
    """A requeue by Slurm is an attempt without a submission of its own: it has that of the one before."""
    made = []
    for number in range(max(1, view.attempt - MOST_ATTEMPTS + 1), view.attempt + 1):
        mine = [change for change in changes if change.attempt == number]
        of = [each for each in submissions if each.attempt <= number]
        waits = number == view.attempt and view.state is JobState.PLANNED
        sent = of[-1] if of and not waits else None
        record = next((change.exit for change in reversed(mine) if change.exit), None)
        resources = Resources.model_validate(sent.resources) if sent is not None else asked
        made.append(
            Attempt(
                number=number,
                scheduler_id=next((change.scheduler_id for change in reversed(mine) if change.scheduler_id), ""),
                asked=resources.model_dump(mode="json", exclude_defaults=True),
                command=shell.quote(sent.command) if sent is not None else "",
                exit=ExitRecord.model_validate(record) if record else None,
                history=tuple(
                    Change(at=c.at, state=JobState(c.state), witness=c.witness, reason=c.reason) for c in mine
                ),
            )
        )
    return tuple(made)
