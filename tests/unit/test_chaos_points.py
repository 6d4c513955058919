"""The crash suite knows every fault point that the code has."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.chaos.points import ALL, UNREACHED

SOURCES = [path.read_text() for path in (Path(__file__).parents[2] / "bbpwf").rglob("*.py")]


def named() -> set[str]:
    """Every name that the sources give to a fault point."""
    found: set[str] = set()
    for text in SOURCES:
        found.update(re.findall(r'faults\.point\("([^"]+)"\)', text))
        for commit in re.findall(r'self\._(?:writing|changing)\("(\w+)"\)', text):
            found |= {f"ledger.{commit}.before", f"ledger.{commit}.after"}
    return found


def test_every_fault_point_of_the_code_is_among_those_that_the_storm_chooses_from() -> None:
    assert named() == ALL | UNREACHED.keys()
