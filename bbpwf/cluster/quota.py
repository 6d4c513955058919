"""How many runs may be unfinished at once: of an instance, and of one of its users."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import sqlalchemy as sa

from bbpwf.cluster.schema import runs
from bbpwf.errors import TooManyRuns
from bbpwf.states import RunState

_HINT = "Wait for some to end, or cancel some."


@dataclass(frozen=True)
class Quota:
    """The limits. Paused runs count: they hold their place."""

    total: int
    per_user: int


class Room:
    """What is left of a quota in one transaction, which must hold the database's only writer."""

    def __init__(self, quota: Quota, db: sa.Connection) -> None:
        self._quota = quota
        self._by_user: Counter[str] = Counter()
        for sub, count in db.execute(_UNFINISHED):
            self._by_user[sub] = count
        self._total = self._by_user.total()

    def take(self, sub: str) -> None:
        """Count one more run of a user.

        Raises:
            TooManyRuns: that would be one too many.
        """
        if self._by_user[sub] >= self._quota.per_user:
            raise TooManyRuns(f"you have {self._quota.per_user} unfinished runs already, the limit", hint=_HINT)
        if self._total >= self._quota.total:
            raise TooManyRuns(f"the project has {self._quota.total} unfinished runs already, the limit", hint=_HINT)
        self._by_user[sub] += 1
        self._total += 1


_UNFINISHED = (
    sa.select(runs.c.sub, sa.func.count())
    .where(runs.c.state.in_([state.value for state in RunState if not state.terminal]))
    .group_by(runs.c.sub)
)
