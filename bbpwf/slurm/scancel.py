"""``scancel``: many jobs and elements in few calls. Cancelling what has ended is no error."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from bbpwf.errors import InvalidInput
from bbpwf.slurm import arrays, failures

_ID = re.compile(r"(\d{1,10})(?:_(\d{1,7}|\[[0-9,:%-]+\]))?\Z", re.ASCII)
_LONGEST_LINE = 50_000


def argvs(job_ids: Iterable[str]) -> list[list[str]]:
    """The commands that cancel ``123``, ``123_4`` and ``123_[0-9]``: elements of an array share one argument.

    Raises:
        InvalidInput: something is no job id; ``scancel`` would take a word like ``--user=x`` for an option.
    """
    elements: dict[str, set[int]] = defaultdict(set)
    whole: set[str] = set()
    for job_id in job_ids:
        match = _ID.match(job_id)
        if match is None:
            raise InvalidInput(f"{job_id!r} is not a Slurm job id")
        if match[2] is None:
            whole.add(match[1])
        else:
            elements[match[1]].update(arrays.parse(match[2]).values)
    words = sorted(whole, key=int)
    for base in sorted(elements.keys() - whole, key=int):
        expression = arrays.render(elements[base])
        words.append(f"{base}_{expression}" if expression.isdigit() else f"{base}_[{expression}]")
    commands: list[list[str]] = []
    length = _LONGEST_LINE
    for word in words:
        if length + len(word) > _LONGEST_LINE:
            commands.append(["scancel", "--quiet"])
            length = 0
        commands[-1].append(word)
        length += len(word) + 1
    return commands


def check(exit_code: int, stderr: str, *, where: str = "") -> None:
    """Raises SlurmError (SlurmBusy if trying again can help) unless every job is cancelled, ended or unknown."""
    complaints = [line for line in stderr.splitlines() if "error" in line.lower() and not failures.is_gone(line)]
    if complaints:
        raise failures.query_error("scancel", exit_code, "\n".join(complaints), where=where)
    if exit_code != 0 and not failures.is_gone(stderr):
        raise failures.query_error("scancel", exit_code, stderr, where=where)
