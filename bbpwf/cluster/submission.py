"""From intents to the scheduler: many in one round trip, compatible ones in one array, none of them twice.

The order of things is the guarantee. A batch is *prepared* in the ledger, then *marked sent*, and only then sent.
The far side keeps its own record of the answer, so sending a batch again repeats the answer and not the job.
What stays unclear is looked up in the queue; a batch is sent anew only when it was nowhere to be seen for
longer than a request can be under way.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from bbpwf import faults
from bbpwf.clock import Clock
from bbpwf.cluster.backend import Accepted, Answer, Backend, Entry, PutOff, Refused, Submission, Unclear
from bbpwf.cluster.budget import Budget
from bbpwf.cluster.ledger import Ledger
from bbpwf.cluster.spool import Folder, script_text
from bbpwf.cluster.submissions import Batch, Planned
from bbpwf.errors import BbpwfError

_log = logging.getLogger(__name__)

TAKE = 2000
"""Most intents looked at in one round."""
BATCHES_PER_TRIP = 100
"""Most submissions of one round trip: they take 0.7 s on a laptop's Slurm."""
AMBIGUITY_S = 120.0
"""How long an unclear submission may turn up in the queue, unless the cluster's settings say otherwise."""


def pack(planned: Sequence[Planned], array_limit: int) -> list[list[Planned]]:
    """Groups of attempts that can share one submission, none larger than ``array_limit``.

    Same run, resources, name, group and throttle go together; order within a group is kept.
    """
    groups: dict[tuple[object, ...], list[Planned]] = {}
    for each in planned:
        spec = each.spec
        alone = spec.key if spec.others else ""  # Slurm has no arrays of heterogeneous jobs
        sort = (spec.run_id, spec.resources, spec.name, spec.group, spec.throttle, spec.requeue, spec.allocation, alone)
        groups.setdefault(sort, []).append(each)
    return [
        members[start : start + array_limit]
        for members in groups.values()
        for start in range(0, len(members), array_limit)
    ]


class Submitter:
    """Sends one cluster's intents. Run :meth:`loop` in a thread; :meth:`wake` when there is something new."""

    def __init__(
        self,
        ledger: Ledger,
        backend: Backend,
        clock: Clock,
        *,
        cluster: str,
        spool: str,
        data_root: str,
        software: str,
        unclear_s: float = AMBIGUITY_S,
        budget: Budget | None = None,
    ) -> None:
        self._ledger = ledger
        self._backend = backend
        self._clock = clock
        self._cluster = cluster
        self._spool = spool
        self._data_root = data_root
        self._software = software
        self._unclear_s = unclear_s
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._not_before: dict[str, float] = {}
        self._unclear_since: dict[str, float] = {}
        self._patience: dict[str, float] = {}
        self._budget = budget or Budget(clock)
        self._shown: list[Entry] | None = None

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    def stop(self) -> None:
        """End the loop after the round that is under way."""
        self._stopping.set()
        self._wake.set()

    def loop(self) -> None:
        """Send until stopped."""
        pause = 0.0
        while not self._stopping.is_set():
            self._wake.wait(timeout=pause or self._until_next())
            if self._stopping.is_set():
                return
            self._wake.clear()
            try:
                more = self.round()
                pause = 0.0
            except BbpwfError as error:
                if self._ledger.fenced:
                    _log.error("submitting ends: %s", error)
                    return
                pause = min(30.0, max(1.0, pause * 2))
                _log.warning("submitting is interrupted, next try in %.0f s: %s", pause, error)
                more = False
            if more:
                self._wake.set()

    def round(self) -> bool:
        """Send what can be sent now; True if there is more to do at once."""
        planned = self._ledger.planned(self._cluster, TAKE)
        if planned:
            groups = pack(planned, self._backend.array_limit)
            made = self._ledger.prepare(self._cluster, groups, lambda batch, i: Folder(self._spool, batch).log(i))
            self._send_all(made)  # at once: nobody has to look for what is left over first
        self._ledger.abandon_cancelled(self._cluster)
        now = self._clock.monotonic()
        open_batches = self._ledger.open_batches(self._cluster)
        self._send_all([each for each in open_batches if self._not_before.get(each.batch_id, 0.0) <= now])
        return len(planned) == TAKE

    def _send_all(self, batches: Sequence[Batch]) -> None:
        for start in range(0, len(batches), BATCHES_PER_TRIP):
            self._send(batches[start : start + BATCHES_PER_TRIP])

    def _send(self, batches: Sequence[Batch]) -> None:
        members: dict[str, Sequence[Planned]] = {each.batch_id: each.members for each in batches if each.members}
        if older := [each.batch_id for each in batches if each.batch_id not in members]:
            members |= self._ledger.members(older)
        submissions = [self.submission(batch, members[batch.batch_id]) for batch in batches]
        commands = {s.batch_id: self._backend.command(s) for s in submissions}
        self._ledger.mark_sent([b.batch_id for b in batches], commands)
        faults.point("submit.before")
        with self._budget.spend("submit", len(submissions)):
            answers = self._backend.submit(submissions)
        faults.point("submit.after")
        self._shown = None
        accepted = {each: a.scheduler_id for each, a in answers.items() if isinstance(a, Accepted)}
        if accepted:
            self._ledger.accept_all(accepted)
        for batch in batches:
            self._settle(batch, answers.get(batch.batch_id, Unclear("no answer")))

    def readopt(self) -> None:
        """After a restart: hand the backend what it had accepted, in case it keeps no queue of its own."""
        accepted = self._ledger.accepted_batches(self._cluster)
        self._backend.readopt(self.submission(b, self._ledger.members([b.batch_id])[b.batch_id]) for b in accepted)

    def submission(self, batch: Batch, members: Sequence[Planned]) -> Submission:
        """Everything that a batch of the ledger is made of."""
        first = members[0].spec
        scripts = tuple(
            script_text(
                m.spec,
                data_root=self._data_root,
                software=self._software,
                has_srun=self._backend.kind == "slurm",
            )
            for m in members
        )
        folder = Folder(self._spool, batch.batch_id)
        fresh = batch.state == "PREPARED"
        return Submission(
            folder,
            scripts,
            first.name,
            first.resources,
            first.throttle,
            fresh,
            components=tuple(each.resources for each in first.others),
            requeue=first.requeue,
            run_id=first.run_id,
            allocation=first.allocation,
        )

    def _settle(self, batch: Batch, answer: Answer) -> None:
        batch_id = batch.batch_id
        if isinstance(answer, Accepted):
            self._forget(batch_id)
        elif isinstance(answer, Refused):
            self._forget(batch_id)
            self._ledger.reject(batch_id, answer.reason)
            _log.warning("submission %s was refused: %s", batch_id, answer.reason)
        elif isinstance(answer, PutOff):
            self._unclear_since.pop(batch_id, None)
            self._delay(batch_id)
            self._ledger.put_off(batch_id, f"waiting to be submitted: {answer.reason}")
        else:
            self._look_up(batch, answer)

    def _look_up(self, batch: Batch, answer: Unclear) -> None:
        """The answer is unclear: adopt what the queue shows; send again only after it was absent for long enough."""
        batch_id = batch.batch_id
        now = self._clock.monotonic()
        since = self._unclear_since.setdefault(batch_id, now)
        _log.warning("no clear answer for submission %s, looking it up: %s", batch_id, answer.reason)
        known = self._ledger.seen_as(batch_id)  # a job that began is proof, though the queue may have forgotten it
        for scheduler_id in [known] if known else [e.scheduler_id for e in self._queue() if e.batch_id == batch_id]:
            self._forget(batch_id)
            self._ledger.accept(batch_id, scheduler_id.partition("_")[0])
            return
        if now - since > self._unclear_s:
            self._forget(batch_id)
            self._ledger.put_off(batch_id, "its first submission never reached the scheduler; submitting again")
            return
        self._delay(batch_id)
        self._ledger.explain_wait(batch_id, f"finding out whether it was submitted: {answer.reason}")

    def _queue(self) -> list[Entry]:
        """The queue as it was at some time after the submissions that are being settled: one query for all of them."""
        if self._shown is None:
            with self._budget.spend("queue"):
                self._shown = self._backend.queue()
        return self._shown

    def _delay(self, batch_id: str) -> None:
        patience = min(30.0, self._patience.get(batch_id, 0.5) * 2)
        self._patience[batch_id] = patience
        self._not_before[batch_id] = self._clock.monotonic() + patience

    def _until_next(self) -> float:
        """Seconds until a submission that was put off is due; at most 5."""
        now = self._clock.monotonic()
        return max(0.05, min([5.0, *(at - now for at in self._not_before.values())]))

    def _forget(self, batch_id: str) -> None:
        for memory in (self._not_before, self._unclear_since, self._patience):
            memory.pop(batch_id, None)
