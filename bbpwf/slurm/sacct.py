"""``sacct``, where accounting exists. ParallelCluster has none unless its template says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bbpwf.errors import InvalidInput, SlurmError
from bbpwf.slurm import arrays, failures

_SEPARATOR = "\x1f"
_FIELDS = "JobID,JobIDRaw,State,ExitCode,Start,End,Submit,NodeList,Reason,Comment"


@dataclass(frozen=True)
class Accounted:
    """One incarnation of a job as accounting remembers it: a requeued job has several, oldest first.

    ``state`` is without the ``by <uid>`` of a cancellation, which ``cancelled_by`` holds.
    """

    job_id: str
    indices: tuple[int, ...]
    raw_id: str
    state: str
    cancelled_by: str
    exit_code: int
    signal: int
    submitted: float | None
    started: float | None
    ended: float | None
    nodes: str
    reason: str
    comment: str


def argv(job_ids: Sequence[str]) -> list[str]:
    """The command for these jobs (arrays as a whole), earlier incarnations included.

    Raises:
        InvalidInput: something is no job id, or there is none: sacct would answer with all of today's jobs.
    """
    if not job_ids or not all(job_id.isascii() and job_id.replace("_", "", 1).isdigit() for job_id in job_ids):
        raise InvalidInput(f"these are not Slurm job ids: {', '.join(job_ids)[:200]!r}")
    return [
        *("env", "SLURM_BITSTR_LEN=0", "SLURM_TIME_FORMAT=%s", "LC_ALL=C"),
        *("sacct", "--parsable2", "--noheader", "--allocations", "--duplicates", f"--delimiter={_SEPARATOR}"),
        *(f"--format={_FIELDS}", "--jobs=" + ",".join(job_ids)),
    ]


def parse(stdout: str) -> list[Accounted]:
    """One record a line. Unknown jobs give none.

    Raises:
        SlurmError: a line cannot be read.
    """
    count = _FIELDS.count(",") + 1
    records = []
    for line in stdout.splitlines():
        if not line.strip():
            continue
        fields = line.split(_SEPARATOR, count - 1)
        try:
            shown, raw, state, code, start, end, submit, nodes, reason, comment = fields
            base, _, element = shown.partition("_")
            status, signal = (int(part) for part in code.split(":")[:2])
            word, _, by = state.partition(" by ")
            if not base.split("+")[0].isdigit() or not word:
                raise ValueError(shown)
            indices = arrays.parse(element).values if element else ()
        except ValueError as error:
            raise SlurmError(f"sacct's answer cannot be read: {line[:120]!r}") from error
        records.append(
            Accounted(
                job_id=base,
                indices=indices,
                raw_id=raw,
                state=word,
                cancelled_by=by,
                exit_code=status,
                signal=signal,
                submitted=_time(submit),
                started=_time(start),
                ended=_time(end),
                nodes="" if nodes == "None assigned" else nodes,
                reason="" if reason == "None" else reason,
                comment=comment,
            )
        )
    return records


def error(exit_code: int, stderr: str, *, where: str = "") -> SlurmError:
    """The error of a query: AccountingDisabled where there is none to ask."""
    return failures.query_error("sacct", exit_code, stderr, where=where)


def _time(text: str) -> float | None:
    return float(text) if text.isdigit() and text != "0" else None
