"""What a real Slurm 22.05 said; see :mod:`tests.unit.slurm.record`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from tests.unit.slurm.record import FOLDER


@dataclass(frozen=True)
class Recording:
    exit: int
    stdout: str
    stderr: str


def recorded(name: str) -> Recording:
    kept = json.loads((FOLDER / f"{name}.json").read_text())
    return Recording(kept["exit"], kept["stdout"], kept["stderr"])
