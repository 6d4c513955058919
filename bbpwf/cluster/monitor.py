"""Seeing what becomes of jobs: pushed events first, the queue as second witness, exit records as the last word.

- The *follower* reads one event file over one long-lived channel; a job's start and end arrive as they happen.
- The *poller* asks the queue rarely, once for all jobs, and reads the exit records of those that the queue
  no longer runs: an event may be lost, the record it was made from is not.

An end by a signal is a question, not an answer: whether it was a time limit, an operator or a lost node is the
queue's to say, so such an end waits for the next query (which is then asked at once) before it is recorded.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping

from bbpwf import faults
from bbpwf.clock import Clock
from bbpwf.cluster.backend import Backend, Entry
from bbpwf.cluster.budget import Budget
from bbpwf.cluster.causes import requeue_reason, suspicious, waiting_reason
from bbpwf.cluster.changes import Sighting
from bbpwf.cluster.inquest import Place, exit_records, forbid, place, slurm_in_logs
from bbpwf.cluster.ledger import Ledger, Live
from bbpwf.cluster.spool import Ended, Event, EventReader, Fenced, Folder, Started
from bbpwf.cluster.verdict import Evidence, decisive, ended_sighting, verdict
from bbpwf.errors import BbpwfError, SlurmError
from bbpwf.states import JobState

_log = logging.getLogger(__name__)

GATHER_S = 0.2
"""Longest wait for further events before those at hand are written down: a thousand jobs may end within seconds."""
_PER_EVENT_S = 0.05
MOST_ACCOUNTED = 2000
"""Jobs that accounting is asked about at once; others have their turn at the next query."""


class Monitor:
    """Watches one cluster. :meth:`follow` and :meth:`poll_loop` each run in a thread."""

    def __init__(
        self,
        ledger: Ledger,
        backend: Backend,
        clock: Clock,
        *,
        cluster: str,
        spool: str,
        poll_s: float,
        lost_after_s: float,
        on_change: Callable[[], None] = lambda: None,
        budget: Budget | None = None,
    ) -> None:
        self._ledger = ledger
        self._backend = backend
        self._clock = clock
        self._cluster = cluster
        self._spool = spool
        self._poll_s = poll_s
        self._lost_after_s = lost_after_s
        self._on_change = on_change
        self._budget = budget or Budget(clock)
        self._stopping = threading.Event()
        self._poll_now = threading.Event()
        self._suspects: dict[tuple[str, int], tuple[Ended, float]] = {}
        self._guard = threading.Lock()
        self._absent: dict[Place, float] = {}
        """Since when (monotonic: no clock that people set) each job is missing from every answer of the queue."""
        self._unknown_states: set[str] = set()
        self.queries = 0

    def stop(self) -> None:
        """End both loops."""
        self._stopping.set()
        self._poll_now.set()

    def poll_soon(self) -> None:
        """Ask the queue now rather than at the next interval."""
        self._poll_now.set()

    # -- pushed events ----------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Read the event file until stopped; reconnects by itself."""
        path = Folder(self._spool, "").events
        fact = f"events:{self._cluster}"
        pause = 1.0
        while not self._stopping.is_set():
            try:
                reader = EventReader(self._start_offset(path, fact))
                with self._backend.transport.follow(path, offset=reader.offset) as chunks:
                    self._poll_now.set()  # whatever happened while nobody listened
                    for chunk in chunks:
                        if self._stopping.is_set():
                            return
                        pause = 1.0
                        faults.point("events.before")
                        events = reader.feed(chunk)
                        self.take(events, offset=(fact, reader.offset))
                        self._stopping.wait(min(GATHER_S, _PER_EVENT_S * len(events)))  # the more, the more at once
            except BbpwfError as error:
                if self._ledger.fenced:
                    _log.error("following events ends: %s", error)
                    return
                _log.warning("the event channel broke, next try in %.0f s: %s", pause, error)
            if self._stopping.wait(pause):
                return
            pause = min(30.0, pause * 2)

    def _start_offset(self, path: str, fact: str) -> int:
        """Where to read on; from the start if the file is shorter than remembered (it was made anew)."""
        remembered = int(self._ledger.fact(fact) or "0")
        stat = self._backend.transport.stat([path])[0]
        return remembered if stat is not None and stat.size >= remembered else 0

    def take(self, events: Iterable[Event], *, offset: tuple[str, int] | None = None) -> None:
        """Apply events; ends that need a second witness are kept until the queue was asked."""
        sightings = []
        suspects = False
        for event in events:
            if isinstance(event, Started):
                sightings.append(
                    Sighting(
                        event.batch_id,
                        event.position,
                        JobState.RUNNING,
                        event.at,
                        "event",
                        restart=event.restart,
                        scheduler_id=event.scheduler_id,
                    )
                )
            elif isinstance(event, Ended):
                if suspicious(event.record):
                    with self._guard:
                        self._suspects[event.batch_id, event.position] = (event, self._clock.monotonic())
                    suspects = True
                else:
                    sightings.append(ended_sighting(event, "event"))
            elif isinstance(event, Fenced):
                _log.warning(
                    "a duplicate of %s[%d] ended at once: %s", event.batch_id, event.position, event.scheduler_id
                )
        again = self._ledger.see(sightings, offset=offset)
        if suspects:
            self._poll_now.set()
        if again:
            self._on_change()

    # -- the second witness -----------------------------------------------------------------------------------

    def poll_loop(self) -> None:
        """Ask the queue now and then until stopped, sooner when something needs its word."""
        failures = 0
        while not self._stopping.is_set():
            asked = self._poll_now.wait(timeout=self._interval(failures))
            if self._stopping.is_set():
                return
            if asked:
                self._poll_now.clear()
            try:
                if self._suspects or self._ledger.live_count(cluster=self._cluster):
                    self.poll()
                    failures = 0
            except BbpwfError as error:
                if self._ledger.fenced:
                    _log.error("polling ends: %s", error)
                    return
                failures += 1
                _log.warning("the queue could not be asked (%d times in a row): %s", failures, error)
            # never more than one query a second, and fewer when they take long
            self._stopping.wait(max(min(1.0, self._poll_s), self._budget.rest()))

    def _interval(self, failures: int) -> float:
        if self._suspects and not failures:
            return min(2.0, self._poll_s)
        return min(300.0, self._poll_s * float(2 ** min(failures, 4)))

    def poll(self) -> None:
        """One query for all jobs; then the exit records of those that it does not show as alive."""
        live = self._ledger.live(self._cluster)  # before the query: what is missing there is gone, or was requeued
        faults.point("queue.before")
        entries = by_place(self._queue())
        faults.point("queue.after")
        now = self._clock.now()
        sightings: list[Sighting] = []
        gone: list[tuple[Live, Entry | None]] = []
        requeued: list[tuple[Live, Entry]] = []
        for job in live:
            entry = entries.get(place(job))
            if entry is None and (job.size == 1 or job.state is JobState.QUEUED):
                entry = entries.get((job.batch_id, None))  # a single job's, or that of the elements that never began
            if entry is not None and job.state is JobState.RUNNING and entry.scheduler_id != job.scheduler_id:
                entry = None  # another copy of the submission, which the lease keeps from running
            if entry is None or not (entry.ending or (entry.state is not None and not entry.state.terminal)):
                gone.append((job, entry))
            elif job.state is JobState.RUNNING and entry.state is JobState.QUEUED:
                requeued.append((job, entry))
            elif _is_news(job, entry):
                sightings.append(_alive(job, entry, now))
        sightings += self._requeued(requeued, now)
        absent = {place(job): self._clock.monotonic() for job, entry in gone if entry is None}
        self._absent = {where: self._absent.get(where, since) for where, since in absent.items()}
        sightings += self._resolve(gone, now)
        again = self._ledger.see(sightings)
        self.cancel_marked(entries)
        if again:
            self._on_change()

    def _queue(self) -> list[Entry]:
        self.queries += 1
        with self._budget.spend("queue"):
            entries = self._backend.queue()
        for entry in entries:
            if entry.state is None and entry.raw not in self._unknown_states:
                self._unknown_states.add(entry.raw)
                _log.error("the scheduler reports the unknown state %r; such jobs are left as they are", entry.raw)
        return entries

    def _requeued(self, jobs: list[tuple[Live, Entry]], now: float) -> list[Sighting]:
        """Jobs that ran and wait again: the next attempt of the same job. The record they left is not their last."""
        logs = slurm_in_logs(self._backend.transport, self._spool, (job for job, _ in jobs))
        sightings = []
        for job, entry in jobs:
            with self._guard:
                self._suspects.pop(place(job), None)
            restart = job.attempt - job.base + 1
            reason = requeue_reason(logs.get(place(job), ""))
            sightings.append(_sighting(job, entry, JobState.QUEUED, now, restart, reason))
        return sightings

    def _resolve(self, gone: list[tuple[Live, Entry | None]], now: float) -> list[Sighting]:
        """What became of jobs that the queue does not show as alive."""
        if not gone:
            return []
        records = exit_records(self._backend.transport, self._spool, [job for job, _ in gone])
        with self._guard:
            suspects = {place(job): self._suspects.pop(place(job), None) for job, _ in gone}
        for where, suspect in suspects.items():
            if suspect is not None:
                records.setdefault(where, suspect[0])
        doubtful = [(job, entry) for job, entry in gone if not decisive(records.get(place(job)), job)]
        accounted, all_asked = self._accounted([job for job, entry in doubtful if entry is None])
        unexplained = (job for job, entry in doubtful if place(job) in records or entry is not None)
        logs = slurm_in_logs(self._backend.transport, self._spool, unexplained)
        sightings = []
        for job, entry in gone:
            where = place(job)
            record, suspect = records.get(where), suspects[where]
            since = suspect[1] if suspect else self._clock.monotonic()
            seen = Evidence(
                entry,
                record,
                accounted.get(job.scheduler_id),
                logs.get(where, ""),
                self._clock.monotonic() - since,
                all_asked,
                self._clock.monotonic() - self._absent[where] if where in self._absent else 0.0,
            )
            said = verdict(job, seen, now, lost_after_s=self._lost_after_s)
            if said is not None:
                sightings.append(said)
            elif record is not None:
                with self._guard:
                    self._suspects.setdefault(where, (record, since))
        return sightings

    def _accounted(self, jobs: list[Live]) -> tuple[dict[str, Entry], bool]:
        """Accounting's word on these jobs, by scheduler id; and whether it could be asked about all."""
        ids = [job.scheduler_id for job in jobs if job.scheduler_id]
        if not ids:
            return {}, True
        try:
            with self._budget.spend("accounting"):
                return self._backend.accounted(ids[:MOST_ACCOUNTED]), len(ids) <= MOST_ACCOUNTED
        except SlurmError as error:
            _log.warning("accounting could not be asked: %s", error)
            return {}, False

    def cancel_marked(self, entries: Mapping[tuple[str, int | None], Entry]) -> None:
        """Ask jobs that are marked to be cancelled, and are still there, to end; and look again soon.

        What the queue shows of them counts beside what was recorded: of two copies of a submission, which an answer
        that was lost for too long can lead to, neither may be left to begin: not even one that the queue does not show.
        """
        if self._ledger.live_count(cluster=self._cluster, cancelled=True) == 0:
            return
        marked = [job for job in self._ledger.live(self._cluster) if job.cancel]
        ids = {job.scheduler_id for job in marked if job.scheduler_id}
        for job in marked:
            shown = entries.get((job.batch_id, job.position if job.size > 1 else None))
            if shown is not None and not (shown.state is not None and shown.state.terminal):
                ids.add(shown.scheduler_id)
        if ids:
            faults.point("cancel.before")
            forbid(self._backend.transport, self._spool, marked)
            with self._budget.spend("cancel"):
                self._backend.cancel(sorted(ids))
            faults.point("cancel.after")
        self._poll_now.set()


def by_place(entries: Iterable[Entry]) -> dict[tuple[str, int | None], Entry]:
    """Entries by submission and position. Of two copies of a submission, the one that has not ended is the job."""
    found: dict[tuple[str, int | None], Entry] = {}
    for entry in entries:
        where = (entry.batch_id, entry.position)
        present = found.get(where)
        if present is None or (present.state is not None and present.state.terminal):
            found[where] = entry
    return found


def _is_news(job: Live, entry: Entry) -> bool:
    """Whether what the queue shows of a job that it shows as alive is worth writing down."""
    if not job.scheduler_id or (entry.state is not None and entry.state is not job.state):
        return True
    reason = waiting_reason(entry.reason) if job.state is JobState.QUEUED else ""
    return bool(reason) and reason != job.reason


def _alive(job: Live, entry: Entry, now: float) -> Sighting:
    state = entry.state or job.state
    reason = waiting_reason(entry.reason) if state is JobState.QUEUED else ""
    return _sighting(job, entry, state, now, job.attempt - job.base, reason)


def _sighting(job: Live, entry: Entry, state: JobState, now: float, restart: int, reason: str) -> Sighting:
    return Sighting(
        job.batch_id,
        job.position,
        state,
        now,
        "queue",
        restart=restart,
        scheduler_id=entry.scheduler_id,
        reason=reason,
    )
