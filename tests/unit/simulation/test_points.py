"""Coordinates to points, and the seed of each."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbpwf.errors import InvalidParameter
from tasks.simulation.points import MAX_SEED, expand, label, random_seed


def test_all_combinations_the_last_coordinate_changes_fastest() -> None:
    points = expand({"amplitude": [0.1, 0.2], "seed": [1, 2, 3]}, coupled=False)
    assert [tuple(point.values()) for point in points] == [(0.1, 1), (0.1, 2), (0.1, 3), (0.2, 1), (0.2, 2), (0.2, 3)]
    assert all(list(point) == ["amplitude", "seed"] for point in points)


def test_coupled_coordinates_go_side_by_side() -> None:
    points = expand({"amplitude": [0.1, 0.2], "calcium": (1.2, 2.0)}, coupled=True)
    assert points == [{"amplitude": 0.1, "calcium": 1.2}, {"amplitude": 0.2, "calcium": 2.0}]


@pytest.mark.parametrize("coupled", [False, True])
def test_no_coordinates_is_one_simulation(coupled: bool) -> None:
    assert expand({}, coupled=coupled) == [{}]


@pytest.mark.parametrize(
    ("coords", "coupled", "said"),
    [
        ({"ca": 1.2}, False, "coords: ca must be a list of values, not 1.2"),
        ({"ca": "1.2"}, False, "coords: ca must be a list"),
        ({"ca": {"a": 1}}, False, "coords: ca must be a list"),
        ({"ca": []}, False, "coords: ca has no values"),
        ({"ca": [1.2, None]}, False, "coords: ca must be a number or text, not None"),
        ({"ca": [float("nan")]}, False, "coords: ca must be a number or text, not nan"),
        ({"ca": [[1, 2]]}, False, "coords: ca must be a number or text"),
        ({"ca": [1.2, 1.2]}, False, "1 points come twice"),
        ({"ca": [1], "a": [1, 2]}, True, "coupled coords must have lists of one length"),
        ({"$ca": [1]}, False, "'\\$ca' cannot be the name of a placeholder"),
        ({"a": list(range(1000)), "b": list(range(1000))}, False, "coords make 1000000 simulations"),
    ],
)
def test_what_makes_no_sense_is_named(coords: dict[str, Any], coupled: bool, said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        expand(coords, coupled=coupled)


@given(
    seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=20, unique=True),
    others=st.integers(1, 20),
)
def test_no_two_points_share_a_seed(seeds: list[int], others: int) -> None:
    points = expand({"x": list(range(others)), "seed": seeds}, coupled=False)
    found = [random_seed(point["seed"], index, len(points)) for index, point in enumerate(points)]
    assert len(set(found)) == len(points)
    assert all(0 <= each <= MAX_SEED for each in found)


def test_the_rule_for_seeds_is_the_one_that_is_written() -> None:
    assert random_seed(7, 5, 24) == 7 * 24 + 5


@pytest.mark.parametrize("seed", [-1, 1.5, "one", True, MAX_SEED])
def test_a_seed_that_no_simulator_takes_is_refused(seed: Any) -> None:
    with pytest.raises(InvalidParameter, match=r"seed"):
        random_seed(seed, 1, 2)


def test_a_label_reads_like_the_coordinates() -> None:
    assert label({"stimulus_amplitude": 0.2, "seed": 1}) == "stimulus_amplitude=0.2 seed=1"
