"""The points of a campaign: every combination of the coordinates' values, or the values side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bbpwf.errors import InvalidParameter

MAX_POINTS = 100_000
"""Most simulations of one campaign."""

MAX_SEED = 2**31 - 1
"""SONATA readers keep ``run.random_seed`` in a signed 32-bit integer."""

Value = bool | int | float | str


def checked(what: str, values: Mapping[str, Any]) -> dict[str, Value]:
    """Names with plain values.

    Raises:
        InvalidParameter: a name that cannot be a placeholder, or a value that is no number or text; says which.
    """
    for name, value in values.items():
        _check_name(what, name)
        _check_value(f"{what}: {name}", value)
    return dict(values)


def expand(coords: Mapping[str, Any], *, coupled: bool) -> list[dict[str, Value]]:
    """The coordinates of each point, in order; one point without coordinates if there are none.

    Cartesian: the last coordinate changes fastest. Coupled: the n-th point takes the n-th value of every list.

    Raises:
        InvalidParameter: a coordinate that is no list, empty, has a value twice or one that is no number or text,
            lists of different lengths that should be coupled, or too many points.
    """
    lists: dict[str, list[Value]] = {}
    for name, values in coords.items():
        _check_name("coords", name)
        if isinstance(values, (str, Mapping)) or not isinstance(values, Sequence):
            raise InvalidParameter(f"coords: {name} must be a list of values, not {values!r}")
        if not values:
            raise InvalidParameter(f"coords: {name} has no values")
        for value in values:
            _check_value(f"coords: {name}", value)
        lists[name] = list(values)
    if not lists:
        return [{}]
    count = len(next(iter(lists.values()))) if coupled else math.prod(map(len, lists.values()))
    if count > MAX_POINTS:
        raise InvalidParameter(f"coords make {count} simulations; a campaign holds at most {MAX_POINTS}")
    if coupled:
        lengths = {name: len(values) for name, values in lists.items()}
        if len(set(lengths.values())) > 1:
            raise InvalidParameter(
                f"coupled coords must have lists of one length, not {lengths}",
                hint="Leave `coupled` out for all combinations.",
            )
        rows: list[tuple[Value, ...]] = list(zip(*lists.values(), strict=True))
    else:
        rows = list(itertools.product(*lists.values()))
    twice = len(rows) - len(set(map(repr, rows)))
    if twice:
        raise InvalidParameter(f"coords: {twice} points come twice", hint="Give each value of a coordinate once.")
    return [dict(zip(lists, row, strict=True)) for row in rows]


def random_seed(seed: Value, index: int, count: int) -> int:
    """``seed * count + index``: the random seed of point ``index`` of ``count``.

    No two points of a campaign share one, whatever their ``seed`` coordinate or attribute is, so that their noise is
    independent; who wants the same noise everywhere gives ``random_seed`` itself as an attribute.

    Raises:
        InvalidParameter: ``seed`` is no whole number that is not negative, or too large.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InvalidParameter(f"seed must be a whole number that is not negative, not {seed!r}")
    found = seed * count + index
    if found > MAX_SEED:
        raise InvalidParameter(f"seed {seed} is too large for {count} points: at most {MAX_SEED // count - 1}")
    return found


def label(coords: Mapping[str, Value]) -> str:
    """What a person calls a point: ``stimulus_amplitude=0.2 seed=1``."""
    return " ".join(f"{name}={value}" for name, value in coords.items())


def _check_name(what: str, name: str) -> None:
    if not (name.isidentifier() and name.isascii()):
        raise InvalidParameter(f"{what}: {name!r} cannot be the name of a placeholder: letters, digits and _ only")


def _check_value(where: str, value: Any) -> None:
    if not isinstance(value, (bool, int, float, str)) or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidParameter(f"{where} must be a number or text, not {value!r}")
