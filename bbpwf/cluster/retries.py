"""What is tried again, and with what: decided from how an attempt ended, for each cause on a counter of its own.

============================  ==================  ==========================================================
how it ended                  counter             the next attempt
============================  ==================  ==========================================================
OUT_OF_MEMORY                 ``escalations``     asks for twice the memory, at most a node's of its partition
TIMEOUT                       ``escalations``     asks for twice the time, at most its partition's limit
NODE_FAIL, BOOT_FAIL,         ``infrastructure_   asks for the same
PREEMPTED                     retries``
FAILED                        ``retries``         asks for the same
============================  ==================  ==========================================================

Everything else is not tried again: LOST may still be running, REJECTED would be refused again, CANCELLED was wanted.
Trouble in reaching the cluster or its controller ends no attempt at all: submissions wait until it is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from math import ceil

from bbpwf.cluster.jobs import Resources
from bbpwf.states import JobState

FACTOR = 2
"""How much more of the resource that was too little the next attempt asks for."""


@dataclass(frozen=True)
class PartitionLimits:
    """What a partition allows: the longest time, and the memory in MiB of its smallest node; ``None``: no limit."""

    name: str = ""
    time: timedelta | None = None
    memory_mb: int | None = None


NO_LIMITS = PartitionLimits()


@dataclass(frozen=True)
class Ended:
    """How an attempt ended, and what it had asked for. ``elapsed_s`` is how long it ran, if that is known."""

    state: JobState
    resources: Resources
    elapsed_s: float | None = None


@dataclass(frozen=True)
class Retry:
    """The next attempt: on which counter it goes, what it asks for, and how that is said to people."""

    counter: str
    resources: Resources
    words: str = "trying again"


def counter_of(state: JobState) -> str | None:
    """The counter that an attempt which ended so is tried again on; ``None`` if it never is."""
    if state.infrastructure:
        return "infrastructure_retries"
    if state is JobState.FAILED:
        return "retries"
    if state in {JobState.OUT_OF_MEMORY, JobState.TIMEOUT}:
        return "escalations"
    return None


def decide(ended: Ended, used: Mapping[str, int], allowed: Mapping[str, int], limits: PartitionLimits) -> Retry | str:
    """The next attempt, or why there is none (empty if the job was not to be tried again at all).

    Args:
        ended: the attempt.
        used: further attempts so far, by counter.
        allowed: most further attempts, by counter.
        limits: of the partition that the attempt was in.
    """
    counter = counter_of(ended.state)
    if counter is None or allowed[counter] == 0:
        return ""
    if used[counter] >= allowed[counter]:
        return f"not tried again: {counter.replace('_', ' ')} are used up ({allowed[counter]})"
    if ended.state is JobState.TIMEOUT:
        return _more_time(ended, limits)
    if ended.state is JobState.OUT_OF_MEMORY:
        return _more_memory(ended, limits)
    return Retry(counter, ended.resources)


def _more_time(ended: Ended, limits: PartitionLimits) -> Retry | str:
    """A job that asked for no time limit had the partition's default, which is as long as it ran."""
    present = ended.resources.time_limit
    if present is None and ended.elapsed_s:
        present = timedelta(minutes=ceil(ended.elapsed_s / 60))
    if present is None:
        return "not tried again: it is not known how much time it had"
    wanted = present * FACTOR
    if limits.time is not None and wanted > limits.time:
        wanted = limits.time
    if wanted <= present:
        return f"not tried again: {present} is the longest that partition {limits.name!r} allows"
    resources = ended.resources.model_copy(update={"time_limit": wanted})
    return Retry("escalations", resources, f"trying again with a time limit of {wanted}")


def _more_memory(ended: Ended, limits: PartitionLimits) -> Retry | str:
    """A job that asked for no memory is given all of a node's."""
    resources = ended.resources
    name, per = "memory_mb", "node"
    ceiling = limits.memory_mb
    if resources.memory_per_cpu_mb is not None:
        name, per = "memory_per_cpu_mb", "CPU"
        ceiling = ceiling // (resources.cpus_per_task or 1) if ceiling is not None else None
    present: int | None = getattr(resources, name)
    if present is None:
        changed = resources.model_copy(update={"memory_mb": 0})
        return Retry("escalations", changed, "trying again with all of a node's memory")
    if present == 0:
        return "not tried again: it had all of a node's memory"
    wanted = present * FACTOR
    if ceiling is not None and wanted > ceiling:
        wanted = ceiling
    if wanted <= present:
        return f"not tried again: {present} MiB per {per} is the most that partition {limits.name!r} has"
    changed = resources.model_copy(update={name: wanted})
    return Retry("escalations", changed, f"trying again with {wanted} MiB of memory per {per}")
