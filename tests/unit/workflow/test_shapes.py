"""What task authors say of components and allocations, and what the agent is asked for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from bbpwf.cluster.jobs import Allocation, JobSpec, Resources
from bbpwf.errors import InvalidParameter
from bbpwf.workflow import building
from tests.unit.workflow.conftest import Bench

COUPLED = """
from bbpwf.workflow import Component, HetJobTask

class Coupled(HetJobTask):
    time = "30"
    software = "/sw"
    def components(self):
        return [Component("one"), Component(["two", "a b"], {"ntasks": 8, "mem": "2G", "partition": "big"})]

class Lonely(HetJobTask):
    def components(self): return [Component("one")]

class Odd(HetJobTask):
    def components(self): return [Component("one"), Component("two", {"cores": 3})]
"""

STEPS = """
from bbpwf.workflow import SbatchTask

class Step(SbatchTask):
    def command(self): return "true"

class After(SbatchTask):
    def requires(self): return Step()
    def command(self): return "true"
"""


def submitted(bench: Bench, module: str, task: str, **more: Any) -> list[JobSpec]:
    agent = bench.agent()
    bench.run(agent, module, task, **more)
    return [spec for specs in agent.submitted for spec in specs]


def test_components_ask_each_for_themselves_and_share_what_the_task_says(bench: Bench) -> None:
    module = bench.module("coupled_flow", COUPLED)
    (spec,) = submitted(bench, module, "Coupled", cluster={"partition": "debug"}, params={"account": "proj1"})
    limit = timedelta(minutes=30)
    assert spec.resources == Resources(partition="debug", account="proj1", time_limit=limit)
    (other,) = spec.others
    assert other.resources == Resources(partition="big", account="proj1", time_limit=limit, ntasks=8, memory_mb=2048)
    assert other.script.endswith("two 'a b'\n")
    assert "/sw/bin" in spec.script
    assert "/sw/bin" in other.script
    assert spec.launcher == "srun"


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("Lonely", "Lonely: a heterogeneous job has at least two components"),
        ("Odd", "Odd: cores is not a resource"),
    ],
)
def test_components_that_make_no_sense_are_named(bench: Bench, task: str, said: str) -> None:
    module = bench.module("coupled_flow", COUPLED)
    assert said in bench.run(bench.agent(), module, task).reason


def test_components_cannot_share_an_allocation(bench: Bench) -> None:
    module = bench.module("coupled_flow", COUPLED)
    with pytest.raises(InvalidParameter, match="cannot run in an allocation"):
        bench.run(bench.agent(), module, "Coupled", params={"allocation": "a"})


def test_tasks_of_a_config_share_an_allocation_and_ask_it_for_their_own_part(bench: Bench) -> None:
    module = bench.module("step_flow", STEPS)
    (bench.attachments / "steps.cfg").write_text(
        "[DEFAULT]\naccount = proj1\nallocation = quick\nallocation_idle = 5\nallocation_steps = 7\n"
        'allocation_resources = {"nodes": 2, "time": "2:00:00"}\n[Step]\ncpus_per_task = 3\ntime = 10\n'
    )
    first, second = submitted(bench, module, "After", config="steps.cfg", cluster={"partition": "debug"})
    whole = Resources(partition="debug", account="proj1", nodes=2, time_limit=timedelta(hours=2))
    assert first.allocation == Allocation(name="quick", resources=whole, max_steps=7, idle_s=5)
    assert second.allocation == first.allocation
    assert first.resources == Resources(cpus_per_task=3, time_limit=timedelta(minutes=10))
    assert second.resources == Resources()


def test_an_allocation_is_what_its_task_asks_for_unless_it_says_otherwise(bench: Bench) -> None:
    module = bench.module("step_flow", STEPS)
    asked = {"allocation": "own", "ntasks": 4, "time": "5", "exclusive": True, "dependency": "afterok:1"}
    (spec,) = submitted(bench, module, "Step", params=asked)
    assert spec.allocation is not None
    assert spec.allocation.resources == Resources(
        ntasks=4, time_limit=timedelta(minutes=5), exclusive=True, dependency="afterok:1"
    )
    assert spec.resources == Resources(ntasks=4), "the time is the allocation's"


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"allocation": "a b"}, "Step: allocation:"),
        ({"allocation": "a", "allocation_idle": 0}, "Step: allocation_idle:"),
        ({"allocation": "a", "allocation_steps": 0}, "Step: allocation_steps:"),
        ({"allocation": "a", "allocation_resources": {"cores": 1}}, "Step: cores is not a resource"),
        ({"allocation": "a", "allocation_resources": {"time": "soon"}}, "Step: time:"),
    ],
)
def test_an_allocation_that_makes_no_sense_is_refused_while_the_graph_is_built(
    bench: Bench, params: dict[str, object], said: str
) -> None:
    bench.attachments.mkdir()
    building.extend_path([str(bench.attachments)])
    module = building.import_module(bench.module("step_flow", STEPS))
    with pytest.raises(InvalidParameter, match=said):
        building.build(building.find_task(module, "Step"), params)


DEEP = """
import luigi
from bbpwf.workflow import RemoteTarget, SbatchTask

class Link(SbatchTask):
    number = luigi.IntParameter()

    def requires(self):
        return [Link(number=self.number - 1)] if self.number else []

    def command(self):
        return f"mkdir -p made; touch {self.output().path}"

    def output(self):
        return RemoteTarget(f"made/{self.number}")
"""


def test_a_new_runs_graph_is_looked_up_at_once_however_deep_it_is(bench: Bench) -> None:
    agent = bench.agent()
    outcome = bench.run(agent, bench.module("deep", DEEP), "Link", params={"number": 9})
    assert outcome.state == "COMPLETE", outcome
    assert agent.calls["exists"] == 1 + 10, "one look at the graph, and one at each output when its job had ended"
