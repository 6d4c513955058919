"""Tasks that run as cluster jobs. A task says what it runs and what it makes; nothing else.

bbpwf's Luigi worker hands their jobs to the agent; neither a process nor a thread waits for any of them.
"""

from __future__ import annotations

import contextlib
import weakref
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import luigi
from luigi.parameter import ParameterVisibility
from luigi.task import flatten
from pydantic import ValidationError

from bbpwf.cluster.jobs import JobSpec, Resources, job_key
from bbpwf.errors import Conflict, InvalidParameter
from bbpwf.shell import exports, quote
from bbpwf.workflow.context import RunContext, active, current
from bbpwf.workflow.parameters import AllocationParameters, EnvironmentParameters, ResourceParameters
from bbpwf.workflow.targets import absent

Command = str | Sequence[str]
"""A bash script, or an argument list that no shell interprets."""


def script_text(command: Command, *, prologue: str = "") -> str:
    """The bash script for a command: it ends at the first command that fails, inside a pipe too."""
    body = command if isinstance(command, str) else quote(command)
    return f"set -eo pipefail\n{prologue}{body.rstrip()}\n"


@dataclass(frozen=True)
class Plan:
    """What a task has to do now: the jobs that are left, of how many in all."""

    jobs: list[JobSpec]
    total: int


class JobTask(ResourceParameters, AllocationParameters, EnvironmentParameters, luigi.Task):
    """What all tasks that run as jobs share. Subclass :class:`SbatchTask` and its kind instead."""

    launchable: ClassVar[bool] = False
    """Set in a class's own body: False keeps it out of the catalogue. Subclasses are listed again."""

    launcher: ClassVar[Literal["none", "srun"]] = "none"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]  # luigi.Task's is untyped
        self.job_allocation(self.job_resources())  # a value that makes no sense is refused while the graph is built
        self.job_environment()

    @classmethod
    def get_param_values(cls, params: Any, args: Any, kwargs: Any) -> Any:
        """Luigi's own, with each default looked up in the configuration once a class, not twice a task.

        A job task has some thirty parameters, and a graph thousands of tasks: the look-ups took a third of the time
        in which a graph is built.
        """
        context = active()
        if context is not None:
            known = context.defaults.get(cls)
            if known is None:
                known = context.defaults[cls] = _defaults(params, cls.get_task_family())  # type: ignore[no-untyped-call]  # Luigi is untyped
            if not args and known.keys() | kwargs.keys() == {name for name, _ in params}:
                given = {name: p.normalize(kwargs[name]) for name, p in params if name in kwargs}
                given = {name: tuple(v) if isinstance(v, (list, set)) else v for name, v in given.items()}
                return [(name, given[name] if name in given else known[name]) for name, _ in params]
        return super().get_param_values(params, args, kwargs)  # type: ignore[no-untyped-call]  # Luigi is untyped

    @classmethod
    def get_params(cls) -> list[tuple[str, Any]]:
        """Luigi's own, which looks at every attribute of the class, kept until the class gets another attribute."""
        return list(_declared(cls).parameters)

    def to_str_params(self, only_significant: bool = False, only_public: bool = False) -> dict[str, str]:
        """Luigi's own; what is shown to people (``only_public``) leaves out resources and the like that nobody set."""
        if not only_public or only_significant:
            found: dict[str, str] = super().to_str_params(only_significant, only_public)  # type: ignore[no-untyped-call]  # Luigi is untyped
            return found
        shown: dict[str, str] = {}
        declared = _declared(type(self))
        for name, parameter in declared.parameters:
            value = self.param_kwargs[name]
            unset = not parameter.significant and _same(value, declared.unset[name])
            if parameter.visibility is ParameterVisibility.PUBLIC and not unset:
                shown[name] = parameter.serialize(value)
        return shown

    @abstractmethod
    def plan(self, context: RunContext) -> Plan:
        """The jobs that are still to be done; none if everything is there."""

    def output(self) -> Any:
        """What the task makes: a target, or a list or dict of targets."""
        return []

    def run(self) -> None:
        """Never called by bbpwf's worker, which submits the job instead."""
        raise Conflict(
            f"{self.task_family} runs as a cluster job, which Luigi's own worker cannot do",
            hint="Use `bbpwf run` or `bbpwf launch`.",
        )

    def on_failure(self, exception: BaseException) -> str:
        """The explanation that Luigi shows: words, not a traceback."""
        return str(exception)

    def spec(
        self,
        context: RunContext,
        command: Command,
        *,
        index: int | None,
        label: str,
        asked: Resources | None = None,
        **more: Any,
    ) -> JobSpec:
        """One job of this task; ``asked`` stands for the task's own resources.

        Raises:
            InvalidParameter: names the task and what is wrong.
        """
        family = self.task_family
        resources, allocation = self.job_allocation(self.job_placement(context, asked or self.job_resources()))
        env = exports(dict(more.pop("env", {})))
        try:
            return JobSpec(
                key=job_key(context.run_id, self.task_id, index),
                run_id=context.run_id,
                task_id=self.task_id,
                index=index,
                label=label,
                name=self.job_name or family,
                cluster=self.cluster,
                script=self.job_script(command, env),
                workdir=self.workdir,
                env=self.job_environment(),
                modules=self.job_modules(),
                container=self.container,
                launcher=self.launcher,
                resources=resources,
                allocation=allocation,
                infrastructure_retries=self.infrastructure_retries,
                retries=self.retries,
                escalations=self.escalations,
                **more,
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise InvalidParameter(f"{family}: {where}: {first['msg']}", where=family) from None

    def job_script(self, command: Command, prologue: str = "") -> str:
        """The bash script for a command of this task, in its own software environment."""
        software = f'export PATH={quote([f"{self.software}/bin"])}:"$PATH"\n' if self.software else ""
        return script_text(command, prologue=software + prologue)

    def job_placement(self, context: RunContext, resources: Resources) -> Resources:
        """``resources`` in the instance's own partition unless they name one."""
        if resources.partition or self.cluster != "default" or not context.request.cluster.partition:
            return resources
        return resources.model_copy(update={"partition": context.request.cluster.partition})


@dataclass(frozen=True)
class _Declared:
    """A class's parameters, and what those that are not significant are if nobody sets them."""

    size: tuple[int, ...]
    parameters: tuple[tuple[str, Any], ...]
    unset: dict[str, Any]


_declarations: weakref.WeakKeyDictionary[type, _Declared] = weakref.WeakKeyDictionary()


def _declared(cls: type[JobTask]) -> _Declared:
    known = _declarations.get(cls)
    size = tuple(len(vars(each)) for each in cls.__mro__)
    if known is None or known.size != size:
        parameters = tuple(super(JobTask, cls).get_params())  # type: ignore[no-untyped-call]  # Luigi is untyped
        unset = {name: p.normalize(p._default) for name, p in parameters if not p.significant}
        known = _declarations[cls] = _Declared(size, parameters, unset)
    return known


def _same(value: Any, other: Any) -> bool:
    if value is other:
        return True
    if isinstance(value, Mapping) and not value:  # Luigi's frozen dictionaries are slow to compare
        return not other
    return bool(value == other)


def _defaults(params: Any, family: str) -> dict[str, Any]:
    """Defaults that can be had now; what cannot is left to Luigi, which says why."""
    found = {}
    for name, parameter in params:
        with contextlib.suppress(Exception):
            if parameter.has_task_value(family, name):
                value = parameter.task_value(family, name)
                found[name] = tuple(value) if isinstance(value, (list, set)) else value
    return found


class SbatchTask(JobTask):
    """One job: override :meth:`command` and ``output()``.

    The task is complete when its outputs exist and no job of this run still works on them or failed at them.
    Without outputs it is complete when its job was.
    """

    launchable: ClassVar[bool] = False

    @abstractmethod
    def command(self) -> Command:
        """A bash script, or an argument list, run in the working folder."""

    def plan(self, context: RunContext) -> Plan:
        """The job."""
        return Plan([self.spec(context, self.command(), index=None, label=self.task_family)], 1)

    def complete(self) -> bool:
        """Whether there is nothing left to do; one round trip for all remote outputs."""
        context = current()
        state = context.jobs.state(job_key(context.run_id, self.task_id))
        outputs = flatten(self.output())
        if not outputs:
            return state is not None and state.succeeded
        return (state is None or state.succeeded) and not absent(outputs)


class SrunTask(SbatchTask):
    """One job whose command runs as a step with a copy for each of ``ntasks``: an MPI program."""

    launchable: ClassVar[bool] = False
    launcher: ClassVar[Literal["none", "srun"]] = "srun"
