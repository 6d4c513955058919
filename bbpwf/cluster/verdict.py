"""What became of a job that the queue does not show as alive: weighed from all witnesses, in the order of their worth.

The job's own exit record, unless somebody else may have ended it; the queue; accounting, where there is any; what Slurm
wrote into the job's log; and after long silence the silence itself, which is LOST and never success. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

from bbpwf.cluster.backend import Entry
from bbpwf.cluster.causes import TOLD, ended, last_words, suspicious
from bbpwf.cluster.changes import Sighting
from bbpwf.cluster.ledger import Live
from bbpwf.cluster.spool import Ended
from bbpwf.states import JobState

SUSPECT_PATIENCE_S = 20.0
"""How long an end by a signal may wait for the queue's word before it is recorded as a plain failure."""
CANCEL_GONE_S = 10.0
"""A cancelled job that nobody shows for this long is gone."""
_NO_RECORD = "failed without an exit record: it was killed, or its node could not write to the shared disk"
_NEVER_BEGAN = "its node did not start it: the scheduler says that it failed, and it neither began nor left a record"
"""slurmd refuses a job now and then, as when it is to start again in the second in which it was killed (22.05)."""


@dataclass(frozen=True)
class Evidence:
    """What is known of one job.

    Args:
        entry: the queue's; ``None`` if it has none.
        record: the newest exit record.
        accounted: accounting's; ``None`` if it has none, or there is no accounting.
        log: what Slurm itself wrote at the end of the job's log.
        waited_s: how long an end by a signal has been waiting for another witness.
        all_asked: every witness could be asked.
        absent_s: for how long it was missing from every answer of the queue, on a clock that nobody sets.
    """

    entry: Entry | None
    record: Ended | None = None
    accounted: Entry | None = None
    log: str = ""
    waited_s: float = 0.0
    all_asked: bool = True
    absent_s: float = 0.0


def decisive(record: Ended | None, job: Live) -> bool:
    """Whether the exit record says all: it is of this attempt, and the job ended by itself."""
    return record is not None and record.record.restart >= job.attempt - job.base and not suspicious(record.record)


def ended_sighting(event: Ended, witness: str) -> Sighting:
    """What an exit record alone says."""
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


def verdict(job: Live, seen: Evidence, now: float, *, lost_after_s: float) -> Sighting | None:
    """How the job ended, or ``None`` while that cannot be said."""
    entry, record, accounted = seen.entry, seen.record, seen.accounted
    restart = job.attempt - job.base
    scheduler_id = entry.scheduler_id if entry is not None else job.scheduler_id

    def say(state: JobState, witness: str, reason: str) -> Sighting:
        return Sighting(
            job.batch_id,
            job.position,
            state,
            record.record.ended if record is not None else now,
            witness,
            restart=restart,
            scheduler_id=scheduler_id,
            reason=reason,
            exit=record.record if record is not None else None,
        )

    if record is not None and decisive(record, job):
        return ended_sighting(record, "record")
    over = any(e is not None and e.state is not None and e.state.terminal for e in (entry, accounted))
    if job.cancel and (record is not None or over):
        return say(JobState.CANCELLED, "queue" if accounted is None else "accounting", "cancelled")
    for told, witness in ((entry, "queue"), (accounted, "accounting")):
        if told is not None and told.state is not None and (words := told.words or TOLD.get(told.state, "")):
            return say(told.state, witness, words)
    if (last := last_words(seen.log)) is not None:
        return say(last, "log", TOLD[last])
    ours = record is not None and record.record.restart >= restart
    known = next((e.state for e in (entry, accounted) if e is not None and e.state is not None), None)
    if record is not None and ours:
        return ended_sighting(record, "record") if known or seen.waited_s > SUSPECT_PATIENCE_S else None
    if known is JobState.COMPLETED:
        who = "the scheduler" if entry is not None else "accounting"
        return say(
            known, "queue" if entry else "accounting", f"its exit record is missing; {who} says that it completed"
        )
    if known is JobState.FAILED and job.state is JobState.QUEUED:
        return say(JobState.NODE_FAIL, "queue" if entry is not None else "accounting", _NEVER_BEGAN)
    if known is JobState.FAILED and entry is not None:
        return say(known, "queue", _NO_RECORD)
    if known is JobState.FAILED and accounted is not None:
        return say(known, "accounting", f"{accounted.reason} according to accounting; {_NO_RECORD}")
    silent = seen.absent_s
    if job.cancel and silent > CANCEL_GONE_S:
        return say(JobState.CANCELLED, "queue", "cancelled; the scheduler no longer knows it")
    if silent > lost_after_s and (seen.all_asked or silent > 2 * lost_after_s):
        return say(
            JobState.LOST,
            "agent",
            f"not in the queue, no exit record, no sign of life for {silent / 60:.0f} min; last known as {job.state}"
            f" with scheduler id {job.scheduler_id or 'none'}",
        )
    return None
