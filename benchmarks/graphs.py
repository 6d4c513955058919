"""The task graphs that are measured. Their jobs are one second of sleep and a note of when it was over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import luigi

from bbpwf.workflow import RemoteTarget, SbatchTask

SCRIPT = 'sleep 1; printf "%s\\n" "$EPOCHREALTIME" >>"$ENDS"'
"""What every job runs, under raw Slurm as under bbpwf. ``ENDS`` names a file on the shared disk."""


class Sleep(SbatchTask):
    """One job. ``ends`` is where it notes its end."""

    number = luigi.IntParameter()
    ends = luigi.Parameter()
    job_name = "sleep"

    def command(self) -> str:
        """The script, and the mark that makes the task complete."""
        return f"export ENDS={self.ends}\n{SCRIPT}\n: >{self.output().path}"

    def output(self) -> RemoteTarget:
        """A mark in the run's folder."""
        return RemoteTarget(f"done.{self.number}")


class FanOut(luigi.WrapperTask):
    """``count`` independent jobs."""

    count = luigi.IntParameter()
    ends = luigi.Parameter()

    def requires(self) -> list[Any]:
        """All of them."""
        return [Sleep(number=i, ends=self.ends) for i in range(self.count)]


class Link(Sleep):
    """A job that waits for the one before."""

    def requires(self) -> list[Any]:
        """The one before, if there is one."""
        return [Link(number=self.number - 1, ends=self.ends)] if self.number else []


class SharedLink(Sleep):
    """The same as a step of an allocation that all of them share."""

    allocation = luigi.Parameter(default="chain")

    def requires(self) -> list[Any]:
        """The one before, if there is one."""
        return [SharedLink(number=self.number - 1, ends=self.ends)] if self.number else []


class Later(SbatchTask):
    """One job that stays in the queue."""

    mark = luigi.Parameter()
    job_name = "later"
    sbatch_options = luigi.DictParameter(default={"begin": "now+1day"}, significant=False)

    def command(self) -> str:
        """Would end at once."""
        return f": >{self.output().path}"

    def output(self) -> RemoteTarget:
        """A mark in the run's folder."""
        return RemoteTarget("later.done")


class Touch(luigi.Task):
    """A plain task that does next to nothing."""

    number = luigi.IntParameter()
    folder = luigi.Parameter()

    def run(self) -> None:
        """Leave a mark."""
        self.output().open("w").close()

    def output(self) -> luigi.LocalTarget:
        """The mark."""
        return luigi.LocalTarget(f"{self.folder}/touched.{self.number}")


class Touches(luigi.WrapperTask):
    """``count`` of them."""

    count = luigi.IntParameter()
    folder = luigi.Parameter()

    def requires(self) -> list[Any]:
        """All."""
        return [Touch(number=i, folder=self.folder) for i in range(self.count)]  # type: ignore[no-untyped-call]  # Luigi is untyped


class Asking(luigi.Task):
    """Asks for one task after the other while it runs."""

    count = luigi.IntParameter()
    folder = luigi.Parameter()

    def run(self) -> Iterator[Any]:
        """Ask, and say how often this was begun."""
        with Path(f"{self.folder}/begun").open("a") as begun:
            begun.write(".")
        for number in range(self.count):
            yield Touch(number=number, folder=self.folder)  # type: ignore[no-untyped-call]  # Luigi is untyped
        self.output().open("w").close()

    def output(self) -> luigi.LocalTarget:
        """A mark that it had everything."""
        return luigi.LocalTarget(f"{self.folder}/asked")
