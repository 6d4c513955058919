"""Which parameters may have any value of their kind without anybody building the task."""

from __future__ import annotations

from typing import Any

import luigi
import pytest
from luigi.task_register import Register

from bbpwf.workflow import SbatchTask
from bbpwf.workflow.freedom import free_parameters


class Even(luigi.IntParameter):
    def parse(self, s: str) -> int:
        return int(s) // 2 * 2


class Job(SbatchTask):
    name = luigi.Parameter()
    count = luigi.IntParameter(default=1)
    share = luigi.FloatParameter(default=0.5)
    fast = luigi.BoolParameter()
    even = Even(default=2)
    kind = luigi.ChoiceParameter(choices=["a", "b"], default="a")
    points = luigi.ListParameter(default=())
    time = luigi.Parameter(default="10")
    job_name = "job"

    def command(self) -> str:
        return "true"


class Checking(Job):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.count > 3:
            raise ValueError("too many")


class Asking(Job):
    def job_environment(self) -> tuple[tuple[str, str], ...]:
        return (("NAME", str(self.name)),)


class Plain(luigi.Task):
    name = luigi.Parameter()

    def run(self) -> None:
        """Nothing."""


@pytest.fixture(autouse=True)
def _unregistered() -> Any:
    yield
    Register.clear_instance_cache()


def test_plain_parameters_of_a_task_are_free() -> None:
    assert free_parameters(Plain) == {"name": "string"}
    assert free_parameters(Job) == {"name": "string", "count": "integer", "share": "number", "fast": "boolean"}


@pytest.mark.parametrize("cls", [Checking, Asking])
def test_a_task_that_looks_at_its_parameters_while_it_is_built_has_none(cls: type[luigi.Task]) -> None:
    assert free_parameters(cls) == {}
