"""Accepting a launch, whichever way it came: checked in full before there is a run, durable when the answer is sent."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from bbpwf.cluster.runs import RunRecord, RunRequest, RunStore
from bbpwf.errors import Conflict, InvalidInput
from bbpwf.states import RunState
from service.access import Caller, require_power
from service.catalogue import Catalogue
from service.heads import RunFolder, workers_of
from service.notices import Notices
from service.outbound import Outbound
from service.supervisor import Supervisor
from service.uploads import Uploads

ENGINE_PARAMETERS = frozenset({"config", "workers", "webhook", "mail"})
"""What may be said in ``workflow_engine_parameters``: an attached Luigi ``.cfg``; plain tasks at once; who is to be
told of the run's end."""
MAX_FETCHED = 1024 * 1024
"""Most bytes of a module that is given by its URL."""

_MODULE = r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*"
_URL = re.compile(rf"({_MODULE})[:.]([A-Za-z_][A-Za-z0-9_]*)\Z")
_FILE = re.compile(r"((?:[A-Za-z_][A-Za-z0-9_]*/)*[A-Za-z_][A-Za-z0-9_]*)\.py(?::([A-Za-z_][A-Za-z0-9_]*))?\Z")
_FETCHED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*\.py)\Z")
_LONGEST_KEY = 200


def workflow_url(text: str) -> str:
    """``module:Task`` for any way to write it: ``module:Task``, ``module.Task``, ``folder/module.py:Task``.

    ``folder/module.py`` alone is answered as ``module``: which task is meant is for the catalogue to say.

    Raises:
        InvalidInput: it names no module and task.
    """
    file = _FILE.match(text)
    if file:
        return file[1].replace("/", ".") + (f":{file[2]}" if file[2] else "")
    url = _URL.match(text)
    if url is None:
        raise InvalidInput(f"workflow_url {text[:200]!r} is not '<module>:<Task>'")
    return f"{url[1]}:{url[2]}"


class Launches:
    """Everything between a parsed form and a queued run. Calls block: use a worker thread."""

    def __init__(
        self,
        store: RunStore,
        uploads: Uploads,
        catalogue: Catalogue,
        supervisor: Supervisor,
        folder_of: Callable[[str], RunFolder],
        notices: Notices,
        outbound: Outbound,
    ) -> None:
        self._store = store
        self._uploads = uploads
        self._catalogue = catalogue
        self._supervisor = supervisor
        self._folder_of = folder_of
        self._notices = notices
        self._outbound = outbound

    def accept(
        self,
        url: str,
        files: Iterable[tuple[str, BinaryIO]],
        caller: Caller,
        *,
        idempotency_key: str = "",
        params: dict[str, Any] | None = None,
        engine_parameters: dict[str, str] | None = None,
        **wes: Any,
    ) -> RunRecord:
        """The queued run; or the one that this caller already launched with this key.

        Args:
            url: names the task, see :func:`workflow_url`; or an https URL of a module, with ``#Task`` for one of its.
            files: attachments, by the names they were sent under.
            caller: becomes the owner.
            idempotency_key: makes a repetition of the same launch answer the same run.
            params: the task's parameters.
            engine_parameters: see :data:`ENGINE_PARAMETERS`.
            wes: further fields of :class:`bbpwf.cluster.runs.RunRequest`.

        Raises:
            InvalidInput: whatever is wrong with it, by name.
            Conflict: the key was used for another launch.
            Unreachable: the URL's host does not answer.
            TooManyRuns: as many are unfinished as may be.
        """
        if len(idempotency_key) > _LONGEST_KEY or not idempotency_key.isprintable():
            raise InvalidInput(f"an Idempotency-Key is at most {_LONGEST_KEY} printable characters")
        engine = engine_parameters or {}
        if unknown := engine.keys() - ENGINE_PARAMETERS:
            raise InvalidInput(
                f"workflow_engine_parameters has no {', '.join(sorted(unknown))[:200]}",
                hint=f"There are: {', '.join(sorted(ENGINE_PARAMETERS))}.",
            )
        workers_of(engine)
        self._notices.check(engine)
        if "://" in url:
            try:
                url, module = self._fetch(url)
            except InvalidInput as error:
                raise InvalidInput(f"workflow_url: {error.message}", hint=error.hint) from error
            files = [*files, module]
        url = workflow_url(url)
        attachments = self._uploads.keep(files)
        if ":" not in url:
            url = self._catalogue.main_task(url, [str(each) for each in attachments])
        config = engine.get("config")
        if config and config not in {each.name for each in attachments}:
            raise InvalidInput(f"the config {config[:200]!r} is not among the attachments")
        request = RunRequest(
            workflow_url=url,
            workflow_params=params or {},
            workflow_engine_parameters=engine,
            attachments=tuple(str(each) for each in attachments),
            **wes,
        )
        self._catalogue.validate(request)
        run = self._store.create(request, caller.owner, idempotency_key)
        if run.request.attachments:
            self._folder_of(run.run_id).attach(run)
        self._supervisor.launched(run, caller.token)
        return run

    def _fetch(self, url: str) -> tuple[str, tuple[str, BinaryIO]]:
        """What a URL names, as if the module had been attached."""
        place, _, task = url.partition("#")
        parts = self._outbound.check(place)
        name = _FETCHED.match(parts.path.rpartition("/")[2])
        if name is None:
            raise InvalidInput("the URL of a workflow ends with the name of a module, <module>.py, and maybe #<Task>")
        content = self._outbound.get(place, most=MAX_FETCHED)
        return f"{name[1]}:{task}" if task else name[1], (name[1], io.BytesIO(content))

    def cancel(self, run_id: str, caller: Caller) -> RunRecord:
        """Have the run canceled; one that ended stays as it is. Raises NotFound, NotAuthorized."""
        reason = f"canceled by {caller.username}"
        for _ in range(5):
            run = self._store.get(run_id)
            require_power(caller, run.owner)
            if run.state.terminal or run.state is RunState.CANCELING:
                return run
            paused = run.state is RunState.PAUSED
            at_once = run.state in {RunState.QUEUED, RunState.INITIALIZING} and run.incarnation == 1
            try:
                run = self._store.move(run_id, RunState.CANCELED if at_once else RunState.CANCELING, reason)
            except Conflict:  # the supervisor moved it between our look and our word
                continue
            if paused:  # nobody tended it any more
                self._supervisor.launched(run, None)
            self._supervisor.changed(run_id)
            return run
        raise Conflict(f"run {run_id} keeps changing", hint="Try again.")

    def pause(self, run_id: str, caller: Caller) -> RunRecord:
        """Have nothing new begun for the run until it is resumed; a paused one stays so.

        Raises NotFound, NotAuthorized, Conflict.
        """
        require_power(caller, self._store.get(run_id).owner)
        run = self._store.move(run_id, RunState.PAUSED, f"paused by {caller.username}")
        self._supervisor.changed(run_id)
        return run

    def resume(self, run_id: str, caller: Caller) -> RunRecord:
        """Queue a run again that did not complete, or that was paused.

        Raises NotFound, NotAuthorized, Conflict.
        """
        owner = self._store.get(run_id).owner
        require_power(caller, owner)
        run = self._store.resume(run_id)
        # a run is its owner's code: an administrator's token is none of its business
        self._supervisor.launched(run, caller.token if caller.sub == owner.sub else None)
        return run
