"""``sinfo``: which partitions there are, and what they allow."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from bbpwf.errors import SlurmError

_SEPARATOR = "\x1f"

ARGV = (
    *("env", "--unset=SINFO_PARTITION", "--unset=SINFO_FORMAT", "--unset=SINFO_ALL", "--unset=SINFO_SORT", "LC_ALL=C"),
    *("sinfo", "--noheader", "--summarize", "--format=" + _SEPARATOR.join(("%R", "%P", "%a", "%l", "%D", "%c", "%m"))),
)


@dataclass(frozen=True)
class Partition:
    """One partition: whether it takes jobs, its time limit (``None``: none), and its nodes' sizes.

    ``cpus`` and ``memory_mb`` are of the smallest node.
    """

    name: str
    default: bool
    up: bool
    time_limit: timedelta | None
    nodes: int
    cpus: int
    memory_mb: int


def parse(stdout: str) -> list[Partition]:
    """The partitions, in Slurm's order.

    Raises:
        SlurmError: a line cannot be read.
    """
    partitions: dict[str, Partition] = {}
    for line in stdout.splitlines():
        if _SEPARATOR not in line:
            continue
        try:
            name, starred, available, limit, nodes, cpus, memory = line.split(_SEPARATOR)
            partitions[name] = Partition(
                name=name,
                default=starred.endswith("*") and not name.endswith("*"),
                up=available == "up",
                time_limit=parse_limit(limit),
                nodes=int(nodes),
                cpus=int(cpus.rstrip("+")),
                memory_mb=int(memory.rstrip("+")),
            )
        except ValueError as error:
            raise SlurmError(f"sinfo's answer cannot be read: {line[:120]!r}") from error
    return list(partitions.values())


def parse_limit(text: str) -> timedelta | None:
    """``infinite``, ``D-HH:MM:SS``, ``HH:MM:SS``, ``MM:SS`` or minutes.

    Raises:
        ValueError: none of these.
    """
    if text in {"infinite", "n/a", "UNLIMITED"}:
        return None
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not 1 <= len(parts) <= 3:
        raise ValueError(text)
    if dash:
        parts += [0] * (3 - len(parts))
    hours, minutes, seconds = [0] * (3 - len(parts)) + parts if len(parts) > 1 else (0, parts[0], 0)
    return timedelta(days=int(days) if dash else 0, hours=hours, minutes=minutes, seconds=seconds)
