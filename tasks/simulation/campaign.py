"""What a campaign consists of: its points, their configs, and where everything lies."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from bbpwf.errors import InvalidParameter
from tasks.simulation.points import Value, checked, expand, label, random_seed
from tasks.simulation.template import GIVEN, Rendered, Template

CONFIG = "simulation_config.json"
CAMPAIGN = "campaign.json"
DONE = f"{CONFIG}.SUCCESS"
"""Made beside a simulation's config when its simulator has ended well."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}\Z")
_ELSEWHERE = ("path_prefix", "circuit", "circuit_url", "blue_config_template")


@dataclass(frozen=True)
class Point:
    """One simulation: its number, coordinates and config. Its folder is its number."""

    index: int
    coords: Mapping[str, Value]
    values: Mapping[str, Value]
    rendered: Rendered

    @property
    def label(self) -> str:
        """What people call it."""
        return label(self.coords) or f"simulation {self.index}"

    def path(self, name: str) -> str:
        """A file of the simulation, relative to the campaign's folder."""
        return f"{self.index}/{name}"


@dataclass(frozen=True)
class Campaign:
    """A campaign, as its parameters say; nothing here reads or writes.

    Args:
        name: leads the folder's name.
        coords: names with lists of values.
        coupled: values side by side instead of all combinations.
        attrs: names with one value each.
        template: of the simulation configs.
        circuit: what distinguishes the circuit: a path, or the identity of one that is made.
        simulator: the command, empty for the one that comes with this package.
        description: for people; changes nothing.
    """

    name: str
    coords: Mapping[str, Any]
    coupled: bool
    attrs: Mapping[str, Any]
    template: Template
    circuit: str
    simulator: str = ""
    description: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        for name in _ELSEWHERE:
            if name in self.attrs and name not in self.template.placeholders:
                raise InvalidParameter(
                    f"attrs: {name} is no attribute here",
                    hint="It has become a parameter of its own: see path_prefix, circuit and template.",
                )
        checked("attrs", self.attrs)
        both = sorted(set(self.coords) & set(self.attrs))
        if both:
            raise InvalidParameter(f"{', '.join(both)}: in coords and in attrs, where it can be in one only")
        wanted = set(self.template.placeholders)
        for what, given in (("coords", self.coords), ("attrs", self.attrs)):
            for name in given:
                if name not in wanted and not (name == "seed" and "random_seed" in wanted):
                    known = ", ".join(sorted((wanted | {"seed"}) - set(GIVEN)))
                    raise InvalidParameter(
                        f"{what}: {self.template.where} has no placeholder ${name}", hint=f"It knows: {known}."
                    )

    @cached_property
    def folder_name(self) -> str:
        """The name and a hash of everything that has a part in the results: the same parameters, the same folder."""
        facts = {
            "coords": [[name, list(values)] for name, values in self.coords.items()],
            "coupled": self.coupled,
            "attrs": sorted(self.attrs.items()),
            "template": self.template.text,
            "defaults": sorted(self.template.values.items()),
            "circuit": self.circuit,
            "simulator": self.simulator,
        }
        return f"{self.name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"

    @property
    def needs_circuit(self) -> bool:
        """Whether the configs name a circuit that neither coords nor attrs give."""
        return "circuit_config" in self.template.placeholders and not {"circuit_config"} & {*self.coords, *self.attrs}

    def points(self, circuit_config: str) -> list[Point]:
        """All simulations, in order; ``circuit_config`` is the circuit's path on the cluster.

        Raises:
            InvalidParameter: coords make no sense, or a config that they make.
        """
        return self._points(circuit_config)

    def _points(self, circuit_config: str, *, ends: bool = False) -> list[Point]:
        rows = expand(self.coords, coupled=self.coupled)
        attrs = checked("attrs", self.attrs)
        uses_seed = "random_seed" in self.template.placeholders and not {"random_seed"} & {*self.coords, *attrs}
        points = []
        for index, coords in enumerate(rows):
            if ends and 0 < index < len(rows) - 1:
                continue
            values: dict[str, Value] = {"circuit_config": circuit_config, "index": index, "seed": 1, **attrs, **coords}
            if uses_seed:
                values["random_seed"] = random_seed(values["seed"], index, len(rows))
            points.append(Point(index, coords, values, self.template.render(values)))
        return points

    def check(self) -> None:
        """Make the first and the last config, to see what is wrong before anything runs.

        Raises:
            InvalidParameter: coords make no sense, or a config that they make.
        """
        self._points("/circuit_config.json", ends=True)

    def document(self, folder: PurePosixPath, points: list[Point], circuit_config: str) -> dict[str, Any]:
        """``campaign.json``: what the campaign is and where its parts lie, relative to ``folder``."""
        return {
            "name": self.name,
            "description": self.description,
            "folder": str(folder),
            "coupled": self.coupled,
            "dims": ["coupled"] if self.coupled else list(self.coords),
            "coords": {name: list(values) for name, values in self.coords.items()},
            "attrs": dict(self.attrs),
            "template": {
                "name": self.template.where,
                "sha256": hashlib.sha256(self.template.text.encode()).hexdigest(),
            },
            "circuit": circuit_config,
            "simulator": self.simulator,
            "points": [
                {
                    "index": point.index,
                    "label": point.label,
                    "coords": dict(point.coords),
                    "random_seed": point.values.get("random_seed"),
                    "config": point.path(CONFIG),
                    "spikes": point.path(point.rendered.spikes),
                    "reports": [point.path(report) for report in point.rendered.reports],
                }
                for point in points
            ],
        }

    def files(self, folder: PurePosixPath, circuit_config: str) -> Iterator[tuple[str, bytes]]:
        """Everything to write, by absolute path; ``campaign.json`` last, for it says that the others are there."""
        points = self.points(circuit_config)
        for point in points:
            yield str(folder / point.path(CONFIG)), point.rendered.text.encode()
        document = json.dumps(self.document(folder, points, circuit_config), indent=1)
        yield str(folder / CAMPAIGN), f"{document}\n".encode()


def check_name(name: str) -> None:
    """Raises InvalidParameter unless ``name`` can lead a folder's name."""
    if not _NAME.match(name):
        raise InvalidParameter(
            f"{name!r} cannot name a campaign: letters, digits, dots, dashes, underscores; at most 81"
        )
