"""The single writer: one process at a time may change what the database says of jobs.

An agent *claims* the ledger, and a claim ends every earlier one. An agent that was fenced off learns it at its next
write, which then does not happen.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from bbpwf import faults
from bbpwf.clock import Clock
from bbpwf.cluster.changes import Changes
from bbpwf.cluster.database import Database
from bbpwf.cluster.jobs import Resources
from bbpwf.cluster.retries import NO_LIMITS, PartitionLimits
from bbpwf.cluster.schema import facts, jobs
from bbpwf.errors import LedgerError

_FACT = sa.select(facts.c.value).where(facts.c.name == sa.bindparam("of"))
_NEW_VALUE = facts.update().where(facts.c.name == sa.bindparam("of")).values(value=sa.bindparam("new_value"))


class Writer:
    """Transactions of whoever holds the claim. Thread-safe."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._db = database
        self._clock = clock
        self._changed = threading.Condition(threading.RLock())
        self._epoch = 0
        self._version = 0
        self._limits: dict[str, Callable[[Resources], PartitionLimits]] = {}
        self.ledger_id = ""
        self.fenced = False
        """True once a write was refused because another agent has claimed the ledger: this one is to end."""
        self.when_fenced: Callable[[], None] = lambda: None

    def claim(self) -> None:
        """Become the writer; whoever was it before can write no more."""
        with self._changed, self._db.begin() as db:
            self.ledger_id = fact(db, "ledger_id") or "l" + secrets.token_hex(6)
            self._epoch = int(fact(db, "epoch") or "0") + 1
            put_fact(db, "ledger_id", self.ledger_id)
            put_fact(db, "epoch", str(self._epoch))
            self._version = db.execute(sa.select(sa.func.max(jobs.c.version))).scalar() or 0
            faults.point("ledger.claim.before")
        faults.point("ledger.claim.after")

    def check_claim(self) -> None:
        """See whether another agent has claimed the ledger meanwhile, without writing anything. Raises LedgerError."""
        with self._reading() as db:
            if fact(db, "epoch") != str(self._epoch):
                self.fenced = True
                self.when_fenced()

    def know_limits(self, cluster: str, limits: Callable[[Resources], PartitionLimits]) -> None:
        """From now on ask ``limits`` what a cluster's partitions allow, when a job needs more than it asked for."""
        self._limits[cluster] = limits

    def fact(self, name: str) -> str:
        """A remembered value, empty if there is none."""
        with self._reading() as db:
            return fact(db, name)

    @contextmanager
    def _writing(self, what: str) -> Iterator[sa.Connection]:
        """One transaction of the writer; ``what`` names its fault points, just before and just after the commit."""
        with self._changed:
            before = self._version
            try:
                with self._db.begin() as db:
                    if fact(db, "epoch") != str(self._epoch):
                        self.fenced = True
                        self.when_fenced()
                        raise LedgerError(
                            "another agent has taken over this project", hint="This agent must end.", retryable=False
                        )
                    yield db
                    faults.point(f"ledger.{what}.before")
            except BaseException:
                self._version = before
                raise
            faults.point(f"ledger.{what}.after")
            self._changed.notify_all()

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._db.reading() as db:
            yield db

    @contextmanager
    def _changing(self, what: str) -> Iterator[tuple[sa.Connection, Changes]]:
        with self._writing(what) as db:
            changes = Changes(db, self._clock.now(), self._next_version, self._limits_of)
            yield db, changes
            changes.flush()

    def _limits_of(self, cluster: str, resources: Resources) -> PartitionLimits:
        return self._limits[cluster](resources) if cluster in self._limits else NO_LIMITS

    def _next_version(self) -> int:
        self._version += 1
        return self._version


def fact(db: sa.Connection, name: str) -> str:
    """A remembered value, empty if there is none."""
    return db.execute(_FACT, {"of": name}).scalar() or ""


def put_fact(db: sa.Connection, name: str, value: str) -> None:
    """Remember a value under a name."""
    if db.execute(_NEW_VALUE, {"of": name, "new_value": value}).rowcount == 0:
        db.execute(facts.insert(), {"name": name, "value": value})
