"""States of jobs and runs: two closed tables and the moves they allow.

A job's state only moves forward *within an attempt*; a requeue by Slurm or a retry of ours is a new attempt
of the same job. Order between two sightings is therefore ``(attempt, rank)``, and anything that is not
greater than what is recorded is ignored.

Unknown names are an error to report, never a state to guess: see :func:`job_state_from_slurm`.
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """Where one attempt of a job stands."""

    PLANNED = "PLANNED"  # the intent is in the ledger; nothing was sent
    SUBMITTING = "SUBMITTING"  # a submission is under way or its answer was lost
    QUEUED = "QUEUED"  # the scheduler has it
    RUNNING = "RUNNING"  # its prologue took the lease, or the queue says so
    # terminal
    COMPLETED = "COMPLETED"  # exit record with code 0: the only success
    FAILED = "FAILED"  # non-zero exit, or ended by a signal of its own making
    TIMEOUT = "TIMEOUT"  # reached its time limit
    OUT_OF_MEMORY = "OUT_OF_MEMORY"  # killed for using more memory than it asked for
    CANCELLED = "CANCELLED"  # by us or from outside; the reason says which
    NODE_FAIL = "NODE_FAIL"  # its node went away
    BOOT_FAIL = "BOOT_FAIL"  # its node did not start
    PREEMPTED = "PREEMPTED"  # it had to make way
    DEADLINE = "DEADLINE"  # Slurm's --deadline passed
    REJECTED = "REJECTED"  # the scheduler refused it for good
    LOST = "LOST"  # no witness of its end within the limit: never taken for success

    @property
    def rank(self) -> int:
        """Position within an attempt; terminal states share the last one."""
        return _RANK.get(self, 4)

    @property
    def terminal(self) -> bool:
        """True when this attempt can change no more."""
        return self not in _RANK

    @property
    def succeeded(self) -> bool:
        """True for COMPLETED alone."""
        return self is JobState.COMPLETED

    @property
    def infrastructure(self) -> bool:
        """True when the end was the platform's doing and certain, so that another attempt is safe and worth it.

        LOST is not: nobody saw that attempt end, so it may still be running.
        """
        return self in {JobState.NODE_FAIL, JobState.BOOT_FAIL, JobState.PREEMPTED}


_RANK = {JobState.PLANNED: 0, JobState.SUBMITTING: 1, JobState.QUEUED: 2, JobState.RUNNING: 3}

# Slurm's names (squeue %T, sacct State without "by <uid>"), 24.11 man pages. COMPLETING and STAGE_OUT hide the
# final state and CONFIGURING a node that boots: they say where the job is, not how it ended.
_SLURM_STATES = {
    "PENDING": JobState.QUEUED,
    "REQUEUED": JobState.QUEUED,
    "REQUEUE_FED": JobState.QUEUED,
    "REQUEUE_HOLD": JobState.QUEUED,
    "RESV_DEL_HOLD": JobState.QUEUED,
    "SPECIAL_EXIT": JobState.QUEUED,
    "CONFIGURING": JobState.QUEUED,
    "RUNNING": JobState.RUNNING,
    "COMPLETING": JobState.RUNNING,
    "STAGE_OUT": JobState.RUNNING,
    "RESIZING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "COMPLETED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "TIMEOUT": JobState.TIMEOUT,
    "OUT_OF_MEMORY": JobState.OUT_OF_MEMORY,
    "CANCELLED": JobState.CANCELLED,
    "REVOKED": JobState.CANCELLED,
    "NODE_FAIL": JobState.NODE_FAIL,
    "BOOT_FAIL": JobState.BOOT_FAIL,
    "PREEMPTED": JobState.PREEMPTED,
    "DEADLINE": JobState.DEADLINE,
}


def job_state_from_slurm(name: str) -> JobState | None:
    """Our state for one of Slurm's long state names; ``None`` for a name that is not in the table."""
    return _SLURM_STATES.get(name.split(" ", 1)[0])


class RunState(StrEnum):
    """GA4GH WES 1.1 states; a run has no other."""

    QUEUED = "QUEUED"
    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETE = "COMPLETE"
    EXECUTOR_ERROR = "EXECUTOR_ERROR"
    SYSTEM_ERROR = "SYSTEM_ERROR"
    CANCELING = "CANCELING"
    CANCELED = "CANCELED"
    PREEMPTED = "PREEMPTED"

    @property
    def terminal(self) -> bool:
        """True when the run ends here unless somebody resumes it."""
        return self in _RUN_TERMINAL

    def may_become(self, other: RunState) -> bool:
        """Whether a run may move from this state to ``other`` without being resumed."""
        return other in _RUN_MOVES[self]


_RUN_TERMINAL = frozenset(
    {RunState.COMPLETE, RunState.EXECUTOR_ERROR, RunState.SYSTEM_ERROR, RunState.CANCELED, RunState.PREEMPTED}
)
_ENDS = frozenset({RunState.EXECUTOR_ERROR, RunState.SYSTEM_ERROR, RunState.PREEMPTED})
_RUN_MOVES: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: _ENDS | {RunState.INITIALIZING, RunState.CANCELING, RunState.CANCELED, RunState.PAUSED},
    RunState.INITIALIZING: _ENDS | {RunState.RUNNING, RunState.CANCELING, RunState.CANCELED, RunState.PAUSED},
    RunState.RUNNING: _ENDS | {RunState.COMPLETE, RunState.CANCELING, RunState.PAUSED},
    RunState.PAUSED: _ENDS | {RunState.QUEUED, RunState.CANCELING},
    RunState.CANCELING: frozenset({RunState.CANCELED, RunState.SYSTEM_ERROR}),
    **{state: frozenset() for state in _RUN_TERMINAL},
}
"""A cancel wins over everything but a failure to cancel; a finished run moves only by an explicit resume."""
