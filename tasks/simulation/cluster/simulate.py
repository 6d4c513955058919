"""Simulate a SONATA circuit with NEURON, as a SONATA simulation config says.

    python simulate.py --config simulation_config.json

Needs neuron, h5py, libsonata and numpy. Writes the reports and, last of all, the spikes to ``output.output_dir``;
each file appears complete or not at all. The same config gives the same spikes, to the last bit, on the same
machine and packages. Exit codes: 0 done; 2 something is wrong with the config or the circuit, named on stderr;
1 anything else.

What is understood of SONATA (Blue Brain and Open Brain extension):

- ``biophysical`` nodes whose ``model_template`` is a hoc template made with (gid, folder of morphologies, file name);
  ``chemical`` edges between them. Virtual populations stay silent.
- inputs on the soma: ``linear``, ``relative_linear``, ``pulse``, ``hyperpolarizing``, ``noise``, ``shot_noise``.
- reports of type ``compartment`` of the soma's ``v``.
- ``conditions.extracellular_calcium`` (mM) sets the release probability by the law that SONATA gives for
  ``u_hill_coefficient``: u(ca) = u_syn · y · ca⁴ / (h⁴ + ca⁴) with y such that u(2 mM) = u_syn, at most 1. A synapse
  is an ``Exp2Syn`` whose weight is the average release: conductance · conductance_scale_factor · u(ca).

Anything else is refused rather than passed over. Random currents come from NEURON's Random123 streams, one for each
cell and input: ids (random_seed + stimulus_seed, cell, input), modulo 2³².
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import libsonata
import numpy as np

NOISE_STEP = 0.5
"""ms for which a value of ``noise`` holds."""

REFERENCE_CALCIUM = 2.0
"""mM at which the circuit's release probabilities hold."""


class BadInput(Exception):
    """The config or the circuit asks for something that cannot be."""


@dataclass
class Cell:
    """One cell: its NEURON object and what belongs to it."""

    gid: int
    population: str
    node_id: int
    neuron: Any
    sections: list[Any]
    dynamics: dict[str, float]

    @property
    def soma(self) -> Any:
        """The middle of the soma."""
        return self.sections[0](0.5)


@dataclass
class Network:
    """Everything that has been built. NEURON forgets what nobody holds, so it is held here."""

    cells: dict[tuple[str, int], Cell] = field(default_factory=dict)
    populations: dict[str, Any] = field(default_factory=dict)
    synapses: int = 0
    held: list[Any] = field(default_factory=list)


def release(u: float, hill: float, calcium: float | None) -> float:
    """Release probability at ``calcium`` mM, for the one at 2 mM and the half-activation (mM)."""
    if calcium is None or not hill > 0:
        return u
    full = REFERENCE_CALCIUM**4 / (hill**4 + REFERENCE_CALCIUM**4)
    return min(1.0, u * (calcium**4 / (hill**4 + calcium**4)) / full)


class Simulation:
    """One simulation, from its config to its files."""

    def __init__(self, config: Path) -> None:
        if not config.is_file():
            raise BadInput(f"there is no simulation config {config}")
        with _sonata(f"the simulation config {config}"):
            self.config = libsonata.SimulationConfig.from_file(str(config))
        network = Path(self.config.network)
        if not network.is_file():
            raise BadInput(f"there is no circuit {network} (the config's `network`)")
        with _sonata(f"the circuit {network}"):
            self.circuit = libsonata.CircuitConfig.from_file(str(network))
        self._refuse()
        self.node_sets = self._node_sets()
        self.h = _neuron()
        self.network = Network()

    def _refuse(self) -> None:
        config = self.config
        if config.target_simulator.name.upper() != "NEURON":
            raise BadInput(f"target_simulator is {config.target_simulator.name}; this program knows NEURON alone")
        if config.conditions.spike_location.name.lower() != "soma":
            raise BadInput("conditions.spike_location must be soma")
        if config.conditions.modifications():
            raise BadInput("conditions.modifications are not understood")
        if config.connection_overrides():
            raise BadInput("connection_overrides are not understood")
        run = config.run
        if not (run.dt > 0 and run.tstop > 0 and run.tstop / run.dt < 1e9):
            raise BadInput(f"run.tstop={run.tstop} and run.dt={run.dt} make no sense")

    def _node_sets(self) -> Any:
        sets = libsonata.NodeSets("{}")
        for path in (self.circuit.node_sets_path, self.config.node_sets_file):
            if path:
                if not Path(path).is_file():
                    raise BadInput(f"there is no node_sets_file {path}")
                with _sonata(f"the node sets {path}"):
                    sets.update(libsonata.NodeSets.from_file(path))
        return sets

    def members(self, node_set: str | None, population: str) -> list[int]:
        """Ids of the simulated cells of a population that are in a node set (all if ``None`` or empty)."""
        nodes = self.network.populations[population]
        if not node_set:
            return list(map(int, nodes.select_all().flatten()))
        if node_set not in self.node_sets.names:
            raise BadInput(f"there is no node set {node_set!r}; known: {', '.join(sorted(self.node_sets.names))}")
        with _sonata(f"the node set {node_set!r}"):
            return list(map(int, self.node_sets.materialize(node_set, nodes).flatten()))

    def cells_of(self, node_set: str | None) -> Iterator[Cell]:
        """The simulated cells of a node set."""
        for population in self.network.populations:
            for node_id in self.members(node_set, population):
                cell = self.network.cells.get((population, node_id))
                if cell is not None:
                    yield cell

    # -- building

    def build(self) -> None:
        """Make cells, synapses and inputs."""
        self._make_cells()
        if not self.network.cells:
            raise BadInput(f"node_set {self.config.node_set!r} holds no biophysical cell of this circuit")
        for name in sorted(self.circuit.edge_populations):
            self._make_synapses(name)
        for index, name in enumerate(sorted(self.config.list_input_names)):
            self._make_input(index, name)

    def _make_cells(self) -> None:
        for name in sorted(self.circuit.node_populations):
            properties = self.circuit.node_population_properties(name)
            if properties.type == "virtual":
                continue
            if properties.type != "biophysical":
                raise BadInput(f"node population {name!r} is of type {properties.type!r}, not biophysical")
            with _sonata(f"node population {name!r}"):
                nodes = self.circuit.node_population(name)
                self.network.populations[name] = nodes
                ids = self.members(self.config.node_set, name)
                chosen = libsonata.Selection(ids)
                templates = nodes.get_attribute("model_template", chosen)
                morphologies = nodes.get_attribute("morphology", chosen)
                dynamics = {
                    each: nodes.get_dynamics_attribute(each, chosen) for each in sorted(nodes.dynamics_attribute_names)
                }
            offset = len(self.network.cells)
            for row, node_id in enumerate(ids):
                template = self._template(str(templates[row]), Path(properties.biophysical_neuron_models_dir))
                file = f"{morphologies[row]}.swc"
                if not (Path(properties.morphologies_dir) / file).is_file():
                    raise BadInput(f"there is no morphology {Path(properties.morphologies_dir) / file}")
                neuron = template(offset + row, properties.morphologies_dir, file)
                values = {each: float(column[row]) for each, column in dynamics.items()}
                cell = Cell(offset + row, name, node_id, neuron, list(neuron.all), values)
                self.network.cells[name, node_id] = cell

    def _template(self, text: str, folder: Path) -> Any:
        kind, _, name = text.partition(":")
        if kind != "hoc" or not name.isidentifier():
            raise BadInput(f"model_template {text!r} is not of the form hoc:Name")
        if not hasattr(self.h, name):
            path = folder / f"{name}.hoc"
            if not path.is_file():
                raise BadInput(f"there is no cell template {path}")
            if not self.h.load_file(str(path)) or not hasattr(self.h, name):
                raise BadInput(f"{path} does not define the template {name}")
        return getattr(self.h, name)

    def _make_synapses(self, name: str) -> None:
        with _sonata(f"edge population {name!r}"):
            edges = self.circuit.edge_population(name)
            kind = self.circuit.edge_population_properties(name).type
        cells = self.network.cells
        if edges.target not in self.network.populations or edges.source not in self.network.populations:
            return
        if kind != "chemical":
            raise BadInput(f"edge population {name!r} is of type {kind!r}, not chemical")
        targets = [cell.node_id for cell in cells.values() if cell.population == edges.target]
        with _sonata(f"edge population {name!r}"):
            chosen = edges.afferent_edges(targets)
            sources = edges.source_nodes(chosen)
            posts = edges.target_nodes(chosen)

            def column(attribute: str, default: float | None = None) -> Any:
                if attribute not in edges.attribute_names and default is not None:
                    return np.full(len(sources), default)
                return edges.get_attribute(attribute, chosen)

            sections, positions = column("afferent_section_id"), column("afferent_section_pos")
            conductance, scale = column("conductance"), column("conductance_scale_factor", 1.0)
            delay, decay, kinds = column("delay"), column("decay_time"), column("syn_type_id")
            u, hill = column("u_syn", 1.0), column("u_hill_coefficient", 0.0)
        calcium = self.config.conditions.extracellular_calcium
        for row in range(len(sources)):
            source = cells.get((edges.source, int(sources[row])))
            if source is None:
                continue
            target = cells[edges.target, int(posts[row])]
            section = int(sections[row])
            if section >= len(target.sections):
                raise BadInput(f"{name}: cell {target.node_id} has no section {section}, where a synapse should be")
            excitatory = int(kinds[row]) >= 100
            synapse = self.h.Exp2Syn(target.sections[section](float(positions[row])))
            synapse.tau1 = 0.2 if excitatory else 0.5
            synapse.tau2 = max(float(decay[row]), 2 * synapse.tau1)
            synapse.e = 0.0 if excitatory else -80.0
            wire = self._detector(source, synapse)
            wire.delay = max(float(delay[row]), self.config.run.dt)
            factor = float(scale[row]) if float(scale[row]) >= 0 else 1.0
            wire.weight[0] = 1e-3 * float(conductance[row]) * factor * release(float(u[row]), float(hill[row]), calcium)
            self.network.held += [synapse, wire]
            self.network.synapses += 1

    def _detector(self, cell: Cell, target: Any) -> Any:
        wire = self.h.NetCon(cell.soma._ref_v, target, sec=cell.sections[0])
        wire.threshold = self.config.run.spike_threshold
        return wire

    # -- inputs

    def _make_input(self, index: int, name: str) -> None:
        with _sonata(f"input {name!r}"):
            stimulus = self.config.input(name)
        module = stimulus.module.name
        shape = self._shapes().get(module)
        if shape is None:
            raise BadInput(f"input {name!r}: module {module!r} is not understood; known: {', '.join(self._shapes())}")
        if stimulus.input_type.name != "current_clamp":
            raise BadInput(f"input {name!r}: input_type {stimulus.input_type.name!r} is not understood")
        found = False
        for cell in self.cells_of(stimulus.node_set):
            found = True
            clamp = self.h.IClamp(cell.soma)
            clamp.delay = stimulus.delay
            clamp.dur = stimulus.duration
            self.network.held.append(clamp)
            try:
                shape(stimulus, clamp, cell, index)
            except (ZeroDivisionError, ValueError) as error:
                raise BadInput(f"input {name!r}: its values make no sense: {error}") from error
        if not found:
            raise BadInput(f"input {name!r}: node set {stimulus.node_set!r} holds no simulated cell")

    def _shapes(self) -> dict[str, Callable[[Any, Any, Cell, int], None]]:
        return {
            "linear": lambda s, clamp, _c, _i: self._ramp(s, clamp, s.amp_start, s.amp_end),
            "relative_linear": self._relative_linear,
            "pulse": self._pulse,
            "hyperpolarizing": self._hyperpolarizing,
            "noise": self._noise,
            "shot_noise": self._shot_noise,
        }

    def _ramp(self, stimulus: Any, clamp: Any, start: float, end: float) -> None:
        clamp.amp = start
        if end != start:
            self._play([start, end], [stimulus.delay, stimulus.delay + stimulus.duration], clamp, smooth=True)

    def _relative_linear(self, stimulus: Any, clamp: Any, cell: Cell, _index: int) -> None:
        threshold = self._of(cell, "threshold_current") / 100
        self._ramp(stimulus, clamp, stimulus.percent_start * threshold, stimulus.percent_end * threshold)

    def _hyperpolarizing(self, _stimulus: Any, clamp: Any, cell: Cell, _index: int) -> None:
        clamp.amp = self._of(cell, "holding_current")

    def _pulse(self, stimulus: Any, clamp: Any, _cell: Cell, _index: int) -> None:
        period = 1000.0 / stimulus.frequency
        starts = np.arange(stimulus.delay, stimulus.delay + stimulus.duration, period)
        times = np.column_stack([starts, starts + stimulus.width]).ravel()
        self._play(np.tile([stimulus.amp_start, 0.0], len(starts)), times, clamp)

    def _noise(self, stimulus: Any, clamp: Any, cell: Cell, index: int) -> None:
        mean = stimulus.mean
        if mean is None:
            mean = stimulus.mean_percent / 100 * self._of(cell, "threshold_current")
        steps = max(1, math.ceil(stimulus.duration / NOISE_STEP))
        stream = self._stream(cell.gid, index)
        stream.normal(mean, stimulus.variance or 0.0)
        values = self.h.Vector(steps).setrand(stream).as_numpy().copy()
        self._play(values, stimulus.delay + NOISE_STEP * np.arange(steps), clamp)

    def _shot_noise(self, stimulus: Any, clamp: Any, cell: Cell, index: int) -> None:
        rise, decay, dt = stimulus.rise_time, stimulus.decay_time, stimulus.dt or 0.25
        if not 0 < rise < decay:
            raise BadInput("shot_noise: rise_time must be positive and less than decay_time")
        steps = max(1, math.ceil(stimulus.duration / dt))
        override = stimulus.random_seed
        stream = self._stream(cell.gid if override is None else int(override), index)
        kernel_time = np.arange(0.0, 10 * decay, dt)
        kernel = np.exp(-kernel_time / decay) - np.exp(-kernel_time / rise)
        kernel /= kernel.max()
        signal = np.zeros(steps + len(kernel))
        at = 0.0
        while True:
            stream.negexp(1.0)
            at += stream.repick() * 1000.0 / stimulus.rate
            if at >= stimulus.duration:
                break
            first = int(at / dt)
            amplitude = _gamma(stream, stimulus.amp_mean, stimulus.amp_var)
            signal[first : first + len(kernel)] += amplitude * kernel
        self._play(signal[:steps], stimulus.delay + dt * np.arange(steps), clamp)

    def _stream(self, second: int, third: int) -> Any:
        run = self.config.run
        stream = self.h.Random()
        stream.Random123((run.random_seed + run.stimulus_seed) % 2**32, second % 2**32, third)
        return stream

    def _of(self, cell: Cell, name: str) -> float:
        if name not in cell.dynamics:
            raise BadInput(f"node population {cell.population!r} has no dynamics_params/{name}")
        return cell.dynamics[name]

    def _play(self, values: Any, times: Any, clamp: Any, *, smooth: bool = False) -> None:
        played, when = self.h.Vector(values), self.h.Vector(times)
        played.play(clamp._ref_amp, when, smooth)
        self.network.held += [played, when]

    # -- running

    def run(self) -> str:
        """Build, simulate and write; answers a line for people."""
        began = time.monotonic()
        self.build()
        h, run = self.h, self.config.run
        cells = list(self.network.cells.values())
        spikes = [(cell, self._spikes_of(cell)) for cell in cells]
        reports = [self._voltage(name) for name in sorted(self.config.list_report_names)]
        h.celsius = self.config.conditions.celsius
        h.dt = run.dt
        h.secondorder = int(run.integration_method)
        parallel = h.ParallelContext()
        parallel.set_maxstep(10)
        h.finitialize(self.config.conditions.v_init)
        parallel.psolve(run.tstop)
        for write in reports:
            write()
        count = self._write_spikes([(cell, times.as_numpy()) for cell, times in spikes])
        rate = count / len(cells) / (run.tstop / 1000)
        return (
            f"{run.tstop:g} ms of {len(cells)} cells and {self.network.synapses} synapses: {count} spikes, "
            f"{rate:.2f} Hz on average, in {time.monotonic() - began:.2f} s"
        )

    def _spikes_of(self, cell: Cell) -> Any:
        times = self.h.Vector()
        wire = self._detector(cell, None)
        wire.record(times)
        self.network.held.append(wire)
        return times

    def _voltage(self, name: str) -> Callable[[], None]:
        """Begin to record a report; answers what writes it."""
        with _sonata(f"report {name!r}"):
            report = self.config.report(name)
        if not report.enabled:
            return lambda: None
        if (report.type.name, report.sections.name, report.variable_name) != ("compartment", "soma", "v"):
            raise BadInput(f"report {name!r}: only type compartment, sections soma, variable_name v is understood")
        step = max(report.dt, self.config.run.dt)
        first = round(report.start_time / step)
        frames = round((min(report.end_time, self.config.run.tstop) - report.start_time) / step)
        if abs(step / self.config.run.dt - round(step / self.config.run.dt)) > 1e-6 or frames < 1:
            raise BadInput(f"report {name!r}: dt must be a multiple of run.dt, and end_time after start_time")
        recorded = [(cell, self.h.Vector().record(cell.soma._ref_v, step)) for cell in self.cells_of(report.cells)]
        if not recorded:
            raise BadInput(f"report {name!r}: node set {report.cells!r} holds no simulated cell")

        def write() -> None:
            with _written(Path(report.file_name)) as file:
                for population in self.network.populations:
                    mine = [(cell, values) for cell, values in recorded if cell.population == population]
                    data = np.array([values.as_numpy()[first : first + frames] for _, values in mine], dtype=np.float32)
                    group = file.create_group(f"report/{population}")
                    group["data"] = data.T.reshape(-1, len(mine))
                    group["data"].attrs["units"] = report.unit or "mV"
                    mapping = group.create_group("mapping")
                    mapping["node_ids"] = np.array([cell.node_id for cell, _ in mine], dtype=np.uint64)
                    mapping["index_pointers"] = np.arange(len(mine) + 1, dtype=np.uint64)
                    mapping["element_ids"] = np.zeros(len(mine), dtype=np.uint32)
                    mapping["time"] = np.array([first * step, (first + frames) * step, step])
                    mapping["time"].attrs["units"] = "ms"

        return write

    def _write_spikes(self, spikes: list[tuple[Cell, Any]]) -> int:
        total = 0
        with _written(Path(self.config.output.spikes_file)) as file:
            for population in self.network.populations:
                mine = [(cell.node_id, times) for cell, times in spikes if cell.population == population]
                times = np.concatenate([each for _, each in mine])
                ids = np.concatenate([np.full(len(each), node_id, dtype=np.uint64) for node_id, each in mine])
                order = np.lexsort((ids, times))
                group = file.create_group(f"spikes/{population}")
                kinds = h5py.enum_dtype({"none": 0, "by_id": 1, "by_time": 2}, basetype=np.uint8)
                group.attrs.create("sorting", 2, dtype=kinds)
                group["timestamps"] = times[order]
                group["timestamps"].attrs["units"] = "ms"
                group["node_ids"] = ids[order]
                total += len(times)
        return total


def _gamma(stream: Any, mean: float, variance: float) -> float:
    """One gamma-distributed number (Marsaglia and Tsang, 2000)."""
    if variance <= 0:
        return mean
    shape, scale = mean * mean / variance, variance / mean
    boost = 1.0
    if shape < 1:
        stream.uniform(0, 1)
        boost = stream.repick() ** (1 / shape)
        shape += 1
    d = shape - 1 / 3
    while True:
        stream.normal(0, 1)
        x = stream.repick()
        v = (1 + x / math.sqrt(9 * d)) ** 3
        stream.uniform(0, 1)
        if v > 0 and math.log(stream.repick()) < x * x / 2 + d - d * v + d * math.log(v):
            return float(d * v * scale * boost)


def _neuron() -> Any:
    """NEURON, without a window and without its greetings about that."""
    os.environ.setdefault("NEURON_MODULE_OPTIONS", "-nogui")
    from neuron import h

    h.load_file("stdrun.hoc")
    return h


@contextmanager
def _sonata(what: str) -> Iterator[None]:
    """Name the thing that libsonata or HDF5 cannot read."""
    try:
        yield
    except (libsonata.SonataError, OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise BadInput(f"{what} cannot be used: {error}") from error


@contextmanager
def _written(path: Path) -> Iterator[Any]:
    """An HDF5 file that appears at ``path`` when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with h5py.File(draft, "w") as file:
            yield file
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; answers the exit code."""
    parser = argparse.ArgumentParser(description="Simulate a SONATA circuit with NEURON.")
    parser.add_argument("--config", type=Path, required=True, help="SONATA simulation config")
    args = parser.parse_args(arguments)
    try:
        sys.stdout.write(Simulation(args.config).run() + "\n")
    except BadInput as error:
        sys.stderr.write(f"simulate: error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
