"""What a job is, and what is known of one: the vocabulary between workflow, agent, backend and service.

A job is one thing that runs and ends: an element of an array is a job of its own. Its identity is ``key``,
made by bbpwf and never reused for anything else; numbers that a scheduler answers are facts *about* it.
"""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bbpwf.errors import InvalidParameter
from bbpwf.states import JobState


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Resources(_Frozen):
    """What a job asks of the scheduler. Unset fields take the cluster's defaults.

    Jobs with equal resources, environment and working folder may share one Slurm array.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    time_limit: timedelta | None = None
    nodes: int | None = Field(None, ge=1)
    ntasks: int | None = Field(None, ge=1)
    ntasks_per_node: int | None = Field(None, ge=1)
    cpus_per_task: int | None = Field(None, ge=1)
    memory_mb: int | None = Field(None, ge=0, description="Per node, MiB; 0 asks for all of a node's memory.")
    memory_per_cpu_mb: int | None = Field(None, ge=1)
    gpus: int | None = Field(None, ge=1)
    exclusive: bool = False
    constraint: str = ""
    dependency: str = Field("", description="Handed to Slurm as it is, e.g. `afterok:123`.")
    options: tuple[tuple[str, str], ...] = Field(
        (), description="Any other sbatch long option, name without dashes, and its value ('' for a flag)."
    )

    @field_validator("options")
    @classmethod
    def _no_reserved(cls, options: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        for name, _ in options:
            if name in _RESERVED or not name.replace("-", "").isalnum():
                raise ValueError(f"the sbatch option {name!r} is bbpwf's own or not an option name")
        return options


_RESERVED = frozenset(
    {
        "array",
        "comment",
        "parsable",
        "wait",
        "wrap",
        "export",
        "export-file",
        "output",
        "error",
        "chdir",
        "job-name",
    }
    | {"requeue", "no-requeue", "open-mode", "uid", "gid", "test-only", "input"}
)


class Component(_Frozen):
    """A further part of a heterogeneous job: nodes of its own kind, and what runs there beside the first part."""

    resources: Resources = Resources()
    script: str = Field(max_length=1_000_000)


class Allocation(_Frozen):
    """Nodes that jobs of one run share: each runs as a step in one Slurm job, which starts with the first of them.

    It is given back when nothing has run in it for ``idle_s`` seconds, and at the end of its run. A backend without
    allocations runs such jobs as it runs others.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")
    resources: Resources = Resources()
    max_steps: int = Field(64, ge=1, le=1024, description="Most steps at once, however many CPUs there are.")
    idle_s: float = Field(30.0, gt=0, le=86_400)


class JobSpec(_Frozen):
    """One job, as its task wants it. The script is plain bash; it is data, never read by sbatch itself.

    ``env`` is everything that the script finds in its environment beside what Slurm and the login give; it
    must hold no secret. ``workdir`` is absolute, or relative to the run's folder on the cluster; it is made
    if absent. ``launcher`` ``srun`` runs the script as one step with a copy per task (MPI); ``none`` runs it once.
    """

    key: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{7,63}$")
    run_id: str
    task_id: str = Field(description="Luigi task id that asked for the job.")
    index: int | None = Field(None, description="Index of the element in an ArrayTask; None for a single job.")
    label: str = Field("", description="What a person calls this job or element.")
    name: str = Field("bbpwf", max_length=200, description="Slurm job name.")
    cluster: str = "default"
    script: str = Field(max_length=1_000_000)
    workdir: str = ""
    env: tuple[tuple[str, str], ...] = ()
    modules: tuple[str, ...] = ()
    container: str = Field("", description="Apptainer image to run the script in.")
    launcher: Literal["none", "srun"] = "none"
    resources: Resources = Resources()
    others: tuple[Component, ...] = Field((), description="Further components; each component is started by srun.")
    allocation: Allocation | None = Field(None, description="Run as a step in these nodes; None for nodes of its own.")
    requeue: bool = Field(True, description="Whether Slurm may start it again by itself after a fault of its nodes.")
    group: str = Field("", description="Jobs of one group share `throttle`.")
    throttle: int = Field(0, ge=0, description="Most jobs of the group that may run at once; 0 for no limit.")
    infrastructure_retries: int = Field(3, ge=0, le=10, description="Further attempts after the platform's faults.")
    retries: int = Field(0, ge=0, le=10, description="Further attempts after the job's own non-zero exit.")
    escalations: int = Field(2, ge=0, le=10, description="Further attempts with more memory or time, if that ran out.")

    @model_validator(mode="after")
    def _one_shape(self) -> JobSpec:
        if self.others and self.index is not None:
            raise ValueError("a heterogeneous job cannot be an element of an array")
        if self.allocation is not None and (self.others or self.resources.dependency):
            raise ValueError("a step of an allocation can have neither components nor a dependency of its own")
        return self


def job_key(run_id: str, task_id: str, index: int | None = None) -> str:
    """The key of the job that a run's task wants: stable, so that asking twice is asking once."""
    if not run_id or not task_id:
        raise InvalidParameter("a job needs a run id and a task id")
    text = f"{run_id}\0{task_id}\0{'' if index is None else index}"
    return "j" + hashlib.sha256(text.encode()).hexdigest()[:31]


class ExitRecord(_Frozen):
    """What the job's own wrapper wrote at the end: the best witness there is.

    ``code`` is the script's exit code (128 + n when signal n ended it), ``signal`` the signal that the wrapper
    was told to stop with (0 if none); times are Unix seconds on the node's clock. ``cpu_s`` is the CPU time of what
    ran below the wrapper on its own node, which is not where srun's tasks run; ``memory_mb`` is the most memory (MiB,
    files that were read included) that the whole job had there, where Slurm keeps it in a control group.
    """

    code: int
    signal: int = 0
    started: float
    ended: float
    node: str = ""
    slurm_id: str = ""
    restart: int = 0
    cpu_s: float | None = None
    memory_mb: int | None = None


class JobView(_Frozen):
    """What is known of a job now. ``version`` grows with every change in the ledger."""

    key: str
    run_id: str
    task_id: str
    index: int | None = None
    label: str = ""
    name: str = ""
    cluster: str = "default"
    state: JobState
    attempt: int = 1
    version: int = 0
    reason: str = Field("", description="Why it waits, or why it ended so, in plain words.")
    scheduler_id: str = Field("", description="Slurm's id, `123` or `123_4`; empty before there is one.")
    exit: ExitRecord | None = None
    submitted_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    stdout: str = Field("", description="Absolute path of the job's log on the cluster (stdout and stderr).")


class Observation(_Frozen):
    """Jobs that changed after a version, and the version to ask from next."""

    version: int
    jobs: tuple[JobView, ...] = ()


class ClusterInfo(_Frozen):
    """A cluster as tasks see it. ``state`` is a word for people: `none`, `requested`, `creating`, `ready`, `failed`."""

    name: str
    kind: Literal["slurm", "local"]
    state: str
    reason: str = ""
    where: str = ""
    data_root: str = Field("", description="Folder under which runs keep their data, absolute.")
    software: str = ""
    lustre: bool = False
    tier: str = ""
    calls: dict[str, int] = Field({}, description="Commands of its scheduler since the agent started, by kind.")


class TaskReport(_Frozen):
    """A Luigi task of a run, as the head saw it last. Times are Unix seconds."""

    task_id: str
    family: str
    params: dict[str, str] = {}
    state: Literal["PENDING", "RUNNING", "DONE", "FAILED"]
    started_at: float | None = None
    ended_at: float | None = None
    message: str = ""


class Archived(_Frozen):
    """A file that was seen in the archive: its object, size in bytes and SHA-256 (hex) of the content."""

    path: str
    url: str
    size: int
    sha256: str
