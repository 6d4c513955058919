"""Real simulations: the programs as a cluster runs them, in the software environment that `make test` builds."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.simulation.template import built_in

ROOT = Path(__file__).parents[3]
PROGRAMS = ROOT / "tasks" / "simulation" / "cluster"

READ_SPIKES = """
import json, sys, libsonata
population = libsonata.SpikeReader(sys.argv[1])["tissue"]
print(json.dumps({"spikes": population.get(), "sorting": str(population.sorting), "units": population.time_units}))
"""


@dataclass
class Software:
    """The software environment."""

    python: str

    @property
    def folder(self) -> str:
        """What ``settings.cluster.software`` would be."""
        return str(Path(self.python).parent.parent)

    def run(self, argv: Sequence[str], *, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a program or ``-c`` text there."""
        done = subprocess.run([self.python, *argv], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, f"exit {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def ask(self, text: str, *argv: str) -> Any:
        """What a small script prints as JSON."""
        return json.loads(self.run(["-c", text, *argv]).stdout)

    def program(self, name: str, *argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run one of ours."""
        return self.run([str(PROGRAMS / f"{name}.py"), *argv], code=code)


@pytest.fixture(scope="session")
def software() -> Software:
    python = os.environ.get("BBPWF_TEST_SOFTWARE") or str(ROOT / ".software" / "bin" / "python")
    assert Path(python).exists(), f"there is no {python}: run `make software`, or set BBPWF_TEST_SOFTWARE"
    return Software(python)


@pytest.fixture(scope="session")
def circuit(software: Software, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of the small circuit, as GenerateCircuit makes it."""
    folder = tmp_path_factory.mktemp("circuits") / "small"
    software.program("circuit", "--out", str(folder))
    return folder / "circuit_config.json"


@dataclass
class Lab:
    """Writes simulation configs and runs them."""

    software: Software
    circuit: Path
    folder: Path

    def config(self, name: str, change: Any = None, **values: Any) -> Path:
        """A config of the built-in template; ``change`` may alter the parsed config."""
        template = built_in()
        known: dict[str, Any] = {
            "circuit_config": str(self.circuit),
            "random_seed": 1,
            "duration": 300,
            "stimulus_duration": 200,
        }
        config = json.loads(template.render({**known, **values}).text)
        if change is not None:
            change(config)
        path = self.folder / name / "simulation_config.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
        return path

    def simulate(self, name: str, change: Any = None, **values: Any) -> list[tuple[int, float]]:
        """Node id and time (ms) of every spike, as libsonata reads them."""
        self.software.program("simulate", "--config", str(self.config(name, change, **values)))
        return self.spikes(self.folder / name / "output" / "out.h5")

    def spikes(self, path: Path) -> list[tuple[int, float]]:
        found = self.software.ask(READ_SPIKES, str(path))
        assert found["units"] == "ms"
        assert found["sorting"].endswith("by_time")
        return [(int(node), float(time)) for node, time in found["spikes"]]

    def refused(self, name: str, change: Any = None, **values: Any) -> str:
        """What is said of a config that cannot be simulated; nothing is written."""
        path = self.config(name, change, **values)
        done = self.software.program("simulate", "--config", str(path), code=2)
        assert sorted(each.name for each in path.parent.iterdir()) == ["simulation_config.json"]
        return done.stderr


@pytest.fixture
def lab(software: Software, circuit: Path, tmp_path: Path) -> Lab:
    return Lab(software, circuit, tmp_path)
