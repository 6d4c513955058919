"""Array index expressions, both ways."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbpwf.errors import SlurmError
from bbpwf.slurm import arrays


@pytest.mark.parametrize(
    ("expression", "values", "throttle"),
    [
        ("4", (4,), 0),
        ("0-3", (0, 1, 2, 3), 0),
        ("[5-9%2]", (5, 6, 7, 8, 9), 2),
        ("0-3,7,10-20:2%5", (0, 1, 2, 3, 7, 10, 12, 14, 16, 18, 20), 5),
        ("1,4,7", (1, 4, 7), 0),
        ("0-20:7", (0, 7, 14), 0),
        ("3-3", (3,), 0),
    ],
)
def test_expressions_that_slurm_prints(expression: str, values: tuple[int, ...], throttle: int) -> None:
    assert arrays.parse(expression) == arrays.Indices(values, throttle)


@pytest.mark.parametrize(
    "text", ["", "a", "1-", "-1", "3-1", "1-3:0", "1,,2", "1%", "1%x", "[1", "1 2", "\u0663", "1-99999999"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(SlurmError):
        arrays.parse(text)


def test_a_cut_expression_is_never_guessed() -> None:
    with pytest.raises(SlurmError, match="cut"):
        arrays.parse("1,3,5,7,9,11,13,15,17,19,21,23,25,27,29,31,33,35,37,39,41,43,...")


@given(st.sets(st.integers(0, 5000), min_size=1), st.integers(0, 100))
def test_what_is_rendered_reads_the_same(values: set[int], throttle: int) -> None:
    text = arrays.render(values, throttle)
    assert arrays.parse(text) == arrays.Indices(tuple(sorted(values)), throttle)
    assert arrays.parse(f"[{text}]") == arrays.parse(text)


@given(st.text(max_size=30))
def test_any_text_is_an_expression_or_an_error(text: str) -> None:
    with contextlib.suppress(SlurmError):
        assert arrays.parse(text).values


def test_neighbours_become_ranges() -> None:
    assert arrays.render([5, 3, 4, 9, 0, 1]) == "0-1,3-5,9"
    with pytest.raises(SlurmError):
        arrays.render([])
    with pytest.raises(SlurmError):
        arrays.render([-1])
