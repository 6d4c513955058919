"""The campaign's tasks: where their parameters come from, and what jobs they plan. No job runs here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import luigi
import pytest
from luigi.task_register import Register

from bbpwf.errors import BbpwfError, InvalidConfig, InvalidParameter
from bbpwf.workflow.building import build, tasks_of
from bbpwf.workflow.config import luigi_config
from bbpwf.workflow.context import RunContext, activated
from bbpwf.workflow.request import HeadRequest
from bbpwf.workflow.schema import describe
from tasks import simulation
from tasks.simulation import (
    GenerateCampaign,
    GenerateCircuit,
    PublishCampaign,
    ReportCampaign,
    RunCampaign,
    SimulationCampaign,
    programs,
)
from tests.support.agent import MemoryAgent

EXAMPLE = Path(__file__).parents[3] / "config" / "simulation-campaign.cfg"
COORDS = {"stimulus_amplitude": [0.1, 0.2], "seed": [1, 2]}


class Desk:
    """A run on an agent in memory whose jobs never start."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.agent = MemoryAgent(folder / "disk", hold=True)
        stack.callback(self.agent.close)
        self._folder, self._stack = folder, stack
        self.context: RunContext

    def open(self, cfg: str | None = None, **request: Any) -> RunContext:
        path = None
        if cfg is not None:
            path = self._folder / "campaign.cfg"
            path.write_text(cfg)
        values = {"run_id": "r1", "module": "tasks.simulation", "task": "SimulationCampaign"} | request
        self.context = RunContext(self.agent, HeadRequest(config=str(path) if path else None, **values))
        config = self._stack.enter_context(luigi_config(path))
        config.check()
        return self._stack.enter_context(activated(self.context))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    Register.clear_instance_cache()
    with ExitStack() as stack:
        yield Desk(tmp_path, stack)
    Register.clear_instance_cache()


def chain(task: luigi.Task) -> list[Any]:
    found: list[Any] = [task]
    while found[-1].deps():
        found += found[-1].deps()
    return found


def test_the_example_is_a_campaign_of_24_from_circuit_to_publication(desk: Desk) -> None:
    desk.open(EXAMPLE.read_text())
    tasks = chain(build(SimulationCampaign, {}))
    assert [type(task) for task in tasks] == [
        SimulationCampaign,
        PublishCampaign,
        ReportCampaign,
        RunCampaign,
        GenerateCampaign,
        GenerateCircuit,
    ]
    run = tasks[3]
    elements = run.elements()
    assert len(elements) == 24
    assert elements[0].label == "0: stimulus_amplitude=0.1 extracellular_calcium=1.2 seed=1"
    assert elements[23].label == "23: stimulus_amplitude=0.5 extracellular_calcium=2.0 seed=3"
    assert tasks[1].archive_timeout == 1800
    assert len({task.folder for task in tasks[:5]}) == 1


@pytest.mark.parametrize("section", ["GenerateCampaign", "RunCampaign", "SimulationCampaign"])
@pytest.mark.parametrize("launched", [SimulationCampaign, RunCampaign, GenerateCampaign])
def test_a_campaign_may_be_described_in_the_section_of_any_of_its_tasks(
    desk: Desk, section: str, launched: type[Any]
) -> None:
    desk.open(f"[{section}]\npath-prefix: /elsewhere\ncoords: {json.dumps(COORDS)}\n")
    for task in chain(build(launched, {})):
        if not isinstance(task, GenerateCircuit):
            assert str(task.folder).startswith("/elsewhere/campaign-")
            assert len(task.points) == 4


def test_what_is_given_at_launch_overrides_the_config(desk: Desk) -> None:
    desk.open(f"[GenerateCampaign]\nname: written\ncoords: {json.dumps(COORDS)}\n")
    tasks = chain(build(SimulationCampaign, {"name": "launched", "coords": {"seed": [1, 2, 3]}}))
    assert {task.name for task in tasks[:-1]} == {"launched"}
    assert all(len(task.points) == 3 for task in tasks[:-1])


def test_two_sections_that_disagree_are_refused(desk: Desk) -> None:
    desk.open("[GenerateCampaign]\nname: one\n[RunCampaign]\nname: two\n")
    with pytest.raises(InvalidConfig, match=r"name is given differently in \[GenerateCampaign\], \[RunCampaign\]"):
        build(SimulationCampaign, {})


def test_a_default_for_all_gives_way_to_a_section(desk: Desk) -> None:
    desk.open("[DEFAULT]\nname: all\nmem: 1G\n[GenerateCampaign]\nname: own\n[RunCampaign]\ntime: 5:00\n")
    tasks = chain(build(SimulationCampaign, {"publish": False}))
    assert {task.name for task in tasks[:-1]} == {"own"}
    run = next(task for task in tasks if isinstance(task, RunCampaign))
    resources = run.plan(desk.context).jobs[0].resources
    assert resources.memory_mb == 1024
    assert resources.time_limit is not None
    assert resources.time_limit.total_seconds() == 300


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"coords": {"seed": []}}, "seed has no values"),
        ({"coords": COORDS, "fail_point": 4}, "fail_point=4: the simulations are 0 to 3"),
        ({"circuit": "here.json"}, "circuit='here.json' must be an absolute path"),
        ({"path_prefix": "/a/../b"}, "must be an absolute path on the cluster, without .."),
        ({"name": "a b"}, "cannot name a campaign"),
        ({"coords": "[1]"}, "coords"),
        ({"coords": {"stimulus_amp": [1]}}, "has no placeholder .stimulus_amp It knows: .*stimulus_amplitude"),
        ({"attrs": {"seed": 2**30}, "coords": {"stimulus_amplitude": [1, 2, 3]}}, "seed 1073741824 is too large"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused_before_anything_runs(params: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        build(SimulationCampaign, params)


def test_a_coordinate_that_the_template_lacks_is_refused(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "my.tmpl").write_text('{"run": {"tstop": $tstop, "dt": 0.1, "random_seed": $random_seed}}')
    desk.open(attachments=str(tmp_path))
    task: Any = GenerateCampaign(template="my.tmpl", coords={"tstop": [1, 2]})
    assert [json.loads(point.rendered.text)["run"]["tstop"] for point in task.points] == [1, 2]
    assert task.deps() == []  # it names no circuit
    with pytest.raises(
        BbpwfError, match=r"the template 'my.tmpl' has no placeholder .stimulus_amplitude It knows: seed, tstop"
    ):
        build(SimulationCampaign, {"template": "my.tmpl", "coords": COORDS})
    with pytest.raises(InvalidParameter, match=r"the template 'other.tmpl' cannot be read"):
        build(SimulationCampaign, {"template": "other.tmpl"})


def test_configs_are_written_and_then_the_task_is_complete(desk: Desk) -> None:
    desk.open()
    task: Any = GenerateCampaign(coords=COORDS, circuit="/there/circuit_config.json")
    assert task.deps() == []
    assert not task.complete()
    task.run()
    assert task.complete()
    written = json.loads(desk.agent.file(f"{task.folder}/3/simulation_config.json").read_text())
    assert written["network"] == "/there/circuit_config.json"
    assert desk.agent.file(str(task.folder)).parent == desk.agent.root / "campaigns"


def test_every_simulation_is_a_job_in_its_own_folder_with_the_staged_program(desk: Desk) -> None:
    desk.open()
    task = RunCampaign(coords=COORDS, throttle=2)
    plan = task.plan(desk.context)
    assert [(job.index, job.throttle) for job in plan.jobs] == [(0, 2), (1, 2), (2, 2), (3, 2)]
    (staged,) = (desk.agent.root / "campaigns").glob("*/programs/*.py")
    assert staged.read_bytes() == programs.source("simulate")
    assert f"python3 {staged} --config {task.folder}/2/simulation_config.json" in plan.jobs[2].script


def test_the_simulator_can_be_another_command(desk: Desk) -> None:
    desk.open()
    task = RunCampaign(simulator='srun special -python "$HERE/init.py" --configFile={config} -o {folder}/x')
    (job,) = task.plan(desk.context).jobs
    folder = f"{task.folder}/0"
    assert (
        f'srun special -python "$HERE/init.py" --configFile={folder}/simulation_config.json -o {folder}/x\n'
        in job.script
    )
    assert not (desk.agent.root / "campaigns").exists()  # nothing of ours is staged


def test_the_drill_touches_one_point_alone(desk: Desk) -> None:
    desk.open()
    drilled = RunCampaign(coords=COORDS, fail_point=2)
    plain = RunCampaign(coords=COORDS)
    assert drilled.task_id == plain.task_id
    scripts = [
        (a.script, b.script)
        for a, b in zip(drilled.plan(desk.context).jobs, plain.plan(desk.context).jobs, strict=True)
    ]
    assert [one == other for one, other in scripts] == [True, True, False, True]


def test_every_task_is_offered_with_every_parameter_described() -> None:
    tasks = tasks_of(simulation)
    assert sorted(tasks) == sorted(simulation.__all__)
    for name, cls in tasks.items():
        schema = describe("tasks.simulation", cls)
        assert schema["parameters"]["required"] == [], name
        for parameter, properties in schema["parameters"]["properties"].items():
            assert properties.get("description"), f"{name}.{parameter}"
