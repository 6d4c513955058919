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
from collections.abc import Callable, Iterable

from bbpwf import faults
from bbpwf.clock import Clock
from bbpwf.cluster.backend import Backend, Entry
from bbpwf.cluster.changes import Sighting
from bbpwf.cluster.jobs import ExitRecord
from bbpwf.cluster.ledger import Ledger, Live
from bbpwf.cluster.spool import Ended, Event, EventReader, Fenced, Folder, Started, parse_event
from bbpwf.errors import LedgerError, SlurmError, TransportError
from bbpwf.states import JobState

_log = logging.getLogger(__name__)

SUSPECT_PATIENCE_S = 20.0
"""How long an end by a signal may wait for the queue's word before it is recorded as a plain failure."""
_CANCEL_GONE_S = 10.0
"""A cancelled job that the queue no longer shows for this long is gone."""
_TOLD_BY_QUEUE = frozenset(
    {
        JobState.TIMEOUT,
        JobState.OUT_OF_MEMORY,
        JobState.CANCELLED,
        JobState.NODE_FAIL,
        JobState.BOOT_FAIL,
        JobState.PREEMPTED,
        JobState.DEADLINE,
    }
)


def ended(record: ExitRecord) -> tuple[JobState, str]:
    """State and reason for an exit record that needs no second witness."""
    if record.code == 0:
        return JobState.COMPLETED, ""
    if record.code == 71:
        return JobState.FAILED, "a software module could not be loaded (exit code 71)"
    if record.code == 72:
        return JobState.FAILED, "its working folder could not be made or entered (exit code 72)"
    if record.code > 128:
        return JobState.FAILED, f"ended by signal {record.code - 128} (exit code {record.code})"
    return JobState.FAILED, f"exit code {record.code}"


def suspicious(record: ExitRecord) -> bool:
    """Whether somebody else may have ended the job: it was told to stop, or died of SIGKILL or SIGTERM."""
    return record.signal != 0 or record.code in {137, 143}


_QUEUE_REASONS = {
    JobState.TIMEOUT: "reached its time limit",
    JobState.OUT_OF_MEMORY: "used more memory than it asked for",
    JobState.CANCELLED: "cancelled outside of bbpwf",
    JobState.NODE_FAIL: "its node failed",
    JobState.BOOT_FAIL: "its node did not start",
    JobState.PREEMPTED: "preempted by another job",
    JobState.DEADLINE: "its deadline passed",
}

WAITING = {
    "Resources": "waiting for free nodes",
    "Priority": "waiting behind jobs of higher priority",
    "Dependency": "waiting for the jobs it depends on",
    "DependencyNeverSatisfied": "a job it depends on failed: it will never start",
    "BeginTime": "requeued by Slurm; it will start again shortly",
    "JobHeldUser": "held by its user",
    "JobHeldAdmin": "held by an administrator",
    "JobArrayTaskLimit": "waiting for other elements of its array (throttle)",
    "PartitionTimeLimit": "asks for more time than its partition allows",
    "PartitionNodeLimit": "asks for more nodes than its partition has",
    "PartitionInactive": "its partition is inactive: the cluster's nodes failed to start repeatedly",
    "PartitionDown": "its partition is down",
    "ReqNodeNotAvail": "nodes it needs are not available",
    "QOSMaxJobsPerUserLimit": "waiting for the user's other jobs (limit of the quality of service)",
    "AssocMaxJobsLimit": "waiting for other jobs of the account (limit)",
}
"""Slurm's pending reasons in plain words; others are shown as Slurm says them."""


def waiting_reason(raw: str) -> str:
    """Why a job waits, for people."""
    word = raw.strip("()").split(",", 1)[0].split(" ", 1)[0]
    if word in {"", "None"}:
        return ""
    return f"{WAITING[word]} ({word})" if word in WAITING else f"waiting: {raw.strip('()')}"


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
    ) -> None:
        self._ledger = ledger
        self._backend = backend
        self._clock = clock
        self._cluster = cluster
        self._spool = spool
        self._poll_s = poll_s
        self._lost_after_s = lost_after_s
        self._on_change = on_change
        self._stopping = threading.Event()
        self._poll_now = threading.Event()
        self._suspects: dict[tuple[str, int], tuple[Ended, float]] = {}
        self._guard = threading.Lock()
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
                        self.take(reader.feed(chunk), offset=(fact, reader.offset))
            except (TransportError, SlurmError) as error:
                _log.warning("the event channel broke, next try in %.0f s: %s", pause, error)
            except LedgerError:
                _log.exception("following events has to stop")
                return
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
                    sightings.append(_ended_sighting(event, "event"))
            elif isinstance(event, Fenced):
                _log.warning(
                    "a duplicate of %s[%d] ended at once: %s", event.batch_id, event.position, event.scheduler_id
                )
        self._ledger.see(sightings, offset=offset)
        if suspects:
            self._poll_now.set()
        if sightings:
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
            if not self._suspects and self._ledger.live_count(cluster=self._cluster) == 0:
                continue
            try:
                self.poll()
                failures = 0
            except (TransportError, SlurmError) as error:
                failures += 1
                _log.warning("the queue could not be asked (%d times in a row): %s", failures, error)
            except LedgerError:
                _log.exception("polling has to stop")
                return
            self._stopping.wait(min(1.0, self._poll_s))  # never more than one query a second

    def _interval(self, failures: int) -> float:
        if self._suspects and not failures:
            return min(2.0, self._poll_s)
        return min(300.0, self._poll_s * float(2 ** min(failures, 4)))

    def poll(self) -> None:
        """One query for all jobs; then the exit records of those that it does not show as alive."""
        faults.point("queue.before")
        entries = {(e.batch_id, e.position): e for e in self._queue()}
        faults.point("queue.after")
        now = self._clock.now()
        sightings: list[Sighting] = []
        gone: list[tuple[Live, Entry | None]] = []
        for job in self._ledger.live(self._cluster):
            entry = entries.get((job.batch_id, job.position))
            if entry is None and (job.size == 1 or job.state is JobState.QUEUED):
                entry = entries.get((job.batch_id, None))  # a single job's, or that of the elements that never began
            if entry is not None and (entry.ending or (entry.state is not None and not entry.state.terminal)):
                sightings.append(self._alive(job, entry, now))
            else:
                gone.append((job, entry))
        sightings += self._resolve(gone, now)
        self._ledger.see(sightings)
        self.cancel_marked()
        if sightings:
            self._on_change()

    def _queue(self) -> list[Entry]:
        self.queries += 1
        entries = self._backend.queue()
        for entry in entries:
            if entry.state is None and entry.raw not in self._unknown_states:
                self._unknown_states.add(entry.raw)
                _log.error("the scheduler reports the unknown state %r; such jobs are left as they are", entry.raw)
        return entries

    def _alive(self, job: Live, entry: Entry, now: float) -> Sighting:
        with self._guard:
            suspect = self._suspects.get((job.batch_id, job.position))
            if suspect is not None and entry.state is JobState.QUEUED:
                del self._suspects[job.batch_id, job.position]  # it was requeued: that end was not its last
        state = entry.state or job.state
        reason = waiting_reason(entry.reason) if state is JobState.QUEUED else ""
        return Sighting(
            job.batch_id,
            job.position,
            state,
            now,
            "queue",
            restart=job.attempt - job.base,
            scheduler_id=entry.scheduler_id,
            reason=reason,
        )

    def _resolve(self, gone: list[tuple[Live, Entry | None]], now: float) -> list[Sighting]:
        """What became of jobs that the queue does not show as alive."""
        if not gone:
            return []
        records = self._exit_records([job for job, _ in gone])
        sightings = []
        for job, entry in gone:
            place = (job.batch_id, job.position)
            with self._guard:
                suspect = self._suspects.pop(place, None)
            record = records.get(place) or (suspect[0] if suspect else None)
            verdict = self._verdict(job, entry, record, suspect[1] if suspect else None, now)
            if verdict is not None:
                sightings.append(verdict)
            elif suspect is not None:
                with self._guard:
                    self._suspects.setdefault(place, suspect)
        return sightings

    def _verdict(
        self, job: Live, entry: Entry | None, record: Ended | None, suspect_since: float | None, now: float
    ) -> Sighting | None:
        place = (job.batch_id, job.position)
        restart = job.attempt - job.base
        told = entry.state if entry is not None and entry.state in _TOLD_BY_QUEUE else None
        scheduler_id = entry.scheduler_id if entry is not None else job.scheduler_id
        if record is not None and record.record.restart >= restart and not suspicious(record.record):
            return _ended_sighting(record, "record")
        if job.cancel and (record is not None or entry is not None):
            exit_record = record.record if record is not None else None
            return Sighting(
                *place,
                JobState.CANCELLED,
                exit_record.ended if exit_record else now,
                "queue",
                restart=restart,
                scheduler_id=scheduler_id,
                reason="cancelled",
                exit=exit_record,
            )
        if told is not None:
            return Sighting(
                *place,
                told,
                record.record.ended if record is not None else now,
                "queue",
                restart=restart,
                scheduler_id=scheduler_id,
                reason=_QUEUE_REASONS[told],
                exit=record.record if record is not None else None,
            )
        if record is not None and record.record.restart >= restart:
            waited = 0.0 if suspect_since is None else self._clock.monotonic() - suspect_since
            if (entry is not None and entry.state is not None) or waited > SUSPECT_PATIENCE_S:
                return _ended_sighting(record, "record")
            with self._guard:
                self._suspects.setdefault(place, (record, self._clock.monotonic()))
            return None
        if entry is not None and entry.state is JobState.COMPLETED:
            return Sighting(
                *place,
                JobState.COMPLETED,
                now,
                "queue",
                restart=restart,
                scheduler_id=scheduler_id,
                reason="its exit record is missing; the scheduler says that it completed",
            )
        if entry is not None and entry.state is JobState.FAILED:
            return Sighting(
                *place,
                JobState.FAILED,
                now,
                "queue",
                restart=restart,
                scheduler_id=scheduler_id,
                reason="failed without an exit record: it was killed, or its node could not write to the shared disk",
            )
        if job.cancel and now - job.seen_at > _CANCEL_GONE_S:
            return Sighting(
                *place,
                JobState.CANCELLED,
                now,
                "queue",
                restart=restart,
                reason="cancelled; the scheduler no longer knows it",
            )
        if now - job.seen_at > self._lost_after_s:
            minutes = (now - job.seen_at) / 60
            return Sighting(
                *place,
                JobState.LOST,
                now,
                "agent",
                restart=restart,
                reason=f"not in the queue, no exit record, no event for {minutes:.0f} min; last known as {job.state}"
                f" with scheduler id {job.scheduler_id or 'none'}",
            )
        return None

    def _exit_records(self, jobs: list[Live]) -> dict[tuple[str, int], Ended]:
        """The newest exit record of each job that has one; one round trip for all."""
        folders = sorted({f"batches/{job.batch_id}" for job in jobs})
        wanted = {(job.batch_id, job.position) for job in jobs}
        script = 'cd "$1" || exit 0; while IFS= read -r d; do cat "$d"/exit.* 2>/dev/null; done; exit 0'
        done = self._backend.transport.run(
            ["bash", "-c", script, "records", self._spool], stdin="".join(f"{f}\n" for f in folders).encode()
        )
        found: dict[tuple[str, int], Ended] = {}
        for line in done.out.split("\n"):
            event = parse_event(line)
            if isinstance(event, Ended) and (event.batch_id, event.position) in wanted:
                present = found.get((event.batch_id, event.position))
                if present is None or event.record.restart >= present.record.restart:
                    found[event.batch_id, event.position] = event
        return found

    def cancel_marked(self) -> None:
        """Ask jobs that are marked to be cancelled, and are still there, to end; and look again soon."""
        if self._ledger.live_count(cluster=self._cluster, cancelled=True) == 0:
            return
        ids = [job.scheduler_id for job in self._ledger.live(self._cluster) if job.cancel and job.scheduler_id]
        if ids:
            faults.point("cancel.before")
            self._backend.cancel(ids)
            faults.point("cancel.after")
        self._poll_now.set()


def _ended_sighting(event: Ended, witness: str) -> Sighting:
    state, reason = ended(event.record)
    return Sighting(
        event.batch_id,
        event.position,
        state,
        event.record.ended,
        witness,
        restart=event.record.restart,
        scheduler_id=event.scheduler_id,
        reason=reason,
        exit=event.record,
    )
