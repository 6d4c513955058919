"""Changes to jobs within one transaction: read once, decided in memory, written at once.

Here is the rule that keeps states from going back, and the one that decides what is tried again. Everything is
done for many jobs together, because a thousand of them may end within a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa

from bbpwf.cluster.jobs import ExitRecord, Resources
from bbpwf.cluster.retries import Ended, PartitionLimits, counter_of, decide
from bbpwf.cluster.schema import batch_jobs, jobs, transitions
from bbpwf.states import JobState


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a witness says of element ``position`` of a submission.

    ``restart`` counts Slurm's requeues of the same job; ``witness`` is ``event``, ``queue``, ``record``,
    ``accounting`` or ``agent``. ``at`` is when it happened (or was seen), on the witness's clock.
    """

    batch_id: str
    position: int
    state: JobState
    at: float
    witness: str
    restart: int = 0
    scheduler_id: str = ""
    reason: str = ""
    exit: ExitRecord | None = None


_COLUMNS = (
    "state",
    "attempt",
    "version",
    "reason",
    "scheduler_id",
    "batch_id",
    "exit",
    "submitted_at",
    "started_at",
    "ended_at",
    "stdout",
    "cancel",
    "infrastructure_retries",
    "retries",
    "escalations",
    "resources",
)
COUNTERS = ("infrastructure_retries", "retries", "escalations")
_OF_JOB = [jobs.c.key, *(jobs.c[name] for name in _COLUMNS)]
_READ = sa.select(*_OF_JOB).where(jobs.c.key.in_(sa.bindparam("keys", expanding=True)))
_READ_PLACES = (
    sa.select(batch_jobs.c.batch_id.label("of"), batch_jobs.c.position, batch_jobs.c.attempt.label("base"), *_OF_JOB)
    .join_from(batch_jobs, jobs, batch_jobs.c.job_key == jobs.c.key)
    .where(batch_jobs.c.batch_id.in_(sa.bindparam("batches", expanding=True)))
    .where(batch_jobs.c.position.in_(sa.bindparam("positions", expanding=True)))
)
"""Not by pairs of both: for those, SQLite reads all of the table."""

_FRESH: dict[str, Any] = {
    "scheduler_id": "",
    "batch_id": "",
    "exit": None,
    "submitted_at": None,
    "started_at": None,
    "ended_at": None,
    "cancel": False,
}
"""What an attempt that was not sent yet looks like."""

PIECE = 500
"""Values in one statement: what every database accepts."""

Job = dict[str, Any]
Limits = Callable[[str, Resources], PartitionLimits]
"""Answers what the partition of these resources on this cluster allows, as far as that is known."""


class Changes:
    """The jobs that a transaction looks at, and what it changes in them. :meth:`flush` writes."""

    def __init__(
        self,
        db: sa.Connection,
        now: float,
        next_version: Callable[[], int],
        limits: Limits,
    ) -> None:
        self.now = now
        self.planned_again = False
        """Whether a job became the next attempt, which is to be submitted."""
        self._db = db
        self._limits = limits
        self._next_version = next_version
        self._jobs: dict[str, Job] = {}
        self._changed: dict[str, set[str]] = {}
        self._log: list[dict[str, Any]] = []

    def load(self, keys: Iterable[str]) -> dict[str, Job]:
        """These jobs, by key; unknown keys are left out."""
        wanted = [key for key in set(keys) if key not in self._jobs]
        for start in range(0, len(wanted), PIECE):
            for row in self._db.execute(_READ, {"keys": wanted[start : start + PIECE]}).mappings():
                self._jobs[row["key"]] = dict(row)
        return self._jobs

    def load_places(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], tuple[Job, int]]:
        """Of elements of submissions (batch id, position): the job, and the attempt the submission was made for."""
        wanted = sorted(set(places))  # so that those of a large array are asked for together
        found: dict[tuple[str, int], tuple[Job, int]] = {}
        for start in range(0, len(wanted), PIECE):
            piece = set(wanted[start : start + PIECE])
            values = {"batches": list({batch for batch, _ in piece}), "positions": list({each for _, each in piece})}
            for row in self._db.execute(_READ_PLACES, values).mappings():
                if (place := (row["of"], row["position"])) in piece:
                    job = {name: row[name] for name in ("key", *_COLUMNS)}
                    found[place] = self._jobs.setdefault(job["key"], job), row["base"]
        return found

    def set(self, job: Job, *, visible: bool = True, **values: Any) -> None:
        """Change a job; observers are told if ``visible``."""
        news = {name for name, value in values.items() if job[name] != value}
        if not news:
            return
        job.update(values)
        if visible:
            job["version"] = self._next_version()
            news.add("version")
        self._changed.setdefault(job["key"], set()).update(news)

    def log(self, job: Job, witness: str, reason: str = "") -> None:
        """Add the job's present state to its history."""
        self._log.append(
            {
                "job_key": job["key"],
                "attempt": job["attempt"],
                "state": job["state"],
                "at": self.now,
                "witness": witness,
                "scheduler_id": job["scheduler_id"],
                "reason": reason[:2000],
                "exit": job.get("exit") if JobState(job["state"]).terminal else None,
            }
        )

    def log_new(self, keys: Sequence[str]) -> None:
        """Begin the history of jobs that were inserted just now."""
        for key in keys:
            first = {"key": key, "attempt": 1, "state": JobState.PLANNED.value, "scheduler_id": ""}
            self.log(first, "agent")

    def move(self, job: Job, state: JobState, witness: str, reason: str = "", **values: Any) -> None:
        """Bring a job into a state of its present attempt, and note it."""
        self.set(job, state=state.value, reason=reason, **values)
        self.log(job, witness, reason)

    def next_attempt(self, job: Job, reason: str, **values: Any) -> None:
        """Plan the job anew."""
        self.planned_again = True
        self.move(
            job,
            JobState.PLANNED,
            "agent",
            reason,
            **(_FRESH | {"attempt": job["attempt"] + 1} | values),
        )

    def see(self, job: Job, base_attempt: int, sighting: Sighting) -> None:
        """Apply a sighting of the submission that was made for ``base_attempt``, if it is news."""
        present = JobState(job["state"])
        attempt = base_attempt + sighting.restart
        if job["batch_id"] != sighting.batch_id or present.terminal or attempt < job["attempt"]:
            return  # of an older submission, after the end, or of an attempt that is over
        values: dict[str, Any] = {}
        if job["submitted_at"] is None and sighting.state.rank >= JobState.QUEUED.rank:
            values["submitted_at"] = sighting.at
        if attempt == job["attempt"] and sighting.state.rank <= present.rank:
            self.set(job, visible=False, **values)
            if sighting.reason and sighting.state is present:
                self.set(job, reason=sighting.reason)
            return
        if attempt > job["attempt"]:
            values |= {"started_at": None, "exit": None}
        if sighting.state is JobState.RUNNING:
            values["started_at"] = sighting.at
        if sighting.exit is not None:
            values |= {"exit": sighting.exit.model_dump(mode="json"), "started_at": sighting.exit.started}
        if sighting.state.terminal:
            values["ended_at"] = sighting.exit.ended if sighting.exit else sighting.at
        values |= {"attempt": attempt, "scheduler_id": sighting.scheduler_id or job["scheduler_id"]}
        self.move(job, sighting.state, sighting.witness, sighting.reason, **values)
        if sighting.state.terminal and not job["cancel"]:
            self._maybe_retry(job, sighting)

    def _maybe_retry(self, job: Job, sighting: Sighting) -> None:
        if counter_of(sighting.state) is None:
            return
        row = self._db.execute(sa.select(jobs.c.spec, jobs.c.cluster).where(jobs.c.key == job["key"])).one()
        resources = Resources.model_validate(job["resources"] or row.spec["resources"])
        elapsed = job["ended_at"] - job["started_at"] if job["started_at"] is not None else None
        verdict = decide(
            Ended(sighting.state, resources, elapsed),
            {name: job[name] for name in COUNTERS},
            {name: int(row.spec[name]) for name in COUNTERS},
            self._limits(row.cluster, resources),
        )
        why = sighting.reason or "no reason given"
        if isinstance(verdict, str):
            if verdict:
                self.set(job, reason=f"{why}; {verdict}")
            return
        self.next_attempt(
            job,
            f"attempt {job['attempt']} ended {sighting.state}: {why}; {verdict.words}",
            resources=verdict.resources.model_dump(mode="json"),
            **{verdict.counter: job[verdict.counter] + 1},
        )

    def flush(self) -> None:
        """Write everything."""
        alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for key, names in self._changed.items():
            job, columns = self._jobs[key], tuple(sorted(names))
            alike.setdefault(columns, []).append({"of": key} | {f"new_{name}": job[name] for name in columns})
        for columns, rows in alike.items():
            self._db.execute(_update(columns), rows)
        self._changed.clear()
        if self._log:
            self._db.execute(transitions.insert(), self._log)
            self._log.clear()


@cache
def _update(columns: tuple[str, ...]) -> sa.Update:
    new = {name: sa.bindparam(f"new_{name}", type_=jobs.c[name].type) for name in columns}
    return jobs.update().where(jobs.c.key == sa.bindparam("of")).values(new)


def select_in(db: sa.Connection, query: sa.Select[Any], column: sa.Column[Any], values: Sequence[Any]) -> list[Any]:
    """Rows of ``query`` whose ``column`` is among ``values``, in pieces that every database accepts."""
    rows: list[Any] = []
    for start in range(0, len(values), PIECE):
        rows += db.execute(query.where(column.in_(values[start : start + PIECE]))).all()
    return rows
