"""Programs that run on the cluster: put there under a name that holds a hash of their content."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import PurePosixPath

from bbpwf.workflow import RunContext

PYTHON = "python3"
"""The software environment's, whose ``bin`` leads a job's PATH."""


def source(name: str) -> bytes:
    """The text of a program in ``tasks/simulation/cluster``."""
    return resources.files("tasks.simulation").joinpath("cluster", f"{name}.py").read_bytes()


def path(name: str, folder: PurePosixPath) -> str:
    """Where a program is staged: ``<folder>/programs/<name>-<hash>.py``. Another content, another file."""
    return str(folder / "programs" / f"{name}-{hashlib.sha256(source(name)).hexdigest()[:12]}.py")


def stage(context: RunContext, name: str, folder: PurePosixPath, cluster: str) -> None:
    """Put the program there, unless it is there already."""
    wanted = path(name, folder)
    if context.agent.stat([wanted], cluster=cluster)[0] is None:
        context.agent.write(wanted, source(name), cluster=cluster)
