"""Make a small SONATA circuit: excitatory and inhibitory cells, wired at random, that NEURON alone can simulate.

    python circuit.py --out FOLDER [--seed 1] [--excitatory 24] [--inhibitory 8]

Needs h5py and numpy. All that is in FOLDER follows from the arguments, byte for byte. FOLDER appears complete or
not at all; one that is complete already is left as it is.

Formats: SONATA as the Blue Brain and Open Brain extension describes it (``biophysical`` nodes, ``chemical`` edges).

The cells need no mechanisms but NEURON's own: ``hh`` in the soma, ``pas`` in the dendrites, and a slow potassium
conductance opened by each spike (an ``Exp2Syn`` that the cell drives itself), so that the rate follows the current
instead of jumping to the squid axon's 60 Hz. They are meant for 6.3 °C, where ``hh`` needs no correction.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

POPULATION = "tissue"
CONFIG = "circuit_config.json"

Point = tuple[float, float, float, float]
"""x, y, z and radius in µm."""


@dataclass(frozen=True)
class Branch:
    """One section of a morphology; ``parent`` is a section id, 0 being the soma."""

    kind: int
    parent: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of cell. Lengths in µm, conductance in µS, time in ms, current in nA."""

    name: str
    synapse_class: str
    mtype: str
    etype: str
    morph_class: str
    soma_radius: float
    branches: tuple[Branch, ...]
    ahp_weight: float
    ahp_decay: float
    threshold_current: float
    """The weakest step of 300 ms that makes the cell spike, found by simulation with a resolution of 1 pA."""


@dataclass(frozen=True)
class Pathway:
    """From one kind of cell to another: chance of a connection, contacts of one, and each contact's parameters.

    ``conductance`` in nS if every release site releases, ``u`` is the release probability at 2 mM calcium,
    ``hill`` the calcium (mM) of half release, ``decay`` in ms.
    """

    chance: float
    contacts: int
    conductance: float
    u: float
    hill: float
    decay: float


BASAL, APICAL = 3, 4  # section types of SWC and of SONATA's afferent_section_type

# Branches stand in the order in which NEURON numbers sections (soma, dend, apic): SONATA's section ids count so too.
PYRAMIDAL = Kind(
    name="Pyramidal",
    synapse_class="EXC",
    mtype="L5_TPC",
    etype="cADpyr",
    morph_class="PYR",
    soma_radius=10.0,
    branches=(
        Branch(BASAL, 0, ((10, -4, 0, 0.9), (60, -35, 10, 0.6), (105, -60, 20, 0.4))),
        Branch(BASAL, 0, ((-10, -4, 0, 0.9), (-55, -40, -15, 0.6), (-100, -65, -25, 0.4))),
        Branch(BASAL, 0, ((0, -10, 2, 0.9), (5, -60, 40, 0.6), (10, -105, 70, 0.4))),
        Branch(APICAL, 0, ((0, 10, 0, 1.5), (0, 90, 0, 1.2), (2, 170, 0, 1.0))),
        Branch(APICAL, 4, ((35, 225, 10, 0.6), (60, 270, 20, 0.4))),
        Branch(APICAL, 4, ((-35, 225, -10, 0.6), (-60, 270, -20, 0.4))),
    ),
    ahp_weight=0.004,
    ahp_decay=90.0,
    threshold_current=0.079,
)
INTERNEURON = Kind(
    name="Interneuron",
    synapse_class="INH",
    mtype="L5_LBC",
    etype="cNAC",
    morph_class="INT",
    soma_radius=7.0,
    branches=(
        Branch(BASAL, 0, ((7, 0, 0, 0.7), (50, 15, 5, 0.4), (85, 25, 10, 0.3))),
        Branch(BASAL, 0, ((-7, 0, 0, 0.7), (-50, 10, -5, 0.4), (-85, 20, -10, 0.3))),
        Branch(BASAL, 0, ((0, 7, 0, 0.7), (10, 55, 15, 0.4), (15, 90, 30, 0.3))),
        Branch(BASAL, 0, ((0, -7, 0, 0.7), (-10, -55, -15, 0.4), (-15, -90, -30, 0.3))),
    ),
    ahp_weight=0.002,
    ahp_decay=40.0,
    threshold_current=0.029,
)
KINDS = (PYRAMIDAL, INTERNEURON)

# Excitatory synapses use little of what they have at physiological calcium (high `hill`), inhibitory ones most of it.
PATHWAYS = {
    ("EXC", "EXC"): Pathway(chance=0.15, contacts=2, conductance=3.0, u=0.5, hill=2.8, decay=3.0),
    ("EXC", "INH"): Pathway(chance=0.35, contacts=2, conductance=3.0, u=0.6, hill=2.8, decay=2.0),
    ("INH", "EXC"): Pathway(chance=0.40, contacts=3, conductance=4.0, u=0.3, hill=1.9, decay=9.0),
    ("INH", "INH"): Pathway(chance=0.25, contacts=2, conductance=2.0, u=0.3, hill=1.9, decay=9.0),
}

HOC = """\
// A cell of NEURON's own mechanisms, made by circuit.py.
// new NAME(gid, folder of morphologies, file name of a morphology in SWC)
{load_file("stdlib.hoc")}
{load_file("import3d.hoc")}

begintemplate NAME
public init, soma, axon, dend, apic, all, somatic, axonal, basal, apical, gid, ahp
create soma[1], axon[1], dend[1], apic[1]
objref this, all, somatic, axonal, basal, apical, ahp, ahp_trigger
strdef file

proc init() {
    gid = $1
    all = new SectionList()
    somatic = new SectionList()
    axonal = new SectionList()
    basal = new SectionList()
    apical = new SectionList()
    sprint(file, "%s/%s", $s2, $s3)
    shape()
    membrane()
    afterhyperpolarisation()
}

proc shape() { localobj reader, importer
    forall delete_section()
    reader = new Import3d_SWC_read()
    reader.input(file)
    importer = new Import3d_GUI(reader, 0)
    importer.instantiate(this)
    forsec all nseg = 1 + 2 * int(L / 100)
}

proc membrane() {
    forsec all { Ra = 120 cm = 1 }
    forsec somatic insert hh
    forsec basal { insert pas e_pas = -65 g_pas = 0.00005 }
    forsec apical { insert pas e_pas = -65 g_pas = 0.00005 }
}

proc afterhyperpolarisation() {
    soma[0] {
        ahp = new Exp2Syn(0.5)
        ahp_trigger = new NetCon(&v(0.5), ahp, -20, 0.1, AHP_WEIGHT)
    }
    ahp.e = -90
    ahp.tau1 = 3
    ahp.tau2 = AHP_DECAY
}
endtemplate NAME
"""


def swc(kind: Kind) -> str:
    """The morphology as an SWC file. The soma is three points: centre and both ends of a cylinder."""
    radius = kind.soma_radius
    rows: list[tuple[Any, ...]] = [
        (1, 1, 0, 0, 0, radius, -1),
        (2, 1, 0, -radius, 0, radius, 1),
        (3, 1, 0, radius, 0, radius, 1),
    ]
    last = {0: 1}
    for section, branch in enumerate(kind.branches, start=1):
        parent = last[branch.parent]
        for point in branch.points:
            rows.append((len(rows) + 1, branch.kind, *point, parent))
            parent = len(rows)
        last[section] = parent
    lines = [f"# {kind.name}: index type x y z radius parent", *(" ".join(map(str, row)) for row in rows)]
    return "\n".join(lines) + "\n"


def hoc(kind: Kind) -> str:
    """The cell template."""
    text = HOC.replace("AHP_WEIGHT", str(kind.ahp_weight)).replace("AHP_DECAY", str(kind.ahp_decay))
    return text.replace("NAME", kind.name)


def write_nodes(path: Path, kinds: list[Kind], random: np.random.Generator) -> np.ndarray[Any, Any]:
    """The cells of one population; answers their positions in µm, one row a cell."""
    count = len(kinds)
    positions = random.uniform((-150, -100, -150), (150, 100, 150), size=(count, 3)).astype(np.float32)
    with h5py.File(path, "w") as file:
        _sign(file)
        population = file.create_group(f"nodes/{POPULATION}")
        population["node_type_id"] = np.full(count, -1, dtype=np.int64)
        group = population.create_group("0")
        for axis, column in zip("xyz", positions.T, strict=True):
            group[axis] = column
        angle = random.uniform(0, 2 * np.pi, size=count)  # around the vertical: apical dendrites stay upright
        group["orientation_w"] = np.cos(angle / 2).astype(np.float32)
        group["orientation_x"] = np.zeros(count, dtype=np.float32)
        group["orientation_y"] = np.sin(angle / 2).astype(np.float32)
        group["orientation_z"] = np.zeros(count, dtype=np.float32)
        _text(group, "model_type", ["biophysical"] * count)
        _text(group, "model_template", [f"hoc:{kind.name}" for kind in kinds])
        _text(group, "morphology", [kind.name.lower() for kind in kinds])
        for name in ("synapse_class", "mtype", "etype", "morph_class"):
            _text(group, name, [getattr(kind, name) for kind in kinds])
        _text(group, "layer", ["5"] * count)
        _text(group, "region", ["patch"] * count)
        dynamics = group.create_group("dynamics_params")
        dynamics["threshold_current"] = np.array([kind.threshold_current for kind in kinds], dtype=np.float32)
        # no two cells are alike: a constant current of a cell's own makes one readier to spike than another
        spread = np.clip(random.normal(0.0, 1.0, size=count), -2, 2)
        dynamics["holding_current"] = np.array(
            [kind.threshold_current * 0.3 * each for kind, each in zip(kinds, spread, strict=True)], dtype=np.float32
        )
    return positions


def write_edges(path: Path, kinds: list[Kind], positions: np.ndarray[Any, Any], random: np.random.Generator) -> None:
    """The synapses of the population with itself, and the indices by source and by target."""
    rows: list[dict[str, float]] = []
    for target, target_kind in enumerate(kinds):
        for source, source_kind in enumerate(kinds):
            pathway = PATHWAYS[source_kind.synapse_class, target_kind.synapse_class]
            if source == target or random.random() >= pathway.chance:
                continue
            distance = float(np.linalg.norm(positions[source] - positions[target]))
            for _ in range(pathway.contacts):
                rows.append(_synapse(source, target, source_kind, target_kind, pathway, distance, random))
    count = len(rows)
    with h5py.File(path, "w") as file:
        _sign(file)
        population = file.create_group(f"edges/{POPULATION}__{POPULATION}__chemical")
        population["edge_type_id"] = np.full(count, -1, dtype=np.int64)
        for end in ("source_node_id", "target_node_id"):
            population[end] = np.array([row[end] for row in rows], dtype=np.uint64)
            population[end].attrs["node_population"] = POPULATION
        group = population.create_group("0")
        for name in ("afferent_section_id", "afferent_section_type", "n_rrp_vesicles", "syn_type_id"):
            group[name] = np.array([row[name] for row in rows], dtype=np.uint32)
        for name in (
            *("afferent_section_pos", "conductance", "decay_time", "delay", "u_syn", "u_hill_coefficient"),
            *("depression_time", "facilitation_time", "conductance_scale_factor"),
        ):
            group[name] = np.array([row[name] for row in rows], dtype=np.float32)
        indices = population.create_group("indices")
        for name, end in (("source_to_target", "source_node_id"), ("target_to_source", "target_node_id")):
            _index(indices.create_group(name), np.array([row[end] for row in rows], dtype=np.int64), len(kinds))


def _synapse(
    source: int,
    target: int,
    source_kind: Kind,
    target_kind: Kind,
    pathway: Pathway,
    distance: float,
    random: np.random.Generator,
) -> dict[str, float]:
    excitatory = source_kind.synapse_class == "EXC"
    if not excitatory and random.random() < 0.5:  # basket cells reach the soma as well
        section, kind = 0, 1
    else:
        section = int(random.integers(1, len(target_kind.branches) + 1))
        kind = target_kind.branches[section - 1].kind
    return {
        "source_node_id": source,
        "target_node_id": target,
        "afferent_section_id": section,
        "afferent_section_type": kind,
        "afferent_section_pos": 0.5 if section == 0 else float(random.uniform(0.05, 0.95)),
        "conductance": pathway.conductance * float(np.exp(random.normal(0.0, 0.3))),
        "conductance_scale_factor": 1.0,
        "decay_time": pathway.decay,
        "delay": 0.5 + distance / 300.0,  # µm at 0.3 m/s
        "u_syn": pathway.u,
        "u_hill_coefficient": pathway.hill,
        "depression_time": 0.0,
        "facilitation_time": 0.0,
        "n_rrp_vesicles": 1,
        "syn_type_id": 113 if excitatory else 8,  # 100 and more: excitatory
    }


def _index(group: Any, ids: np.ndarray[Any, Any], nodes: int) -> None:
    """SONATA's two-level index: node id -> ranges of ranges -> ranges of edges."""
    by_node: list[tuple[int, int]] = []
    ranges: list[tuple[int, int]] = []
    for node in range(nodes):
        edges = np.flatnonzero(ids == node)
        first = len(ranges)
        if edges.size:
            breaks = np.flatnonzero(np.diff(edges) != 1) + 1
            ranges.extend((int(part[0]), int(part[-1]) + 1) for part in np.split(edges, breaks))
        by_node.append((first, len(ranges)))
    group["node_id_to_ranges"] = np.array(by_node, dtype=np.int64).reshape(-1, 2)
    group["range_to_edge_id"] = np.array(ranges, dtype=np.int64).reshape(-1, 2)


def _sign(file: Any) -> None:
    """SONATA's magic number and version."""
    file.attrs["magic"] = np.uint32(0x0A7A)
    file.attrs["version"] = np.array([0, 1], dtype=np.uint32)


def _text(group: Any, name: str, values: list[str]) -> None:
    """A column of words as indices into ``@library``: few words, many cells."""
    words = sorted(set(values))
    group[name] = np.array([words.index(value) for value in values], dtype=np.uint32)
    group.require_group("@library").create_dataset(name, data=words, dtype=h5py.string_dtype())


def write_circuit(folder: Path, *, seed: int, excitatory: int, inhibitory: int) -> None:
    """All files of the circuit, in an existing folder."""
    random = np.random.default_rng(np.random.SeedSequence([0xC1C, seed]))
    kinds = [PYRAMIDAL] * excitatory + [INTERNEURON] * inhibitory
    for name in ("morphologies", "hoc"):
        (folder / name).mkdir()
    for kind in KINDS:
        (folder / "morphologies" / f"{kind.name.lower()}.swc").write_text(swc(kind))
        (folder / "hoc" / f"{kind.name}.hoc").write_text(hoc(kind))
    positions = write_nodes(folder / "nodes.h5", kinds, random)
    write_edges(folder / "edges.h5", kinds, positions, random)
    node_sets = {
        "All": {"population": POPULATION},
        "Excitatory": {"population": POPULATION, "synapse_class": "EXC"},
        "Inhibitory": {"population": POPULATION, "synapse_class": "INH"},
    }
    components = {"morphologies_dir": "./morphologies", "biophysical_neuron_models_dir": "./hoc"}
    config = {
        "version": 2.4,
        "manifest": {"$BASE_DIR": "."},
        "node_sets_file": "$BASE_DIR/node_sets.json",
        "networks": {
            "nodes": [
                {
                    "nodes_file": "$BASE_DIR/nodes.h5",
                    "populations": {
                        POPULATION: {
                            "type": "biophysical",
                            **{name: f"$BASE_DIR/{path[2:]}" for name, path in components.items()},
                        }
                    },
                }
            ],
            "edges": [
                {
                    "edges_file": "$BASE_DIR/edges.h5",
                    "populations": {f"{POPULATION}__{POPULATION}__chemical": {"type": "chemical"}},
                }
            ],
        },
        "metadata": {"status": "complete"},
    }
    (folder / "node_sets.json").write_text(json.dumps(node_sets, indent=2) + "\n")
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Entry point; answers the exit code."""
    parser = argparse.ArgumentParser(description="Make a small SONATA circuit.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--excitatory", type=int, default=24, help="number of excitatory cells")
    parser.add_argument("--inhibitory", type=int, default=8, help="number of inhibitory cells")
    args = parser.parse_args(arguments)
    if args.seed < 0 or args.excitatory < 1 or args.inhibitory < 0 or args.excitatory + args.inhibitory > 5000:
        parser.error("seed must not be negative; at least 1 excitatory cell, at most 5000 cells in all")
    out: Path = args.out
    if (out / CONFIG).is_file():
        sys.stdout.write(f"{out} is there already\n")
        return 0
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        draft.chmod(0o755)
        write_circuit(draft, seed=args.seed, excitatory=args.excitatory, inhibitory=args.inhibitory)
        try:
            draft.rename(out)
        except OSError:
            if not (out / CONFIG).is_file():  # not even another job's that was faster
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    sys.stdout.write(f"made {out}: {args.excitatory} excitatory and {args.inhibitory} inhibitory cells\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
