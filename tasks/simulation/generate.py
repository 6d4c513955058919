"""The configs of a campaign."""

from __future__ import annotations

import itertools
from typing import Any

import luigi

from bbpwf.workflow import RemoteTarget, current
from tasks.simulation.parameters import CampaignParameters

BATCH = 500
"""Files written in one round trip."""


class GenerateCampaign(CampaignParameters, luigi.Task):
    """Write one SONATA simulation config for each point of the campaign, and ``campaign.json``, which lists them.

    Needs no job. Simulation ``i`` has the folder ``<campaign>/<i>``. The campaign's folder is named after a hash of
    the parameters, so that launching the same campaign again continues it.
    """

    def requires(self) -> list[luigi.Task]:
        """The circuit, if it has to be made."""
        return [self.circuit_task] if self.circuit_task else []

    def output(self) -> RemoteTarget:
        """``campaign.json``."""
        return self.campaign_file

    def run(self) -> None:
        """Write the files; ``campaign.json`` last."""
        files = self.campaign.files(self.folder, self.circuit_config)
        agent = current().agent
        while batch := list(itertools.islice(files, BATCH)):
            agent.write_many(batch, cluster=self.cluster)

    def on_failure(self, exception: BaseException) -> Any:
        """Luigi's: words, not a traceback."""
        return str(exception)
