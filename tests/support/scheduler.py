"""A scheduler in memory, behind the real :class:`bbpwf.cluster.backend.Backend` protocol: it loses answers on demand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from bbpwf.cluster.backend import Accepted, Answer, Entry, Submission
from bbpwf.cluster.jobs import Resources
from bbpwf.cluster.retries import NO_LIMITS, PartitionLimits
from bbpwf.cluster.submissions import element_id
from bbpwf.errors import ConnectionLost, SlurmBusy
from bbpwf.states import JobState
from bbpwf.transport.protocol import DEFAULT_CAP, Completed, FileStat, Transport


class RecordsTransport:
    """Answers the monitor's commands with exit records, and with Slurm's words in logs, that a test put there."""

    where = "memory"

    def __init__(self) -> None:
        self.records: list[str] = []
        self.logs: dict[tuple[str, int], str] = {}

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float | None = None, cap: int = DEFAULT_CAP
    ) -> Completed:
        if argv[3] == "logs":
            text = "".join(f"\n\x1e {batch_id} {position}\n{log}" for (batch_id, position), log in self.logs.items())
            return Completed(0, text.encode(), b"")
        return Completed(0, "".join(f"{r}\n" for r in self.records).encode(), b"")

    def stat(self, paths: Sequence[str]) -> list[FileStat | None]:
        return [None for _ in paths]

    def exists(self, paths: Sequence[str]) -> list[bool]:
        return [False for _ in paths]

    def read(self, path: str, *, offset: int = 0, limit: int = DEFAULT_CAP) -> bytes:
        return b""

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        return None

    @contextmanager
    def follow(self, path: str, *, offset: int = 0) -> Iterator[Iterator[bytes]]:
        yield iter(())

    def close(self) -> None:
        return None


class MemoryScheduler:
    """Accepts everything unless told otherwise; ``jobs`` is what it really has.

    Its machine holds nothing but ``records``, unless another ``transport`` is given.
    """

    def __init__(self, array_limit: int = 1000, transport: Transport | None = None) -> None:
        self.records = RecordsTransport()
        self._transport = transport or self.records
        self.jobs: dict[str, Submission] = {}
        self.entries: list[Entry] = []
        self.answers: list[Answer | Literal["lose before", "lose after"]] = []
        self.cancelled: list[str] = []
        self.throttles: dict[str, int] = {}
        self.trips = 0
        self.partition = NO_LIMITS
        self.accounting: dict[str, Entry] | None = {}
        self._limit = array_limit
        self._ids: dict[str, str] = {}

    @property
    def kind(self) -> Literal["slurm", "local"]:
        return "slurm"

    @property
    def transport(self) -> Transport:
        return self._transport

    @property
    def array_limit(self) -> int:
        return self._limit

    def limits(self, resources: Resources) -> PartitionLimits:
        return self.partition

    def command(self, submission: Submission) -> list[str]:
        return ["submit", submission.batch_id]

    def submit(self, submissions: Sequence[Submission]) -> dict[str, Answer]:
        self.trips += 1
        answers: dict[str, Answer] = {}
        for submission in submissions:
            plan = self.answers.pop(0) if self.answers else None
            if plan == "lose before":
                raise ConnectionLost("cut before the scheduler was asked")
            if plan is not None and not isinstance(plan, str):
                answers[submission.batch_id] = plan
                continue
            if submission.batch_id in self.jobs:  # the far side keeps its answers: see submission.py
                answers[submission.batch_id] = Accepted(self._ids[submission.batch_id])
                continue
            self.jobs[submission.batch_id] = submission
            self._ids[submission.batch_id] = str(100 + len(self.jobs))
            self.show(submission.batch_id, JobState.QUEUED, "PENDING")
            if plan == "lose after":
                raise ConnectionLost("cut after the scheduler accepted")
            answers[submission.batch_id] = Accepted(self._ids[submission.batch_id])
        return answers

    def show(
        self,
        batch_id: str,
        state: JobState | None,
        raw: str,
        *,
        position: int | None = None,
        ending: bool = False,
        reason: str = "",
    ) -> None:
        """Make the queue show (an element of) a submission in a state."""
        size = len(self.jobs[batch_id].scripts)
        for each in range(size) if position is None and size > 1 else [position]:
            self.entries = [e for e in self.entries if (e.batch_id, e.position) != (batch_id, each)]
            scheduler_id = element_id(self._ids[batch_id], each or 0, size)
            self.entries.append(Entry(batch_id, each, scheduler_id, state, raw, reason, ending))

    def id_of(self, batch_id: str, position: int = 0) -> str:
        """The scheduler's id of an element."""
        return element_id(self._ids[batch_id], position, len(self.jobs[batch_id].scripts))

    def purge(self) -> None:
        """Forget ended jobs, as Slurm does after MinJobAge."""
        self.entries = []

    def readopt(self, submissions: Iterable[Submission]) -> None:
        return None

    def queue(self) -> list[Entry]:
        return list(self.entries)

    def accounted(self, scheduler_ids: Sequence[str]) -> dict[str, Entry]:
        if self.accounting is None:
            raise SlurmBusy("the accounting daemon does not answer")
        return {each: self.accounting[each] for each in scheduler_ids if each in self.accounting}

    def throttle(self, scheduler_ids: Sequence[str], limit: int) -> None:
        self.throttles |= dict.fromkeys(scheduler_ids, limit)

    def cancel(self, scheduler_ids: Sequence[str]) -> None:
        self.cancelled += scheduler_ids

    def close(self) -> None:
        return None
