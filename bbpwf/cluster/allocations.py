"""Allocations: nodes that jobs of a run share, in which each of them is a step.

An allocation is itself a job of the run in the ledger, so that it is submitted once, watched, cancelled and explained
like any other; its script (``allocation.sh``) runs what it finds in its folder. When it has ended, the next step makes
the next *generation* of it.

A step is an attempt in a submission's folder as ever, with its lease, exit record and event lines. Handing it over
twice, to one generation or to two, runs it once: the lease decides. What the scheduler's queue is to jobs, the
allocation's file of steps is to these: :class:`AllocatingBackend` turns it into entries.

A step's scheduler id is ``<allocation>/<submission>[_<element>]``; the allocation is named by its key until the step
begins, and then by Slurm's number.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from bbpwf import faults, shell
from bbpwf.clock import Clock
from bbpwf.cluster.backend import Accepted, Answer, Backend, Entry, PutOff, Refused, Submission
from bbpwf.cluster.causes import TOLD
from bbpwf.cluster.jobs import Allocation, JobSpec, Resources, job_key
from bbpwf.cluster.ledger import Ledger, Live
from bbpwf.cluster.retries import PartitionLimits
from bbpwf.cluster.spool import job_script, manifest
from bbpwf.cluster.steps import (
    ASK,
    CANCEL,
    HAND_OVER,
    LOOK,
    Seen,
    Steps,
    allocation_script,
    allocation_task,
    read_look,
    request_line,
    step_of,
)
from bbpwf.errors import NotFound, SlurmError
from bbpwf.states import JobState
from bbpwf.transport.protocol import Completed, Transport

_log = logging.getLogger(__name__)

UNUSED_S = 60.0
"""Seconds for which an allocation may wait for its nodes while no step needs it."""
_WORDS = {state.value: state for state in (JobState.COMPLETED, JobState.FAILED, JobState.TIMEOUT, JobState.CANCELLED)}
"""Ends of steps that say all; others leave the question to their records and to their allocation."""
_AGAIN = frozenset({JobState.COMPLETED, JobState.TIMEOUT})
"""Ends of an allocation after which steps that never began simply go into the next one."""


class AllocatingBackend:
    """A backend whose jobs may share allocations. See :class:`bbpwf.cluster.backend.Backend` for every method.

    Args:
        base: the scheduler's own.
        cluster: the cluster's name in job specifications.
        spool: its spool folder.
        on_planned: called when there is something new to send.
    """

    def __init__(
        self, base: Backend, ledger: Ledger, clock: Clock, *, cluster: str, spool: str, on_planned: Callable[[], None]
    ) -> None:
        self._base = base
        self._ledger = ledger
        self._clock = clock
        self._cluster = cluster
        self._spool = spool
        self._on_planned = on_planned
        self._guard = threading.RLock()
        self._homes: dict[str, str] = {}
        self._runs: dict[str, str] = {}
        self._over: set[str] = set()
        self._unused_since: dict[str, float] = {}
        for batch in ledger.accepted_batches(cluster):
            self._settled(batch.batch_id, batch.scheduler_id)

    @property
    def kind(self) -> Literal["slurm", "local"]:
        """The scheduler's."""
        return self._base.kind

    @property
    def transport(self) -> Transport:
        """The scheduler's machine."""
        return self._base.transport

    @property
    def array_limit(self) -> int:
        """The scheduler's."""
        return self._base.array_limit

    def limits(self, resources: Resources) -> PartitionLimits:
        """The scheduler's."""
        return self._base.limits(resources)

    def command(self, submission: Submission) -> list[str]:
        """The scheduler's command; for a step, the line that is handed over."""
        if submission.allocation is None:
            return self._base.command(submission)
        return [allocation_task(submission.allocation.name), request_line(submission)]

    def readopt(self, submissions: Iterable[Submission]) -> None:
        """Steps are known from their submissions' ids."""
        self._base.readopt(each for each in submissions if each.allocation is None)

    def accounted(self, scheduler_ids: Sequence[str]) -> dict[str, Entry]:
        """Of jobs alone: steps have their allocation's fate."""
        return self._base.accounted([each for each in scheduler_ids if step_of(each) is None])

    def close(self) -> None:
        """Nothing of its own to let go of."""
        self._base.close()

    # -- handing over -----------------------------------------------------------------------------------------

    def submit(self, submissions: Sequence[Submission]) -> dict[str, Answer]:
        """Jobs go to the scheduler, steps to their allocations, which are made if need be."""
        jobs = [each for each in submissions if each.allocation is None]
        answers = self._base.submit(jobs) if jobs else {}
        steps = [(each, each.allocation) for each in submissions if each.allocation is not None]
        for _ in range(2):  # an allocation may turn out to be over: then once more, to the next
            homes: dict[str, str] = {}
            for each, allocation in steps:
                key = self._current(each.run_id, allocation)
                if key is None:
                    answers[each.batch_id] = Refused(
                        f"the allocation {allocation.name!r} of this run was asked for with other resources"
                    )
                else:
                    homes[each.batch_id] = key
            open_ = [each for each, _ in steps if each.batch_id in homes]
            if not open_:
                break
            closed = self._hand_over(open_, homes)
            faults.point("allocation.handed")
            for each in open_:
                key = homes[each.batch_id]
                if key in closed:
                    answers[each.batch_id] = PutOff("its allocation has just ended")
                else:
                    scheduler_id = f"{key}/{each.batch_id}"
                    self._settled(each.batch_id, scheduler_id)
                    answers[each.batch_id] = Accepted(scheduler_id)
            steps = [(each, allocation) for each, allocation in steps if homes.get(each.batch_id) in closed]
            self._over |= closed
        return answers

    def _settled(self, batch_id: str, scheduler_id: str) -> None:
        key, slash, _ = scheduler_id.partition("/")
        if slash:
            with self._guard:
                self._homes[batch_id] = key
                if key not in self._runs:
                    self._runs[key] = self._ledger.job(key)[0].run_id

    def _current(self, run_id: str, allocation: Allocation) -> str | None:
        """The key of the generation that takes steps now, planned if it is new; ``None`` if it is unlike ours."""
        task_id = allocation_task(allocation.name)
        generation = 0
        while True:
            key = job_key(run_id, task_id, generation)
            try:
                view, spec = self._ledger.job(key)
            except NotFound:
                break
            if not view.state.terminal and key not in self._over:
                return key if spec.resources == allocation.resources else None
            generation += 1
        folder = f"{self._spool}/allocations/{key}"
        title = f"{task_id} {generation + 1}" if generation else task_id
        spec = JobSpec(
            key=key,
            run_id=run_id,
            task_id=title,
            label=title,
            name=task_id,
            cluster=self._cluster,
            script=allocation_script(folder, self._spool, allocation),
            resources=allocation.resources,
            requeue=False,
            infrastructure_retries=0,
            escalations=0,
        )
        self._run('mkdir -p "$1" && cd "$1" && : >>requests && : >>alive && : >>steps', [folder])
        faults.point("allocation.made")
        self._ledger.plan([spec], 1)
        with self._guard:
            self._runs[key] = run_id
        self._on_planned()
        return key

    def _hand_over(self, submissions: Sequence[Submission], homes: Mapping[str, str]) -> set[str]:
        """Write submissions' folders and ask for them to be run; answers which allocations take no more."""
        nonce = secrets.token_hex(8)
        parts = [HAND_OVER.format(spool=shell.quote([self._spool]), nonce=nonce)]
        parts.append(f"mkdir -p {shell.quote(f'batches/{s.batch_id}' for s in submissions)} || exit 1\n")
        for submission in submissions:
            text, extra = manifest(list(submission.scripts))
            folder = f"batches/{submission.batch_id}"
            content = {"manifest": text, **extra, "job.sh": job_script(submission.folder)}
            parts += [f"put {shell.quote([f'{folder}/{name}', each])}\n" for name, each in content.items()]
            parts.append(f"hand {shell.quote([homes[submission.batch_id], request_line(submission)])}\n")
        done = self._run_script("".join(parts) + "exit 0\n")
        return {word for line in done.out.splitlines() for mark, _, word in [line.partition(" ")] if mark == nonce}

    # -- seeing -----------------------------------------------------------------------------------------------

    def queue(self) -> list[Entry]:
        """The scheduler's entries, and one for each step as far as it can be told."""
        entries = self._base.queue()
        with self._guard:
            known = bool(self._homes or self._runs)
        if not known:
            return entries
        live = self._ledger.live(self._cluster)
        steps = [job for job in live if step_of(job.scheduler_id) is not None]
        by_home: dict[str, list[Live]] = {}
        for job in steps:
            by_home.setdefault(self._home(job.batch_id), []).append(job)
        holders = {job.key: job for job in live if job.key in self._runs}
        if not by_home and not holders:
            return entries
        of_batch = {entry.batch_id: entry for entry in entries}
        seen = self._look({*by_home, *holders}, {job.batch_id for job in steps})
        for key, members in by_home.items():
            holder = holders.get(key)
            entries += self._entries(key, members, of_batch.get(holder.batch_id) if holder else None, seen)
        self._let_go(holders, by_home)
        return entries

    def _home(self, batch_id: str) -> str:
        with self._guard:
            if batch_id not in self._homes:
                self._settled(batch_id, self._ledger.batch(batch_id).scheduler_id)
            return self._homes[batch_id]

    def _look(self, keys: Iterable[str], batch_ids: Iterable[str]) -> Seen:
        """Show allocations that the agent lives, and read what they and their steps left; one round trip."""
        lines = [*(f"A {key}" for key in sorted(keys)), *(f"B {each}" for each in sorted(batch_ids))]
        done = self._run(LOOK, [self._spool, secrets.token_hex(4)], stdin="".join(f"{line}\n" for line in lines))
        return read_look(done.out)

    def _entries(self, key: str, members: Sequence[Live], holder: Entry | None, seen: Seen) -> list[Entry]:
        """Entries for the steps of one allocation; steps that never began and never will go to the next one."""
        end = self._end_of(key, holder)
        said = seen.steps.get(key, Steps())
        found: list[Entry] = []
        stranded: set[str] = set()
        busy: set[str] = set()
        for job in members:
            place = (job.batch_id, job.position)
            word = said.ended.get(place)
            state: JobState | None
            words = reason = ""
            if word in _WORDS:
                state = _WORDS[word]
            elif end is None:  # its word that a step began may be lost on a full disk, and the step's own is not
                began = place in said.began or job.state is JobState.RUNNING
                state = JobState.RUNNING if began else JobState.QUEUED
                waits = holder is not None and holder.state is JobState.QUEUED
                reason = f"for its allocation ({holder.reason or 'Priority'})" if holder and waits else ""
            elif place not in seen.leases and (end[0] in _AGAIN or key in seen.released):
                stranded.add(job.batch_id)
                continue
            else:
                state = JobState.FAILED if end[0] is JobState.COMPLETED else end[0]
                words = f"its allocation {'was refused' if state is JobState.REJECTED else 'ended'}: {end[1]}"
            busy.add(job.batch_id)
            found.append(
                Entry(job.batch_id, job.position, job.scheduler_id, state, state.value, reason=reason, words=words)
            )
        for batch_id in stranded - busy:
            self._ledger.put_off(batch_id, "its allocation ended before it began; it goes into the next one")
            self._on_planned()
        return found

    def _end_of(self, key: str, holder: Entry | None) -> tuple[JobState, str] | None:
        """How an allocation ended and why, by the scheduler's queue or the ledger; ``None`` while it has not."""
        if holder is not None:
            state, reason, over = holder.state, "", not holder.ending
        else:
            view, _ = self._ledger.job(key)
            state, reason, over = view.state, view.reason, True
        if state is None or not state.terminal or not over:
            return None
        self._over.add(key)
        return state, reason or TOLD.get(state, state.lower())

    # -- ending -----------------------------------------------------------------------------------------------

    def cancel(self, scheduler_ids: Sequence[str]) -> None:
        """A step that has not begun is kept from it by taking its lease; one that has is ended by its allocation."""
        steps = [step for each in scheduler_ids if (step := step_of(each)) is not None]
        jobs = [each for each in scheduler_ids if step_of(each) is None]
        if steps:
            lines = [f"{self._home(batch_id)} {batch_id} {position}\n" for batch_id, position in steps]
            self._run(CANCEL, [self._spool], stdin="".join(lines))
        if jobs:
            self._base.cancel(jobs)

    def release(self, run_id: str) -> None:
        """The run needs its allocations no more: those without steps end now, the others after their last.

        Steps that still live then, as a paused run's may, are watched on, and go into another allocation if need be.
        """
        with self._guard:
            keys = {key for key, of in self._runs.items() if of == run_id}
        if not keys:
            return
        live = {job.batch_id for job in self._ledger.live(self._cluster) if step_of(job.scheduler_id) is not None}
        with self._guard:
            needed = {key for batch_id, key in self._homes.items() if batch_id in live}
        for key in keys:
            self._release(key, used=key in needed)
        with self._guard:
            self._runs = {key: of for key, of in self._runs.items() if key not in keys or key in needed}
            self._homes = {
                batch_id: key for batch_id, key in self._homes.items() if key not in keys or batch_id in live
            }

    def _release(self, key: str, *, used: bool = False) -> None:
        """Let an allocation end as soon as nothing runs in it; at once if it still waits and is not ``used``.

        One that is used may have begun long since, although nobody has seen it yet: its steps must not end with it.
        """
        view, _ = self._ledger.job(key)
        if view.state.terminal:
            return
        self._run('cd "$1" && : >released && echo "Q ." >>requests', [f"{self._spool}/allocations/{key}"])
        self._over.add(key)
        faults.point("allocation.released")
        if view.state is not JobState.RUNNING and not used:
            self._ledger.cancel(view.run_id, [key])

    def _let_go(self, holders: Mapping[str, Live], by_home: Mapping[str, list[Live]]) -> None:
        """Allocations that still wait for their nodes while no step waits for them."""
        now = self._clock.monotonic()
        for key, holder in holders.items():
            if key in by_home or holder.state is JobState.RUNNING or holder.cancel:
                self._unused_since.pop(key, None)
            elif now - self._unused_since.setdefault(key, now) > UNUSED_S:
                _log.info("allocation %s is not needed any more", key)
                self._release(key)

    def throttle(self, scheduler_ids: Sequence[str], limit: int) -> None:
        """Arrays of steps are throttled by their allocation."""
        steps = [step for each in scheduler_ids if (step := step_of(each)) is not None]
        if steps:
            lines = [f"{self._home(batch_id)} T {batch_id} {limit} .\n" for batch_id, _ in steps]
            self._run(ASK, [self._spool], stdin="".join(lines))
        jobs = [each for each in scheduler_ids if step_of(each) is None]
        if jobs:
            self._base.throttle(jobs, limit)

    # -- the far side -----------------------------------------------------------------------------------------

    def _run(self, script: str, arguments: Sequence[str], *, stdin: str = "") -> Completed:
        return self._checked(
            self.transport.run(["bash", "-c", script, "allocations", *arguments], stdin=stdin.encode())
        )

    def _run_script(self, script: str) -> Completed:
        return self._checked(self.transport.run(["sh", "-s"], stdin=script.encode()))  # sooner up than bash, often

    def _checked(self, done: Completed) -> Completed:
        if done.exit_code != 0 or done.truncated:
            raise SlurmError(
                f"the spool of allocations cannot be used (exit {done.exit_code}): {done.err.strip()[-500:]}",
                where=self.transport.where,
                retryable=True,
            )
        return done
