"""``bbpwf run``: a task graph from this very process. The agent is in it; the scheduler is too, or a ``luigid``."""

from __future__ import annotations

import getpass
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import SecretStr

from bbpwf import log
from bbpwf.cli import show
from bbpwf.cli.ahead import Ahead
from bbpwf.cli.exits import INTERRUPTED, exit_code_of_run
from bbpwf.cli.follow import MANY_TASKS, Follower, conclude, digest
from bbpwf.clock import Clock
from bbpwf.cluster.agent import Agent
from bbpwf.cluster.runs import Owner, RunRecord, RunRequest, RunStore
from bbpwf.errors import BbpwfError, ClusterFailed, Conflict, DeadlineExceeded, InvalidInput
from bbpwf.redact import Redactor
from bbpwf.settings import Settings
from bbpwf.states import RunState
from bbpwf.workflow.catalogue import validate
from bbpwf.workflow.request import HeadRequest, Outcome, parse_request
from bbpwf.workflow.runner import Cancellation, run_local
from service.heads import head_request
from service.views import run_view, task_view

CONNECT_LIMIT_S = 300.0
"""How long a cluster that is there may stay out of reach."""
TOKEN_EVERY_S = 20.0
"""How often the login of this machine is looked at, and refreshed if due, while a run may need it."""

_log = logging.getLogger(__name__)


def run_here(
    begun: Ahead, module: str, task: str, params: dict[str, str], config: Path | None, *, resume: str, json_output: bool
) -> int:
    """Run a graph, or go on with an earlier run, with what was begun already; the exit code.

    Raises:
        BbpwfError: the run could not begin.
    """
    configured, store = begun.settings, begun.agent.runs
    paths: tuple[str, ...] = ()
    if resume:
        run = _again(store, resume)
    else:
        asked, paths = _request(module, task, params, config), _paths(module)
        validate(_head_request(RunRecord(run_id="check", **_UNBORN, request=asked), configured, paths))
        run = store.create(asked, _me())
    return _Here(begun, store, run).go(paths, json_output=json_output)


def _request(module: str, task: str, params: dict[str, str], config: Path | None) -> RunRequest:
    name = Path(module).stem if module.endswith(".py") else module
    engine = {"config": str(config.absolute())} if config else {}
    return RunRequest(workflow_url=f"{name}:{task}", workflow_params=params, workflow_engine_parameters=engine)


def _paths(module: str) -> tuple[str, ...]:
    return (str((Path(module).parent if module.endswith(".py") else Path.cwd()).absolute()),)


def _me() -> Owner:
    return Owner(sub="local", username=getpass.getuser())


_UNBORN: dict[str, Any] = {"state": RunState.QUEUED, "owner": Owner(sub="local"), "created_at": 0.0}


def _head_request(run: RunRecord, configured: Settings, paths: tuple[str, ...]) -> HeadRequest:
    request = head_request(run, configured, None, configured.scheduler_url, configured.url)
    return request.model_copy(update={"workflows_path": (*paths, *request.workflows_path)})


def _again(store: RunStore, run_id: str) -> RunRecord:
    run = store.get(run_id)
    return store.resume(run_id) if run.state.terminal else run


@dataclass
class _Here:
    """One run in this process."""

    begun: Ahead
    store: RunStore
    run: RunRecord

    @property
    def settings(self) -> Settings:
        return self.begun.settings

    @property
    def clock(self) -> Clock:
        return self.begun.clock

    @property
    def redactor(self) -> Redactor:
        return self.begun.redactor

    def go(self, paths: tuple[str, ...], *, json_output: bool) -> int:
        run_id = self.run.run_id
        folder = self.settings.state / "runs" / run_id
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        request = self._head_request(folder / "request.json", paths)
        cancellation = Cancellation()
        with (folder / "head.log").open("a", encoding="utf-8") as stream, _interruptible(cancellation):
            log.configure(self.redactor, level=self.settings.log_level, as_json=self.settings.log_json, stream=stream)
            outcome = self._with_agent(request, cancellation, json_output=json_output)
        final = self._end(outcome)
        conclude(run_view(final), json_output=json_output)
        if not json_output and final.state is not RunState.COMPLETE:
            out = show.console(err=True)
            out.print(f"log: {folder / 'head.log'}", soft_wrap=True, markup=False)
            out.print(f"go on with it: bbpwf run --resume {run_id}", soft_wrap=True, markup=False)
        return INTERRUPTED if cancellation.requested else exit_code_of_run(final.state)

    def _head_request(self, path: Path, paths: tuple[str, ...]) -> HeadRequest:
        if path.exists():
            request = parse_request(path.read_bytes(), where=str(path))
            request = request.model_copy(update={"incarnation": self.run.incarnation})
        else:
            request = _head_request(self.run, self.settings, paths)
        path.write_text(request.model_dump_json(indent=1))
        return request

    def _with_agent(self, request: HeadRequest, cancellation: Cancellation, *, json_output: bool) -> Outcome:
        agent = self.begun.agent
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(agent, ended, json_output), daemon=True)
        agent.start()
        watcher.start()
        try:
            self._reach_cluster(agent, cancellation)
            if self.run.state is not RunState.RUNNING:
                self.store.move(request.run_id, RunState.RUNNING)
            bound = agent.for_run(request.run_id, request.incarnation, self._token())
            return run_local(bound, request, cancellation=cancellation, clock=self.clock)
        except InvalidInput as error:
            return Outcome(state="EXECUTOR_ERROR", reason=str(error))
        except BbpwfError as error:
            _log.exception("the run failed")
            return Outcome(state="CANCELED" if cancellation.requested else "SYSTEM_ERROR", reason=str(error))
        finally:
            ended.set()
            watcher.join(10.0)
            agent.release_run(request.run_id)

    def _reach_cluster(self, agent: Agent, cancellation: Cancellation) -> None:
        """Wait for the cluster. Raises ClusterFailed or DeadlineExceeded, with its reason."""
        if self.run.state is RunState.QUEUED:
            self.run = self.store.move(self.run.run_id, RunState.INITIALIZING, "looking for the cluster")
        runtime = agent.cluster()
        began = self.clock.monotonic()
        connecting: float | None = None
        runtime.ensure()
        while True:
            info = runtime.wait_ready(0.5)
            if info.state == "ready":
                return
            now = self.clock.monotonic()
            connecting = (connecting or now) if info.state == "connecting" else None
            reason = f"the cluster is {info.state}" + (f": {info.reason}" if info.reason else "")
            if info.state == "failed":
                raise ClusterFailed(reason)
            if cancellation.requested:
                raise ClusterFailed("interrupted while waiting for the cluster")
            late = connecting is not None and now - connecting > CONNECT_LIMIT_S
            if late or now - began > self.settings.provisioner.deadline_s:
                raise DeadlineExceeded(f"{reason}; given up after {now - began:.0f} s")
            if self.store.get(self.run.run_id).reason != reason and self.run.state is RunState.INITIALIZING:
                self.store.move(self.run.run_id, RunState.INITIALIZING, reason)

    def _watch(self, agent: Agent, ended: threading.Event, json_output: bool) -> None:
        looked = self.clock.monotonic()

        def news() -> tuple[dict[str, Any], list[dict[str, Any]]]:
            nonlocal looked
            if self.clock.monotonic() - looked > TOKEN_EVERY_S:
                looked = self.clock.monotonic()
                if token := self._token():
                    agent.tokens.put(self.run.run_id, token)
            families = [] if json_output else self.store.families(self.run.run_id)
            run = run_view(self.store.get(self.run.run_id))
            if sum(count for _, _, count in families) > MANY_TASKS:
                return run, digest(families)
            rows, _ = self.store.tasks(self.run.run_id, limit=1000) if families else ([], "")
            return run, [task_view(row) for row in rows]

        try:
            Follower(news, self.clock, quiet=json_output).until_end(ended=ended.is_set)
        except BbpwfError:
            _log.exception("the progress could not be shown")

    def _token(self) -> SecretStr | None:
        """The token of whoever is logged in on this machine, for Nexus; runs that need none work without."""
        given = os.environ.get("BBPWF_TOKEN", "")
        if not self.settings.oidc.issuer and not given:
            return None
        from bbpwf.cli.credentials import Credentials  # with Keycloak's client it is slow to import

        try:
            return Credentials(self.settings, self.clock, self.redactor, token=given).access_token()
        except BbpwfError as error:
            _log.info("no token of a person: %s", error)
            return None

    def _end(self, outcome: Outcome) -> RunRecord:
        state, run_id = RunState(outcome.state), self.run.run_id
        details = outcome.model_dump(mode="json")
        try:
            if state is RunState.CANCELED and self.store.get(run_id).state is RunState.RUNNING:
                self.store.move(run_id, RunState.CANCELING, outcome.reason)
            return self.store.move(run_id, state, self.redactor.mask(outcome.reason), outcome=details)
        except Conflict:  # e.g. an invalid request found before the run was RUNNING
            _log.exception("the run's end could not be recorded as %s", state)
            return self.store.move(run_id, RunState.SYSTEM_ERROR, self.redactor.mask(outcome.reason), outcome=details)


@contextmanager
def _interruptible(cancellation: Cancellation) -> Iterator[None]:
    """Ctrl-C once cancels the run and its jobs; once more leaves at once, and the jobs to themselves."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        del number, frame
        if cancellation.requested:
            raise KeyboardInterrupt
        show.console(err=True).print("canceling the run and its jobs; once more to leave them running", markup=False)
        cancellation.request()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
