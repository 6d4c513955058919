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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from bbpwf import faults
from bbpwf.clock import Clock
from bbpwf.cluster.changes import COUNTERS, Changes, Job, Sighting, select_in
from bbpwf.cluster.database import Database
from bbpwf.cluster.jobs import JobSpec, JobView, Observation, Resources
from bbpwf.cluster.retries import NO_LIMITS, PartitionLimits
from bbpwf.cluster.schema import batch_jobs, batches, facts, jobs, runs, transitions
from bbpwf.cluster.views import job_view
from bbpwf.errors import Conflict, LedgerError, NotFound
from bbpwf.states import JobState, RunState

_IDENTITY = sa.select(jobs.c.key, jobs.c.state, jobs.c.incarnation, jobs.c.fingerprint)
_MEMBER = sa.select(batch_jobs)
_COMMAND = batches.update().where(batches.c.batch_id == sa.bindparam("of")).values(command=sa.bindparam("new_command"))
_SPEC = jobs.update().where(jobs.c.key == sa.bindparam("of")).values(spec=sa.bindparam("new_spec"))
_PAUSED = sa.select(runs.c.run_id).where(runs.c.state == RunState.PAUSED.value)
"""Runs for which nothing new may be submitted."""
_VIEWED = sa.select(*(column for column in jobs.c if column.name not in {"spec", "fingerprint"}))
OBSERVED = 5000
"""Most jobs that one observation tells of; the next tells the rest."""
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
    """A job that was sent and has not ended.

    ``base`` is the attempt that its submission was made for, ``size`` the number of jobs in that submission.
    """

    key: str
    run_id: str
    state: JobState
    attempt: int
    base: int
    batch_id: str
    position: int
    size: int
    scheduler_id: str
    seen_at: float
    cancel: bool
    reason: str = ""


class Ledger:
    """All access to jobs and submissions. Thread-safe; one process at a time may write."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._db = database
        self._clock = clock
        self._changed = threading.Condition(threading.RLock())
        self._epoch = 0
        self._version = 0
        self._limits: dict[str, Callable[[Resources], PartitionLimits]] = {}
        self.ledger_id = ""
        self.fenced = False
        """True once a write was refused because another agent has claimed the ledger: this one is to end."""
        self.when_fenced: Callable[[], None] = lambda: None

    # -- the single writer ------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Become the writer; whoever was it before can write no more."""
        with self._changed, self._db.begin() as db:
            self.ledger_id = _fact(db, "ledger_id") or "l" + secrets.token_hex(6)
            self._epoch = int(_fact(db, "epoch") or "0") + 1
            _put_fact(db, "ledger_id", self.ledger_id)
            _put_fact(db, "epoch", str(self._epoch))
            self._version = db.execute(sa.select(sa.func.max(jobs.c.version))).scalar() or 0
            faults.point("ledger.claim.before")
        faults.point("ledger.claim.after")

    @contextmanager
    def _writing(self, what: str) -> Iterator[sa.Connection]:
        """One transaction of the writer; ``what`` names its fault points, just before and just after the commit."""
        with self._changed:
            before = self._version
            try:
                with self._db.begin() as db:
                    if _fact(db, "epoch") != str(self._epoch):
                        self.fenced = True
                        self.when_fenced()
                        raise LedgerError(
                            "another agent has taken over this project", hint="This agent must end.", retryable=False
                        )
                    yield db
                    faults.point(f"ledger.{what}.before")
            except BaseException:
                self._version = before
                raise
            faults.point(f"ledger.{what}.after")
            self._changed.notify_all()

    def check_claim(self) -> None:
        """See whether another agent has claimed the ledger meanwhile, without writing anything. Raises LedgerError."""
        with self._reading() as db:
            if _fact(db, "epoch") != str(self._epoch):
                self.fenced = True
                self.when_fenced()

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._db.reading() as db:
            yield db

    @contextmanager
    def _changing(self, what: str) -> Iterator[tuple[sa.Connection, Changes]]:
        with self._writing(what) as db:
            changes = Changes(db, self._clock.now(), self._next_version, self._limits_of)
            yield db, changes
            changes.flush()

    def know_limits(self, cluster: str, limits: Callable[[Resources], PartitionLimits]) -> None:
        """From now on ask ``limits`` what a cluster's partitions allow, when a job needs more than it asked for."""
        self._limits[cluster] = limits

    def _limits_of(self, cluster: str, resources: Resources) -> PartitionLimits:
        return self._limits[cluster](resources) if cluster in self._limits else NO_LIMITS

    def _next_version(self) -> int:
        self._version += 1
        return self._version

    def fact(self, name: str) -> str:
        """A remembered value, empty if there is none."""
        with self._reading() as db:
            return _fact(db, name)

    def remember(self, name: str, value: str) -> None:
        """Remember a value under a name."""
        with self._writing("remember") as db:
            _put_fact(db, name, value)

    # -- intents ----------------------------------------------------------------------------------------------

    def plan(self, specs: Sequence[JobSpec], incarnation: int) -> list[JobView]:
        """Record intents; answers what is known of each key, in the given order.

        A key that is new becomes PLANNED. A known one is left as it is, unless it ended in an earlier
        incarnation of its run: then it becomes the next attempt, with the new specification.

        Raises:
            Conflict: a key of this incarnation is known with another specification.
        """
        keys = [spec.key for spec in specs]
        with self._changing("plan") as (db, changes):
            known = {row.key: row for row in select_in(db, _IDENTITY, jobs.c.key, keys)}
            new = []
            for spec in specs:
                fingerprint = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
                row = known.get(spec.key)
                if row is None:
                    new.append(self._new_row(spec, fingerprint, incarnation, changes.now))
                elif row.incarnation < incarnation:
                    values: dict[str, Any] = {"incarnation": incarnation}
                    if JobState(row.state).terminal:
                        job = changes.load([spec.key])[spec.key]
                        changes.next_attempt(job, "", resources=None, **dict.fromkeys(COUNTERS, 0))
                        values |= {"spec": spec.model_dump(mode="json"), "fingerprint": fingerprint}
                    db.execute(jobs.update().where(jobs.c.key == spec.key).values(**values))
                elif row.fingerprint != fingerprint:
                    raise Conflict(
                        f"job {spec.key} ({spec.task_id}) was already asked for with another script or resources"
                    )
            if new:
                db.execute(jobs.insert(), new)
                changes.log_new([row["key"] for row in new])
            changes.flush()
            rows = {row.key: row for row in select_in(db, sa.select(jobs), jobs.c.key, keys)}
        return [job_view(rows[key]) for key in keys]

    def _new_row(self, spec: JobSpec, fingerprint: str, incarnation: int, now: float) -> dict[str, Any]:
        return {
            "key": spec.key,
            "run_id": spec.run_id,
            "task_id": spec.task_id,
            "idx": spec.index,
            "label": spec.label,
            "name": spec.name,
            "cluster": spec.cluster,
            "spec": spec.model_dump(mode="json"),
            "fingerprint": fingerprint,
            "incarnation": incarnation,
            "state": JobState.PLANNED.value,
            "version": self._next_version(),
            "seen_at": now,
        }

    def planned(self, cluster: str, limit: int) -> list[Planned]:
        """Attempts that wait to be sent to a cluster, oldest first; those of paused runs are left out."""
        query = (
            sa.select(jobs.c.key, jobs.c.attempt, jobs.c.spec, jobs.c.resources)
            .where(jobs.c.cluster == cluster, jobs.c.state == JobState.PLANNED.value, jobs.c.cancel.is_(False))
            .where(jobs.c.run_id.not_in(_PAUSED))
            .order_by(jobs.c.seq)
            .limit(limit)
        )
        with self._reading() as db:
            return [Planned(row.key, row.attempt, _spec(row.spec, row.resources)) for row in db.execute(query)]

    # -- submissions ------------------------------------------------------------------------------------------

    def prepare(
        self, cluster: str, groups: Sequence[Sequence[Planned]], log_path: Callable[[str, int], str]
    ) -> list[Batch]:
        """Make one submission of each group, and its attempts SUBMITTING, in one transaction.

        ``log_path(batch_id, position)`` names each element's log. Attempts that changed meanwhile are left out.
        """
        made: list[Batch] = []
        with self._changing("prepare") as (db, changes):
            found = changes.load(p.key for group in groups for p in group)
            for group in groups:
                members = [p for p in group if _still_planned(found.get(p.key), p.attempt)]
                if not members:
                    continue
                batch_id = "b" + secrets.token_hex(8)
                db.execute(
                    batches.insert().values(
                        batch_id=batch_id,
                        cluster=cluster,
                        state="PREPARED",
                        size=len(members),
                        created_at=changes.now,
                        resources=members[0].spec.resources.model_dump(mode="json"),
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
                    stdout = log_path(batch_id, position)
                    changes.move(
                        found[member.key],
                        JobState.SUBMITTING,
                        "agent",
                        batch_id=batch_id,
                        stdout=stdout,
                        seen_at=changes.now,
                    )
                made.append(Batch(batch_id, cluster, "PREPARED", "", len(members), None))
        return made

    def open_batches(self, cluster: str) -> list[Batch]:
        """Submissions without a final answer, oldest first; those of paused runs that were not made are left out."""
        held = (
            sa.select(batch_jobs.c.batch_id)
            .join_from(batch_jobs, jobs, batch_jobs.c.job_key == jobs.c.key)
            .where(jobs.c.run_id.in_(_PAUSED))
        )
        query = (
            sa.select(batches)
            .where(batches.c.cluster == cluster, batches.c.state.in_(["PREPARED", "SENT"]))
            .where((batches.c.state == "SENT") | batches.c.batch_id.not_in(held))
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
            sa.select(batch_jobs.c.job_key, batch_jobs.c.attempt, jobs.c.spec, batches.c.resources)
            .join_from(batch_jobs, jobs, batch_jobs.c.job_key == jobs.c.key)
            .join(batches, batches.c.batch_id == batch_jobs.c.batch_id)
            .where(batch_jobs.c.batch_id == batch_id)
            .order_by(batch_jobs.c.position)
        )
        with self._reading() as db:
            return [Planned(row.job_key, row.attempt, _spec(row.spec, row.resources)) for row in db.execute(query)]

    def seen_as(self, batch_id: str) -> str:
        """The scheduler's id of a job of this submission that some witness has seen; empty if none has."""
        query = sa.select(jobs.c.scheduler_id).where(jobs.c.batch_id == batch_id, jobs.c.scheduler_id != "").limit(1)
        with self._reading() as db:
            return db.execute(query).scalar() or ""

    def mark_sent(self, batch_ids: Sequence[str], commands: Mapping[str, Sequence[str]] | None = None) -> None:
        """These submissions are about to be sent, with these commands: from now on their answers may be lost."""
        with self._writing("mark_sent") as db:
            now = self._clock.now()
            db.execute(
                batches.update()
                .where(batches.c.batch_id.in_(batch_ids), batches.c.state == "PREPARED")
                .values(state="SENT", sent_at=now)
            )
            if commands:
                rows = [{"of": batch_id, "new_command": list(argv)} for batch_id, argv in commands.items()]
                db.execute(_COMMAND, rows)

    def put_off(self, batch_id: str, reason: str) -> None:
        """The submission was not accepted *for now*: it was certainly not made, and will be sent again."""
        with self._changing("put_off") as (db, changes):
            db.execute(_batch_update(batch_id, state="PREPARED", reason=reason))
            _explain(db, changes, batch_id, reason)

    def explain_wait(self, batch_id: str, reason: str) -> None:
        """Say why a submission without an answer is still waiting."""
        with self._changing("explain_wait") as (db, changes):
            _explain(db, changes, batch_id, reason)

    def accept(self, batch_id: str, scheduler_id: str) -> None:
        """The scheduler has the submission under this id (of the job, or of the array)."""
        with self._changing("accept") as (db, changes):
            row = db.execute(sa.select(batches).where(batches.c.batch_id == batch_id)).one()
            if row.state == "ACCEPTED":
                return
            db.execute(_batch_update(batch_id, state="ACCEPTED", scheduler_id=scheduler_id, reason=""))
            for position, job, base in _members(db, changes, batch_id):
                element = element_id(scheduler_id, position, row.size)
                at = changes.now
                changes.see(job, base, Sighting(batch_id, position, JobState.QUEUED, at, "agent", scheduler_id=element))

    def reject(self, batch_id: str, reason: str) -> None:
        """The scheduler refused the submission for good."""
        with self._changing("reject") as (db, changes):
            self._give_up(db, changes, batch_id, JobState.REJECTED, reason)

    def _give_up(self, db: sa.Connection, changes: Changes, batch_id: str, state: JobState, reason: str) -> None:
        db.execute(_batch_update(batch_id, state="REJECTED", reason=reason))
        for position, job, base in _members(db, changes, batch_id):
            changes.see(job, base, Sighting(batch_id, position, state, changes.now, "agent", reason=reason))

    def abandon_cancelled(self, cluster: str) -> None:
        """Submissions that were certainly not made, and whose every job was cancelled meanwhile, are given up."""
        wanted = (
            sa.select(batch_jobs.c.batch_id)
            .join_from(batch_jobs, jobs, batch_jobs.c.job_key == jobs.c.key)
            .where(jobs.c.cancel.is_(False))
        )
        unwanted = sa.select(batches.c.batch_id).where(
            batches.c.cluster == cluster, batches.c.state == "PREPARED", batches.c.batch_id.not_in(wanted)
        )
        with self._reading() as db:
            if not db.execute(unwanted).all():
                return
        with self._changing("abandon_cancelled") as (db, changes):
            for (batch_id,) in db.execute(unwanted).all():
                self._give_up(db, changes, batch_id, JobState.CANCELLED, "cancelled before it was submitted")

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
        with self._changing("see") as (db, changes):
            wanted = list({s.batch_id for s in pending})
            if len(pending) == 1:
                one = pending[0]
                query = _MEMBER.where(batch_jobs.c.position == one.position)
            else:
                query = _MEMBER
            found = {(r.batch_id, r.position): r for r in select_in(db, query, batch_jobs.c.batch_id, wanted)}
            keys = [m.job_key for s in pending if (m := found.get((s.batch_id, s.position))) is not None]
            known = changes.load(keys)
            for sighting in pending:
                member = found.get((sighting.batch_id, sighting.position))
                if member is not None:
                    changes.see(known[member.job_key], member.attempt, sighting)
            if offset is not None:
                _put_fact(db, offset[0], str(offset[1]))

    def live(self, cluster: str) -> list[Live]:
        """Jobs of a cluster that the scheduler may know and that have not ended."""
        query = (
            sa.select(
                *(
                    jobs.c[n]
                    for n in (
                        "key",
                        "run_id",
                        "state",
                        "attempt",
                        "batch_id",
                        "scheduler_id",
                        "seen_at",
                        "cancel",
                        "reason",
                    )
                ),
                batch_jobs.c.position,
                batch_jobs.c.attempt.label("base"),
                batches.c.size,
            )
            .join_from(
                jobs,
                batch_jobs,
                sa.and_(batch_jobs.c.batch_id == jobs.c.batch_id, batch_jobs.c.job_key == jobs.c.key),
            )
            .join(batches, batches.c.batch_id == jobs.c.batch_id)
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
                    row.size,
                    row.scheduler_id,
                    row.seen_at,
                    row.cancel,
                    row.reason,
                )
                for row in db.execute(query)
            ]

    # -- cancelling and reading -------------------------------------------------------------------------------

    def cancel(self, run_id: str, keys: Sequence[str] | None) -> None:
        """Mark jobs to be cancelled; those that were never sent are CANCELLED at once. Idempotent."""
        wanted = None if keys is None else set(keys)
        query = sa.select(jobs.c.key).where(jobs.c.run_id == run_id, jobs.c.state.in_(LIVE), jobs.c.cancel.is_(False))
        with self._changing("cancel") as (db, changes):
            found = [row.key for row in db.execute(query) if wanted is None or row.key in wanted]
            known = changes.load(found)
            for key in found:
                job = known[key]
                changes.set(job, visible=False, cancel=True)
                if job["state"] == JobState.PLANNED.value:
                    reason = "cancelled before it was submitted"
                    changes.move(job, JobState.CANCELLED, "agent", reason, ended_at=changes.now)

    def throttle(self, run_id: str, keys: Sequence[str], limit: int) -> dict[str, list[str]]:
        """Note that at most ``limit`` of these jobs may run at once (0: no limit), for every later submission of them.

        Answers the arrays that the scheduler has of them, by cluster: it has to be told, too.

        Raises:
            Conflict: a submission of them is on its way; asking again in a moment helps.
        """
        query = sa.select(jobs.c.key, jobs.c.spec, jobs.c.cluster, jobs.c.batch_id).where(
            jobs.c.run_id == run_id, jobs.c.state.in_(LIVE)
        )
        with self._writing("throttle") as db:
            found = select_in(db, query, jobs.c.key, list(keys))
            sent = list({row.batch_id for row in found if row.batch_id})
            made = select_in(db, sa.select(batches), batches.c.batch_id, sent)
            if any(batch.state == "SENT" for batch in made):
                raise Conflict("a submission of these jobs is on its way", hint="Try again.", retryable=True)
            if found:
                db.execute(_SPEC, [{"of": row.key, "new_spec": row.spec | {"throttle": limit}} for row in found])
        arrays: dict[str, list[str]] = {}
        for batch in made:
            if batch.state == "ACCEPTED" and batch.size > 1:
                arrays.setdefault(batch.cluster, []).append(batch.scheduler_id)
        return arrays

    def job(self, key: str) -> tuple[JobView, JobSpec]:
        """A job, as it is known and as it was asked for. Raises NotFound."""
        with self._reading() as db:
            row = db.execute(sa.select(jobs).where(jobs.c.key == key)).first()
        if row is None:
            raise NotFound(f"there is no job {key!r}")
        return job_view(row), JobSpec.model_validate(row.spec)

    def observe(self, run_id: str, since: int, wait: float) -> Observation:
        """The run's jobs that changed after ``since``, at most 5,000; waits up to ``wait`` seconds for one."""
        deadline = self._clock.monotonic() + wait
        query = _VIEWED.where(jobs.c.run_id == run_id).order_by(jobs.c.version).limit(OBSERVED)
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


def _spec(spec: dict[str, Any], resources: dict[str, Any] | None) -> JobSpec:
    """What was asked for, with the resources of one attempt."""
    return JobSpec.model_validate(spec if resources is None else spec | {"resources": resources})


def _batch(row: Any) -> Batch:
    return Batch(row.batch_id, row.cluster, row.state, row.scheduler_id, row.size, row.sent_at)


def _fact(db: sa.Connection, name: str) -> str:
    return db.execute(sa.select(facts.c.value).where(facts.c.name == name)).scalar() or ""


def _put_fact(db: sa.Connection, name: str, value: str) -> None:
    if db.execute(facts.update().where(facts.c.name == name).values(value=value)).rowcount == 0:
        db.execute(facts.insert().values(name=name, value=value))


def _batch_update(batch_id: str, **values: Any) -> sa.Update:
    return batches.update().where(batches.c.batch_id == batch_id).values(**values)


def _members(db: sa.Connection, changes: Changes, batch_id: str) -> Iterator[tuple[int, Job, int]]:
    """Position, job and base attempt of each element of a submission."""
    members = db.execute(_MEMBER.where(batch_jobs.c.batch_id == batch_id)).all()
    known = changes.load(m.job_key for m in members)
    for member in members:
        yield member.position, known[member.job_key], member.attempt


def _explain(db: sa.Connection, changes: Changes, batch_id: str, reason: str) -> None:
    for _, job, _ in _members(db, changes, batch_id):
        if job["batch_id"] == batch_id and job["state"] == JobState.SUBMITTING.value:
            changes.set(job, reason=reason)


def _still_planned(job: Job | None, attempt: int) -> bool:
    return job is not None and (job["state"], job["attempt"], job["cancel"]) == (
        JobState.PLANNED.value,
        attempt,
        False,
    )
