"""What every job task may be told about its resources and its environment.

All of it is insignificant to Luigi: asking for more memory does not make another task. Each can be given as a
parameter, in the task's section of a ``.cfg``, or for all tasks in ``[DEFAULT]``. Names are those of sbatch's
long options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import luigi
from luigi.parameter import Parameter
from pydantic import ValidationError

from bbpwf.cluster.jobs import Allocation, Resources
from bbpwf.errors import InvalidInput, InvalidParameter
from bbpwf.shell import exports

_MEMORY = re.compile(r"(\d+)\s*(K|KB|M|MB|G|GB|T|TB)?\Z", re.IGNORECASE)
_FACTORS = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}
_CLOCK = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?\Z")


def parse_memory(text: str) -> int:
    """MiB in ``4G``, ``512M`` or ``512`` (sbatch counts in MiB). Raises ValueError."""
    match = _MEMORY.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not an amount of memory: write 512M, 4G or 1T")
    amount = int(match[1]) * _FACTORS[(match[2] or "M")[0].upper()]
    if 0 < amount < 1:
        return 1
    return int(amount)


def parse_duration(text: str) -> timedelta:
    """A time limit as sbatch writes it: ``minutes``, ``MM:SS``, ``HH:MM:SS``, ``D-HH[:MM[:SS]]``. Raises ValueError."""
    match = _CLOCK.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a time limit: write minutes, HH:MM:SS or D-HH:MM:SS")
    days, first, second, third = match[1], int(match[2]), match[3], match[4]
    if days is not None:
        parts = {"days": int(days), "hours": first, "minutes": int(second or 0), "seconds": int(third or 0)}
    elif third is not None:
        parts = {"hours": first, "minutes": int(second or 0), "seconds": int(third)}
    else:
        parts = {"minutes": first, "seconds": int(second or 0)}
    limit = timedelta(**parts)
    if limit <= timedelta(0):
        raise ValueError("a time limit must be longer than nothing")
    return limit


def _text(description: str) -> luigi.Parameter[str]:
    return luigi.Parameter(default="", significant=False, positional=False, description=description)


def _number(description: str) -> luigi.OptionalIntParameter:
    return luigi.OptionalIntParameter(default=None, significant=False, positional=False, description=description)


class ResourceParameters:
    """Mixin: what the job asks of the scheduler. What is left empty is up to the cluster."""

    partition = _text("Slurm partition; the instance's, then the cluster's own default if empty.")
    account = _text("Account to charge.")
    qos = _text("Quality of service.")
    time = _text("Time limit: minutes, HH:MM:SS or D-HH:MM:SS.")
    nodes = _number("Nodes.")
    ntasks = _number("Tasks (MPI ranks).")
    ntasks_per_node = _number("Tasks on each node.")
    cpus_per_task = _number("CPUs for each task.")
    mem = _text("Memory per node, e.g. 4G; 0 for all of it.")
    mem_per_cpu = _text("Memory per CPU, e.g. 2G.")
    gpus = _number("GPUs.")
    exclusive = luigi.BoolParameter(
        default=False, significant=False, positional=False, description="Share nodes with no other job."
    )
    constraint = _text("Node features that are required.")
    dependency = _text("Jobs outside the workflow to wait for, as sbatch takes it, e.g. afterok:123.")
    sbatch_options: luigi.DictParameter[Any] = luigi.DictParameter(
        default={},
        significant=False,
        positional=False,
        description='Any other sbatch long option, e.g. {"reservation": "x"}; a flag has the value "".',
    )
    job_name = _text("Slurm job name; the task's own if empty.")
    cluster = luigi.Parameter(
        default="default", significant=False, positional=False, description="Name of the cluster to run on."
    )
    infrastructure_retries = luigi.IntParameter(
        default=3, significant=False, positional=False, description="Further attempts after the platform's faults."
    )
    retries = luigi.IntParameter(
        default=0, significant=False, positional=False, description="Further attempts after a non-zero exit code."
    )
    escalations = luigi.IntParameter(
        default=2,
        significant=False,
        positional=False,
        description="Further attempts with twice the memory, or time, when that ran out.",
    )

    def job_resources(self) -> Resources:
        """The parameters as the agent takes them.

        Raises:
            InvalidParameter: names the task and the parameter.
        """
        family = type(self).__name__
        for name, most in (("infrastructure_retries", 10), ("retries", 10), ("escalations", 10)):
            if not 0 <= getattr(self, name) <= most:
                raise InvalidParameter(
                    f"{family}: {name} must be between 0 and {most}, not {getattr(self, name)}", where=family
                )
        return resources_of(family, {name: getattr(self, name) for name in RESOURCE_NAMES})


def resources_of(family: str, given: Mapping[str, Any]) -> Resources:
    """Resources from values as parameters hold them, by the parameters' names; what is not given is up to the cluster.

    Raises:
        InvalidParameter: names ``family`` and the parameter.
    """
    for name in given:
        if name not in RESOURCE_NAMES:
            known = ", ".join(RESOURCE_NAMES)
            raise InvalidParameter(f"{family}: {name} is not a resource", where=family, hint=f"There are: {known}.")
    values: dict[str, Any] = {name: given[name] for name in _AS_THEY_ARE if name in given}
    values["time_limit"] = _converted(family, "time", given.get("time"), parse_duration)
    values["memory_mb"] = _converted(family, "mem", given.get("mem"), parse_memory)
    values["memory_per_cpu_mb"] = _converted(family, "mem_per_cpu", given.get("mem_per_cpu"), parse_memory)
    values["options"] = tuple(
        (str(name).removeprefix("--"), "" if value in ("", True, None) else str(value))
        for name, value in given.get("sbatch_options", {}).items()
    )
    try:
        return Resources(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = _PARAMETER_OF.get(str(first["loc"][0]), str(first["loc"][0]))
        raise InvalidParameter(
            f"{family}: {name}={given.get(name)!r} is not valid: {first['msg']}", where=family
        ) from None


_AS_THEY_ARE = (
    *("partition", "account", "qos", "constraint", "dependency"),
    *("nodes", "ntasks", "ntasks_per_node", "cpus_per_task", "gpus", "exclusive"),
)
RESOURCE_NAMES = (*_AS_THEY_ARE, "time", "mem", "mem_per_cpu", "sbatch_options")
"""The parameters that together are a job's resources."""
_PARAMETER_OF = {
    "time_limit": "time",
    "memory_mb": "mem",
    "memory_per_cpu_mb": "mem_per_cpu",
    "options": "sbatch_options",
}


def _converted(family: str, name: str, text: Any, convert: Any) -> Any:
    if text in ("", None):
        return None
    try:
        return convert(str(text))
    except (ValueError, OverflowError) as error:
        raise InvalidParameter(f"{family}: {name}: {error}", where=family) from None


class EnvironmentParameters:
    """Mixin: what the job's script finds around it."""

    modules = _text("Environment modules to load, separated by blanks or commas.")
    env: luigi.DictParameter[Any] = luigi.DictParameter(
        default={},
        significant=False,
        positional=False,
        description='Environment variables, e.g. {"OMP_NUM_THREADS": "4"}; no secrets: they are recorded.',
    )
    container = _text("Apptainer image to run the script in.")
    software = _text("Software environment whose bin folder leads PATH, before the cluster's own.")
    workdir = _text("Working folder, made if absent; relative to the run's folder, which it is if empty.")

    def job_environment(self) -> tuple[tuple[str, str], ...]:
        """``env`` as the agent takes it, sorted by name.

        Raises:
            InvalidParameter: a name that no shell accepts, or a value that is not plain.
        """
        family = type(self).__name__
        pairs = []
        for name, value in self.env.items():
            if isinstance(value, (Mapping, list, tuple)):
                raise InvalidParameter(f"{family}: env: the value of {name} must be text", where=family)
            pairs.append((str(name), "" if value is None else str(value)))
        try:
            exports(dict(pairs))
        except InvalidInput as error:
            raise InvalidParameter(f"{family}: env: {error.message}", where=family) from error
        return tuple(sorted(pairs))

    def job_modules(self) -> tuple[str, ...]:
        """``modules`` one by one."""
        listed: str | Sequence[str] = self.modules
        return tuple(listed.replace(",", " ").split()) if isinstance(listed, str) else tuple(listed)


class AllocationParameters:
    """Mixin: nodes that several tasks of a run share, one after the other or side by side."""

    allocation = _text("Name of an allocation to run in, which tasks of the run share; nodes of its own if empty.")
    allocation_resources: luigi.DictParameter[Any] = luigi.DictParameter(
        default={},
        significant=False,
        positional=False,
        description='What the allocation itself asks for, e.g. {"nodes": 2, "time": "2:00:00"}, equal for all of its '
        "tasks; what the task asks for if empty.",
    )
    allocation_steps = luigi.IntParameter(
        default=64, significant=False, positional=False, description="Most steps of the allocation at once."
    )
    allocation_idle = luigi.FloatParameter(
        default=30.0,
        significant=False,
        positional=False,
        description="Seconds without a step after which the allocation is given back.",
    )

    def job_allocation(self, own: Resources) -> tuple[Resources, Allocation | None]:
        """What the task's job asks for, and the allocation that it asks it of, if any.

        Args:
            own: what the task would ask for by itself.

        Raises:
            InvalidParameter: names the task and the parameter.
        """
        if not self.allocation:
            return own, None
        family = type(self).__name__
        step = Resources(**{name: getattr(own, name) for name in _OF_STEPS})
        if self.allocation_resources:
            whole = resources_of(family, self.allocation_resources)
            update = {name: getattr(own, name) for name in _OF_PLACES if not getattr(whole, name)}
            whole = whole.model_copy(update=update)
        else:
            whole, step = own, step.model_copy(update={"time_limit": None})
        try:
            allocation = Allocation(
                name=self.allocation, resources=whole, max_steps=self.allocation_steps, idle_s=self.allocation_idle
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            name = {"name": "allocation", "max_steps": "allocation_steps"}.get(str(first["loc"][0]), "allocation_idle")
            raise InvalidParameter(f"{family}: {name}: {first['msg']}", where=family) from None
        return step, allocation


_OF_STEPS = (
    *("nodes", "ntasks", "ntasks_per_node", "cpus_per_task", "memory_mb", "memory_per_cpu_mb", "gpus", "time_limit"),
)
"""What a step can ask of its allocation."""
_OF_PLACES = ("partition", "account", "qos", "constraint", "dependency", "exclusive", "options")
"""What an allocation takes from its tasks unless it says otherwise."""


GROUPS = {
    **{name: "resources" for name, value in vars(ResourceParameters).items() if isinstance(value, Parameter)},
    **{name: "environment" for name, value in vars(EnvironmentParameters).items() if isinstance(value, Parameter)},
    **{name: "resources" for name, value in vars(AllocationParameters).items() if isinstance(value, Parameter)},
    "throttle": "resources",
}
"""Which group a parameter belongs to, for whoever draws a form."""
