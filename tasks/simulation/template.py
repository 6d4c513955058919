"""Simulation config templates: a SONATA simulation config with ``$name`` where a campaign's values belong."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bbpwf.errors import InvalidParameter
from bbpwf.workflow.request import HeadRequest
from tasks.simulation.points import Value

MAX_BYTES = 1024 * 1024

BUILT_IN = """\
{
  "version": 2.4,
  "run": {
    "tstop": $duration,
    "dt": $dt,
    "random_seed": $random_seed,
    "spike_threshold": -20
  },
  "network": "$circuit_config",
  "node_set": "All",
  "conditions": {
    "celsius": 6.3,
    "v_init": -65,
    "extracellular_calcium": $extracellular_calcium
  },
  "inputs": {
    "background": {
      "module": "noise",
      "input_type": "current_clamp",
      "mean": 0.0,
      "variance": $noise_variance,
      "delay": 0,
      "duration": $duration,
      "node_set": "All"
    },
    "holding": {
      "module": "hyperpolarizing",
      "input_type": "current_clamp",
      "delay": 0,
      "duration": $duration,
      "node_set": "All"
    },
    "stimulus": {
      "module": "linear",
      "input_type": "current_clamp",
      "amp_start": $stimulus_amplitude,
      "delay": $stimulus_delay,
      "duration": $stimulus_duration,
      "node_set": "Excitatory"
    }
  },
  "reports": {
    "soma": {
      "cells": "All",
      "type": "compartment",
      "sections": "soma",
      "variable_name": "v",
      "unit": "mV",
      "dt": 0.5,
      "start_time": 0,
      "end_time": $duration
    }
  },
  "output": {
    "output_dir": "output",
    "spikes_file": "out.h5"
  }
}
"""
"""For the circuit of ``GenerateCircuit``: background noise, and a step of current to the excitatory cells.
Units as in SONATA: ms, nA (variance: nA²), mV, mM, °C."""

BUILT_IN_VALUES: dict[str, Value] = {
    "duration": 500,
    "dt": 0.025,
    "noise_variance": 0.01,
    "stimulus_amplitude": 0.2,
    "stimulus_delay": 100,
    "stimulus_duration": 300,
    "extracellular_calcium": 1.2,
}

GIVEN = ("circuit_config", "random_seed", "index")
"""Placeholders that every campaign fills by itself: the circuit's config, the point's random seed and its number."""

_PLACEHOLDER = re.compile(r"\\\$|\$\$|\$\{(?P<braced>[A-Za-z_]\w*)\}|\$(?P<plain>[A-Za-z_]\w*)", re.ASCII)
_MANIFEST = re.compile(r'"(?:\\\$|\$\$|\$)(?P<name>[A-Za-z_]\w*)"\s*:', re.ASCII)


@dataclass(frozen=True)
class Rendered:
    """One simulation config. Paths are relative to its folder."""

    text: str
    spikes: str
    reports: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    r"""A template's text.

    ``$name`` and ``${name}`` are placeholders; ``$$`` and ``\$`` stand for a dollar sign. Names that the template's
    own ``manifest`` defines (``"$OUTPUT_DIR": ...``) are SONATA's and left alone.

    Args:
        text: the template.
        where: what people call it.
        values: for placeholders that a campaign may leave out.
    """

    text: str
    where: str
    values: Mapping[str, Value] = field(default_factory=dict)

    @property
    def placeholders(self) -> list[str]:
        """The names that have to be filled, in order of appearance."""
        own = self._manifest()
        found = (match["braced"] or match["plain"] for match in _PLACEHOLDER.finditer(self.text))
        return [name for name in dict.fromkeys(found) if name and name not in own]

    def render(self, values: Mapping[str, Value]) -> Rendered:
        """The config with ``values`` filled in: text without quotes (the template has them), all else as JSON.

        Raises:
            InvalidParameter: a placeholder has no value, or the result is no usable simulation config.
        """
        known: dict[str, Value] = {**self.values, **values}
        own = self._manifest()

        def fill(match: re.Match[str]) -> str:
            name = match["braced"] or match["plain"]
            if name is None:
                return "$"
            if name in own:
                return match[0]
            if name not in known:
                raise InvalidParameter(
                    f"the placeholder ${name} of {self.where} has no value",
                    hint=f"Add {name} to coords or attrs, or write $${name} for a dollar sign.",
                )
            value = known[name]
            return json.dumps(value)[1:-1] if isinstance(value, str) else json.dumps(value)

        text = _PLACEHOLDER.sub(fill, self.text)
        try:
            config = json.loads(text)
        except ValueError as error:
            raise InvalidParameter(
                f"{self.where} is no JSON once its placeholders are filled: {error}",
                hint='Write text placeholders with quotes ("$name") and numbers without ($name).',
            ) from error
        spikes, reports = self._outputs(config)
        return Rendered(text, spikes, reports)

    def _manifest(self) -> set[str]:
        return {match["name"] for match in _MANIFEST.finditer(self.text)}

    def _outputs(self, config: Any) -> tuple[str, tuple[str, ...]]:
        run = config.get("run") if isinstance(config, dict) else None
        if not isinstance(run, dict):
            raise InvalidParameter(f"{self.where} is no SONATA simulation config: it has no `run`")
        missing = [name for name in ("tstop", "dt", "random_seed") if name not in run]
        if missing:
            raise InvalidParameter(f"{self.where}: `run` lacks {', '.join(missing)}")
        for name in ("manifest", "output", "reports"):
            if not isinstance(config.get(name, {}), dict):
                raise InvalidParameter(f"{self.where}: `{name}` must be an object")
        output = config.get("output", {})
        folder = self._resolved(str(output.get("output_dir", "output")), config.get("manifest", {}))
        folder = posixpath.normpath(folder)
        if folder.startswith(("/", "..")):
            raise InvalidParameter(
                f"{self.where}: output.output_dir must lie in the folder of the simulation, not at {folder}",
                hint="Give a relative path: every simulation has a folder of its own.",
            )
        reports = []
        for name, report in config.get("reports", {}).items():
            if not isinstance(report, dict):
                raise InvalidParameter(f"{self.where}: the report {name!r} must be an object")
            if report.get("enabled", True):
                file = str(report.get("file_name", name))
                reports.append(posixpath.normpath(f"{folder}/{file if file.endswith('.h5') else f'{file}.h5'}"))
        return posixpath.normpath(f"{folder}/{output.get('spikes_file', 'out.h5')}"), tuple(reports)

    def _resolved(self, path: str, manifest: Mapping[str, Any]) -> str:
        for _ in range(len(manifest) + 1):
            for name, value in manifest.items():
                path = path.replace("${" + name.removeprefix("$") + "}", str(value)).replace(name, str(value))
        return path


def built_in() -> Template:
    """The template of campaigns that bring none."""
    return Template(BUILT_IN, "the built-in template", BUILT_IN_VALUES)


def load(name: str, request: HeadRequest) -> Template:
    """The template in the file ``name``.

    A relative name is looked up among the attachments, or beside the config when nothing was attached.

    Raises:
        InvalidParameter: there is no such file, it lies outside the attachments, is too large, or no text.
    """
    base = Path(request.attachments) if request.attachments else None
    if base is None:
        base = Path(request.config).parent if request.config else Path.cwd()
    path = (base / name).resolve()
    if request.attachments and not path.is_relative_to(base.resolve()):
        raise InvalidParameter(f"the template {name!r} is not among the attachments", hint="Attach it to the launch.")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidParameter(f"the template {name!r} is larger than {MAX_BYTES} bytes")
        return Template(path.read_text(encoding="utf-8"), f"the template {name!r}")
    except OSError as error:
        raise InvalidParameter(
            f"the template {name!r} cannot be read: {error.strerror}", hint="Attach it to the launch."
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"the template {name!r} is not UTF-8 text") from error
