"""A campaign from its parameters to its results in the knowledge graph."""

from __future__ import annotations

import luigi

from tasks.simulation.parameters import CampaignParameters
from tasks.simulation.publish import PublishCampaign
from tasks.simulation.reporting import ReportCampaign


class SimulationCampaign(CampaignParameters, luigi.WrapperTask):
    """Run a simulation campaign: make its circuit and configs, simulate, report, and publish the results.

    Every simulation of a SONATA circuit is one job. Launching the same campaign again continues it.
    """

    publish = luigi.BoolParameter(
        default=True,
        parsing=luigi.BoolParameter.EXPLICIT_PARSING,
        positional=False,
        description="Bring the results home (archive or upload) and register them in the knowledge graph.",
    )

    def requires(self) -> luigi.Task:
        """The last step that is wanted."""
        last = PublishCampaign if self.publish else ReportCampaign
        return last(**self.campaign_values())
