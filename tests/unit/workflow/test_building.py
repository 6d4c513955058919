"""From what people send to a task: values, names, and what is said when they are wrong."""

from __future__ import annotations

import json
import sys
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # it ships no types
import pytest

from bbpwf.errors import BbpwfError, InvalidParameter, UnknownTask, UnsafeUpload
from bbpwf.workflow import catalogue
from bbpwf.workflow.building import build, find_task, import_module, tasks_of
from bbpwf.workflow.schema import describe
from tests.unit.workflow.conftest import Bench

TASKS = '''
import enum
import luigi
from bbpwf.workflow import ArrayTask, SbatchTask

class Kind(enum.Enum):
    AXON = 1
    DENDRITE = 2

class Base(SbatchTask):
    launchable = False

class Stimulate(Base):
    """Push current into cells.

    More words.
    """
    amplitude = luigi.FloatParameter(description="Amplitude in nA.")
    seed = luigi.IntParameter(default=1)
    label = luigi.Parameter(default="x")
    wanted = luigi.BoolParameter(default=False)
    spread = luigi.ListParameter(default=[1, 2])
    extra = luigi.DictParameter(default={"a": 1})
    kind = luigi.EnumParameter(enum=Kind, default=Kind.AXON)
    mode = luigi.ChoiceParameter(choices=["fast", "slow"], default="fast")
    share = luigi.NumericalParameter(var_type=float, min_value=0.0, max_value=1.0, default=0.5)
    note = luigi.OptionalParameter(default=None)
    day = luigi.DateParameter(default=None)
    password = luigi.Parameter(default="", visibility=luigi.parameter.ParameterVisibility.PRIVATE)
    def command(self): return "true"

class Outside(luigi.ExternalTask): pass
class Settings(luigi.Config): pass
class _Private(luigi.Task): pass
class Unfinished(ArrayTask): pass
'''


@pytest.fixture
def module(bench: Bench) -> Any:
    name = bench.module("stimulus_flow", TASKS)
    sys.path.append(str(bench.attachments))
    return import_module(name)


def test_values_come_as_json_or_as_text(module: Any) -> None:
    cls = find_task(module, "Stimulate")
    given: dict[str, Any] = {"amplitude": 0.1, "seed": 4, "wanted": True, "spread": [3], "extra": {"b": [1]}}
    made: Any = build(cls, given | {"kind": "DENDRITE", "mode": "slow", "share": 0, "day": "2026-01-31"})
    as_text = {"amplitude": "0.1", "seed": "4", "wanted": "true", "spread": "[3]", "extra": '{"b": [1]}'}
    same: Any = build(cls, as_text | {"kind": "DENDRITE", "mode": "slow", "share": "0", "day": "2026-01-31"})
    assert made == same
    assert made.spread == (3,)
    assert made.kind.name == "DENDRITE"


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "Stimulate needs a value for amplitude"),
        ({"amplitud": 1}, "Stimulate has no parameter 'amplitud' [Stimulate] Did you mean 'amplitude'?"),
        ({"amplitude": "much"}, 'amplitude="much" is not a number'),
        ({"amplitude": None}, "amplitude=null is not a number"),
        ({"amplitude": True}, "amplitude=true is not a number"),
        ({"amplitude": [1]}, "amplitude=[1] is not a number"),
        ({"amplitude": 1, "seed": 1.5}, "seed=1.5 is not an integer"),
        ({"amplitude": 1, "seed": "x"}, 'seed="x" is not an integer'),
        ({"amplitude": 1, "label": 5}, "label=5 is not a string"),
        ({"amplitude": 1, "wanted": "maybe"}, 'wanted="maybe" is not true or false'),
        ({"amplitude": 1, "wanted": 1}, "wanted=1 is not true or false"),
        ({"amplitude": 1, "spread": {"a": 1}}, 'spread={"a": 1} is not a JSON list'),
        ({"amplitude": 1, "extra": "{"}, 'extra="{" is not a JSON object'),
        ({"amplitude": 1, "mode": "idle"}, 'mode="idle" is not one of fast, slow'),
        ({"amplitude": 1, "share": 2}, "share=2 is not a number in its range"),
        ({"amplitude": 1, "day": "soon"}, 'day="soon" is not a date'),
        ({"amplitude": 1, "mem": "lots"}, "Stimulate: mem: 'lots' is not an amount of memory"),
        ({"amplitude": 1, "time": "0"}, "Stimulate: time: a time limit must be longer than nothing"),
        ({"amplitude": 1, "nodes": 0}, "Stimulate: nodes=0 is not valid"),
        ({"amplitude": 1, "retries": 11}, "Stimulate: retries must be between 0 and 10"),
        ({"amplitude": 1, "sbatch_options": {"wrap": "rm"}}, "sbatch_options"),
        ({"amplitude": 1, "env": {"A B": "1"}}, "Stimulate: env: 'A B' is not a valid environment variable name"),
        ({"amplitude": 1, "soma-x": 1}, "has no parameter 'soma-x'"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(module: Any, params: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        build(find_task(module, "Stimulate"), params)
    assert said in str(caught.value)


def test_sbatchs_ways_to_write_time_and_memory(module: Any) -> None:
    cls = find_task(module, "Stimulate")
    for text, seconds in {"30": 1800, "1:30": 90, "02:00:01": 7201, "1-0": 86400, "2-03:04:05": 183845}.items():
        made: Any = build(cls, {"amplitude": 1, "time": text})
        assert made.job_resources().time_limit.total_seconds() == seconds, text
    for text, mib in {"512": 512, "4G": 4096, "4gb": 4096, "1T": 1048576, "2048K": 2, "0": 0}.items():
        made = build(cls, {"amplitude": 1, "mem": text})
        assert made.job_resources().memory_mb == mib, text


def test_only_what_can_be_launched_is_offered(module: Any) -> None:
    assert sorted(tasks_of(module)) == ["Stimulate"]
    with pytest.raises(UnknownTask, match="base class"):
        find_task(module, "Base")
    with pytest.raises(UnknownTask, match="Did you mean 'Stimulate'"):
        find_task(module, "Stimulat")
    with pytest.raises(UnknownTask, match="has no task 'Kind'"):
        find_task(module, "Kind")


def test_the_schema_says_what_the_parameters_take(module: Any) -> None:
    told = describe("stimulus_flow", find_task(module, "Stimulate"))
    assert told["name"] == "stimulus_flow:Stimulate"
    assert told["title"] == "Push current into cells."
    assert told["kind"] == "job"
    schema = told["parameters"]
    jsonschema.Draft202012Validator.check_schema(schema)
    json.dumps(told, allow_nan=False)
    assert schema["required"] == ["amplitude"]
    found = schema["properties"]
    assert "password" not in found
    assert found["amplitude"]["type"] == "number"
    assert found["amplitude"]["description"] == "Amplitude in nA."
    assert found["kind"]["enum"] == ["AXON", "DENDRITE"]
    assert found["mode"] == {
        "enum": ["fast", "slow"],
        "default": "fast",
        "x-significant": True,
        "x-parameter": "ChoiceParameter",
    }
    assert (found["share"]["minimum"], found["share"]["exclusiveMaximum"]) == (0.0, 1.0)
    assert found["note"]["type"] == ["string", "null"]
    assert found["spread"]["default"] == [1, 2]
    assert found["nodes"]["x-group"] == "resources"
    assert found["nodes"]["x-significant"] is False
    assert found["modules"]["x-group"] == "environment"
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"amplitude": 0.2, "nodes": None, "spread": [1]})
    assert not validator.is_valid({"seed": 2})


def test_modules_that_cannot_be_used(bench: Bench) -> None:
    sys.path.append(str(bench.attachments))
    bench.module("raises_flow", "x = 1\nraise ValueError('no licence for NEURON')\n")
    bench.module("exits_flow", "import sys\nsys.exit(3)\n")
    bench.module("needs_flow", "import a_package_that_is_absent\n")
    bench.module("json", "")
    with pytest.raises(UnknownTask, match="no licence for NEURON") as caught:
        import_module("raises_flow")
    assert "raises_flow.py" in caught.value.hint
    assert "line 2" in caught.value.hint
    with pytest.raises(UnknownTask, match="cannot be imported"):
        import_module("exits_flow")
    with pytest.raises(UnknownTask, match="'needs_flow' cannot be imported: No module named 'a_package_that_is"):
        import_module("needs_flow")
    with pytest.raises(UnknownTask, match="there is no module 'absent_flow'"):
        import_module("absent_flow")
    with pytest.raises(UnknownTask, match="is not the name of a Python module"):
        import_module("../etc/passwd")
    with pytest.raises(UnsafeUpload, match="'json' has the name of an installed module"):
        import_module("json", attachments=str(bench.attachments))


def test_a_request_is_checked_as_a_head_would_run_it(bench: Bench) -> None:
    name = bench.module("stimulus_flow", TASKS)
    (bench.attachments / "a.cfg").write_text("[Stimulate]\namplitude = 1\n")
    catalogue.validate(bench.request(name, "Stimulate", config="a.cfg"))
    for broken, said in {
        ("Stimulate", None): "needs a value for amplitude",
        ("Stimulat", "a.cfg"): "Did you mean",
        ("Stimulate", "../a.cfg"): "not among the attachments",
        ("Stimulate", "b.cfg"): "cannot be read",
    }.items():
        with pytest.raises(BbpwfError, match=said):
            catalogue.validate(bench.request(name, broken[0], config=broken[1]))
