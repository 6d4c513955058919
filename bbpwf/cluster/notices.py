"""Who has been told of a run's end, and who is still to be told."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from bbpwf.clock import Clock
from bbpwf.cluster.database import Database
from bbpwf.cluster.schema import notices

AT_ONCE = 20


@dataclass(frozen=True)
class Notice:
    """One target that is to hear of one end of a run: ``state`` is what it came to, ``tries`` how many were made."""

    run_id: str
    incarnation: int
    target: str
    state: str
    tries: int

    @property
    def id(self) -> str:
        """The same for every try."""
        text = f"{self.run_id} {self.incarnation} {self.target}"
        return f"notice_{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def record(db: sa.Connection, run_id: str, incarnation: int, state: str, targets: Iterable[str], now: float) -> None:
    """Write down, in the transaction of the run's end, that these are to hear of it."""
    rows = [
        {"run_id": run_id, "incarnation": incarnation, "target": target, "state": state, "due_at": now}
        for target in targets
    ]
    if rows:
        db.execute(notices.insert(), rows)


class NoticeStore:
    """The notices of an instance. Thread-safe."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._db = database
        self._clock = clock

    def due(self) -> list[Notice]:
        """What is to be told now, the most overdue first, :data:`AT_ONCE` at most."""
        rows = self._db.look(_DUE, {"now": self._clock.now()})
        return [Notice(*row) for row in rows]

    def waiting(self) -> int:
        """How many are not told yet, and will be tried again."""
        with self._db.reading() as db:
            return int(db.execute(sa.select(sa.func.count()).where(notices.c.due_at.is_not(None))).scalar_one())

    def begin(self, notice: Notice, wait_s: float) -> bool:
        """Count a try before it is made; the next one is due after ``wait_s`` unless this one is said to have ended."""
        values = {"tries": notice.tries + 1, "due_at": self._clock.now() + wait_s}
        with self._db.begin() as db:
            mine = _which(notice) & (notices.c.tries == notice.tries) & notices.c.due_at.is_not(None)
            return db.execute(notices.update().where(mine).values(**values)).rowcount == 1

    def told(self, notice: Notice) -> None:
        """It arrived."""
        self._over(notice, {"due_at": None, "told_at": self._clock.now(), "reason": ""})

    def failed(self, notice: Notice, reason: str, *, for_good: bool) -> None:
        """It did not; ``for_good``: it is not tried again."""
        self._over(notice, {"reason": reason} | ({"due_at": None} if for_good else {}))

    def _over(self, notice: Notice, values: dict[str, object]) -> None:
        with self._db.begin() as db:
            db.execute(notices.update().where(_which(notice)).values(**values))


def _which(notice: Notice) -> sa.ColumnElement[bool]:
    return (
        (notices.c.run_id == notice.run_id)
        & (notices.c.incarnation == notice.incarnation)
        & (notices.c.target == notice.target)
    )


_DUE = (
    sa.select(notices.c.run_id, notices.c.incarnation, notices.c.target, notices.c.state, notices.c.tries)
    .where(notices.c.due_at <= sa.bindparam("now", type_=sa.Float))
    .order_by(notices.c.due_at)
    .limit(AT_ONCE)
)
