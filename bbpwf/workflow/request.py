"""What a head is asked to do (``request.json``) and what it answers (``outcome.json``)."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bbpwf.errors import InvalidInput

LOG_TAIL_CHARS = 4000
"""Most characters of a job's log that an outcome quotes."""

WAITING = "waiting"
"""A file in the working folder of a head that waits for a run."""

MAX_FAILURES = 50
"""Most failures that an outcome lists; their number is in its reason."""


class _Open(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ProjectRef(_Open):
    """Whose run it is."""

    virtual_lab_id: str = ""
    project_id: str = ""


class ClusterDefaults(_Open):
    """What the instance sets for jobs that do not say otherwise."""

    software: str = Field("", description="Software environment whose `bin` leads a job's PATH.")
    partition: str = ""


class NexusRef(_Open):
    """Where results are registered; an empty ``url`` means nowhere."""

    url: str = ""
    org: str = ""
    project: str = ""
    storage_id: str = ""


class HeadRequest(_Open):
    """One run, as the service or ``bbpwf run`` asks for it."""

    run_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    incarnation: int = Field(1, ge=1, description="Grows with each resume, not with a restart of the head.")
    module: str
    task: str
    params: dict[str, Any] = {}
    config: str | None = Field(None, description="A Luigi `.cfg`: absolute, or relative to the attachments.")
    attachments: str | None = Field(None, description="Absolute folder of the files that came with the launch.")
    workflows_path: tuple[str, ...] = Field((), description="Further folders to find task modules in.")
    scheduler_url: str = Field("", description="Luigi's central scheduler; one inside the head if empty.")
    workers: int = Field(4, ge=1, le=256, description="Plain Luigi tasks that may run at once; jobs are not counted.")
    max_jobs: int = Field(100_000, ge=1, description="Job tasks in flight at once.")
    public_url: str = Field("", description="URL of the service, for links from the dashboard to logs.")
    outcome: str = Field("outcome.json", description="Where the head leaves its outcome, from the run's folder.")
    project: ProjectRef = ProjectRef()
    cluster: ClusterDefaults = ClusterDefaults()
    nexus: NexusRef = NexusRef()

    @property
    def config_file(self) -> Path | None:
        """The ``.cfg`` to read, absolute.

        Raises:
            InvalidInput: a relative path that leaves the attachments, or one without attachments.
        """
        if not self.config:
            return None
        path = Path(self.config)
        if path.is_absolute():
            return path
        if not self.attachments:
            raise InvalidInput(f"the config {self.config!r} is relative, but nothing was attached")
        base = Path(self.attachments).resolve()
        resolved = (base / path).resolve()
        if not resolved.is_relative_to(base):
            raise InvalidInput(f"the config {self.config!r} is not among the attachments")
        return resolved


class Failure(_Open):
    """One thing that failed: a Luigi task, or one element of an array."""

    task_id: str
    label: str = ""
    exit_code: int | None = None
    reason: str = ""
    log_tail: str = ""


class Outcome(_Open):
    """How the run ended, in words that a person understands."""

    state: Literal["COMPLETE", "EXECUTOR_ERROR", "SYSTEM_ERROR", "CANCELED"]
    reason: str = ""
    failed: tuple[Failure, ...] = ()

    def masked(self, mask: Callable[[str], str]) -> Outcome:
        """The same with every text passed through ``mask``: it quotes logs, with whatever is in them."""
        failed = tuple(
            each.model_copy(update={name: mask(value) for name, value in each if isinstance(value, str)})
            for each in self.failed
        )
        return self.model_copy(update={"reason": mask(self.reason), "failed": failed})


def parse_request(text: str | bytes, *, where: str = "") -> HeadRequest:
    """The request in a JSON text.

    Raises:
        InvalidInput: it is not JSON, or a field is missing or ill-typed; names each.
    """
    try:
        return HeadRequest.model_validate(json.loads(text))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False, include_url=False)
        )
        raise InvalidInput(f"invalid request: {problems}", where=where) from None
    except ValueError as error:
        raise InvalidInput(f"the request is not JSON: {error}", where=where) from error


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Put the outcome at ``path``: readers see all of it or nothing, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(outcome.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
