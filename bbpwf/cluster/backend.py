"""What can run jobs: Slurm over SSH, processes on this machine, and whatever comes next as a new file.

A backend carries submissions to their scheduler and says what it sees there. It decides nothing: what was
seen becomes a state in :mod:`bbpwf.cluster.ledger`, what is sent when in :mod:`bbpwf.cluster.submission`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from bbpwf.cluster.jobs import Allocation, Resources
from bbpwf.cluster.retries import PartitionLimits
from bbpwf.cluster.spool import Folder
from bbpwf.states import JobState
from bbpwf.transport.protocol import Transport


@dataclass(frozen=True)
class Submission:
    """One batch, ready to go: ``scripts`` by position, all with the same resources.

    ``components`` are the resources of a heterogeneous job's further components. With ``allocation``, the scripts
    are steps in those nodes of run ``run_id``, where the backend has such a thing.
    ``fresh`` says that it certainly is not with the scheduler: never sent, or every earlier try was denied.
    """

    folder: Folder
    scripts: tuple[str, ...]
    name: str
    resources: Resources
    throttle: int = 0
    fresh: bool = False
    components: tuple[Resources, ...] = ()
    requeue: bool = True
    run_id: str = ""
    allocation: Allocation | None = None

    @property
    def batch_id(self) -> str:
        """Its identity; travels with it as Slurm's comment."""
        return self.folder.batch_id


@dataclass(frozen=True)
class Accepted:
    """The scheduler has it, under this id."""

    scheduler_id: str


@dataclass(frozen=True)
class Refused:
    """The scheduler will never take it."""

    reason: str


@dataclass(frozen=True)
class PutOff:
    """The scheduler certainly does not have it, and may take it later (a limit, a busy controller)."""

    reason: str


@dataclass(frozen=True)
class Unclear:
    """It may or may not be there: look it up before sending it again."""

    reason: str


Answer = Accepted | Refused | PutOff | Unclear


@dataclass(frozen=True, slots=True)
class Entry:
    """One element as the scheduler's queue shows it.

    ``position`` is ``None`` for the record of a single job, and for what is left of an array: once all its waiting
    elements were cancelled, Slurm shows one record without an index for all of them (seen with 22.05).
    ``state`` is ``None`` for a name that is not in our table (``raw`` holds it). ``ending`` says that the final
    state is still hidden (Slurm's COMPLETING). ``words`` say why it ended so, where that is not the usual cause.
    """

    batch_id: str
    position: int | None
    scheduler_id: str
    state: JobState | None
    raw: str
    reason: str = ""
    ending: bool = False
    words: str = ""


class Backend(Protocol):
    """One way to run jobs."""

    @property
    def kind(self) -> Literal["slurm", "local"]:
        """What a person calls it."""
        ...

    @property
    def transport(self) -> Transport:
        """The machine that files and commands go to."""
        ...

    @property
    def array_limit(self) -> int:
        """Most elements of one submission."""
        ...

    def limits(self, resources: Resources) -> PartitionLimits:
        """What the partition of a job with these resources allows, as far as it is known. No I/O."""
        ...

    def command(self, submission: Submission) -> list[str]:
        """The command that makes this submission, for people to see. No I/O."""
        ...

    def submit(self, submissions: Sequence[Submission]) -> dict[str, Answer]:
        """Send submissions in one round trip; an answer for each batch id.

        Sending the same one again is harmless as long as the earlier answer is known to the far side.

        Raises:
            TransportError: the far side could not be reached; each may or may not have been submitted.
        """
        ...

    def readopt(self, submissions: Iterable[Submission]) -> None:
        """Take these accepted submissions back into view after a restart; a scheduler of its own reads none of them."""
        ...

    def queue(self) -> list[Entry]:
        """Everything of ours that the scheduler still remembers, ended jobs included; one query.

        Raises:
            SlurmError, TransportError: nothing can be said now.
        """
        ...

    def accounted(self, scheduler_ids: Sequence[str]) -> dict[str, Entry]:
        """What accounting says of jobs that the queue no longer shows, by scheduler id; nothing where there is none.

        ``reason`` holds a failed job's exit code or signal in words; ``batch_id`` and ``position`` are not known there.

        Raises:
            SlurmError, TransportError: there is accounting, but it cannot be asked now.
        """
        ...

    def throttle(self, scheduler_ids: Sequence[str], limit: int) -> None:
        """Let at most ``limit`` elements of each of these arrays run at once; 0 lifts it. Ended ones are fine."""
        ...

    def cancel(self, scheduler_ids: Sequence[str]) -> None:
        """Ask for these to end. Unknown and ended ones are fine."""
        ...

    def close(self) -> None:
        """Let go of everything; jobs go on."""
        ...
