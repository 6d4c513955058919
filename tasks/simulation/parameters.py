"""The parameters that say what a campaign is. All tasks of a campaign have them, and agree on them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, cast

import luigi
from luigi.configuration import get_config

from bbpwf.errors import InvalidConfig, InvalidInput, InvalidParameter
from bbpwf.workflow import RemoteTarget, current
from tasks.simulation import template
from tasks.simulation.campaign import CAMPAIGN, Campaign, Point, check_name
from tasks.simulation.circuits import GenerateCircuit
from tasks.simulation.points import checked, expand

SECTIONS = ("GenerateCampaign", "RunCampaign", "ReportCampaign", "PublishCampaign", "SimulationCampaign")
"""Sections of a ``.cfg`` in which a campaign's parameters may stand."""


class CampaignParameters:
    """Mixin for Luigi tasks: the campaign.

    A value that is not given to a task stands in the section of *any* of the campaign's tasks, usually
    ``[GenerateCampaign]``; so a ``.cfg`` has to say it once, whichever task is launched.
    """

    name = luigi.Parameter(
        default="campaign", positional=False, description="Name of the campaign; its folder's name begins with it."
    )
    description = luigi.Parameter(
        default="", significant=False, positional=False, description="What the campaign is about, for people."
    )
    coords: luigi.DictParameter[Any] = luigi.DictParameter(
        default={},
        positional=False,
        description="Coordinates: lists of values by name, each a placeholder of the template or `seed`, e.g. "
        '{"stimulus_amplitude": [0.1, 0.2], "extracellular_calcium": [1.2, 2.0], "seed": [1, 2, 3]} (nA, mM). '
        "There is one simulation for every combination.",
    )
    coupled = luigi.BoolParameter(
        default=False,
        positional=False,
        description="Take the coords' values side by side, not in all combinations: lists of one length.",
    )
    attrs: luigi.DictParameter[Any] = luigi.DictParameter(
        default={},
        positional=False,
        description='Values that all simulations share, e.g. {"duration": 1000, "seed": 7} (ms). The random seed of '
        "simulation i of n is seed * n + i.",
    )
    template = luigi.Parameter(
        default="",
        positional=False,
        description="Attached SONATA simulation config in which $name stands for a value; a built-in one for small "
        "circuits if empty. Its placeholders: duration, dt, noise_variance, stimulus_amplitude, stimulus_delay, "
        "stimulus_duration, extracellular_calcium.",
    )
    circuit = luigi.Parameter(
        default="",
        positional=False,
        description="Absolute path of a SONATA circuit config on the cluster; a small circuit is made if empty.",
    )
    path_prefix = luigi.Parameter(
        default="",
        positional=False,
        description="Absolute folder on the cluster in which the campaign's folder is made; `campaigns` in the "
        "project's data folder if empty.",
    )
    simulator = luigi.Parameter(
        default="",
        positional=False,
        description="Shell command of one simulation, run in its folder; {config} and {folder} stand for paths, e.g. "
        "`srun special -mpi -python init.py --configFile={config}`. NEURON of the software environment if empty.",
    )
    fail_point = luigi.OptionalIntParameter(
        default=None,
        significant=False,
        positional=False,
        description="Fault drill: the first attempt at this simulation in its campaign ends with exit code 17, later "
        "ones do not.",
    )
    cluster = luigi.Parameter(
        default="default", significant=False, positional=False, description="Name of the cluster to run on."
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_name(self.name)
        points = expand(self.coords, coupled=self.coupled)
        checked("attrs", self.attrs)
        if self.fail_point is not None and not 0 <= self.fail_point < len(points):
            raise InvalidParameter(f"fail_point={self.fail_point}: the simulations are 0 to {len(points) - 1}")
        for name in ("circuit", "path_prefix"):
            value = getattr(self, name)
            if value and (not value.startswith("/") or "\0" in value or ".." in PurePosixPath(value).parts):
                raise InvalidParameter(f"{name}={value!r} must be an absolute path on the cluster, without ..")
        if not self.template or _in_a_run():  # attachments are at hand in a run alone
            self.campaign.check()

    @classmethod
    def get_param_values(
        cls, params: list[tuple[str, luigi.Parameter[Any]]], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> list[tuple[str, Any]]:
        """Luigi's, with the campaign's parameters looked up in the sections of all its tasks."""
        given = dict(kwargs)
        for name, parameter in params:
            if name in NAMES and name not in given:
                found = _configured(name, parameter)
                if found:
                    given[name] = found[0]
        return cast(list[tuple[str, Any]], super().get_param_values(params, args, given))  # type: ignore[misc]  # the class beside this mixin is a luigi.Task

    def campaign_values(self) -> dict[str, Any]:
        """The campaign's parameters, to hand to another of its tasks."""
        return {name: getattr(self, name) for name in NAMES}

    @cached_property
    def circuit_task(self) -> GenerateCircuit | None:
        """The task that makes the circuit, or ``None`` if none has to be made."""
        needed = self.campaign.needs_circuit and not self.circuit
        return GenerateCircuit(cluster=self.cluster) if needed else None

    @cached_property
    def campaign(self) -> Campaign:
        """The campaign. Raises InvalidParameter if it makes no sense."""
        return Campaign(
            name=self.name,
            coords=self.coords,
            coupled=self.coupled,
            attrs=self.attrs,
            template=template.load(self.template, current().request) if self.template else template.built_in(),
            circuit=self.circuit or GenerateCircuit(cluster=self.cluster).identity,
            simulator=self.simulator,
            description=self.description,
        )

    @property
    def circuit_config(self) -> str:
        """Absolute path of the circuit's config on the cluster; empty if the template does not ask for one."""
        return self.circuit_task.config if self.circuit_task else self.circuit

    @cached_property
    def points(self) -> list[Point]:
        """The campaign's simulations."""
        return self.campaign.points(self.circuit_config)

    @property
    def folder(self) -> PurePosixPath:
        """The campaign's folder on the cluster, absolute: the same parameters, the same folder.

        Raises:
            Conflict: the cluster has no data folder yet.
        """
        prefix = PurePosixPath(self.path_prefix) if self.path_prefix else data_root(self.cluster) / "campaigns"
        return prefix / self.campaign.folder_name

    def target(self, *parts: str) -> RemoteTarget:
        """A file of the campaign."""
        return RemoteTarget(str(self.folder.joinpath(*parts)), self.cluster)

    @property
    def campaign_file(self) -> RemoteTarget:
        """``campaign.json``."""
        return self.target(CAMPAIGN)


NAMES = tuple(name for name, value in vars(CampaignParameters).items() if isinstance(value, luigi.Parameter))
"""The campaign's parameters."""


def data_root(cluster: str) -> PurePosixPath:
    """Folder on the cluster under which data are kept; ``runs/<run>`` is below it.

    Raises:
        Conflict: the cluster has none yet.
    """
    return current().folder(cluster).parent.parent


def _in_a_run() -> bool:
    try:
        current()
    except InvalidInput:
        return False
    return True


def _configured(name: str, parameter: Any) -> list[Any]:
    """The parameter's value from the campaign's sections, in a list; empty if it stands in none.

    Raises:
        InvalidConfig: two sections say different things.
    """
    config: Any = get_config()
    found: dict[str, Any] = {}
    for section in SECTIONS:
        for option in {name, name.replace("_", "-")}:
            if not config.has_option(section, option):
                continue
            text = config.get(section, option)
            if text != config.defaults().get(option):  # what [DEFAULT] says, Luigi finds by itself
                found[section] = parameter.normalize(parameter.parse(text))
    values = list(found.values())
    if any(value != values[0] for value in values):
        raise InvalidConfig(
            f"{name} is given differently in {', '.join(f'[{section}]' for section in found)}",
            hint="Say it once: it holds for all tasks of the campaign.",
        )
    return values[:1]
