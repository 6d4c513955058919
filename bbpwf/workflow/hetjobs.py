"""One job on nodes of several kinds: each component has resources of its own, and all run at the same time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from bbpwf.cluster.jobs import Component as Further
from bbpwf.cluster.jobs import Resources
from bbpwf.errors import InvalidParameter
from bbpwf.workflow.context import RunContext
from bbpwf.workflow.parameters import RESOURCE_NAMES, resources_of
from bbpwf.workflow.tasks import Command, Plan, SbatchTask


@dataclass(frozen=True)
class Component:
    """One part of a :class:`HetJobTask`.

    Args:
        command: a bash script or an argument list; ``ntasks`` copies of it run, as with ``srun``.
        resources: what this part asks for, by the names of the task's parameters, e.g. ``{"ntasks": 4, "mem": "8G"}``.
            What is not named is as the task has it.
    """

    command: Command
    resources: Mapping[str, Any] = field(default_factory=dict)


class HetJobTask(SbatchTask):
    """One heterogeneous job: override :meth:`components` and ``output()``.

    All components start together, as one step whose MPI programs share one world; ``SLURM_PROCID`` counts through
    all of them. If one fails, all are ended. The local backend has no such jobs.
    """

    launchable: ClassVar[bool] = False
    launcher = "srun"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.allocation:
            family = self.task_family
            raise InvalidParameter(f"{family}: a heterogeneous job cannot run in an allocation", where=family)

    @abstractmethod
    def components(self) -> Sequence[Component]:
        """The parts, at least two; the first one's node runs the job's own script."""

    def command(self) -> Command:
        """The first component's."""
        return self.components()[0].command

    def plan(self, context: RunContext) -> Plan:
        """The job."""
        components = list(self.components())
        if len(components) < 2:
            raise InvalidParameter(f"{self.task_family}: a heterogeneous job has at least two components")
        first, *others = components
        spec = self.spec(
            context,
            first.command,
            index=None,
            label=self.task_family,
            asked=self._asked(context, first),
            others=tuple(
                Further(script=self.job_script(each.command), resources=self._asked(context, each)) for each in others
            ),
        )
        return Plan([spec], 1)

    def _asked(self, context: RunContext, component: Component) -> Resources:
        own = {name: getattr(self, name) for name in RESOURCE_NAMES}
        return self.job_placement(context, resources_of(self.task_family, own | dict(component.resources)))
