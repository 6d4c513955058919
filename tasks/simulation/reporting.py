"""Plots and figures of a campaign."""

from __future__ import annotations

from bbpwf.workflow import RemoteTarget, RunContext, SbatchTask
from bbpwf.workflow.tasks import Command, Plan
from tasks.simulation import programs
from tasks.simulation.parameters import CampaignParameters
from tasks.simulation.run import RunCampaign

FILES = ("report.json", "raster.png", "voltage.png")


class ReportCampaign(CampaignParameters, SbatchTask):
    """Make raster and voltage plots of the campaign, and a table of its points with spike counts and mean rates.

    ``<campaign>/report`` then holds ``report.json``, ``raster.png`` and ``voltage.png``.
    """

    def requires(self) -> RunCampaign:
        """The simulations."""
        return RunCampaign(**self.campaign_values())

    def output(self) -> list[RemoteTarget]:
        """The table and the plots."""
        return [self.target("report", name) for name in FILES]

    def plan(self, context: RunContext) -> Plan:
        """Stage the program, then plan the job."""
        programs.stage(context, "report", self.folder, self.cluster)
        return super().plan(context)

    def command(self) -> Command:
        """The program that makes them."""
        return [
            programs.PYTHON,
            programs.path("report", self.folder),
            *("--campaign", self.campaign_file.path),
            *("--out", str(self.folder / "report")),
        ]
