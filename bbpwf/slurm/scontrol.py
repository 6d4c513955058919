"""``scontrol``: one job in full, the controller's health and settings, and an array's throttle."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bbpwf.errors import InvalidInput, NotFound, SlurmError
from bbpwf.slurm import arrays, failures

_ENVIRONMENT = ("env", "SLURM_BITSTR_LEN=0", "SLURM_TIME_FORMAT=%s", "LC_ALL=C")
_JOB = re.compile(r"\d{1,10}(?:_\d{1,7})?\Z", re.ASCII)

# Values may hold spaces and '=': a value ends where one of these keys follows. In the order of Slurm's own output,
# free text (JobName, Command, WorkDir, Comment, Std*) included so that it ends where it should.
_KEYS = (
    *("JobId", "ArrayJobId", "ArrayTaskId", "ArrayTaskThrottle", "HetJobId", "HetJobOffset", "JobName", "HetJobIdSet"),
    *("UserId", "GroupId", "MCS_label", "Priority", "Nice", "Account", "QOS", "WCKey", "JobState", "Reason"),
    *("FailedNode", "Dependency", "Requeue", "Restarts", "BatchFlag", "Reboot", "ExitCode", "DerivedExitCode"),
    *("RunTime", "TimeLimit", "TimeMin", "SubmitTime", "EligibleTime", "AccrueTime", "StartTime", "EndTime"),
    *("Deadline", "SuspendTime", "SecsPreSuspend", "LastSchedEval", "Scheduler", "Partition", "AllocNode:Sid"),
    *("ReqNodeList", "ExcNodeList", "NodeList", "SchedNodeList", "BatchHost", "NumNodes", "NumCPUs", "NumTasks"),
    *("CPUs/Task", "ReqB:S:C:T", "ReqTRES", "AllocTRES", "TRES", "Socks/Node", "NtasksPerN:B:S:C", "CoreSpec"),
    *("MinCPUsNode", "MinMemoryNode", "MinMemoryCPU", "MinTmpDiskNode", "Features", "DelayBoot", "OverSubscribe"),
    *("Contiguous", "Licenses", "Network", "Command", "WorkDir", "AdminComment", "SystemComment", "Comment", "Extra"),
    *("StdErr", "StdIn", "StdOut", "Power", "TresPerNode", "TresPerTask", "TresPerJob"),
)
_KEY = re.compile(r"(?:^| )(" + "|".join(re.escape(key) for key in sorted(_KEYS, key=len, reverse=True)) + r")=")


_BOUNDARY = re.compile(r"\n(?=JobId=\d+ (?:ArrayJobId|HetJobId|JobName)=)")


@dataclass(frozen=True)
class JobRecord:
    """What the controller remembers of one job or element.

    Args:
        job_id: as sbatch answered it; for an element, its array's.
        indices: the element, or all elements that still wait together; empty for a single job.
        state: long name.
        exit_code: the script's exit status.
        signal: the signal that ended it, 0 for none.
        restarts: how often it was put back into the queue.
        fields: everything else, by Slurm's names.
    """

    job_id: str
    indices: tuple[int, ...]
    state: str
    reason: str
    exit_code: int
    signal: int
    restarts: int
    fields: dict[str, str]


def show_job_argv(job_id: str) -> list[str]:
    """The command for one job, one array or one element.

    Raises:
        InvalidInput: it is no job id.
    """
    return [*_ENVIRONMENT, "scontrol", "--oneliner", "show", "job", _checked(job_id)]


def parse_jobs(stdout: str) -> list[JobRecord]:
    """One record a job; several for an array.

    Names and comments are free text and may imitate keys. Comments come after all that is read here, and a name
    ends where Slurm's own ``UserId= GroupId= MCS_label=`` follow. A line break in either is no new record unless
    a whole beginning of a record comes after it: for jobs of strangers, believe :mod:`bbpwf.slurm.squeue` instead.

    Raises:
        SlurmError: a record without id, state or exit code.
    """
    return [_record(line) for line in _BOUNDARY.split(stdout) if line.startswith("JobId=")]


def _record(line: str) -> JobRecord:
    fields: dict[str, str] = {}
    found = list(_KEY.finditer(line))
    # the name is free text and comes early: it reaches up to the last "UserId=name(number)" that GroupId follows
    name_at = next((m for m in found if m[1] == "JobName"), None)
    resume = 0
    if name_at is not None:
        ends = list(re.finditer(r" (?:HetJobIdSet=\S+ )?UserId=\S+\(\d+\) GroupId=\S+\(\d+\) MCS_label=", line))
        first_free = next((m.start() for m in found if m[1] == "Command"), len(line))
        ends = [end for end in ends if end.start() < first_free] or ends
        if ends:
            fields["JobName"] = line[name_at.end() : ends[-1].start()]
            resume = ends[-1].start()
    for here, after in zip(found, [*found[1:], None], strict=True):
        if name_at is not None and resume and name_at.start() <= here.start() < resume:
            continue
        fields.setdefault(here[1], line[here.end() : after.start() if after else len(line)].strip())
    try:
        job_id = fields.get("ArrayJobId") or fields["JobId"]
        code, signal = (int(part) for part in fields["ExitCode"].split(":"))
        element = fields.get("ArrayTaskId", "")
        return JobRecord(
            job_id=job_id,
            indices=arrays.parse(element).values if element and element != "N/A" else (),
            state=fields["JobState"],
            reason="" if fields.get("Reason") in {None, "None"} else fields["Reason"],
            exit_code=code,
            signal=signal,
            restarts=int(fields.get("Restarts", "0")),
            fields=fields,
        )
    except (KeyError, ValueError) as error:
        raise SlurmError(f"scontrol's record cannot be read: {line[:120]!r}") from error


def job_error(job_id: str, exit_code: int, output: str, *, where: str = "") -> SlurmError | NotFound:
    """The error of ``show job``: NotFound for a job that the controller does not know or has forgotten."""
    if failures.is_gone(output) or "not found" in output.lower():
        return NotFound(f"Slurm knows no job {job_id} (any more)", where=where)
    return failures.query_error("scontrol", exit_code, output, where=where)


PING_ARGV = ("env", "LC_ALL=C", "scontrol", "ping")


def parse_ping(stdout: str) -> bool:
    """Whether a controller is up: ``Slurmctld(primary) at host is UP``."""
    return any(line.startswith("Slurmctld") and line.rstrip().endswith(" is UP") for line in stdout.splitlines())


CONFIG_ARGV = ("env", "LC_ALL=C", "scontrol", "show", "config")


def parse_config(stdout: str) -> dict[str, str]:
    """The controller's settings by name."""
    pairs = (line.partition("=") for line in stdout.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def throttle_argv(job_id: str, limit: int) -> list[str]:
    """The command that lets at most ``limit`` elements of an array run at once; 0 lifts the limit.

    Raises:
        InvalidInput: it is no array id, or the limit is negative.
    """
    if limit < 0:
        raise InvalidInput("a throttle cannot be negative")
    return ["scontrol", "update", f"JobId={_checked(job_id)}", f"ArrayTaskThrottle={limit}"]


def check_throttle(job_id: str, exit_code: int, output: str, *, where: str = "") -> None:
    """Raises NotFound or SlurmError unless the throttle is in force for all elements that have not ended.

    With some elements ended, scontrol exits with 1 and yet does the rest: ``7_0: Job has already finished``,
    ``7_1-9: No error`` (seen: 22.05).
    """
    if exit_code == 0:
        return
    lines = [line for line in output.splitlines() if line.strip()]
    elements = [line for line in lines if line.startswith(f"{job_id}_")]
    if not elements or len(elements) < len(lines):
        raise job_error(job_id, exit_code, output, where=where)
    bad = [line for line in elements if not line.endswith(": No error") and not failures.is_gone(line)]
    if bad:
        raise failures.query_error("scontrol", exit_code, "\n".join(bad), where=where)


def _checked(job_id: str) -> str:
    if not _JOB.match(job_id):
        raise InvalidInput(f"{job_id!r} is not a Slurm job id")
    return job_id
