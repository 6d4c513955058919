"""One retry policy for calls that are safe to repeat.

Whether an error is worth another try is the error's own answer (:attr:`bbpwf.errors.BbpwfError.retryable`), so
this module knows nothing about HTTP or SSH. Submissions are *not* repeated with it: they are looked up first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import tenacity

from bbpwf.clock import Clock
from bbpwf.errors import BbpwfError

_log = logging.getLogger(__name__)
T = TypeVar("T")


def call(
    what: str,
    function: Callable[[], T],
    *,
    clock: Clock,
    attempts: int = 5,
    first_wait: float = 0.5,
    longest_wait: float = 20.0,
) -> T:
    """Call ``function`` until it succeeds, an error is not retryable, or ``attempts`` are used up.

    Waits grow exponentially from ``first_wait`` to ``longest_wait`` seconds, with jitter. The last error is
    raised unchanged. ``what`` names the call in the log.
    """

    def note(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _log.warning("%s failed (try %d of %d): %s", what, state.attempt_number, attempts, error)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda e: isinstance(e, BbpwfError) and e.retryable),
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_exponential_jitter(multiplier=first_wait, max=longest_wait, jitter=first_wait),
        sleep=clock.sleep,
        before_sleep=note,
        reraise=True,
    )
    return retrying(function)
