"""Runs as durable facts: created by a launch, moved by the supervisor, read by everybody.

A run is created once per ``(owner, idempotency key)``. Its state moves as :class:`bbpwf.states.RunState` allows;
a finished run that did not complete may be *resumed*, which starts its next incarnation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from bbpwf import faults
from bbpwf.clock import Clock
from bbpwf.cluster.changes import select_in
from bbpwf.cluster.creations import Creations
from bbpwf.cluster.database import Database
from bbpwf.cluster.jobs import JobView, TaskReport
from bbpwf.cluster.notices import record
from bbpwf.cluster.quota import Quota, Room
from bbpwf.cluster.records import (
    TASK_STATES,
    Owner,
    RunRecord,
    RunRequest,
    RunSummary,
    TaskRecord,
    job_run_state,
    run_record,
    run_summary,
    task_record,
)
from bbpwf.cluster.schema import jobs, run_tags, runs, tasks
from bbpwf.cluster.views import job_view
from bbpwf.errors import Conflict, InvalidInput, NotFound
from bbpwf.states import JobState, RunState

__all__ = ["MAX_PAGE", "Owner", "RunRecord", "RunRequest", "RunStore", "RunSummary", "TaskRecord"]

MAX_PAGE = 1000
"""Most rows of one page of runs or tasks."""


class RunStore:
    """The runs of one instance. Safe to use from several processes at once.

    Args:
        database: where they are.
        clock: dates them.
        notified: who is to hear of the end of a run that was asked for so; see :mod:`bbpwf.cluster.notices`.
        quota: how many runs may be unfinished; any number if ``None``.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        notified: Callable[[RunRequest], Iterable[str]] = lambda _: (),
        quota: Quota | None = None,
    ) -> None:
        self._db = database
        self._quota = quota
        self._notified = notified
        self._clock = clock
        self.embedded = database.embedded
        """Whether an event loop may call :meth:`state`, :meth:`summaries` and :meth:`counts` itself."""
        self._creations = Creations(database, clock, quota)
        self._counted: tuple[tuple[int, int] | None, dict[RunState, int]] = None, {}

    def create(self, request: RunRequest, owner: Owner, idempotency_key: str = "") -> RunRecord:
        """A new QUEUED run; or the run that this owner already created with this key.

        Raises:
            Conflict: the key was used for a different request.
            TooManyRuns: as many are unfinished as may be.
        """
        return self._creations.create(request, owner, idempotency_key)

    def get(self, run_id: str) -> RunRecord:
        """The run. Raises NotFound."""
        with self._db.engine.connect().execution_options(reading=True) as db:
            return run_record(self._row(db, run_id))

    def state(self, run_id: str) -> RunState:
        """The run's state alone. Raises NotFound."""
        rows = self._db.look(_STATE, {"of": run_id})
        if not rows:
            raise NotFound(f"there is no run {run_id!r}")
        return RunState(rows[0][0])

    def pulse(self, run_id: str) -> tuple[Any, ...]:
        """Something that differs whenever the run, or a job of it, has changed. Raises NotFound."""
        rows = self._db.look(_PULSE, {"of": run_id})
        if not rows:
            raise NotFound(f"there is no run {run_id!r}")
        return tuple(rows[0])

    def summaries(self, limit: int = 20, token: str = "") -> tuple[list[RunSummary], str]:
        """As :meth:`page`, without what a list does not show. Raises InvalidInput."""
        values = {"before": _position(token) if token else _LAST, "most": _limit(limit) + 1}
        rows = self._db.look(_SUMMARIES, values)
        following = str(rows[limit - 1][0]) if len(rows) > limit else ""
        return [run_summary(row) for row in rows[:limit]], following

    def found(
        self, limit: int, token: str, *, states: Sequence[RunState], tags: Mapping[str, str]
    ) -> tuple[list[RunSummary], str]:
        """As :meth:`summaries`, of those in one of these states and with all of these tags. Raises InvalidInput."""
        page, following = self.page(limit=limit, token=token, states=states, tags=tags)
        return [RunSummary(r.run_id, r.state, r.started_at, r.ended_at, r.tags) for r in page], following

    def page(
        self,
        *,
        limit: int = 20,
        token: str = "",
        states: Sequence[RunState] = (),
        tags: Mapping[str, str] | None = None,
    ) -> tuple[list[RunRecord], str]:
        """Newest first. The second value is the token of the next page, empty at the end.

        Raises:
            InvalidInput: a token that no page gave out, or a limit outside 1 … 1000.
        """
        query = sa.select(runs).order_by(runs.c.seq.desc()).limit(_limit(limit) + 1)
        if token:
            query = query.where(runs.c.seq < _position(token))
        if states:
            query = query.where(runs.c.state.in_([s.value for s in states]))
        for name, value in (tags or {}).items():
            tagged = sa.select(run_tags.c.run_id).where(run_tags.c.name == name, run_tags.c.value == value)
            query = query.where(runs.c.run_id.in_(tagged))
        with self._db.engine.connect().execution_options(reading=True) as db:
            rows = db.execute(query).all()
        following = str(rows[limit - 1].seq) if len(rows) > limit else ""
        return [run_record(row) for row in rows[:limit]], following

    def move(
        self, run_id: str, state: RunState, reason: str = "", *, outcome: Mapping[str, Any] | None = None
    ) -> RunRecord:
        """Bring the run into ``state``; to where it is already, only ``reason`` changes.

        Raises:
            Conflict: its present state does not allow that.
        """
        with self._db.begin() as db:
            row = self._row(db, run_id)
            present = RunState(row.state)
            if present is not state and not present.may_become(state):
                raise Conflict(f"run {run_id} is {present} and cannot become {state}")
            now = self._clock.now()
            values: dict[str, Any] = {"state": state.value, "reason": reason}
            if state is RunState.RUNNING and row.started_at is None:
                values["started_at"] = now
            if state.terminal and present is not state:
                values["ended_at"] = now
            if outcome is not None:
                values["outcome"] = dict(outcome)
            db.execute(runs.update().where(runs.c.run_id == run_id).values(**values))
            moved = run_record(self._row(db, run_id))
            if state.terminal and present is not state:
                record(db, run_id, moved.incarnation, state.value, self._notified(moved.request), now)
            faults.point("runs.move.before")
        faults.point("runs.move.after")
        return moved

    def resume(self, run_id: str) -> RunRecord:
        """Queue a finished run again: what completed stays, the rest is tried anew. A paused one just goes on.

        Raises:
            Conflict: it is neither finished nor paused, or it completed.
            TooManyRuns: as many are unfinished as may be.
        """
        with self._db.begin() as db:
            row = self._row(db, run_id)
            present = RunState(row.state)
            if present is RunState.PAUSED:
                values = {"state": RunState.QUEUED.value, "reason": "going on after a pause"}
                db.execute(runs.update().where(runs.c.run_id == run_id).values(**values))
                return run_record(self._row(db, run_id))
            if not present.terminal:
                raise Conflict(f"run {run_id} is {present}: only a finished or paused run can be resumed")
            if present is RunState.COMPLETE:
                raise Conflict(f"run {run_id} is COMPLETE: there is nothing to resume")
            if self._quota is not None:
                Room(self._quota, db).take(row.sub)
            db.execute(
                runs.update()
                .where(runs.c.run_id == run_id)
                .values(
                    state=RunState.QUEUED.value,
                    reason="resumed",
                    incarnation=row.incarnation + 1,
                    ended_at=None,
                    outcome=None,
                )
            )
            resumed = run_record(self._row(db, run_id))
            faults.point("runs.resume.before")
        faults.point("runs.resume.after")
        return resumed

    def unfinished(self) -> list[RunRecord]:
        """Every run that is not in a terminal state, oldest first."""
        query = sa.select(runs).where(runs.c.state.not_in([s.value for s in RunState if s.terminal]))
        with self._db.engine.connect().execution_options(reading=True) as db:
            return [run_record(row) for row in db.execute(query.order_by(runs.c.seq))]

    def live_jobs(self) -> int:
        """How many jobs of all runs have not ended."""
        with self._db.reading() as db:
            return int(db.execute(_LIVE_JOBS).scalar_one())

    def counts(self) -> dict[RunState, int]:
        """How many runs are in each state; states without runs are 0."""
        version, known = self._counted
        now = self._db.version()  # before the look: what changes after it is seen the next time
        if now is None or now != version:
            found = {RunState(state): int(count) for state, count in self._db.look(_COUNTS, {})}
            known = dict.fromkeys(RunState, 0) | found
            self._counted = now, known
        return dict(known)

    def report(self, run_id: str, reports: Sequence[TaskReport]) -> None:
        """Record what became of Luigi tasks. A later report of the same task replaces the earlier."""
        if not reports:
            return
        rows = [
            {
                "run_id": run_id,
                "of": each.task_id,
                "family": each.family,
                "params": each.params,
                "state": each.state,
                "started_at": each.started_at,
                "ended_at": each.ended_at,
                "message": each.message[:20_000],
            }
            for each in reports
        ]
        with self._db.begin() as db:
            ids = [each.task_id for each in reports]
            query = sa.select(tasks.c.task_id).where(tasks.c.run_id == run_id)
            known = {row.task_id for row in select_in(db, query, tasks.c.task_id, ids)}
            if old := [row for row in rows if row["of"] in known]:
                db.execute(_TASK_UPDATE, [{f"new_{k}": v for k, v in row.items()} for row in old])
            if new := [row for row in rows if row["of"] not in known]:
                db.execute(tasks.insert(), [{"task_id": row.pop("of"), **row} for row in new])

    def tasks(self, run_id: str, *, limit: int = 100, token: str = "") -> tuple[list[TaskRecord], str]:
        """A page of the run's tasks, each followed by its array elements; and the next page's token."""
        offset = _position(token) if token else 0
        entries = self._entries(run_id)
        page = [task_record(*entry) for entry in entries[offset : offset + _limit(limit)]]
        return page, str(offset + limit) if offset + limit < len(entries) else ""

    def families(self, run_id: str) -> list[tuple[str, RunState, int]]:
        """How many of the run's tasks (elements, of arrays) are in which state, by family: cheap for large runs."""
        with self._db.reading() as db:
            rows = db.execute(_FAMILIES, {"of": run_id}).all()
        counts: dict[tuple[str, RunState], int] = {}
        for family, reported, job, count in rows:
            state = TASK_STATES[reported]
            if job is not None and not state.terminal:
                state = job_run_state(JobState(job))
            counts[family, state] = counts.get((family, state), 0) + count
        return [(family, state, count) for (family, state), count in counts.items()]

    def task(self, run_id: str, task_id: str) -> TaskRecord:
        """One task or array element of the run, with its job's script. Raises NotFound."""
        for entry_id, row, job in self._entries(run_id):
            if entry_id == task_id:
                record = task_record(entry_id, row, job)
                if job is None:
                    return record
                with self._db.engine.connect().execution_options(reading=True) as db:
                    spec = db.execute(sa.select(jobs.c.spec).where(jobs.c.key == job.key)).scalar_one()
                return record.model_copy(update={"command": spec.get("script", "")})
        raise NotFound(f"run {run_id} has no task {task_id!r}")

    def job_keys(self, run_id: str, task_id: str) -> list[str]:
        """The jobs of one task (an array's elements) or of one element, ``<task id>.<index>``.

        Raises:
            NotFound: the run has no such task.
            Conflict: the task has no jobs: it is none that runs on the cluster, or nothing was asked for yet.
        """
        mine = [entry for entry in self._entries(run_id) if entry[0] == task_id or _is_element(entry[0], task_id)]
        if not mine:
            raise NotFound(f"run {run_id} has no task {task_id!r}")
        keys = [job.key for _, _, job in mine if job is not None]
        if not keys:
            raise Conflict(f"task {task_id!r} has no jobs")
        return keys

    def job(self, run_id: str, key: str) -> JobView:
        """One job of the run, by its key. Raises NotFound."""
        with self._db.engine.connect().execution_options(reading=True) as db:
            row = db.execute(sa.select(jobs).where(jobs.c.key == key, jobs.c.run_id == run_id)).first()
        if row is None:
            raise NotFound(f"run {run_id} has no job {key!r}")
        return job_view(row)

    def jobs(self, run_id: str) -> list[JobView]:
        """Every job of the run, in the order they were asked for."""
        with self._db.engine.connect().execution_options(reading=True) as db:
            self._row(db, run_id)
            query = sa.select(jobs).where(jobs.c.run_id == run_id).order_by(jobs.c.seq)
            return [job_view(row) for row in db.execute(query)]

    def _entries(self, run_id: str) -> list[tuple[str, Any, Any]]:
        """Id, task row and job row of each entry of the task list; one of the rows may be ``None``."""
        with self._db.engine.connect().execution_options(reading=True) as db:
            self._row(db, run_id)
            reported = db.execute(sa.select(tasks).where(tasks.c.run_id == run_id).order_by(tasks.c.seq)).all()
            found = db.execute(_JOBS.where(jobs.c.run_id == run_id).order_by(jobs.c.task_id, jobs.c.idx)).all()
        by_task: dict[str, list[Any]] = {}
        for job in found:
            by_task.setdefault(job.task_id, []).append(job)
        entries: list[tuple[str, Any, Any]] = []
        for row in reported:
            own = by_task.pop(row.task_id, [])
            entries.append((row.task_id, row, own[0] if len(own) == 1 and own[0].idx is None else None))
            entries.extend((f"{row.task_id}.{job.idx}", None, job) for job in own if job.idx is not None)
        for task_id, own in by_task.items():  # jobs whose task was not reported yet
            if own[0].idx is not None:
                entries.append((task_id, None, None))
            entries.extend((task_id if job.idx is None else f"{task_id}.{job.idx}", None, job) for job in own)
        return entries

    @staticmethod
    def _row(db: sa.Connection, run_id: str) -> Any:
        row = db.execute(sa.select(runs).where(runs.c.run_id == run_id)).first()
        if row is None:
            raise NotFound(f"there is no run {run_id!r}")
        return row


_LAST = 2**62
_STATE = sa.select(runs.c.state).where(runs.c.run_id == sa.bindparam("of"))
_PULSE = sa.select(
    runs.c.state,
    runs.c.reason,
    runs.c.incarnation,
    sa.select(sa.func.max(jobs.c.version)).where(jobs.c.run_id == runs.c.run_id).scalar_subquery(),
).where(runs.c.run_id == sa.bindparam("of"))
_COUNTS = sa.select(runs.c.state, sa.func.count()).group_by(runs.c.state)
_TAGS: sa.ColumnElement[Any] = sa.literal_column("request -> 'tags'", sa.JSON)  # SQLite since 3.38 and PostgreSQL alike
_SUMMARIES = (
    sa.select(runs.c.seq, runs.c.run_id, runs.c.state, runs.c.started_at, runs.c.ended_at, _TAGS)
    .where(runs.c.seq < sa.bindparam("before", type_=sa.BigInteger))
    .order_by(runs.c.seq.desc())
    .limit(sa.bindparam("most", type_=sa.Integer))
)


_JOBS = sa.select(*(column for column in jobs.c if column.name not in {"spec", "fingerprint"}))
_FAMILIES = (
    sa.select(tasks.c.family, tasks.c.state, jobs.c.state.label("job"), sa.func.count())
    .join_from(tasks, jobs, (jobs.c.run_id == tasks.c.run_id) & (jobs.c.task_id == tasks.c.task_id), isouter=True)
    .where(tasks.c.run_id == sa.bindparam("of"))
    .group_by(tasks.c.family, tasks.c.state, jobs.c.state)
    .order_by(sa.func.min(tasks.c.seq))
)
_TASK_UPDATE = (
    tasks.update()
    .where(tasks.c.run_id == sa.bindparam("new_run_id"), tasks.c.task_id == sa.bindparam("new_of"))
    .values({n: sa.bindparam(f"new_{n}") for n in ("family", "params", "state", "started_at", "ended_at", "message")})
)


_LIVE_JOBS = (
    sa.select(sa.func.count()).select_from(jobs).where(jobs.c.state.not_in([s.value for s in JobState if s.terminal]))
)


def _is_element(entry_id: str, task_id: str) -> bool:
    parent, dot, index = entry_id.rpartition(".")
    return bool(dot) and index.isdigit() and parent == task_id


def _limit(limit: int) -> int:
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidInput(f"a page holds 1 to {MAX_PAGE} entries, not {limit}")
    return limit


def _position(token: str) -> int:
    if not (token.isascii() and token.isdigit() and len(token) <= 15):
        raise InvalidInput(f"{token[:40]!r} is not a page token of this service")
    return int(token)
