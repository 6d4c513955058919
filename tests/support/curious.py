"""A module of a curious user, for the canary: looks at what it was given, and tells of it when it fails."""

from __future__ import annotations

FLOW = r'''
"""What a curious user runs."""

import json
import logging
import os
from pathlib import Path

import luigi

from bbpwf.workflow import RemoteTarget, SbatchTask
from bbpwf.workflow.context import current

LOOK = r"""
env; set
for each in /proc/[0-9]*; do tr '\0' ' ' <$each/cmdline || true; echo; done
tr '\0' ' ' </proc/$PPID/environ || true
"""


def tell():
    """Everything that this process was given, kept where the test finds it; answers the token of the run."""
    Path("environment.json").write_text(json.dumps(dict(os.environ)))
    Path("environ").write_bytes(Path("/proc/self/environ").read_bytes())
    token = current().agent.access_token()
    assert token.startswith("eyJ")
    print("given", token)
    logging.getLogger("curious").error("given %s", token)
    return token


class Looks(SbatchTask):
    who = luigi.Parameter(default="it")
    code = luigi.IntParameter(default=0)

    def command(self):
        said = f"{{ {LOOK} }} >looked-{self.who} 2>&1; tail -c 3000 looked-{self.who}"
        return f"{said}; " + (f"exit {self.code}" if self.code else f"touch {self.output().path}")

    def output(self):
        return RemoteTarget(f"done-{self.who}")


class Raises(luigi.Task):
    def run(self):
        raise RuntimeError(f"nobody takes {tell()}")


class CannotBeScheduled(luigi.Task):
    def requires(self):
        raise RuntimeError(f"nobody takes {tell()}")


class CannotBeAsked(luigi.Task):
    def complete(self):
        raise RuntimeError(f"nobody takes {tell()}")


class AsksNexus(luigi.Task):
    def run(self):
        tell()
        raise RuntimeError(str(current().nexus().create("no id at all", {"@type": "Nothing", "@id": "another"})))
'''
"""Its ``Looks`` writes down what a job sees; the others fail with the token of their run in the exception."""
