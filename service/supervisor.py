"""What happens to runs between a launch and their end: one thread that moves each of them on.

::

    QUEUED ──slot, agent──► INITIALIZING ──cluster ready──► RUNNING ──outcome──► COMPLETE, EXECUTOR_ERROR, SYSTEM_ERROR
       └──────cancel──────────────┴────► CANCELED ◄── CANCELING ◄──cancel──┘

A PAUSED run has no head and takes no slot; the agent submits nothing for it. Resumed, it is QUEUED as after a restart.

Requests only record what is wanted and wake this thread; it alone speaks to the agent and starts heads. All it knows
is in the database and in the runs' folders, so that after a restart every unfinished run is picked up where it was.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter

from pydantic import SecretStr

from bbpwf.cluster.jobs import ClusterInfo
from bbpwf.cluster.runs import RunRecord
from bbpwf.errors import BbpwfError, Conflict, InvalidInput
from bbpwf.log import about
from bbpwf.states import RunState
from service.daemons import LONGEST_BACKOFF_S, PREDECESSOR_GRACE_S, end_holders, tail
from service.underway import (
    AGENT_LIMIT_S,
    CANCEL_GRACE_S,
    CANCEL_LIMIT_S,
    CLUSTER_POLL_S,
    CONNECT_LIMIT_S,
    DAEMONS_GRACE_S,
    DEFECTS,
    FRESH_STARTS,
    HEAD_BACKOFF_S,
    HEAD_RESTARTS,
    HEAD_STEADY_S,
    HEADS_GRACE_S,
    IDLE_TICK_S,
    OUTCOME_GRACE_S,
    START_AGAIN,
    TICK_S,
    Surroundings,
    Waiting,
    Watched,
)

_log = logging.getLogger(__name__)


class Supervisor:
    """Moves runs on. :meth:`launched` and :meth:`changed` may be called from any thread and return at once."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._store = around.store
        self._inbox: queue.SimpleQueue[tuple[str, Waiting]] = queue.SimpleQueue()
        self._changed: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._waiting: dict[str, Waiting] = {}
        self._active: dict[str, Watched] = {}
        self._cluster: ClusterInfo | None = None
        self._cluster_seen = float("-inf")
        self._thread = threading.Thread(target=self._loop, name="supervisor", daemon=True)

    def start(self) -> None:
        """Pick up every unfinished run, and begin."""
        for run in self._store.unfinished():
            self._inbox.put((run.run_id, Waiting(run.owner.sub)))
        self._thread.start()

    def stop(self) -> None:
        """Let heads, scheduler and agent end; runs stay as they are for the next start."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(60.0)

    def launched(self, run: RunRecord, token: SecretStr | None) -> None:
        """A run was queued; ``token`` is its owner's and stays in memory."""
        self._inbox.put((run.run_id, Waiting(run.owner.sub, token)))
        if len(self._active) < self._around.max_runs:  # without a free slot, the next look is soon enough
            self._wake.set()

    def changed(self, run_id: str) -> None:
        """A run's state was changed by a request."""
        self._changed.put(run_id)
        self._wake.set()

    def failing(self) -> frozenset[str]:
        """Which of the programs beside the API do not run: ``agent``, ``luigid``."""
        programs = {"agent": self._around.agent, "luigid": self._around.scheduler}
        return frozenset(name for name, daemon in programs.items() if daemon.reason)

    def problem(self) -> str:
        """What is wrong with the programs beside the API, for people; empty when all is well."""
        return "; ".join(f"{d.name}: {d.reason}" for d in (self._around.agent, self._around.scheduler) if d.reason)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self.tick()
            except Exception:  # this thread must not die of one defect  # noqa: BLE001 logged in full
                _log.exception("the supervisor stumbled")
            self._wake.wait(TICK_S if self._busy() else IDLE_TICK_S)
            self._wake.clear()
        self._end_children()

    def _busy(self) -> bool:
        starting = bool(self._around.agent.reason or self._around.scheduler.reason)
        return starting or bool(self._active) or bool(self._waiting)

    def tick(self) -> None:
        """One look at everything. Only the supervisor's own thread, or a test without one, may call it."""
        ready = self._around.agent.tend()
        ready = self._around.scheduler.tend() and ready
        while not self._inbox.empty():
            run_id, waiting = self._inbox.get()
            if run_id in self._active:
                self._active[run_id].token = waiting.token or self._active[run_id].token
            elif run_id not in self._waiting or waiting.token:
                self._waiting[run_id] = waiting
        self._admit()
        for watched in list(self._active.values()):
            if self._stopping.is_set():
                return
            try:
                with about(run_id=watched.run_id):
                    self._advance(watched, ready=ready)
                watched.defects = 0
            except Conflict as error:
                _log.info("run %s moved meanwhile: %s", watched.run_id, error)
            except BbpwfError as error:
                _log.warning("run %s: %s", watched.run_id, error, extra={"run_id": watched.run_id})
                if not error.retryable:
                    self._count_defect(watched, str(error))
            except Exception as error:  # one run's defect is not another's  # noqa: BLE001 logged in full
                _log.exception("run %s could not be moved on", watched.run_id, extra={"run_id": watched.run_id})
                self._count_defect(watched, f"{type(error).__name__} in the service; its log has the details")
        if ready:
            self._around.spare.tend()

    def _count_defect(self, watched: Watched, what: str) -> None:
        watched.defects += 1
        if watched.defects < DEFECTS:
            return
        if watched.head is not None:
            watched.head.kill()
        try:
            self._store.move(watched.run_id, RunState.SYSTEM_ERROR, self._around.redactor.mask(what))
        except BbpwfError as error:
            _log.warning("run %s could not be ended: %s", watched.run_id, error)
            return
        self._active.pop(watched.run_id, None)
        watched.folder.leave()

    def _admit(self) -> None:
        """Take waiting runs, oldest first, as far as there are slots; a cancel needs none.

        Thousands may wait: while there is no slot only those are looked at that a request changed.
        """
        changed: set[str] = set()
        while not self._changed.empty():
            changed.add(self._changed.get())
        due = list(self._waiting) if self._has_slot() else sorted(changed)
        active = Counter(watched.sub for watched in self._active.values())
        for run_id in due:
            waiting = self._waiting.get(run_id)
            if waiting is None:
                continue
            slot = self._has_slot() and active[waiting.sub] < self._around.max_runs_per_user
            if not slot and run_id not in changed:
                continue
            state = self._store.state(run_id)
            if not slot and not (state.terminal or state is RunState.CANCELING):
                continue
            del self._waiting[run_id]
            if not state.terminal and state is not RunState.PAUSED:
                folder = self._around.folder_of(run_id)
                self._active[run_id] = Watched(run_id, waiting.sub, folder, waiting.token)
                active[waiting.sub] += 1

    def _has_slot(self) -> bool:
        return len(self._active) < self._around.max_runs

    def _advance(self, watched: Watched, *, ready: bool) -> None:
        run = self._as_it_is(watched)
        if run.state.terminal or run.state is RunState.PAUSED:  # by a request; a paused run's jobs go on
            self._forget(watched)
        elif run.state is RunState.CANCELING:
            self._cancel(watched, run)
        elif not ready and watched.head is None:
            self._no_agent(watched, run)
        else:
            watched.no_agent_since = None
            if run.state is RunState.QUEUED:
                self._store.move(run.run_id, RunState.INITIALIZING, "looking for the project's cluster")
                self._initialize(watched, self._store.get(run.run_id))
            elif run.state is RunState.INITIALIZING:
                self._initialize(watched, run)
            elif run.state is RunState.RUNNING:
                self._run(watched, run, ready=ready)

    def _as_it_is(self, watched: Watched) -> RunRecord:
        """The run; one that goes on running changes in nothing that matters here, and is not read in full each time."""
        run = watched.run
        if run is None or not run.state is self._store.state(watched.run_id) is RunState.RUNNING:
            run = watched.run = self._store.get(watched.run_id)
        return run

    def _no_agent(self, watched: Watched, run: RunRecord) -> None:
        now = self._around.clock.monotonic()
        if watched.no_agent_since is None:
            watched.no_agent_since = now
        problem = self.problem()
        if now - watched.no_agent_since > AGENT_LIMIT_S:
            self._finish(watched, RunState.SYSTEM_ERROR, f"the instance did not get ready: {problem}")
        elif now - watched.no_agent_since > 5.0 and problem and run.reason != problem:
            self._store.move(run.run_id, run.state, problem)

    def _initialize(self, watched: Watched, run: RunRecord) -> None:
        cluster = self._ask_cluster(watched)
        if cluster.state == "failed":
            self._finish(watched, RunState.SYSTEM_ERROR, f"the project's cluster cannot be used: {cluster.reason}")
        elif cluster.state != "ready":
            self._wait_for_cluster(watched, run, cluster)
        else:
            try:
                watched.folder.enter(run)
            except InvalidInput as error:
                self._finish(watched, RunState.SYSTEM_ERROR, str(error))
                return
            self._store.move(run.run_id, RunState.RUNNING)
            self._start_head(watched, run)

    def _ask_cluster(self, watched: Watched) -> ClusterInfo:
        """The cluster's state. Each run asks for it once: one that failed is tried again for the next run."""
        now = self._around.clock.monotonic()
        if not watched.asked_for_cluster:
            self._cluster = self._around.control.ensure_cluster()
            watched.asked_for_cluster = True
        elif self._cluster is None or now - self._cluster_seen >= CLUSTER_POLL_S:
            self._cluster = self._around.control.cluster()
        else:
            return self._cluster
        self._cluster_seen = now
        if self._cluster.state == "none":  # the agent was started anew meanwhile
            watched.asked_for_cluster = False
        return self._cluster

    def _wait_for_cluster(self, watched: Watched, run: RunRecord, cluster: ClusterInfo) -> None:
        now = self._around.clock.monotonic()
        reason = f"the project's cluster is {cluster.state}" + (f": {cluster.reason}" if cluster.reason else "")
        watched.cluster_since = watched.cluster_since or now
        if cluster.state != "connecting":
            watched.connecting_since = None
        else:
            watched.connecting_since = watched.connecting_since or now
        unreachable = watched.connecting_since is not None and now - watched.connecting_since > CONNECT_LIMIT_S
        if unreachable or now - watched.cluster_since > self._around.cluster_limit_s:
            self._finish(
                watched, RunState.SYSTEM_ERROR, f"{reason}; given up after {now - watched.cluster_since:.0f} s"
            )
        elif run.reason != reason:
            self._store.move(run.run_id, RunState.INITIALIZING, reason)

    def _open(self, watched: Watched, run: RunRecord) -> None:
        generation = self._around.agent.generation
        cell = watched.folder.enter(run)
        self._around.control.open_run(run.run_id, run.incarnation, watched.token, folder=cell.folder, uid=cell.uid)
        watched.agent_generation = generation

    def _run(self, watched: Watched, run: RunRecord, *, ready: bool) -> None:
        if ready and watched.head is not None and watched.agent_generation != self._around.agent.generation:
            self._open(watched, run)  # the agent was started anew and knows no runs
        outcome = watched.folder.outcome(run)
        now = self._around.clock.monotonic()
        if watched.head is not None and watched.head.exit_code() is None:
            if outcome is not None:
                watched.outcome_since = watched.outcome_since or now
                if now - watched.outcome_since > OUTCOME_GRACE_S:
                    watched.head.kill()
            return
        if outcome is not None:
            self._conclude(watched, run)
        elif watched.head is not None:
            self._head_died(watched)
        elif now >= watched.not_before:
            self._start_head(watched, run)

    def _start_head(self, watched: Watched, run: RunRecord) -> None:
        now = self._around.clock.monotonic()
        self._open(watched, run)
        try:
            watched.head = watched.folder.start(
                run,
                scheduler_url=self._around.scheduler_url(run.run_id),
                public_url=self._around.public_url,
                redactor=self._around.redactor,
            )
        except Conflict:  # a head of an earlier service, which ends now that its service is gone
            watched.blocked_since = watched.blocked_since or now
            if now - watched.blocked_since > PREDECESSOR_GRACE_S:
                end_holders(watched.folder.lock)
            return
        except OSError as error:
            watched.restarts += 1
            self._try_again(watched, f"the run's head cannot be started ({error.strerror or error})")
            return
        watched.head_since = now
        watched.blocked_since = watched.outcome_since = None

    def _head_died(self, watched: Watched) -> None:
        now = self._around.clock.monotonic()
        code = watched.head.exit_code() if watched.head is not None else None
        watched.head = None
        if now - watched.head_since > HEAD_STEADY_S:
            watched.restarts = watched.started_again = 0
        if code == START_AGAIN:  # the agent or the scheduler was gone: not the head's fault
            watched.started_again += 1
        else:
            watched.restarts += 1
        self._try_again(watched, f"the run's head ended without an outcome ({_how(code)})")

    def _try_again(self, watched: Watched, how: str) -> None:
        now = self._around.clock.monotonic()
        times = watched.restarts + watched.started_again
        if watched.restarts > HEAD_RESTARTS or watched.started_again > FRESH_STARTS:
            last = tail(watched.folder.log, limit=1000)
            self._finish(watched, RunState.SYSTEM_ERROR, f"{how}, {times} times; the end of its log:\n{last}")
            return
        watched.not_before = now + min(HEAD_BACKOFF_S * 2 ** (times - 1), LONGEST_BACKOFF_S)
        _log.warning("%s: it is started again, for the %d. time", how, times, extra={"run_id": watched.run_id})
        self._store.move(watched.run_id, RunState.RUNNING, f"{how}; it is started again")

    def _conclude(self, watched: Watched, run: RunRecord) -> None:
        outcome = watched.folder.outcome(run)
        if outcome is None:
            return
        outcome = outcome.masked(self._around.redactor.mask)
        state = RunState(outcome.state)
        details = outcome.model_dump(mode="json")
        if state is RunState.CANCELED:  # told to stop by somebody else than us, e.g. the machine going down
            self._store.move(run.run_id, RunState.CANCELING, outcome.reason, outcome=details)
            return
        self._finish(watched, state, outcome.reason, details)

    def _cancel(self, watched: Watched, run: RunRecord) -> None:
        now = self._around.clock.monotonic()
        if watched.cancel_since is None:
            watched.cancel_since = now
            if watched.head is not None:
                watched.head.ask_to_end()
        waited = now - watched.cancel_since
        if watched.head is not None:
            if watched.head.exit_code() is None:
                if waited > CANCEL_GRACE_S:
                    watched.head.kill()
                return
            watched.head = None
        try:
            if not watched.jobs_told:
                self._around.control.cancel_run(run.run_id)
                watched.jobs_told = True
            left = self._around.control.live_jobs(run.run_id)
        except BbpwfError as error:
            if waited > CANCEL_LIMIT_S:
                self._finish(watched, RunState.SYSTEM_ERROR, f"the run could not be canceled: {error}")
            return
        if left == 0:
            outcome = watched.folder.outcome(run)
            details = outcome.masked(self._around.redactor.mask).model_dump(mode="json") if outcome else None
            self._finish(watched, RunState.CANCELED, run.reason or "canceled", details)
        elif waited > CANCEL_LIMIT_S:
            reason = f"{left} jobs of the canceled run were not seen to end within {CANCEL_LIMIT_S:.0f} s"
            self._finish(watched, RunState.SYSTEM_ERROR, reason)

    def _finish(self, watched: Watched, state: RunState, reason: str, outcome: dict[str, object] | None = None) -> None:
        if state is RunState.SYSTEM_ERROR and outcome is None and watched.agent_generation:
            try:  # nobody watches over its jobs any more
                self._around.control.cancel_run(watched.run_id)
            except BbpwfError as error:
                reason = f"{reason}; its jobs could not be canceled: {error}"
        self._store.move(watched.run_id, state, self._around.redactor.mask(reason), outcome=outcome)
        _log.info("run %s is %s: %s", watched.run_id, state, reason, extra={"run_id": watched.run_id})
        self._forget(watched)

    def _forget(self, watched: Watched) -> None:
        self._active.pop(watched.run_id, None)
        if watched.head is not None:
            watched.head.kill()
        watched.folder.leave()
        if watched.agent_generation:
            try:
                self._around.control.close_run(watched.run_id)
            except BbpwfError as error:
                _log.info("run %s: its socket was not closed: %s", watched.run_id, error)

    def _end_children(self) -> None:
        """All of them at once, and within a limit: what is killed is picked up by the next start like the rest."""
        heads = [watched.head for watched in self._active.values() if watched.head is not None]
        for head in heads:
            head.hang_up()
        deadline = self._around.clock.monotonic() + HEADS_GRACE_S
        for head in heads:
            if not head.wait(max(0.1, deadline - self._around.clock.monotonic())):
                head.kill()
        for watched in self._active.values():
            watched.folder.leave()
        self._around.spare.stop()
        self._around.control.close()
        self._around.scheduler.hang_up()
        self._around.agent.stop(grace=DAEMONS_GRACE_S)
        self._around.scheduler.stop(grace=1.0)


def _how(code: int | None) -> str:
    if code is None:
        return "its end was not seen"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
