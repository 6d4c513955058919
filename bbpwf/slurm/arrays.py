"""Array index expressions: ``0-3,7,10-20:2%5`` to numbers and back."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from bbpwf.errors import SlurmError

LONGEST = 4_000_001
"""More indices than any Slurm allows (MaxArraySize is at most 4,000,001): an expression beyond is nonsense."""

_PART = re.compile(r"(\d{1,7})(?:-(\d{1,7})(?::(\d{1,7}))?)?\Z", re.ASCII)


@dataclass(frozen=True)
class Indices:
    """The elements of an array, ascending, and how many may run at once (0: no limit)."""

    values: tuple[int, ...]
    throttle: int = 0


def parse(expression: str) -> Indices:
    """The indices in an expression as ``squeue`` and ``scontrol`` print it, with or without ``[…]`` around it.

    Raises:
        SlurmError: it is no such expression, or Slurm cut it (it ends in dots): what it hides is never guessed.
    """
    text = expression.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    if "..." in text:
        raise SlurmError(
            f"Slurm cut the array expression {expression[:80]!r}", hint="SLURM_BITSTR_LEN=0 must reach the command."
        )
    body, percent, limit = text.partition("%")
    if percent and not (limit.isascii() and limit.isdigit()):
        raise _nonsense(expression)
    found: set[int] = set()
    for part in body.split(","):
        match = _PART.match(part)
        if match is None:
            raise _nonsense(expression)
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        step = int(match[3]) if match[3] is not None else 1
        if last < first or step < 1 or last >= LONGEST:
            raise _nonsense(expression)
        found.update(range(first, last + 1, step))
    return Indices(tuple(sorted(found)), int(limit) if percent else 0)


def render(indices: Iterable[int], throttle: int = 0) -> str:
    """The shortest usual expression for ``indices``: runs of neighbours become ranges.

    Raises:
        SlurmError: there are none, or one is negative.
    """
    values = sorted(set(indices))
    if not values or values[0] < 0:
        raise SlurmError("an array needs at least one index, none of them negative")
    parts: list[str] = []
    start = previous = values[0]
    for value in [*values[1:], -1]:
        if value != previous + 1:
            parts.append(str(start) if start == previous else f"{start}-{previous}")
            start = value
        previous = value
    return ",".join(parts) + (f"%{throttle}" if throttle else "")


def _nonsense(expression: str) -> SlurmError:
    return SlurmError(f"{expression[:80]!r} is not an array expression")
