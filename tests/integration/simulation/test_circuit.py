"""The circuit that comes with campaigns which bring none: SONATA, and the same every time."""

from __future__ import annotations

from pathlib import Path

from tasks.simulation import circuits
from tests.integration.simulation.conftest import Lab, Software

LOOK = """
import json, sys, libsonata
circuit = libsonata.CircuitConfig.from_file(sys.argv[1])
nodes = circuit.node_population("tissue")
edges = circuit.edge_population("tissue__tissue__chemical")
sets = libsonata.NodeSets.from_file(circuit.node_sets_path)
everything = edges.select_all()
print(json.dumps({
    "status": circuit.config_status.name,
    "nodes": nodes.size,
    "edges": edges.size,
    "attributes": sorted(nodes.attribute_names | edges.attribute_names),
    "dynamics": sorted(nodes.dynamics_attribute_names),
    "inhibitory": sets.materialize("Inhibitory", nodes).flat_size,
    "excitatory": sets.materialize("Excitatory", nodes).flat_size,
    "templates": sorted(set(nodes.get_attribute("model_template", nodes.select_all()))),
    "to_three": sorted(set(edges.target_node(int(e)) for e in edges.afferent_edges(3).flatten())),
    "from_three": sorted(set(edges.source_node(int(e)) for e in edges.efferent_edges(3).flatten())),
    "indexed": sum(edges.afferent_edges(i).flat_size for i in range(nodes.size)),
    "scanned": [int((edges.target_nodes(everything) == 3).sum()), edges.afferent_edges(3).flat_size],
    "self": int((edges.source_nodes(everything) == edges.target_nodes(everything)).sum()),
}))
"""


def test_libsonata_reads_it_and_its_indices_are_true(software: Software, circuit: Path) -> None:
    seen = software.ask(LOOK, str(circuit))
    assert (seen["status"], seen["nodes"], seen["excitatory"], seen["inhibitory"]) == ("complete", 32, 24, 8)
    assert seen["templates"] == ["hoc:Interneuron", "hoc:Pyramidal"]
    assert {"x", "y", "z", "morphology", "model_type", "synapse_class"} <= set(seen["attributes"])
    assert {"afferent_section_id", "afferent_section_pos", "conductance", "delay", "u_syn"} <= set(seen["attributes"])
    assert seen["dynamics"] == ["holding_current", "threshold_current"]
    assert 200 < seen["edges"] == seen["indexed"]
    assert (seen["to_three"], seen["from_three"], seen["self"]) == ([3], [3], 0)
    assert seen["scanned"][0] == seen["scanned"][1] > 0


def test_the_same_arguments_give_the_same_bytes(software: Software, circuit: Path, tmp_path: Path) -> None:
    for name, seed in (("again", "1"), ("other", "2")):
        software.program("circuit", "--out", str(tmp_path / name), "--seed", seed)
    files = {name: (circuit.parent / name).read_bytes() for name in circuits.FILES}
    assert {name: (tmp_path / "again" / name).read_bytes() for name in circuits.FILES} == files
    assert (tmp_path / "other" / "edges.h5").read_bytes() != files["edges.h5"]
    made = {str(path.relative_to(tmp_path / "again")) for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert made == set(circuits.FILES)


def test_a_circuit_that_is_there_is_left_alone(software: Software, tmp_path: Path) -> None:
    software.program("circuit", "--out", str(tmp_path / "c"), "--excitatory", "2", "--inhibitory", "1")
    (tmp_path / "c" / "node_sets.json").write_text("{}")
    done = software.program("circuit", "--out", str(tmp_path / "c"), "--excitatory", "2", "--inhibitory", "1")
    assert "is there already" in done.stdout
    assert (tmp_path / "c" / "node_sets.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == ["c"]  # no draft stays behind


def test_threshold_currents_are_those_of_the_cells(lab: Lab) -> None:
    def step(percent: float) -> list[tuple[int, float]]:
        def change(config: dict[str, object]) -> None:
            config["node_set"] = "Lone"
            config["node_sets_file"] = str(lab.folder / "lone.json")
            config["reports"] = {}
            config["inputs"] = {
                "step": {
                    "module": "relative_linear",
                    "input_type": "current_clamp",
                    "percent_start": percent,
                    "delay": 50,
                    "duration": 300,
                    "node_set": "Lone",
                }
            }

        (lab.folder / "lone.json").write_text('{"Lone": {"population": "tissue", "node_id": [0, 31]}}')
        return lab.simulate(f"at-{percent}", change, duration=400)

    assert {node for node, _ in step(102)} == {0, 31}
    assert step(96) == []
