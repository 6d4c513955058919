"""What Slurm's commands say when they fail, and which error that is.

All of them exit with 1 whatever happened, so that the text decides; the lists are from contracts §6.2 and from
slurm_errno.c (22.05 to 24.11). What matters most is whether something may have happened: only a connection that was
never made is proof that nothing did.
"""

from __future__ import annotations

import re

from bbpwf.errors import AccountingDisabled, SlurmBusy, SlurmError

# The controller was not reached, or said that it cannot now: nothing was changed.
_BUSY = (
    "unable to contact slurm controller (connect failure)",
    "connection refused",
    "no route to host",
    "network is unreachable",
    "slurm backup controller in standby mode",
    "job creation temporarily disabled",
    "job can not be altered now, try again later",
    "slurm controller is currently unavailable",
    "configuration update is in progress",
    # the caller's own munged or configuration is out of order: the request never left the machine
    "munge encode failed",
    'failed to access "',
    "could not establish a configuration source",
    "unable to process configuration file",
    "invalid authentication credential",
    "protocol authentication error",
)

# The request was on its way: it may have been carried out.
_UNCLEAR = (
    "unable to contact slurm controller",
    "socket timed out on send/recv operation",
    "zero bytes were transmitted or received",
    "connection reset by peer",
    "connection timed out",
    "broken pipe",
    "transport endpoint is not connected",
    "unexpected message received",
    "send failure",
    "receive failure",
    "shutdown failure",
    "communication connection failure",
    "message receive failure",
    "message send failure",
)

_GONE = ("invalid job id specified", "job/step already completing or completed", "job has already finished")
_NO_ACCOUNTING = ("slurm accounting storage is disabled", "accounting_storage/none", "slurmdbd is not configured")
_PREFIX = re.compile(r"^\s*(?:sbatch|squeue|scancel|scontrol|sacct|sinfo|slurm_\w+)(?:: \w+)?:?\s+(?:error|fatal):\s*")


def is_busy(text: str) -> bool:
    """Whether nothing happened, and a later try may succeed."""
    lower = text.lower()
    return any(sign in lower for sign in _BUSY)


def is_unclear(text: str) -> bool:
    """Whether the request may or may not have been carried out."""
    lower = text.lower()
    return any(sign in lower for sign in _UNCLEAR)


def is_gone(text: str) -> bool:
    """Whether Slurm knows nothing of the job, or it ended already."""
    lower = text.lower()
    return any(sign in lower for sign in _GONE)


def says_no_accounting(text: str) -> bool:
    """Whether the cluster keeps no accounting."""
    lower = text.lower()
    return any(sign in lower for sign in _NO_ACCOUNTING)


def reason(text: str) -> str:
    """The most telling line of what a command said, without its ``command: error:`` prefix."""
    lines = [
        _PREFIX.sub("", line).strip() for line in text.splitlines() if line.strip() and not line.startswith('Try "')
    ]
    for line in reversed(lines):
        if "failed:" in line or "error" in line.lower():
            return line[:500]
    return (lines[-1] if lines else "")[:500]


def query_error(command: str, exit_code: int, stderr: str, *, where: str = "") -> SlurmError:
    """The error of a command that only asks, or that may be repeated without harm.

    :class:`SlurmBusy` for everything that time can mend, unclear answers included.
    """
    said = reason(stderr) or f"exit code {exit_code}"
    if says_no_accounting(stderr):
        return AccountingDisabled("the cluster keeps no accounting", where=where)
    if exit_code == 127:
        return SlurmError(
            f"{command} is not there", where=where, hint="Slurm is not on the login shell's PATH of this machine."
        )
    if is_busy(stderr) or is_unclear(stderr):
        return SlurmBusy(f"{command}: {said}", where=where)
    return SlurmError(f"{command} failed: {said}", where=where)
