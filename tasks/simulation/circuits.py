"""A small circuit for campaigns that bring none."""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath
from typing import Any

import luigi

from bbpwf.errors import InvalidParameter
from bbpwf.workflow import RemoteTarget, RunContext, SbatchTask, current
from bbpwf.workflow.tasks import Command, Plan
from tasks.simulation import programs

FILES = (
    *("circuit_config.json", "node_sets.json", "nodes.h5", "edges.h5"),
    *("morphologies/pyramidal.swc", "morphologies/interneuron.swc", "hoc/Pyramidal.hoc", "hoc/Interneuron.hoc"),
)
"""What a generated circuit consists of."""


class GenerateCircuit(SbatchTask):
    """Make a small SONATA circuit: excitatory and inhibitory cells of NEURON's own mechanisms, wired at random.

    The same parameters give the same circuit, in a folder that all campaigns of the project share.
    """

    circuit_seed = luigi.IntParameter(
        default=1, positional=False, description="Seed of the positions and the wiring; not of simulations."
    )
    excitatory = luigi.IntParameter(default=24, positional=False, description="Number of excitatory cells.")
    inhibitory = luigi.IntParameter(default=8, positional=False, description="Number of inhibitory cells.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.circuit_seed < 0 or self.excitatory < 1 or self.inhibitory < 0:
            raise InvalidParameter("GenerateCircuit: at least one excitatory cell, and nothing negative")
        if self.excitatory + self.inhibitory > 5000:
            raise InvalidParameter("GenerateCircuit: at most 5000 cells; larger circuits have tools of their own")

    @property
    def identity(self) -> str:
        """Names the circuit: of its parameters and of the program that makes it."""
        facts = [self.circuit_seed, self.excitatory, self.inhibitory, programs.source("circuit").decode()]
        return f"small-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"

    @property
    def home(self) -> PurePosixPath:
        """Folder of all such circuits."""
        return current().folder(self.cluster).parent.parent / "circuits"

    @property
    def config(self) -> str:
        """Absolute path of the circuit's config on the cluster."""
        return str(self.home / self.identity / FILES[0])

    def output(self) -> RemoteTarget:
        """The circuit's config; it appears together with all else."""
        return RemoteTarget(self.config, self.cluster)

    def plan(self, context: RunContext) -> Plan:
        """Stage the program, then plan the job."""
        programs.stage(context, "circuit", self.home, self.cluster)
        return super().plan(context)

    def command(self) -> Command:
        """The program that makes it."""
        return [
            programs.PYTHON,
            programs.path("circuit", self.home),
            *("--out", str(self.home / self.identity)),
            *("--seed", str(self.circuit_seed)),
            *("--excitatory", str(self.excitatory)),
            *("--inhibitory", str(self.inhibitory)),
        ]
