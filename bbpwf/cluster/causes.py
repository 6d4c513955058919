"""Why a job waits and how it ended, from what its witnesses say, in words for people. No I/O."""

from __future__ import annotations

import re
from functools import lru_cache

from bbpwf.cluster.jobs import ExitRecord
from bbpwf.states import JobState

TOLD = {
    JobState.TIMEOUT: "reached its time limit",
    JobState.OUT_OF_MEMORY: "used more memory than it asked for",
    JobState.CANCELLED: "cancelled outside of bbpwf",
    JobState.NODE_FAIL: "its node failed",
    JobState.BOOT_FAIL: "its node did not start",
    JobState.PREEMPTED: "preempted by another job",
    JobState.DEADLINE: "its deadline passed",
}
"""Ends that the scheduler knows better than the job itself, and what is said of them."""

WAITING = {
    "Resources": "waiting for free nodes",
    "Priority": "waiting behind jobs of higher priority",
    "Dependency": "waiting for the jobs it depends on",
    "DependencyNeverSatisfied": "a job it depends on failed: it will never start",
    "BeginTime": "requeued by Slurm; it will start again shortly",
    "JobHeldUser": "held by its user",
    "JobHeldAdmin": "held by an administrator",
    "JobArrayTaskLimit": "waiting for other elements of its array (throttle)",
    "PartitionTimeLimit": "asks for more time than its partition allows",
    "PartitionNodeLimit": "asks for more nodes than its partition has",
    "PartitionInactive": "its partition is inactive: the cluster's nodes failed to start repeatedly",
    "PartitionDown": "its partition is down",
    "ReqNodeNotAvail": "nodes it needs are not available",
    "QOSMaxJobsPerUserLimit": "waiting for the user's other jobs (limit of the quality of service)",
    "AssocMaxJobsLimit": "waiting for other jobs of the account (limit)",
}
"""Slurm's pending reasons in plain words; others are shown as Slurm says them."""

_SLURM_SPEAKS = re.compile(r"slurmstepd\S*: (?:error: )?(.*)")
_LAST_WORDS = (
    (re.compile(r"[Ee]xceeded (?:job|step) memory limit|oom[-_ ]kill", re.IGNORECASE), JobState.OUT_OF_MEMORY),
    (re.compile(r"\*\*\* .* DUE TO TIME LIMIT"), JobState.TIMEOUT),
    (re.compile(r"\*\*\* .* DUE TO NODE FAILURE"), JobState.NODE_FAIL),
    (re.compile(r"\*\*\* .* DUE TO PREEMPTION"), JobState.PREEMPTED),
    (re.compile(r"\*\*\* .* DUE TO JOB REQUEUE"), None),
    (re.compile(r"\*\*\* (?:JOB|STEP) .* CANCELLED AT"), JobState.CANCELLED),
)
"""What slurmstepd writes into a job's log (seen with 22.05), the most telling first."""


@lru_cache(maxsize=1000)
def waiting_reason(raw: str) -> str:
    """Why a job waits."""
    word = raw.strip("()").split(",", 1)[0].split(" ", 1)[0]
    if word in {"", "None"}:
        return ""
    return f"{WAITING[word]} ({word})" if word in WAITING else f"waiting: {raw.strip('()')}"


def ended(record: ExitRecord) -> tuple[JobState, str]:
    """State and reason for an exit record that needs no second witness."""
    if record.code == 0:
        return JobState.COMPLETED, ""
    if record.code == 71:
        return JobState.FAILED, "a software module could not be loaded (exit code 71)"
    if record.code == 72:
        return JobState.FAILED, "its working folder could not be made or entered (exit code 72)"
    if record.code > 128:
        return JobState.FAILED, f"ended by signal {record.code - 128} (exit code {record.code})"
    return JobState.FAILED, f"exit code {record.code}"


def suspicious(record: ExitRecord) -> bool:
    """Whether somebody else may have ended the job: it was told to stop, or died of SIGKILL or SIGTERM."""
    return record.signal != 0 or record.code in {137, 143}


def last_words(log: str) -> JobState | None:
    """How the job was ended, by what Slurm itself wrote at the end of its log; ``None`` if it does not say."""
    for pattern, state in _LAST_WORDS:
        if _said(pattern, log):
            return state
    return None


def requeue_reason(log: str) -> str:
    """Why Slurm put a running job back into its queue, according to what it wrote at the end of the job's log."""
    state = last_words(log)
    if state is JobState.NODE_FAIL:
        return "its node failed; Slurm put it back into the queue"
    if state is JobState.PREEMPTED:
        return "preempted by another job; Slurm put it back into the queue"
    if any("DUE TO JOB REQUEUE" in line for line in _spoken(log)):
        return "requeued outside of bbpwf (scontrol requeue)"
    return "Slurm put it back into the queue"


def _said(pattern: re.Pattern[str], log: str) -> bool:
    return any(pattern.search(line) for line in _spoken(log))


def _spoken(log: str) -> list[str]:
    return [match[1] for line in log.splitlines() if (match := _SLURM_SPEAKS.match(line))]
