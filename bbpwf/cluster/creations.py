"""Making runs: each once for its ``(owner, idempotency key)``, and those that come together in one commit."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from bbpwf import faults
from bbpwf.clock import Clock
from bbpwf.cluster.database import Database
from bbpwf.cluster.quota import Quota, Room
from bbpwf.cluster.records import Owner, RunRecord, RunRequest, run_record
from bbpwf.cluster.schema import run_tags, runs
from bbpwf.errors import Conflict, LedgerError, TooManyRuns
from bbpwf.states import RunState


class _Creation:
    """A run that somebody waits for: made, or not for a reason."""

    def __init__(self, request: RunRequest, owner: Owner, key: str) -> None:
        self.request = request
        self.owner = owner
        self.key = key
        self.body = request.model_dump(mode="json")
        self.made: RunRecord | None = None
        self.error: Exception | None = None

    def fingerprint(self) -> str:
        """Of what was asked for."""
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).hexdigest()

    def repeat(self, fingerprint: str, run: RunRecord, asked: str) -> None:
        """The key was used before, for a request with this fingerprint."""
        if fingerprint == asked:
            self.made = run
            return
        self.error = Conflict(
            f"the idempotency key {self.key!r} was used for another launch, run {run.run_id}",
            hint="Use a new key for a new request.",
        )


def _new_row(run: RunRecord, body: dict[str, Any], fingerprint: str, key: str) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "state": run.state.value,
        "reason": "",
        "request": body,
        "fingerprint": fingerprint,
        "idempotency_key": key or None,
        "sub": run.owner.sub,
        "username": run.owner.username,
        "incarnation": 1,
        "created_at": run.created_at,
    }


class Creations:
    """Makes runs. Thread-safe."""

    def __init__(self, database: Database, clock: Clock, quota: Quota | None = None) -> None:
        self._db = database
        self._clock = clock
        self._quota = quota
        self._waiting: list[_Creation] = []
        self._creating, self._guard = threading.Lock(), threading.Lock()

    def create(self, request: RunRequest, owner: Owner, key: str) -> RunRecord:
        """See :meth:`bbpwf.cluster.runs.RunStore.create`."""
        mine = _Creation(request, owner, key)
        with self._guard:
            self._waiting.append(mine)
        with self._creating:  # whoever comes first writes for all who came meanwhile: one commit, one wait for the disk
            if mine.made is None and mine.error is None:
                with self._guard:
                    batch, self._waiting = self._waiting, []
                self._create(batch)
        if mine.error is not None:
            raise mine.error
        if mine.made is None:
            raise LedgerError("the run was not written", retryable=True)
        return mine.made

    def _create(self, batch: Sequence[_Creation]) -> None:
        try:
            with self._db.begin() as db:
                keyed: dict[tuple[str, str], tuple[str, RunRecord]] = {}
                for each in batch:
                    if not each.key:
                        continue
                    of = runs.c.sub == each.owner.sub, runs.c.idempotency_key == each.key
                    found = db.execute(sa.select(runs).where(*of)).first()
                    if found is not None:
                        keyed[each.owner.sub, each.key] = found.fingerprint, run_record(found)
                rows, tags = [], []
                room = Room(self._quota, db) if self._quota is not None else None
                for each in batch:
                    fingerprint = each.fingerprint()
                    known = keyed.get((each.owner.sub, each.key))
                    if known is not None:
                        each.repeat(*known, fingerprint)
                        continue
                    if room is not None:
                        try:
                            room.take(each.owner.sub)
                        except TooManyRuns as error:
                            each.error = error
                            continue
                    made = RunRecord(
                        run_id="r" + secrets.token_hex(10),
                        state=RunState.QUEUED,
                        request=each.request,
                        owner=each.owner,
                        created_at=self._clock.now(),
                    )
                    each.made = made
                    if each.key:
                        keyed[each.owner.sub, each.key] = fingerprint, made
                    rows.append(_new_row(made, each.body, fingerprint, each.key))
                    named = each.request.tags.items()
                    tags += [{"run_id": made.run_id, "name": name, "value": value} for name, value in named]
                if rows:
                    db.execute(runs.insert(), rows)
                if tags:
                    db.execute(run_tags.insert(), tags)
                faults.point("runs.create.before")
            faults.point("runs.create.after")
        except Exception as error:  # noqa: BLE001 every one of them hears of it
            for each in batch:
                each.made, each.error = None, each.error or error
