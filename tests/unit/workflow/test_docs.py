"""The task author's guide says what is true: its examples run."""

from __future__ import annotations

import re
from pathlib import Path

from luigi.parameter import Parameter

from bbpwf.workflow import AllocationParameters, EnvironmentParameters, ResourceParameters
from tests.unit.workflow.conftest import Bench

GUIDE = Path(__file__).parents[3] / "docs" / "tasks.md"


def _examples() -> dict[str, str]:
    found = re.findall(r"```(?:python|ini)\n# file: (\S+)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return dict(found)


def test_the_examples_run(bench: Bench) -> None:
    examples = _examples()
    assert set(examples) == {"hello.py", "sweep.py", "sweep.cfg", "coupled.py"}
    for name, text in examples.items():
        bench.module(name.removesuffix(".py"), text) if name.endswith(".py") else None
    (bench.attachments / "sweep.cfg").write_text(examples["sweep.cfg"])
    agent = bench.agent()
    assert bench.run(agent, "hello", "Hello", params={"who": "you"}).state == "COMPLETE"
    assert agent.file("hello-you.txt").read_text() == "hello you\n"
    assert bench.run(agent, "sweep", "Summary", config="sweep.cfg").state == "COMPLETE"
    assert agent.file("summary.txt").read_text().splitlines() == [f"spikes at 0.{i} nA" for i in (1, 2, 3)]
    element = next(spec for specs in agent.submitted for spec in specs if spec.label == "amplitude 0.2")
    assert element.resources.account == "proj12"
    assert element.resources.cpus_per_task == 2
    assert element.throttle == 8


def test_every_parameter_of_jobs_is_in_the_guide() -> None:
    text = GUIDE.read_text()
    for mixin in (ResourceParameters, AllocationParameters, EnvironmentParameters):
        for name, value in vars(mixin).items():
            if isinstance(value, Parameter):
                assert f"`{name}`" in text, name
