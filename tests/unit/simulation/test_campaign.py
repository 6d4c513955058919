"""What a campaign consists of, and what it is called."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

import pytest

from bbpwf.errors import InvalidParameter
from tasks.simulation.campaign import Campaign
from tasks.simulation.template import BUILT_IN, BUILT_IN_VALUES, Template, built_in

COORDS = {"stimulus_amplitude": [0.1, 0.2], "seed": [1, 2]}


def campaign(**more: Any) -> Campaign:
    values: dict[str, Any] = {
        "name": "test",
        "coords": COORDS,
        "coupled": False,
        "attrs": {},
        "template": built_in(),
        "circuit": "small-1",
    }
    return Campaign(**values | more)


def test_the_same_parameters_give_the_same_folder() -> None:
    assert campaign().folder_name == campaign(description="other words").folder_name
    assert campaign().folder_name.startswith("test-")
    assert (
        campaign(attrs={"dt": 0.05, "duration": 9}).folder_name
        == campaign(attrs={"duration": 9, "dt": 0.05}).folder_name
    )


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"coords": {"stimulus_amplitude": [0.1, 0.3], "seed": [1, 2]}},
        {"coords": {"seed": [1, 2], "stimulus_amplitude": [0.1, 0.2]}},
        {"coupled": True},
        {"attrs": {"duration": 100}},
        {"template": Template(BUILT_IN + " ", "the built-in template", BUILT_IN_VALUES)},
        {"circuit": "/another/circuit_config.json"},
        {"simulator": "special {config}"},
    ],
)
def test_what_changes_the_results_changes_the_folder(change: dict[str, Any]) -> None:
    assert campaign(**change).folder_name != campaign().folder_name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"coords": {"stimulus_amplitud": [1]}}, "coords: the built-in template has no placeholder .stimulus_amplitud"),
        ({"attrs": {"durtion": 1}}, "attrs: the built-in template has no placeholder .durtion It knows: .*duration"),
        ({"attrs": {"seed": 1}}, "seed: in coords and in attrs"),
        ({"attrs": {"path_prefix": "/x"}}, "path_prefix is no attribute here .* parameter of its own"),
        ({"attrs": {"duration": [1]}}, "attrs: duration must be a number or text"),
        ({"name": "../up"}, "cannot name a campaign"),
        ({"name": ""}, "cannot name a campaign"),
    ],
)
def test_what_makes_no_sense_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        campaign(**change)


def test_one_config_for_each_point_and_the_list_of_them_last() -> None:
    files = dict(campaign().files(PurePosixPath("/d/test"), "/circuits/c.json"))
    assert list(files) == [f"/d/test/{index}/simulation_config.json" for index in range(4)] + ["/d/test/campaign.json"]
    listed = json.loads(files["/d/test/campaign.json"])
    assert (listed["dims"], listed["coords"]) == (["stimulus_amplitude", "seed"], COORDS)
    for index, point in enumerate(listed["points"]):
        config = json.loads(files[f"/d/test/{point['config']}"])
        assert config["inputs"]["stimulus"]["amp_start"] == point["coords"]["stimulus_amplitude"]
        assert config["run"]["random_seed"] == point["random_seed"] == point["coords"]["seed"] * 4 + index
        assert config["network"] == listed["circuit"] == "/circuits/c.json"
        assert point["spikes"] == f"{index}/output/out.h5"
        assert point["reports"] == [f"{index}/output/soma.h5"]


def test_seeds_that_are_given_are_taken_as_they_are() -> None:
    points = campaign(attrs={"random_seed": 5}, coords={"stimulus_amplitude": [0.1, 0.2]}).points("/c.json")
    assert [json.loads(point.rendered.text)["run"]["random_seed"] for point in points] == [5, 5]


def test_a_campaign_knows_whether_it_needs_a_circuit() -> None:
    fixed = Template(BUILT_IN.replace("$circuit_config", "/fixed.json"), "mine", BUILT_IN_VALUES)
    assert campaign().needs_circuit
    assert not campaign(template=fixed).needs_circuit
    assert not campaign(attrs={"circuit_config": "/mine.json"}).needs_circuit
