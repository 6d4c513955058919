"""One simulation on real NEURON: reproducible, alive, and clear about what it cannot do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.simulation.conftest import PROGRAMS, Lab, Software

READ_VOLTAGE = """
import json, sys, libsonata
population = libsonata.SomaReportReader(sys.argv[1])["tissue"]
frame = population.get(node_ids=[0, 31])
print(json.dumps({
    "times": population.times, "units": [population.time_units, population.data_units], "nodes": len(population.get_node_ids()),
    "rows": len(frame.times), "low": float(frame.data.min()), "high": float(frame.data.max()),
}))
"""


def test_the_same_seed_gives_the_same_spikes_and_another_seed_others(lab: Lab) -> None:
    first, again, other = lab.simulate("a"), lab.simulate("b"), lab.simulate("c", random_seed=2)
    assert first == again
    assert len(first) > 20
    assert first != other
    assert [time for _, time in first] == sorted(time for _, time in first)


def test_running_again_replaces_the_results_whole(lab: Lab) -> None:
    first = lab.simulate("a")
    output = lab.folder / "a" / "output"
    (output / "out.h5").write_bytes(b"broken")
    assert lab.simulate("a") == first
    assert sorted(path.name for path in output.iterdir()) == ["out.h5", "soma.h5"]


def rate(spikes: list[tuple[int, float]], nodes: range) -> float:
    """Mean rate in Hz while the stimulus is on, 100 to 300 ms."""
    return sum(node in nodes and 100 <= time < 300 for node, time in spikes) / len(nodes) / 0.2


def test_stimulus_and_calcium_matter_and_the_network_is_neither_dead_nor_mad(lab: Lab) -> None:
    excitatory, inhibitory = range(24), range(24, 32)
    found = {
        (amplitude, calcium): lab.simulate(
            f"{amplitude}-{calcium}", stimulus_amplitude=amplitude, extracellular_calcium=calcium
        )
        for amplitude in (0.0, 0.2, 0.5)
        for calcium in (1.2, 2.0)
    }
    for calcium in (1.2, 2.0):
        none, some, much = (rate(found[amplitude, calcium], excitatory) for amplitude in (0.0, 0.2, 0.5))
        assert none < 5 < some < much < 60
    for amplitude in (0.2, 0.5):  # inhibitory cells get no stimulus: they hear of it through synapses
        low, high = (rate(found[amplitude, calcium], inhibitory) for calcium in (1.2, 2.0))
        assert low * 1.2 < high < 100


def test_the_voltage_report_is_sonata(lab: Lab) -> None:
    lab.simulate("a")
    seen = lab.software.ask(READ_VOLTAGE, str(lab.folder / "a" / "output" / "soma.h5"))
    assert seen["times"] == [0.0, 300.0, 0.5]
    assert seen["units"] == ["ms", "mV"]
    assert (seen["nodes"], seen["rows"]) == (32, 600)
    assert -95 < seen["low"] < -60
    assert 0 < seen["high"] < 60


def stimulus(**values: Any) -> Callable[[dict[str, Any]], None]:
    """Replaces the stimulus by another module, and takes the background away."""

    def change(config: dict[str, Any]) -> None:
        common = {"input_type": "current_clamp", "delay": 100, "duration": 200, "node_set": "Excitatory"}
        config["inputs"] = {"stimulus": common | values}

    return change


@pytest.mark.parametrize(
    "values",
    [
        {"module": "linear", "amp_start": 0.0, "amp_end": 0.6},
        {"module": "relative_linear", "percent_start": 400.0},
        {"module": "pulse", "amp_start": 1.0, "width": 5.0, "frequency": 20.0},
        {"module": "noise", "mean": 0.2, "variance": 0.05},
        {"module": "noise", "mean_percent": 250.0, "variance": 0.05},
        {"module": "shot_noise", "rise_time": 0.5, "decay_time": 5.0, "rate": 500.0, "amp_mean": 0.1, "amp_var": 0.01},
    ],
)
def test_every_input_that_is_offered_makes_cells_spike_while_it_is_on(lab: Lab, values: dict[str, Any]) -> None:
    spikes = lab.simulate("a", stimulus(**values), duration=350)
    driven = [time for node, time in spikes if node < 24]
    assert len(driven) >= 24
    assert min(driven) > 100
    assert max(driven) < 320
    assert lab.simulate("b", stimulus(**values), duration=350) == spikes


def setting(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        place = config
        for each in parents:
            place = place[each]
        place[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (setting("network", "/nowhere/circuit_config.json"), "there is no circuit /nowhere/circuit_config.json"),
        (setting("node_set", "Nobody"), "there is no node set 'Nobody'; known: All, Excitatory, Inhibitory"),
        (setting("inputs.stimulus.node_set", "Nobody"), "there is no node set 'Nobody'"),
        (setting("inputs.stimulus.module", "telepathy"), "telepathy"),
        (
            stimulus(module="seclamp", input_type="voltage_clamp", delay=0, voltage=-70.0),
            "module 'seclamp' is not understood",
        ),
        (
            stimulus(module="pulse", amp_start=1.0, width=1.0, frequency=0.0),
            "input 'stimulus': its values make no sense",
        ),
        (setting("inputs.stimulus.input_type", "conductance"), "conductance"),
        (setting("reports.soma.sections", "all"), "report 'soma': only type compartment, sections soma"),
        (setting("reports.soma.dt", 0.03), "report 'soma': dt must be a multiple"),
        (setting("run.dt", 0), "make no sense"),
        (setting("run", {"tstop": 1}), "dt"),
        (setting("conditions.spike_location", "AIS"), "spike_location must be soma"),
        (setting("target_simulator", "CORENEURON"), "target_simulator"),
        (
            setting("connection_overrides", [{"name": "x", "source": "All", "target": "All", "weight": 2.0}]),
            "connection_overrides are not understood",
        ),
    ],
)
def test_what_it_cannot_simulate_is_named_and_nothing_is_written(lab: Lab, change: Any, said: str) -> None:
    text = lab.refused("bad", change)
    assert text.startswith("simulate: error: ")
    assert said in text


def test_a_broken_circuit_is_named(lab: Lab, software: Software, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    software.program("circuit", "--out", str(folder), "--excitatory", "2", "--inhibitory", "1")
    lab.circuit = folder / "circuit_config.json"
    (folder / "morphologies" / "pyramidal.swc").unlink()
    assert f"there is no morphology {folder}/morphologies/pyramidal.swc" in lab.refused("no-morphology")
    (folder / "hoc" / "Pyramidal.hoc").unlink()
    assert f"there is no cell template {folder}/hoc/Pyramidal.hoc" in lab.refused("no-template")
    (folder / "nodes.h5").write_bytes(b"not HDF5")
    assert "cannot be used" in lab.refused("no-nodes")
    lab.circuit.write_text(json.dumps({"networks": {}}))
    assert f"the circuit {lab.circuit} cannot be used" in lab.refused("no-circuit")


def test_a_config_that_is_none_is_named(software: Software, tmp_path: Path) -> None:
    path = tmp_path / "simulation_config.json"
    program = str(PROGRAMS / "simulate.py")
    assert f"there is no simulation config {path}" in software.run([program, "--config", str(path)], code=2).stderr
    path.write_text("{")
    assert (
        f"the simulation config {path} cannot be used" in software.run([program, "--config", str(path)], code=2).stderr
    )
