"""The simulations of a campaign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bbpwf.errors import InvalidParameter
from bbpwf.shell import quote
from bbpwf.workflow import ArrayTask, Element, RunContext
from bbpwf.workflow.tasks import Plan
from tasks.simulation import programs
from tasks.simulation.campaign import CONFIG, DONE, Point
from tasks.simulation.generate import GenerateCampaign
from tasks.simulation.parameters import CampaignParameters

DRILL_EXIT = 17


class RunCampaign(CampaignParameters, ArrayTask):
    """Run the simulations, each as a job of its own, all in one array.

    A simulation is done when its spikes are there and its simulator ended well (``simulation_config.json.SUCCESS``).
    Only those that are not done run: after a failure, a resume or another launch of the same campaign runs the rest.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.simulator and not self.simulator.strip():
            raise InvalidParameter("simulator holds nothing but blanks")

    def requires(self) -> GenerateCampaign:
        """The configs."""
        return GenerateCampaign(**self.campaign_values())

    def plan(self, context: RunContext) -> Plan:
        """Stage the simulator if it is ours, then plan the jobs."""
        if not self.simulator:
            programs.stage(context, "simulate", self.folder, self.cluster)
        return super().plan(context)

    def elements(self) -> Sequence[Element]:
        """One simulation each."""
        return [
            Element(
                label=f"{point.index}: {point.label}",
                command=self._script(point),
                outputs=[self.target(point.path(name)) for name in (point.rendered.spikes, DONE)],
            )
            for point in self.points
        ]

    def _script(self, point: Point) -> str:
        lines = [quote(["cd", str(self.folder / str(point.index))])]
        if point.index == self.fail_point:
            lines.append(self._drill(point))
        return "\n".join([*lines, self._command(point), quote(["touch", DONE])]) + "\n"

    def _command(self, point: Point) -> str:
        folder = self.folder / str(point.index)
        config = str(folder / CONFIG)
        if not self.simulator:
            return quote([programs.PYTHON, programs.path("simulate", self.folder), "--config", config])
        return self.simulator.replace("{config}", quote([config])).replace("{folder}", quote([str(folder)]))

    def _drill(self, point: Point) -> str:
        """Fails once for each campaign: making a folder succeeds for one attempt only."""
        drills = self.folder / "drills"
        said = f"fault drill: simulation {point.index} fails on purpose, once; run it again and it will not"
        return (
            f"{quote(['mkdir', '-p', str(drills)])}\n"
            f"if {quote(['mkdir', str(drills / str(point.index))])} 2>/dev/null; then\n"
            f"    {quote(['echo', said])} >&2\n"
            f"    exit {DRILL_EXIT}\n"
            "fi"
        )
