"""The ledger: every job that was ever wanted, and everything that was ever seen of it.

Three rules hold it together.

- An intent is committed before anything is sent, so nothing that runs is unknown.
- States move forward only: a sighting is applied if its ``(attempt, rank)`` is greater than what is recorded,
  and ignored otherwise. Reading the same event twice, or late, changes nothing.
- One writer: an agent *claims* the ledger, and a claim ends every earlier one. An agent that was fenced off
  learns it at its next write, which then does not happen.

Times are Unix seconds.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from bbpwf.clock import Clock
from bbpwf.cluster.database import Database
from bbpwf.cluster.jobs import ExitRecord, JobSpec, JobView, Observation
from bbpwf.cluster.schema import batch_jobs, batches, facts, jobs, transitions
from bbpwf.cluster.views import job_view
from bbpwf.errors import Conflict, LedgerError, NotFound
from bbpwf.states import JobState

LIVE = tuple(s.value for s in JobState if not s.terminal)


@dataclass(frozen=True)
class Planned:
    """An attempt that waits to be sent."""

    key: str
    attempt: int
    spec: JobSpec


@dataclass(frozen=True)
class Batch:
    """One submission; ``state`` is PREPARED, SENT, ACCEPTED or REJECTED."""

    batch_id: str
    cluster: str
    state: str
    scheduler_id: str
    size: int
    sent_at: float | None


@dataclass(frozen=True)
class Live:
    """A job that was sent and has not ended. ``base`` is the attempt that its submission was made for."""

    key: str
    run_id: str
    state: JobState
    attempt: int
    base: int
    batch_id: str
    position: int
    scheduler_id: str
    seen_at: float
    cancel: bool


@dataclass(frozen=True)
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


class Ledger:
    """All access to jobs and submissions. Thread-safe; one process at a time may write."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._db = database
        self._clock = clock
        self._changed = threading.Condition(threading.RLock())
        self._epoch = 0
        self._version = 0
        self.ledger_id = ""

    # -- the single writer ------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Become the writer; whoever was it before can write no more."""
        with self._changed, self._db.begin() as db:
            self.ledger_id = _fact(db, "ledger_id") or "l" + secrets.token_hex(6)
            self._epoch = int(_fact(db, "epoch") or "0") + 1
            _put_fact(db, "ledger_id", self.ledger_id)
            _put_fact(db, "epoch", str(self._epoch))
            self._version = db.execute(sa.select(sa.func.max(jobs.c.version))).scalar() or 0

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._changed:
            before = self._version
            try:
                with self._db.begin() as db:
                    if _fact(db, "epoch") != str(self._epoch):
                        raise LedgerError(
                            "another agent has taken over this project", hint="This agent must end.", retryable=False
                        )
                    yield db
            except BaseException:
                self._version = before
                raise
            self._changed.notify_all()

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._db.engine.connect().execution_options(reading=True) as db:
            yield db

    def _next_version(self) -> int:
        self._version += 1
        return self._version

    def fact(self, name: str) -> str:
        """A remembered value, empty if there is none."""
        with self._reading() as db:
            return _fact(db, name)

    def remember(self, name: str, value: str) -> None:
        """Remember a value under a name."""
        with self._writing() as db:
            _put_fact(db, name, value)

    # -- intents ----------------------------------------------------------------------------------------------

    def plan(self, specs: Sequence[JobSpec], incarnation: int) -> list[JobView]:
        """Record intents; answers what is known of each key, in the given order.

        A key that is new becomes PLANNED. A known one is left as it is, unless it ended in an earlier
        incarnation of its run: then it becomes the next attempt, with the new specification.

        Raises:
            Conflict: a key of this incarnation is known with another specification.
        """
        with self._writing() as db:
            known = {row.key: row for row in _select_in(db, jobs, jobs.c.key, [s.key for s in specs])}
            now = self._clock.now()
            for spec in specs:
                body = spec.model_dump(mode="json")
                fingerprint = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
                row = known.get(spec.key)
                if row is None:
                    values = {
                        "key": spec.key,
                        "run_id": spec.run_id,
                        "task_id": spec.task_id,
                        "idx": spec.index,
                        "label": spec.label,
                        "name": spec.name,
                        "cluster": spec.cluster,
                        "spec": body,
                        "fingerprint": fingerprint,
                        "incarnation": incarnation,
                        "state": JobState.PLANNED.value,
                        "attempt": 1,
                        "version": self._next_version(),
                        "reason": "",
                        "seen_at": now,
                    }
                    db.execute(jobs.insert().values(**values))
                    _log_transition(db, spec.key, 1, JobState.PLANNED, now, "agent")
                    continue
                ended = JobState(row.state).terminal
                if row.incarnation < incarnation and ended:
                    self._replan(db, row, now, reason="", spec=body, fingerprint=fingerprint, incarnation=incarnation)
                elif row.fingerprint != fingerprint and row.incarnation == incarnation:
                    raise Conflict(
                        f"job {spec.key} ({spec.task_id}) was already asked for with another script or resources"
                    )
                elif row.incarnation < incarnation:
                    db.execute(jobs.update().where(jobs.c.key == spec.key).values(incarnation=incarnation))
            rows = {row.key: row for row in _select_in(db, jobs, jobs.c.key, [s.key for s in specs])}
        return [job_view(rows[spec.key]) for spec in specs]

    def _replan(self, db: sa.Connection, row: Any, now: float, *, reason: str, **more: Any) -> None:
        attempt = row.attempt + 1
        values = {
            "state": JobState.PLANNED.value,
            "attempt": attempt,
            "version": self._next_version(),
            "reason": reason,
            "scheduler_id": "",
            "batch_id": "",
            "exit": None,
            "submitted_at": None,
            "started_at": None,
            "ended_at": None,
            "cancel": False,
            "seen_at": now,
        }
        if "incarnation" in more:
            values |= {"infrastructure_retries": 0, "retries": 0}
        db.execute(jobs.update().where(jobs.c.key == row.key).values(**(values | more)))
        _log_transition(db, row.key, attempt, JobState.PLANNED, now, "agent", reason=reason)

    def planned(self, cluster: str, limit: int) -> list[Planned]:
        """Attempts that wait to be sent to a cluster, oldest first."""
        query = (
            sa.select(jobs.c.key, jobs.c.attempt, jobs.c.spec)
            .where(jobs.c.cluster == cluster, jobs.c.state == JobState.PLANNED.value, jobs.c.cancel.is_(False))
            .order_by(jobs.c.seq)
            .limit(limit)
        )
        with self._reading() as db:
            return [Planned(row.key, row.attempt, JobSpec.model_validate(row.spec)) for row in db.execute(query)]

    # -- submissions ------------------------------------------------------------------------------------------

    def prepare(self, cluster: str, groups: Sequence[Sequence[Planned]], log_path: Any) -> list[Batch]:
        """Make one submission of each group, and its attempts SUBMITTING, in one transaction.

        ``log_path(batch_id, position)`` names each element's log. Attempts that changed meanwhile are left out.
        """
        made: list[Batch] = []
        with self._writing() as db:
            now = self._clock.now()
            for group in groups:
                batch_id = "b" + secrets.token_hex(8)
                still = {
                    row.key: row.attempt
                    for row in _select_in(db, jobs, jobs.c.key, [p.key for p in group])
                    if row.state == JobState.PLANNED.value and not row.cancel
                }
                members = [p for p in group if still.get(p.key) == p.attempt]
                if not members:
                    continue
                db.execute(
                    batches.insert().values(
                        batch_id=batch_id, cluster=cluster, state="PREPARED", size=len(members), created_at=now
                    )
                )
                db.execute(
                    batch_jobs.insert(),
                    [
                        {"batch_id": batch_id, "position": i, "job_key": p.key, "attempt": p.attempt}
                        for i, p in enumerate(members)
                    ],
                )
                for position, member in enumerate(members):
                    db.execute(
                        jobs.update()
                        .where(jobs.c.key == member.key)
                        .values(
                            state=JobState.SUBMITTING.value,
                            batch_id=batch_id,
                            stdout=log_path(batch_id, position),
                            version=self._next_version(),
                            seen_at=now,
                        )
                    )
                    _log_transition(db, member.key, member.attempt, JobState.SUBMITTING, now, "agent")
                made.append(Batch(batch_id, cluster, "PREPARED", "", len(members), None))
        return made

    def open_batches(self, cluster: str) -> list[Batch]:
        """Submissions without a final answer, oldest first."""
        query = (
            sa.select(batches)
            .where(batches.c.cluster == cluster, batches.c.state.in_(["PREPARED", "SENT"]))
            .order_by(batches.c.created_at, batches.c.batch_id)
        )
        with self._reading() as db:
            return [_batch(row) for row in db.execute(query)]

    def batch(self, batch_id: str) -> Batch:
        """A submission. Raises NotFound."""
        with self._reading() as db:
            row = db.execute(sa.select(batches).where(batches.c.batch_id == batch_id)).first()
        if row is None:
            raise NotFound(f"the ledger has no submission {batch_id}")
        return _batch(row)

    def members(self, batch_id: str) -> list[Planned]:
        """The attempts of a submission, by position."""
        query = (
            sa.select(batch_jobs.c.job_key, batch_jobs.c.attempt, jobs.c.spec)
            .join_from(batch_jobs, jobs, batch_jobs.c.job_key == jobs.c.key)
            .where(batch_jobs.c.batch_id == batch_id)
            .order_by(batch_jobs.c.position)
        )
        with self._reading() as db:
            return [Planned(row.job_key, row.attempt, JobSpec.model_validate(row.spec)) for row in db.execute(query)]

    def mark_sent(self, batch_ids: Sequence[str]) -> None:
        """These submissions are about to be sent: from now on their answers may be lost."""
        with self._writing() as db:
            now = self._clock.now()
            db.execute(
                batches.update()
                .where(batches.c.batch_id.in_(batch_ids), batches.c.state == "PREPARED")
                .values(state="SENT", sent_at=now)
            )

    def put_off(self, batch_id: str, reason: str) -> None:
        """The submission was not accepted *for now*: it was certainly not made, and will be sent again."""
        with self._writing() as db:
            db.execute(batches.update().where(batches.c.batch_id == batch_id).values(state="PREPARED", reason=reason))
            self._touch_waiting(db, batch_id, reason)

    def explain_wait(self, batch_id: str, reason: str) -> None:
        """Say why a submission without an answer is still waiting."""
        with self._writing() as db:
            self._touch_waiting(db, batch_id, reason)

    def _touch_waiting(self, db: sa.Connection, batch_id: str, reason: str) -> None:
        rows = db.execute(
            sa.select(jobs.c.key, jobs.c.reason).where(
                jobs.c.batch_id == batch_id, jobs.c.state == JobState.SUBMITTING.value
            )
        ).all()
        for row in rows:
            if row.reason != reason:
                db.execute(
                    jobs.update().where(jobs.c.key == row.key).values(reason=reason, version=self._next_version())
                )

    def accept(self, batch_id: str, scheduler_id: str) -> None:
        """The scheduler has the submission under this id (of the job, or of the array)."""
        with self._writing() as db:
            row = db.execute(sa.select(batches).where(batches.c.batch_id == batch_id)).one()
            if row.state == "ACCEPTED":
                return
            db.execute(
                batches.update()
                .where(batches.c.batch_id == batch_id)
                .values(state="ACCEPTED", scheduler_id=scheduler_id, reason="")
            )
            now = self._clock.now()
            for member in db.execute(sa.select(batch_jobs).where(batch_jobs.c.batch_id == batch_id)).all():
                sighting = Sighting(
                    batch_id,
                    member.position,
                    JobState.QUEUED,
                    now,
                    "agent",
                    scheduler_id=element_id(scheduler_id, member.position, row.size),
                )
                self._apply(db, sighting, member, now)

    def reject(self, batch_id: str, reason: str) -> None:
        """The scheduler refused the submission for good."""
        with self._writing() as db:
            db.execute(batches.update().where(batches.c.batch_id == batch_id).values(state="REJECTED", reason=reason))
            now = self._clock.now()
            for member in db.execute(sa.select(batch_jobs).where(batch_jobs.c.batch_id == batch_id)).all():
                sighting = Sighting(batch_id, member.position, JobState.REJECTED, now, "agent", reason=reason)
                self._apply(db, sighting, member, now)

    def abandon_cancelled(self, cluster: str) -> None:
        """Submissions that were certainly not made, and whose every job was cancelled meanwhile, are given up."""
        with self._writing() as db:
            now = self._clock.now()
            wanted = (
                sa.select(batch_jobs.c.batch_id)
                .join_from(batch_jobs, jobs, batch_jobs.c.job_key == jobs.c.key)
                .where(jobs.c.cancel.is_(False))
            )
            prepared = sa.select(batches.c.batch_id).where(
                batches.c.cluster == cluster, batches.c.state == "PREPARED", batches.c.batch_id.not_in(wanted)
            )
            for (batch_id,) in db.execute(prepared).all():
                reason = "cancelled before it was submitted"
                db.execute(
                    batches.update().where(batches.c.batch_id == batch_id).values(state="REJECTED", reason=reason)
                )
                for member in db.execute(sa.select(batch_jobs).where(batch_jobs.c.batch_id == batch_id)).all():
                    sighting = Sighting(batch_id, member.position, JobState.CANCELLED, now, "agent", reason=reason)
                    self._apply(db, sighting, member, now)

    def accepted_batches(self, cluster: str) -> list[Batch]:
        """Accepted submissions with jobs that have not ended, oldest first."""
        query = (
            sa.select(batches)
            .where(
                batches.c.cluster == cluster,
                batches.c.state == "ACCEPTED",
                batches.c.batch_id.in_(sa.select(jobs.c.batch_id).where(jobs.c.state.in_(LIVE))),
            )
            .order_by(batches.c.created_at)
        )
        with self._reading() as db:
            return [_batch(row) for row in db.execute(query)]

    # -- what is seen -----------------------------------------------------------------------------------------

    def see(self, sightings: Iterable[Sighting], *, offset: tuple[str, int] | None = None) -> None:
        """Apply sightings in one transaction; ``offset`` (fact name, bytes) is remembered with them.

        Sightings of submissions that this ledger does not know are ignored: another agent's.
        """
        pending = list(sightings)
        if not pending and offset is None:
            return
        with self._writing() as db:
            now = self._clock.now()
            found: dict[tuple[str, int], Any] = {}
            for row in _select_in(db, batch_jobs, batch_jobs.c.batch_id, list({s.batch_id for s in pending})):
                found[row.batch_id, row.position] = row
            for sighting in pending:
                member = found.get((sighting.batch_id, sighting.position))
                if member is not None:
                    self._apply(db, sighting, member, now)
            if offset is not None:
                _put_fact(db, offset[0], str(offset[1]))

    def _apply(self, db: sa.Connection, sighting: Sighting, member: Any, now: float) -> None:
        row = db.execute(sa.select(jobs).where(jobs.c.key == member.job_key)).one()
        if row.batch_id != sighting.batch_id:
            return  # an older submission of a job that has moved on
        attempt = member.attempt + sighting.restart
        present = JobState(row.state)
        if present.terminal or attempt < row.attempt:
            return
        values: dict[str, Any] = {"seen_at": now}
        if row.submitted_at is None and sighting.state.rank >= JobState.QUEUED.rank:
            values["submitted_at"] = sighting.at
        forward = attempt > row.attempt or sighting.state.rank > present.rank
        if not forward:
            if (
                sighting.reason
                and sighting.reason != row.reason
                and attempt == row.attempt
                and present == sighting.state
            ):
                values |= {"reason": sighting.reason, "version": self._next_version()}
            db.execute(jobs.update().where(jobs.c.key == row.key).values(**values))
            return
        values |= {
            "state": sighting.state.value,
            "attempt": attempt,
            "version": self._next_version(),
            "reason": sighting.reason,
        }
        if sighting.scheduler_id:
            values["scheduler_id"] = sighting.scheduler_id
        if attempt > row.attempt:
            values |= {"started_at": None, "exit": None}
        if sighting.state is JobState.RUNNING:
            values["started_at"] = sighting.at
        if sighting.exit is not None:
            values |= {"exit": sighting.exit.model_dump(mode="json"), "started_at": sighting.exit.started}
        if sighting.state.terminal:
            values["ended_at"] = sighting.exit.ended if sighting.exit else sighting.at
        db.execute(jobs.update().where(jobs.c.key == row.key).values(**values))
        _log_transition(
            db,
            row.key,
            attempt,
            sighting.state,
            now,
            sighting.witness,
            scheduler_id=sighting.scheduler_id or row.scheduler_id,
            reason=sighting.reason,
        )
        if sighting.state.terminal and not row.cancel:
            self._maybe_retry(db, row.key, sighting, now)

    def _maybe_retry(self, db: sa.Connection, key: str, sighting: Sighting, now: float) -> None:
        row = db.execute(sa.select(jobs).where(jobs.c.key == key)).one()
        if sighting.state.infrastructure:
            counter, allowed = "infrastructure_retries", int(row.spec["infrastructure_retries"])
        elif sighting.state is JobState.FAILED:
            counter, allowed = "retries", int(row.spec["retries"])
        else:
            return
        used = getattr(row, counter)
        if used < allowed:
            why = f"attempt {row.attempt} ended {sighting.state}: {sighting.reason or 'no reason given'}; trying again"
            self._replan(db, row, now, reason=why, **{counter: used + 1})

    def live(self, cluster: str) -> list[Live]:
        """Jobs of a cluster that the scheduler may know and that have not ended."""
        query = (
            sa.select(jobs, batch_jobs.c.position, batch_jobs.c.attempt.label("base"))
            .join_from(
                jobs,
                batch_jobs,
                sa.and_(batch_jobs.c.batch_id == jobs.c.batch_id, batch_jobs.c.job_key == jobs.c.key),
            )
            .where(jobs.c.cluster == cluster, jobs.c.state.in_([JobState.QUEUED.value, JobState.RUNNING.value]))
        )
        with self._reading() as db:
            return [
                Live(
                    row.key,
                    row.run_id,
                    JobState(row.state),
                    row.attempt,
                    row.base,
                    row.batch_id,
                    row.position,
                    row.scheduler_id,
                    row.seen_at,
                    row.cancel,
                )
                for row in db.execute(query)
            ]

    # -- cancelling and reading -------------------------------------------------------------------------------

    def cancel(self, run_id: str, keys: Sequence[str] | None) -> None:
        """Mark jobs to be cancelled; those that were never sent are CANCELLED at once. Idempotent."""
        with self._writing() as db:
            now = self._clock.now()
            query = sa.select(jobs).where(jobs.c.run_id == run_id, jobs.c.state.in_(LIVE), jobs.c.cancel.is_(False))
            for row in db.execute(query).all():
                if keys is not None and row.key not in keys:
                    continue
                values: dict[str, Any] = {"cancel": True}
                if row.state == JobState.PLANNED.value:
                    reason = "cancelled before it was submitted"
                    values |= {
                        "state": JobState.CANCELLED.value,
                        "reason": reason,
                        "ended_at": now,
                        "version": self._next_version(),
                    }
                    _log_transition(db, row.key, row.attempt, JobState.CANCELLED, now, "agent", reason=reason)
                db.execute(jobs.update().where(jobs.c.key == row.key).values(**values))

    def job(self, key: str) -> tuple[JobView, JobSpec]:
        """A job, as it is known and as it was asked for. Raises NotFound."""
        with self._reading() as db:
            row = db.execute(sa.select(jobs).where(jobs.c.key == key)).first()
        if row is None:
            raise NotFound(f"there is no job {key!r}")
        return job_view(row), JobSpec.model_validate(row.spec)

    def observe(self, run_id: str, since: int, wait: float) -> Observation:
        """The run's jobs that changed after ``since``; waits up to ``wait`` seconds for one."""
        deadline = self._clock.monotonic() + wait
        query = sa.select(jobs).where(jobs.c.run_id == run_id).order_by(jobs.c.version)
        while True:
            with self._changed:
                version = self._version
            with self._reading() as db:
                rows = db.execute(query.where(jobs.c.version > since)).all()
            if rows:
                return Observation(version=rows[-1].version, jobs=tuple(job_view(row) for row in rows))
            with self._changed:
                remaining = deadline - self._clock.monotonic()
                if remaining <= 0:
                    return Observation(version=since)
                if self._version == version:
                    self._changed.wait(remaining)

    def live_count(self, *, run_id: str = "", cluster: str = "", cancelled: bool = False) -> int:
        """How many jobs (of a run, of a cluster; only those marked to be cancelled) have not ended."""
        query = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state.in_(LIVE))
        if cancelled:
            query = query.where(jobs.c.cancel.is_(True))
        if run_id:
            query = query.where(jobs.c.run_id == run_id)
        if cluster:
            query = query.where(jobs.c.cluster == cluster)
        with self._reading() as db:
            return db.execute(query).scalar_one()

    def history(self, key: str) -> list[dict[str, Any]]:
        """Every change of a job, oldest first: attempt, state, at, witness, scheduler_id, reason."""
        query = sa.select(transitions).where(transitions.c.job_key == key).order_by(transitions.c.seq)
        with self._reading() as db:
            return [dict(row) for row in db.execute(query).mappings()]


def element_id(scheduler_id: str, position: int, size: int) -> str:
    """The scheduler's id of one element of a submission: arrays number theirs, a single job has its own."""
    return f"{scheduler_id}_{position}" if size > 1 else scheduler_id


def _batch(row: Any) -> Batch:
    return Batch(row.batch_id, row.cluster, row.state, row.scheduler_id, row.size, row.sent_at)


def _fact(db: sa.Connection, name: str) -> str:
    return db.execute(sa.select(facts.c.value).where(facts.c.name == name)).scalar() or ""


def _put_fact(db: sa.Connection, name: str, value: str) -> None:
    if db.execute(facts.update().where(facts.c.name == name).values(value=value)).rowcount == 0:
        db.execute(facts.insert().values(name=name, value=value))


def _log_transition(
    db: sa.Connection,
    key: str,
    attempt: int,
    state: JobState,
    at: float,
    witness: str,
    *,
    scheduler_id: str = "",
    reason: str = "",
) -> None:
    db.execute(
        transitions.insert().values(
            job_key=key,
            attempt=attempt,
            state=state.value,
            at=at,
            witness=witness,
            scheduler_id=scheduler_id,
            reason=reason[:2000],
        )
    )


def _select_in(db: sa.Connection, table: sa.Table, column: sa.Column[Any], values: Sequence[str]) -> list[Any]:
    """Rows whose ``column`` is among ``values``, in pieces that every database accepts."""
    rows: list[Any] = []
    for start in range(0, len(values), 500):
        rows += db.execute(sa.select(table).where(column.in_(values[start : start + 500]))).all()
    return rows
