"""One task, many jobs that differ only in their command."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import luigi
from luigi.target import Target
from luigi.task import flatten

from bbpwf.cluster.jobs import job_key
from bbpwf.errors import InvalidParameter, NotFound
from bbpwf.workflow.context import RunContext, current
from bbpwf.workflow.targets import RemoteTarget, absent, existence
from bbpwf.workflow.tasks import Command, JobTask, Plan


@dataclass(frozen=True)
class Element:
    """One job of an :class:`ArrayTask`.

    Args:
        label: what a person calls it, e.g. ``ca1.2-seed7``; shown in lists, reports and logs.
        command: a bash script or an argument list.
        outputs: what it makes; a path means a :class:`RemoteTarget` on the task's cluster.
        env: variables of this element, beside the task's.
    """

    label: str
    command: Command
    outputs: Sequence[Target | str] = ()
    env: Mapping[str, str] = field(default_factory=dict)


class ArrayTask(JobTask):
    """Many jobs: override :meth:`elements`, whose order must not change between calls.

    Only elements that are not done are submitted: an element is done when its outputs exist and no job of this
    run still works on them or failed at them (without outputs: when its job completed). A failing element leaves
    the others alone; the task fails when all have ended, and a resume runs the failed ones again.
    """

    launchable: ClassVar[bool] = False

    throttle = luigi.IntParameter(
        default=0, significant=False, positional=False, description="Most elements that may run at once; 0: no limit."
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.throttle < 0:
            raise InvalidParameter(f"{self.task_family}: throttle must not be negative", where=self.task_family)

    @abstractmethod
    def elements(self) -> Sequence[Element]:
        """The jobs. May read what the required tasks made."""

    def output(self) -> list[Target]:
        """Everything that the elements make. Override it if that cannot be known before the task may run."""
        return [target for element in self.elements() for target in self._outputs(element)]

    def complete(self) -> bool:
        """Whether every element is done and ``output()`` is there; False while the elements cannot be known yet."""
        try:
            elements = list(self.elements())
            outputs = flatten(self.output())
        except (NotFound, FileNotFoundError):  # what they are read from is not made yet
            return False
        return not absent(outputs) and not self._open(current(), elements)

    def plan(self, context: RunContext) -> Plan:
        """The jobs of the elements that are not done."""
        elements = list(self.elements())
        group = job_key(context.run_id, self.task_id)
        jobs = [
            self.spec(
                context,
                elements[index].command,
                index=index,
                label=elements[index].label,
                env=elements[index].env,
                group=group,
                throttle=self.throttle,
            )
            for index in self._open(context, elements)
        ]
        return Plan(jobs, len(elements))

    def _open(self, context: RunContext, elements: Sequence[Element]) -> list[int]:
        """Indices of the elements that are not done."""
        outputs = [self._outputs(element) for element in elements]
        flat = [target for each in outputs for target in each]
        there = iter(existence(flat))
        undone = []
        for index, each in enumerate(outputs):
            made = [next(there) for _ in each]
            state = context.jobs.state(job_key(context.run_id, self.task_id, index))
            done = (state is None or state.succeeded) and all(made) if made else state is not None and state.succeeded
            if not done:
                undone.append(index)
        return undone

    def _outputs(self, element: Element) -> list[Target]:
        return [RemoteTarget(each, self.cluster) if isinstance(each, str) else each for each in element.outputs]
