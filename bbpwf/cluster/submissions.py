"""The ledger's submissions: which attempts were sent together, whether they were, and what was answered."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from bbpwf.cluster.changes import Changes, Job, Sighting, select_in
from bbpwf.cluster.jobs import JobSpec
from bbpwf.cluster.schema import batch_jobs, batches, jobs, runs
from bbpwf.cluster.writer import Writer
from bbpwf.errors import NotFound
from bbpwf.states import JobState, RunState

LIVE = tuple(s.value for s in JobState if not s.terminal)
PAUSED = sa.select(runs.c.run_id).where(runs.c.state == RunState.PAUSED.value)
"""Runs for which nothing new may be submitted."""
_MEMBER = sa.select(batch_jobs)
_OF_BATCH = (
    sa.select(sa.literal(1))
    .select_from(batch_jobs.join(jobs, batch_jobs.c.job_key == jobs.c.key))
    .where(batch_jobs.c.batch_id == batches.c.batch_id)
)
_MADE_OF = (
    sa.select(batches.c.batch_id, batch_jobs.c.job_key, batch_jobs.c.attempt, jobs.c.spec, batches.c.resources)
    .join_from(batches, batch_jobs, batch_jobs.c.batch_id == batches.c.batch_id)
    .join(jobs, batch_jobs.c.job_key == jobs.c.key)
    .order_by(batches.c.batch_id, batch_jobs.c.position)
)
_COMMAND = batches.update().where(batches.c.batch_id == sa.bindparam("of")).values(command=sa.bindparam("new_command"))
_ACCEPTED = (
    batches.update()
    .where(batches.c.batch_id == sa.bindparam("of"))
    .values(state="ACCEPTED", scheduler_id=sa.bindparam("new_id"), reason="")
)


@dataclass(frozen=True, slots=True)
class Planned:
    """An attempt that waits to be sent."""

    key: str
    attempt: int
    spec: JobSpec


@dataclass(frozen=True, slots=True)
class Batch:
    """One submission; ``state`` is PREPARED, SENT, ACCEPTED or REJECTED. ``members`` are told of new ones only."""

    batch_id: str
    cluster: str
    state: str
    scheduler_id: str
    size: int
    sent_at: float | None
    members: tuple[Planned, ...] = ()


class Submissions(Writer):
    """What of the ledger is about sending."""

    def planned(self, cluster: str, limit: int) -> list[Planned]:
        """Attempts that wait to be sent to a cluster, oldest first; those of paused runs are left out."""
        query = (
            sa.select(jobs.c.key, jobs.c.attempt, jobs.c.spec, jobs.c.resources)
            .where(jobs.c.cluster == cluster, jobs.c.state == JobState.PLANNED.value, jobs.c.cancel.is_(False))
            .where(jobs.c.run_id.not_in(PAUSED))
            .order_by(jobs.c.seq)
            .limit(limit)
        )
        with self._reading() as db:
            return [Planned(row.key, row.attempt, _spec(row.spec, row.resources)) for row in db.execute(query)]

    def prepare(
        self, cluster: str, groups: Sequence[Sequence[Planned]], log_path: Callable[[str, int], str]
    ) -> list[Batch]:
        """Make one submission of each group, and its attempts SUBMITTING, in one transaction.

        ``log_path(batch_id, position)`` names each element's log. Attempts that changed meanwhile are left out.
        """
        made: list[Batch] = []
        rows: list[dict[str, Any]] = []
        members: list[dict[str, Any]] = []
        with self._changing("prepare") as (db, changes):
            found = changes.load(p.key for group in groups for p in group)
            for group in groups:
                still = [p for p in group if _still_planned(found.get(p.key), p.attempt)]
                if not still:
                    continue
                batch_id = "b" + secrets.token_hex(8)
                rows.append(
                    {
                        "batch_id": batch_id,
                        "cluster": cluster,
                        "state": "PREPARED",
                        "size": len(still),
                        "created_at": changes.now,
                        "resources": still[0].spec.resources.model_dump(mode="json"),
                    }
                )
                for position, each in enumerate(still):
                    members.append(
                        {"batch_id": batch_id, "position": position, "job_key": each.key, "attempt": each.attempt}
                    )
                    log = log_path(batch_id, position)
                    of_batch = {"batch_id": batch_id, "stdout": log}
                    # nobody waits for this state: its observers hear of the next
                    changes.move(found[each.key], JobState.SUBMITTING, "agent", visible=False, **of_batch)
                made.append(Batch(batch_id, cluster, "PREPARED", "", len(still), None, tuple(still)))
            if made:
                db.execute(batches.insert(), rows)
                db.execute(batch_jobs.insert(), members)
        return made

    def open_batches(self, cluster: str) -> list[Batch]:
        """Submissions without a final answer, oldest first; those of paused runs that were not made are left out."""
        held = _OF_BATCH.where(jobs.c.run_id.in_(PAUSED)).exists()
        query = (
            sa.select(batches)
            .where(batches.c.cluster == cluster, batches.c.state.in_(["PREPARED", "SENT"]))
            .where((batches.c.state == "SENT") | ~held)
            .order_by(batches.c.created_at, batches.c.batch_id)
        )
        with self._reading() as db:
            return [_batch(row) for row in db.execute(query)]

    def accepted_batches(self, cluster: str) -> list[Batch]:
        """Accepted submissions with jobs that have not ended, oldest first."""
        live = sa.select(jobs.c.batch_id).where(jobs.c.cluster == cluster, jobs.c.state.in_(LIVE))
        query = (
            sa.select(batches)
            .where(batches.c.cluster == cluster, batches.c.state == "ACCEPTED", batches.c.batch_id.in_(live))
            .order_by(batches.c.created_at)
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

    def members(self, batch_ids: Sequence[str]) -> dict[str, list[Planned]]:
        """The attempts of each of these submissions, by position."""
        found: dict[str, list[Planned]] = {batch_id: [] for batch_id in batch_ids}
        with self._reading() as db:
            for batch_id, key, attempt, spec, resources in select_in(db, _MADE_OF, batches.c.batch_id, batch_ids):
                found[batch_id].append(Planned(key, attempt, _spec(spec, resources)))
        return found

    def seen_as(self, batch_id: str) -> str:
        """The scheduler's id of a job of this submission that some witness has seen; empty if none has."""
        member = sa.select(batch_jobs.c.job_key).where(batch_jobs.c.batch_id == batch_id)
        query = (
            sa.select(jobs.c.scheduler_id)
            .where(jobs.c.key.in_(member), jobs.c.batch_id == batch_id, jobs.c.scheduler_id != "")
            .limit(1)
        )
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
        self.accept_all({batch_id: scheduler_id})

    def accept_all(self, answers: Mapping[str, str]) -> None:
        """The scheduler has these submissions, under these ids; in one transaction."""
        with self._changing("accept") as (db, changes):
            rows = select_in(db, sa.select(batches), batches.c.batch_id, list(answers))
            new = {row.batch_id: row.size for row in rows if row.state != "ACCEPTED"}
            if not new:
                return
            db.execute(_ACCEPTED, [{"of": batch_id, "new_id": answers[batch_id]} for batch_id in new])
            members = select_in(db, _MEMBER, batch_jobs.c.batch_id, list(new))
            known = changes.load(member.job_key for member in members)
            for batch_id, position, key, base in members:
                element = element_id(answers[batch_id], position, new[batch_id])
                seen = Sighting(batch_id, position, JobState.QUEUED, changes.now, "agent", scheduler_id=element)
                changes.see(known[key], base, seen)

    def reject(self, batch_id: str, reason: str) -> None:
        """The scheduler refused the submission for good."""
        with self._changing("reject") as (db, changes):
            _give_up(db, changes, batch_id, JobState.REJECTED, reason)

    def abandon_cancelled(self, cluster: str) -> None:
        """Submissions that were certainly not made, and whose every job was cancelled meanwhile, are given up."""
        wanted = _OF_BATCH.where(jobs.c.cancel.is_(False)).exists()
        unwanted = sa.select(batches.c.batch_id).where(
            batches.c.cluster == cluster, batches.c.state == "PREPARED", ~wanted
        )
        with self._reading() as db:
            if not db.execute(unwanted).all():
                return
        with self._changing("abandon_cancelled") as (db, changes):
            for (batch_id,) in db.execute(unwanted).all():
                _give_up(db, changes, batch_id, JobState.CANCELLED, "cancelled before it was submitted")


def element_id(scheduler_id: str, position: int, size: int) -> str:
    """The scheduler's id of one element of a submission: arrays number theirs, a single job has its own."""
    return f"{scheduler_id}_{position}" if size > 1 else scheduler_id


def _give_up(db: sa.Connection, changes: Changes, batch_id: str, state: JobState, reason: str) -> None:
    db.execute(_batch_update(batch_id, state="REJECTED", reason=reason))
    for position, job, base in _members(db, changes, batch_id):
        changes.see(job, base, Sighting(batch_id, position, state, changes.now, "agent", reason=reason))


def _explain(db: sa.Connection, changes: Changes, batch_id: str, reason: str) -> None:
    for _, job, _ in _members(db, changes, batch_id):
        if job["batch_id"] == batch_id and job["state"] == JobState.SUBMITTING.value:
            changes.set(job, reason=reason)


def _members(db: sa.Connection, changes: Changes, batch_id: str) -> Iterator[tuple[int, Job, int]]:
    """Position, job and base attempt of each element of a submission."""
    members = db.execute(_MEMBER.where(batch_jobs.c.batch_id == batch_id)).all()
    known = changes.load(m.job_key for m in members)
    for member in members:
        yield member.position, known[member.job_key], member.attempt


def _spec(spec: dict[str, Any], resources: dict[str, Any] | None) -> JobSpec:
    """What was asked for, with the resources of one attempt."""
    return JobSpec.model_validate(spec if resources is None else spec | {"resources": resources})


def _batch(row: Any) -> Batch:
    return Batch(row.batch_id, row.cluster, row.state, row.scheduler_id, row.size, row.sent_at)


def _batch_update(batch_id: str, **values: Any) -> sa.Update:
    return batches.update().where(batches.c.batch_id == batch_id).values(**values)


def _still_planned(job: Job | None, attempt: int) -> bool:
    return job is not None and (job["state"], job["attempt"], job["cancel"]) == (
        JobState.PLANNED.value,
        attempt,
        False,
    )
