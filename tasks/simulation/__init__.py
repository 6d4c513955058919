"""Simulation campaigns: many simulations of a SONATA circuit over a grid of parameters.

``SimulationCampaign`` is the whole; its steps can be launched by themselves. ``config/simulation-campaign.cfg`` is an
example of a campaign.
"""

from __future__ import annotations

from tasks.simulation.circuits import GenerateCircuit
from tasks.simulation.generate import GenerateCampaign
from tasks.simulation.publish import PublishCampaign
from tasks.simulation.reporting import ReportCampaign
from tasks.simulation.run import RunCampaign
from tasks.simulation.whole import SimulationCampaign

__all__ = [
    "GenerateCampaign",
    "GenerateCircuit",
    "PublishCampaign",
    "ReportCampaign",
    "RunCampaign",
    "SimulationCampaign",
]
