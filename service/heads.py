"""A run's folders, and the head process that executes its graph.

``<state>/runs/<run id>/`` is ours: ``attachments/``, ``head.log``. ``<heads>/<run id>/`` is what the head gets to see
(:mod:`service.containment`): ``request.json``, a copy of ``attachments/``, ``agent.sock`` (made by the agent), and its
own ``work/``, in which it leaves ``outcome-<incarnation>.json`` at its end.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bbpwf.clock import Clock
from bbpwf.cluster.runs import RunRecord
from bbpwf.errors import Conflict, InvalidInput, LimitExceeded
from bbpwf.redact import Redactor
from bbpwf.settings import Settings
from bbpwf.workflow.request import (
    MAX_FAILURES,
    WAITING,
    ClusterDefaults,
    HeadRequest,
    NexusRef,
    Outcome,
    ProjectRef,
)
from service.children import Child
from service.containment import Cell, Containment
from service.uploads import Uploads

DEFAULT_WORKERS = 4
MAX_WORKERS = 32
MAX_OUTCOME = 4 * 1024 * 1024
"""Bytes. What an honest head writes of 50 failures is shorter."""
MAX_REASON = 8000
"""Characters of a head's reason that are kept."""
SPARE_AFTER_S = 2.0
"""How long after a launch the next spare head is started: what was launched needs the processor more."""
SPARE_FOR_S = 600.0
"""For how long after a request the next launch is expected."""
SPARE_AGAIN_S = 30.0
"""How long after one ended by itself."""
_PATH = "/usr/local/bin:/usr/bin:/bin"
_HEAD = (sys.executable, "-P", "-m", "bbpwf.workflow.head")

_log = logging.getLogger(__name__)


def head_env(cell: Cell, attachments: Path | None) -> dict[str, str]:
    """The whole environment of a process that runs user code: nothing of ours, no secret, no address."""
    env = {
        "PATH": f"{Path(sys.executable).parent}:{_PATH}",
        "HOME": str(cell.work),
        "TMPDIR": str(cell.work / "tmp"),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if zone := os.environ.get("TZ"):
        env["TZ"] = zone
    if attachments is not None:
        env["PYTHONPATH"] = str(attachments)
    return env


def split_url(workflow_url: str) -> tuple[str, str]:
    """Module and task of a ``module:Task``."""
    module, _, task = workflow_url.partition(":")
    return module, task


class Spare:
    """A head that was started before there is a run for it: most of what a launch would wait for is Python's imports.

    It is contained as any head is, and has seen nothing of any user. For one thread.

    Args:
        settings: the instance's.
        containment: gives it a cell.
        redactor: masks what it says.
        clock: for pauses.
        in_use: whether people use the instance, so that there may be a launch soon.
    """

    def __init__(
        self,
        settings: Settings,
        containment: Containment,
        redactor: Redactor,
        clock: Clock,
        in_use: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._containment = containment
        self._redactor = redactor
        self._clock = clock
        self._in_use = in_use
        self._cell: Cell | None = None
        self._child: Child | None = None
        self._not_before = 0.0

    def tend(self) -> None:
        """Start one if there is none, it is wanted, and no run has begun just now; end it if nobody is there."""
        if not self._settings.heads.spare or not self._in_use():
            self.stop()
            return
        if self._child is not None and self._child.exit_code() is not None:
            _log.warning("the spare head ended with code %s", self._child.exit_code())
            self.stop()
            self._not_before = self._clock.monotonic() + SPARE_AGAIN_S
        if self._child is not None or self._clock.monotonic() < self._not_before:
            return
        state = self._settings.state
        try:
            self._cell = self._containment.enter("spare")
            (self._cell.work / WAITING).unlink(missing_ok=True)  # of one that was killed
            self._child = Child(
                "the spare head",
                _HEAD,
                env=_env_of_head(self._settings, self._cell, None),
                cwd=self._cell.work,
                log=state / "log" / "spare.log",
                lock=state / "locks" / "spare",
                redactor=self._redactor,
                cell=self._cell,
            )
        except (Conflict, OSError) as error:  # e.g. that of an earlier service, which is about to end
            _log.info("no head can be kept ready: %s", error)
            self.stop()
            self._not_before = self._clock.monotonic() + SPARE_AFTER_S

    def take(self, run_id: str) -> tuple[Cell, Child] | None:
        """The cell of a run that has none yet, with the head that waits in it; ``None`` if there is no such head."""
        cell, child = self._cell, self._child
        if cell is None or child is None or child.exit_code() is not None or not (cell.work / WAITING).exists():
            return None
        renamed = self._containment.rename(cell, run_id)
        if renamed is None:
            return None
        self._cell = self._child = None
        self._not_before = self._clock.monotonic() + SPARE_AFTER_S
        return renamed, child

    def stop(self) -> None:
        """End it."""
        cell, child, self._cell, self._child = self._cell, self._child, None, None
        if child is not None:
            child.kill()
        if cell is not None:
            self._containment.remove(cell)


class RunFolder:
    """Where a run keeps what it is on this machine.

    Args:
        settings: the instance's.
        uploads: where attachments were kept before the run existed.
        containment: gives its head a cell.
        spare: a head that may be there already.
        run_id: the run.
    """

    def __init__(
        self, settings: Settings, uploads: Uploads, containment: Containment, spare: Spare, run_id: str
    ) -> None:
        self._settings = settings
        self._uploads = uploads
        self._containment = containment
        self._spare = spare
        self._waiting: Child | None = None
        self._run_id = run_id
        self.path = settings.state / "runs" / run_id
        self.log = self.path / "head.log"
        self.lock = settings.state / "locks" / f"head-{run_id}"
        self.cell: Cell | None = None

    def attach(self, run: RunRecord) -> None:
        """Make the folder, with the run's own copy of its attachments, unless that is done.

        Raises:
            UnsafeUpload: an attachment is gone.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        attachments = self.path / "attachments"
        if run.request.attachments and not attachments.is_dir():
            self._uploads.copy_into(run.request.attachments, attachments)

    def enter(self, run: RunRecord) -> Cell:
        """The cell of the run's head, with everything in it that the head reads; the same until :meth:`leave`.

        Raises:
            InvalidInput: an attachment is gone.
        """
        if self.cell is None:
            self.attach(run)
            if taken := self._spare.take(self._run_id):
                cell, self._waiting = taken
            else:
                cell = self._containment.enter(self._run_id)
            self.cell = cell  # from here on it has to be left
            if run.request.attachments:
                _show(self.path / "attachments", cell.folder / "attachments")
        return self.cell

    def leave(self) -> None:
        """Nothing of the run's head, or of what it started, is left after this."""
        cell, self.cell = self.cell, None
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.kill()
        if cell is not None:
            self._containment.leave(cell)

    def start(self, run: RunRecord, *, scheduler_url: str, public_url: str, redactor: Redactor) -> Child:
        """Start the run's head.

        Raises:
            Conflict: an earlier head of this run is still alive.
            InvalidInput: an attachment is gone, or a setting of the launch makes no sense.
        """
        cell = self.enter(run)
        attachments = cell.folder / "attachments" if run.request.attachments else None
        request = head_request(run, self._settings, attachments, scheduler_url, public_url)
        request = request.model_copy(update={"outcome": f"work/{_outcome_of(run)}"})
        draft = cell.folder / "request.json.new"
        draft.write_text(request.model_dump_json(indent=1))
        draft.chmod(0o644)  # the folder is for this head alone
        draft.replace(cell.folder / "request.json")
        name, env = f"head of {run.run_id}", _env_of_head(self._settings, cell, attachments)
        if (waiting := self._waiting) is not None:
            word = json.dumps({"folder": str(cell.folder), "env": env}).encode() + b"\n"
            with contextlib.suppress(OSError):  # it has ended: another one, then
                waiting.become(name, log=self.log, lock=self.lock, word=word)
                self._waiting = None
                return waiting
            waiting.kill()
            self._waiting = None
        return Child(
            name,
            [*_HEAD, str(cell.folder)],
            env=env,
            cwd=cell.work,
            log=self.log,
            lock=self.lock,
            redactor=redactor,
            cell=cell,
        )

    def outcome(self, run: RunRecord) -> Outcome | None:
        """What the head of this incarnation left, if it did. What it says is user code's word."""
        if self.cell is None:
            return None
        try:
            found = self.cell.read(_outcome_of(run), MAX_OUTCOME)
            if found is None:
                return None
            outcome = Outcome.model_validate_json(found)
        except (ValueError, LimitExceeded) as error:  # pydantic's, too
            why = str(error) if isinstance(error, LimitExceeded) else "it is not what heads write"
            return Outcome(state="SYSTEM_ERROR", reason=f"the run's head left an outcome that cannot be read: {why}")
        return outcome.model_copy(
            update={"reason": outcome.reason[:MAX_REASON], "failed": outcome.failed[:MAX_FAILURES]}
        )


def _env_of_head(settings: Settings, cell: Cell, attachments: Path | None) -> dict[str, str]:
    return head_env(cell, attachments) | ({"BBPWF_LOG_JSON": "true"} if settings.log_json else {})


def _outcome_of(run: RunRecord) -> str:
    return f"outcome-{run.incarnation}.json"


def _show(kept: Path, shown: Path) -> None:
    """A copy of the attachments that the head can read and not change."""
    if shown.is_dir():
        return
    draft = Path(tempfile.mkdtemp(dir=shown.parent, prefix=".attachments-"))
    shutil.copytree(kept, draft, dirs_exist_ok=True, copy_function=shutil.copyfile)
    open_up(draft)
    draft.rename(shown)


def open_up(folder: Path) -> None:
    """Let everybody read who gets as far as this folder. There must be nothing but files of ours in it."""
    folder.chmod(0o755)
    for entry in folder.rglob("*"):
        entry.chmod(0o755 if entry.is_dir() else 0o644)


def head_request(
    run: RunRecord, settings: Settings, attachments: Path | None, scheduler_url: str = "", public_url: str = ""
) -> HeadRequest:
    """What the head of a run is asked to do."""
    module, task = split_url(run.request.workflow_url)
    engine = run.request.workflow_engine_parameters
    cluster, nexus = settings.cluster, settings.nexus
    partition = cluster.partition or (settings.provisioner.tier if cluster.kind == "provisioned" else "")
    return HeadRequest(
        run_id=run.run_id,
        incarnation=run.incarnation,
        module=module,
        task=task,
        params=run.request.workflow_params,
        config=engine.get("config"),
        attachments=str(attachments) if attachments else None,
        workflows_path=tuple(str(path) for path in settings.service.workflows_path),
        scheduler_url=scheduler_url,
        workers=workers_of(engine),
        public_url=public_url,
        project=ProjectRef(**settings.project.model_dump()),
        cluster=ClusterDefaults(software=cluster.software, partition=partition),
        nexus=NexusRef(url=str(nexus.url or ""), org=nexus.org, project=nexus.project, storage_id=nexus.storage_id),
    )


def workers_of(engine_parameters: dict[str, Any]) -> int:
    """How many plain Luigi tasks may run at once.

    Raises:
        InvalidInput: ``workers`` is not a number from 1 to 32.
    """
    given = engine_parameters.get("workers", DEFAULT_WORKERS)
    try:
        workers = int(given)
    except (TypeError, ValueError):
        workers = 0
    if not 1 <= workers <= MAX_WORKERS:
        raise InvalidInput(f"workflow_engine_parameters.workers is {json.dumps(given)}, not 1 to {MAX_WORKERS}")
    return workers
