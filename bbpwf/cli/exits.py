"""What exit codes mean: the one map from errors and ends of runs, for scripts to rely on."""

from __future__ import annotations

from bbpwf import errors
from bbpwf.errors import BbpwfError
from bbpwf.states import RunState

OK = 0
RUN_FAILED = 1
INVALID = 2
NO_ACCESS = 3
PLATFORM = 4
NOT_FOUND = 5
INTERRUPTED = 130

_CODES: dict[type[BbpwfError], int] = {
    errors.BbpwfError: PLATFORM,
    errors.InvalidInput: INVALID,
    errors.Conflict: INVALID,
    errors.LimitExceeded: INVALID,
    errors.AccessError: NO_ACCESS,
    errors.NotFound: NOT_FOUND,
    errors.JobFailed: RUN_FAILED,
}


def exit_code(error: BbpwfError) -> int:
    """The exit code of a command that ended with ``error``: that of its nearest ancestor in the table."""
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def exit_code_of_run(state: RunState) -> int:
    """The exit code of a command that waited for a run to end."""
    if state is RunState.COMPLETE:
        return OK
    return PLATFORM if state in {RunState.SYSTEM_ERROR, RunState.PREEMPTED} else RUN_FAILED
