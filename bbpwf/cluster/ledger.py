"""The ledger: every job that was ever wanted, and everything that was ever seen of it.

Three rules hold it together.

- An intent is committed before anything is sent, so nothing that runs is unknown.
- States move forward only: a sighting is applied if its ``(attempt, rank)`` is greater than what is recorded,
  and ignored otherwise. Reading the same event twice, or late, changes nothing.
- One writer: see :mod:`bbpwf.cluster.writer`.

Times are Unix seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from bbpwf.cluster.changes import COUNTERS, Sighting, select_in
from bbpwf.cluster.jobs import JobSpec, JobView, Observation
from bbpwf.cluster.schema import batch_jobs, batches, jobs, transitions
from bbpwf.cluster.submissions import LIVE, Submissions
from bbpwf.cluster.views import VIEWED, job_view
from bbpwf.cluster.writer import put_fact
from bbpwf.errors import Conflict, NotFound
from bbpwf.states import JobState

_IDENTITY = sa.select(jobs.c.key, jobs.c.state, jobs.c.incarnation, jobs.c.fingerprint)
_SPEC = jobs.update().where(jobs.c.key == sa.bindparam("of")).values(spec=sa.bindparam("new_spec"))
_VIEW = sa.select(*VIEWED).where(jobs.c.key == sa.bindparam("of"))
_STATES = {state.value: state for state in JobState}
OBSERVED = 5000
"""Most jobs that one observation tells of; the next tells the rest."""
_NEWS = (
    sa.select(*VIEWED)
    .where(jobs.c.run_id == sa.bindparam("run"), jobs.c.version > sa.bindparam("since"))
    .order_by(jobs.c.version)
    .limit(OBSERVED)
)
_LIVE = (
    sa.select(
        jobs.c.key,
        jobs.c.run_id,
        jobs.c.state,
        jobs.c.attempt,
        batch_jobs.c.attempt.label("base"),
        jobs.c.batch_id,
        batch_jobs.c.position,
        batches.c.size,
        jobs.c.scheduler_id,
        jobs.c.cancel,
        jobs.c.reason,
    )
    .join_from(jobs, batch_jobs, sa.and_(batch_jobs.c.batch_id == jobs.c.batch_id, batch_jobs.c.job_key == jobs.c.key))
    .join(batches, batches.c.batch_id == jobs.c.batch_id)
    .where(jobs.c.cluster == sa.bindparam("cluster"), jobs.c.state.in_([JobState.QUEUED.value, JobState.RUNNING.value]))
)


@dataclass(frozen=True, slots=True)
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
    cancel: bool
    reason: str = ""


class Ledger(Submissions):
    """All access to jobs and submissions. Thread-safe; one process at a time may write."""

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
                    new.append(self._new_row(spec, fingerprint, incarnation))
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
            rows = {row.key: row for row in select_in(db, sa.select(*VIEWED), jobs.c.key, keys)}
        return [job_view(rows[key]) for key in keys]

    def _new_row(self, spec: JobSpec, fingerprint: str, incarnation: int) -> dict[str, Any]:
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
        }

    # -- what is seen -----------------------------------------------------------------------------------------

    def see(self, sightings: Iterable[Sighting], *, offset: tuple[str, int] | None = None) -> bool:
        """Apply sightings in one transaction; ``offset`` (fact name, bytes) is remembered with them.

        Sightings of submissions that this ledger does not know are ignored: another agent's. Answers whether any
        of these jobs is to be tried again.
        """
        pending = list(sightings)
        if not pending and offset is None:
            return False
        with self._changing("see") as (db, changes):
            found = changes.load_places((each.batch_id, each.position) for each in pending)
            for sighting in pending:
                member = found.get((sighting.batch_id, sighting.position))
                if member is not None:
                    changes.see(*member, sighting)
            if offset is not None:
                put_fact(db, offset[0], str(offset[1]))
            return changes.planned_again

    def live(self, cluster: str) -> list[Live]:
        """Jobs of a cluster that the scheduler may know and that have not ended."""
        with self._reading() as db:
            rows = db.execute(_LIVE, {"cluster": cluster}).all()
        return [Live(key, run_id, _STATES[state], *rest) for key, run_id, state, *rest in rows]

    # -- cancelling and reading -------------------------------------------------------------------------------

    def cancel(self, run_id: str, keys: Sequence[str] | None) -> None:
        """Mark jobs to be cancelled; those that were never sent are CANCELLED at once. Idempotent."""
        query = sa.select(jobs.c.key).where(jobs.c.run_id == run_id, jobs.c.state.in_(LIVE), jobs.c.cancel.is_(False))
        with self._changing("cancel") as (db, changes):
            rows = db.execute(query).all() if keys is None else select_in(db, query, jobs.c.key, list(keys))
            found = [row.key for row in rows]
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

    def view(self, key: str) -> JobView:
        """A job as it is known. Raises NotFound."""
        with self._reading() as db:
            row = db.execute(_VIEW, {"of": key}).first()
        if row is None:
            raise NotFound(f"there is no job {key!r}")
        return job_view(row)

    def observe(self, run_id: str, since: int, wait: float) -> Observation:
        """The run's jobs that changed after ``since``, at most 5,000; waits up to ``wait`` seconds for one."""
        deadline = self._clock.monotonic() + wait
        while True:
            with self._changed:
                version = self._version
            with self._reading() as db:
                rows = db.execute(_NEWS, {"run": run_id, "since": since}).all()
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
