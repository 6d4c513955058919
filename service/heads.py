"""A run's folder, and the head process that executes its graph.

``<state>/runs/<run id>/``: ``request.json``, ``attachments/``, ``agent.sock`` (made by the agent), ``head.log``,
``outcome.json`` (written by the head at its end).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from bbpwf.cluster.runs import RunRecord
from bbpwf.errors import InvalidInput
from bbpwf.redact import Redactor
from bbpwf.settings import Settings
from bbpwf.workflow.request import ClusterDefaults, HeadRequest, NexusRef, Outcome, ProjectRef
from service.children import Child
from service.uploads import Uploads

DEFAULT_WORKERS = 4
MAX_WORKERS = 32
_PATH = "/usr/local/bin:/usr/bin:/bin"


def head_env(home: Path, attachments: Path | None) -> dict[str, str]:
    """The whole environment of a process that runs user code: nothing of ours, no secret, no address."""
    env = {
        "PATH": f"{Path(sys.executable).parent}:{_PATH}",
        "HOME": str(home),
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


class RunFolder:
    """Where a run keeps what it is on this machine.

    Args:
        settings: the instance's.
        uploads: where attachments were kept before the run existed.
        run_id: the run.
    """

    def __init__(self, settings: Settings, uploads: Uploads, run_id: str) -> None:
        self._settings = settings
        self._uploads = uploads
        self.path = settings.state / "runs" / run_id
        self.log = self.path / "head.log"
        self.outcome_path = self.path / "outcome.json"
        self.lock = settings.state / "locks" / f"head-{run_id}"

    def prepare(self, run: RunRecord, *, scheduler_url: str, public_url: str) -> None:
        """Write what the head reads, for this incarnation: an outcome of an earlier one is removed.

        Raises:
            InvalidInput: an attachment is gone, or a setting of the launch makes no sense.
        """
        self.attach(run)
        self.outcome_path.unlink(missing_ok=True)
        self._write_request(run, scheduler_url, public_url)

    def attach(self, run: RunRecord) -> None:
        """Make the folder, with the run's own copy of its attachments, unless that is done.

        Raises:
            UnsafeUpload: an attachment is gone.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        attachments = self.path / "attachments"
        if run.request.attachments and not attachments.is_dir():
            self._uploads.copy_into(run.request.attachments, attachments)

    def start(self, run: RunRecord, *, scheduler_url: str, public_url: str, redactor: Redactor) -> Child:
        """Start the run's head.

        Raises:
            Conflict: an earlier head of this run is still alive.
        """
        self._write_request(run, scheduler_url, public_url)
        home = self.path / "home"
        home.mkdir(exist_ok=True)
        argv = [sys.executable, "-P", "-m", "bbpwf.workflow.head", str(self.path)]
        return Child(
            f"head of {run.run_id}",
            argv,
            env=head_env(home, self._attachments(run))
            | ({"BBPWF_LOG_JSON": "true"} if self._settings.log_json else {}),
            cwd=self.path,
            log=self.log,
            lock=self.lock,
            redactor=redactor,
        )

    def outcome(self) -> Outcome | None:
        """What the head left, if it did."""
        try:
            return Outcome.model_validate_json(self.outcome_path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:  # pydantic's, too
            return Outcome(state="SYSTEM_ERROR", reason="the run's head left an outcome that cannot be read")

    def _attachments(self, run: RunRecord) -> Path | None:
        return self.path / "attachments" if run.request.attachments else None

    def _write_request(self, run: RunRecord, scheduler_url: str, public_url: str) -> None:
        request = head_request(run, self._settings, self._attachments(run), scheduler_url, public_url)
        draft = self.path / "request.json.new"
        draft.write_text(request.model_dump_json(indent=1))
        draft.replace(self.path / "request.json")


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
