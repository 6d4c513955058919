"""Look at a campaign's results: raster plots, voltage plots, and the figures of every point.

    python report.py --campaign campaign.json --out FOLDER

Needs h5py, libsonata, matplotlib and numpy. Writes ``raster.png`` and ``voltage.png`` (one panel a point, at most 24
points, evenly chosen) and, last of all, ``report.json``::

    {"campaign": name, "folder": path, "plots": [...],
     "points": [{"index", "label", "coords", "state", "spikes", "cells", "rate_hz", "duration_ms", "reason"}, ...]}

``rate_hz`` is the mean over cells and time. ``state`` is ``complete``, or ``missing`` or ``unreadable`` with a reason.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import libsonata
import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

PANELS = 24
TRACES = 4
COLOURS = {"EXC": "#1f5fa8", "INH": "#c23b3b", "": "#333333"}


@dataclass
class Point:
    """What is known of one simulation. ``classes`` holds EXC, INH or nothing for each simulated cell."""

    index: int
    label: str
    coords: dict[str, Any]
    state: str = "missing"
    reason: str = ""
    duration: float = 0.0
    times: Any = field(default_factory=lambda: np.empty(0))
    rows: Any = field(default_factory=lambda: np.empty(0, dtype=int))
    classes: list[str] = field(default_factory=list)
    voltages: dict[int, Any] = field(default_factory=dict)
    clock: Any = field(default_factory=lambda: np.empty(0))

    @property
    def rate(self) -> float:
        """Mean rate in Hz."""
        seconds = self.duration / 1000 * len(self.classes)
        return len(self.times) / seconds if seconds else 0.0

    def entry(self) -> dict[str, Any]:
        """The point's part of ``report.json``."""
        return {
            "index": self.index,
            "label": self.label,
            "coords": self.coords,
            "state": self.state,
            "reason": self.reason,
            "spikes": len(self.times),
            "cells": len(self.classes),
            "rate_hz": round(self.rate, 4),
            "duration_ms": self.duration,
        }


class Circuits:
    """Which cells a config simulates; circuits are read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str | None], list[tuple[str, int, str]]] = {}

    def cells(self, config: Any) -> list[tuple[str, int, str]]:
        """Population, node id and synapse class (or nothing) of each simulated cell, inhibitory ones last."""
        key = (config.network, config.node_set)
        if key not in self._known:
            circuit = libsonata.CircuitConfig.from_file(config.network)
            sets = libsonata.NodeSets("{}")
            for path in (circuit.node_sets_path, config.node_sets_file):
                if path and Path(path).is_file():
                    sets.update(libsonata.NodeSets.from_file(path))
            found = []
            for name in sorted(circuit.node_populations):
                if circuit.node_population_properties(name).type == "virtual":
                    continue
                nodes = circuit.node_population(name)
                chosen = sets.materialize(config.node_set, nodes) if config.node_set else nodes.select_all()
                named = "synapse_class" in nodes.attribute_names
                classes = nodes.get_attribute("synapse_class", chosen) if named else [""] * chosen.flat_size
                found += [(name, int(i), str(c)) for i, c in zip(chosen.flatten(), classes, strict=True)]
            self._known[key] = sorted(found, key=lambda cell: (cell[2] == "INH", cell[0], cell[1]))
        return self._known[key]


def read_point(entry: dict[str, Any], folder: Path, circuits: Circuits) -> Point:
    """Spikes and voltages of one point; what cannot be read is said in its state."""
    point = Point(int(entry["index"]), str(entry["label"]), dict(entry["coords"]))
    spikes = folder / entry["spikes"]
    if not spikes.is_file():
        point.reason = f"there is no {spikes}"
        return point
    try:
        config = libsonata.SimulationConfig.from_file(str(folder / entry["config"]))
        point.duration = config.run.tstop
        cells = circuits.cells(config)
        rows = {(population, node): row for row, (population, node, _) in enumerate(cells)}
        times, at = [], []
        with h5py.File(spikes) as file:
            for population, group in file["spikes"].items():
                times.append(group["timestamps"][:])
                at.append(np.array([rows[population, int(each)] for each in group["node_ids"][:]], dtype=int))
        point.times = np.concatenate(times) if times else np.empty(0)
        point.rows = np.concatenate(at) if at else np.empty(0, dtype=int)
        point.classes = [each for _, _, each in cells]
        _read_voltages(point, config, rows)
        point.state = "complete"
    except (OSError, KeyError, ValueError, RuntimeError, libsonata.SonataError) as error:
        point.state, point.reason = "unreadable", f"{type(error).__name__}: {error}"
    return point


def _read_voltages(point: Point, config: Any, rows: dict[tuple[str, int], int]) -> None:
    """A few traces of the first soma voltage report, both kinds of cells among them."""
    for name in sorted(config.list_report_names):
        report = config.report(name)
        path = Path(report.file_name)
        if not report.enabled or report.variable_name != "v" or not path.is_file():
            continue
        with h5py.File(path) as file:
            for population, group in file["report"].items():
                mapping = group["mapping"]
                start, stop, step = mapping["time"][:]
                point.clock = start + step * np.arange(round((stop - start) / step))
                for column, node in enumerate(mapping["node_ids"][:]):
                    row = rows.get((population, int(node)))
                    if row is not None and row in _shown(point):
                        point.voltages[row] = group["data"][:, int(mapping["index_pointers"][column])]
        return


def _shown(point: Point) -> list[int]:
    """Rows of the cells whose voltages are drawn: three from the excitatory ones, one inhibitory, if there are such."""
    inhibitory = [row for row, each in enumerate(point.classes) if each == "INH"]
    others = [row for row, each in enumerate(point.classes) if each != "INH"]
    few = inhibitory[:1]
    return others[:: max(1, len(others) // (TRACES - len(few)))][: TRACES - len(few)] + few


def _raster(axes: Any, point: Point) -> None:
    for kind in sorted(set(point.classes)):
        chosen = np.array([each == kind for each in point.classes])[point.rows] if len(point.rows) else []
        axes.plot(point.times[chosen], point.rows[chosen], "|", ms=3, mew=0.8, color=COLOURS.get(kind, COLOURS[""]))
    axes.set_xlim(0, point.duration or 1)
    axes.set_ylim(-1, max(1, len(point.classes)))


def _voltage(axes: Any, point: Point) -> None:
    for place, row in enumerate(sorted(point.voltages)):
        colour = COLOURS.get(point.classes[row], COLOURS[""])
        axes.plot(point.clock, point.voltages[row] + 120 * place, lw=0.6, color=colour)
    axes.set_xlim(0, point.duration or 1)
    axes.set_ylim(-100, 120 * max(1, len(point.voltages)) - 60)
    axes.set_yticks(
        [120 * place - 65 for place in range(len(point.voltages))], [f"#{r}" for r in sorted(point.voltages)]
    )


def draw(path: Path, title: str, ylabel: str, points: list[Point], panel: Callable[[Any, Point], None]) -> None:
    """One panel a point, all to one scale, in a PNG that appears complete."""
    columns = min(6, max(1, math.ceil(math.sqrt(len(points) * 1.5))))
    rows = max(1, math.ceil(len(points) / columns))
    alike = len({tuple(point.classes) for point in points}) == 1
    width, height = 2.9 * columns + 0.6, 1.9 * rows + 0.9
    figure, grid = plt.subplots(rows, columns, figsize=(width, height), sharex=True, sharey=alike, squeeze=False)
    figure.subplots_adjust(  # by hand: a layout that is worked out costs seconds
        left=0.6 / width, right=1 - 0.1 / width, bottom=0.5 / height, top=1 - 0.8 / height, wspace=0.06, hspace=0.38
    )
    for axes in grid.flat[len(points) :]:
        axes.set_visible(False)
    for axes, point in zip(grid.flat, points, strict=False):
        panel(axes, point)
        words = [f"{name} {value}" for name, value in point.coords.items()]
        half = math.ceil(len(words) / 2)
        lines = [", ".join(words[:half]), ", ".join([*words[half:], f"{point.rate:.1f} Hz"])]
        axes.set_title(f"{point.index}: " + "\n".join(line for line in lines if line), fontsize=6.5)
        axes.tick_params(labelsize=6)
        axes.xaxis.set_major_locator(plt.MaxNLocator(5, prune="upper"))
        if point.state != "complete":
            axes.text(0.5, 0.5, point.state, ha="center", va="center", transform=axes.transAxes, color="crimson")
    figure.suptitle(title, fontsize=11, y=1 - 0.12 / height)
    figure.supxlabel("time (ms)", fontsize=9, y=0.1 / height)
    figure.supylabel(ylabel, fontsize=9, x=0.08 / width)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(draft, dpi=110, format="png")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
        plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; answers the exit code."""
    parser = argparse.ArgumentParser(description="Plots and figures of a simulation campaign.")
    parser.add_argument("--campaign", type=Path, required=True, help="campaign.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args(arguments)
    try:
        campaign = json.loads(args.campaign.read_text())
        entries = list(campaign["points"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"report: error: {args.campaign} is no campaign: {error}\n")
        return 2
    folder = args.campaign.parent
    circuits = Circuits()
    chosen = {round(each) for each in np.linspace(0, len(entries) - 1, min(PANELS, len(entries)))}
    shown: list[Point] = []
    figures: list[dict[str, Any]] = []
    for place, entry in enumerate(entries):
        point = read_point(entry, folder, circuits)
        figures.append(point.entry())
        if place in chosen:
            shown.append(point)
    args.out.mkdir(parents=True, exist_ok=True)
    name = str(campaign.get("name", folder.name))
    draw(args.out / "raster.png", f"{name}: spikes (excitatory blue, inhibitory red)", "cell", shown, _raster)
    draw(args.out / "voltage.png", f"{name}: soma voltages, 120 mV apart", "cell", shown, _voltage)
    report = {"campaign": name, "folder": str(folder), "plots": ["raster.png", "voltage.png"], "points": figures}
    draft = args.out / f".report.json.{os.getpid()}"
    draft.write_text(json.dumps(report, indent=1) + "\n")
    draft.replace(args.out / "report.json")
    complete = sum(each["state"] == "complete" for each in figures)
    sys.stdout.write(f"{complete} of {len(figures)} points complete; plots in {args.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
