"""Slurm over a transport: one method a question. Holds no state, polls nothing, repeats nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from bbpwf.errors import CommandTimeout, ConnectionLost, SlurmError, SubmitAmbiguous
from bbpwf.slurm import failures, sacct, sbatch, scancel, scontrol, sinfo, squeue
from bbpwf.slurm.sacct import Accounted
from bbpwf.slurm.sbatch import SbatchOptions
from bbpwf.slurm.scontrol import JobRecord
from bbpwf.slurm.sinfo import Partition
from bbpwf.slurm.squeue import QueueEntry
from bbpwf.transport.protocol import Completed, Transport

_log = logging.getLogger(__name__)

SUBMIT_TIMEOUT_S = 180.0
"""sbatch itself tries again for about two minutes when the controller cannot take a job now."""
QUERY_TIMEOUT_S = 100.0
"""Slurm's commands try for MessageTimeout (60 s on a ParallelCluster) to reach a controller that is down."""
QUEUE_CAP = 64 * 1024 * 1024
"""About 200 bytes for each of far more jobs than MaxJobCount allows."""


class SlurmClient:
    """Slurm as seen from the machine that ``transport`` reaches, as its user."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @property
    def where(self) -> str:
        """The machine."""
        return self._transport.where

    def submit(self, options: SbatchOptions, script: str) -> str:
        """Submit a batch script; answers its job id. Never call it again for the same job without looking first.

        Raises:
            SlurmBusy, SubmitLimited: nothing was submitted; later it may be.
            SubmitRejected: nothing was submitted, and never will be.
            SubmitAmbiguous: the job may or may not exist.
            ConnectFailed, LoginRefused, HostKeyChanged: nothing was sent.
        """
        argv = sbatch.argv(options)
        if options.export is not None:
            argv = ["bash", "-c", sbatch.environment_script(options.export) + 'exec "$@"', "submit", *argv]
        text = script if script.startswith("#!") else f"#!/bin/bash\n{script}"
        try:
            done = self._transport.run(argv, stdin=text.encode(), timeout=SUBMIT_TIMEOUT_S)
        except (CommandTimeout, ConnectionLost) as error:
            raise SubmitAmbiguous(f"no answer to a submission: {error.message}", where=self.where) from error
        if done.exit_code != 0:
            raise sbatch.failure(done.exit_code, done.err, where=self.where)
        return sbatch.parse(done.out)

    def queue(self, job_ids: Sequence[str] = ()) -> list[QueueEntry]:
        """All of the user's jobs that Slurm remembers, ended ones included, or those of ``job_ids``.

        A job that is missing was never submitted, or ended more than MinJobAge ago: absence says nothing else.

        Raises:
            SlurmBusy: the controller cannot answer now.
            SlurmError: its answer is incomplete or cannot be read.
        """
        mark = squeue.new_mark()
        done = self._ask(squeue.argv(mark, job_ids=job_ids), cap=QUEUE_CAP)
        if done.exit_code != 0 and job_ids and failures.is_gone(done.err):
            return []
        self._check("squeue", done)
        return squeue.parse(done.out, mark)

    def cancel(self, job_ids: Iterable[str]) -> None:
        """Cancel jobs, arrays and elements; what has ended or is unknown is fine.

        Raises:
            SlurmBusy: the controller cannot answer now; calling again is harmless.
            SlurmError: a job cannot be cancelled.
        """
        for argv in scancel.argvs(job_ids):
            done = self._ask(["env", "LC_ALL=C", *argv])
            scancel.check(done.exit_code, done.err, where=self.where)

    def jobs(self, job_id: str) -> list[JobRecord]:
        """What the controller remembers of a job or an element; for an array, all of its records.

        Raises:
            NotFound: it knows no such job, or no longer.
        """
        done = self._ask(scontrol.show_job_argv(job_id), cap=QUEUE_CAP)
        if done.exit_code != 0:
            raise scontrol.job_error(job_id, done.exit_code, done.err + done.out, where=self.where)
        self._check("scontrol", done)
        return scontrol.parse_jobs(done.out)

    def throttle(self, job_id: str, limit: int) -> None:
        """Let at most ``limit`` elements of an array run at once; 0 lifts the limit."""
        done = self._ask(["env", "LC_ALL=C", *scontrol.throttle_argv(job_id, limit)])
        scontrol.check_throttle(job_id, done.exit_code, done.err + done.out, where=self.where)

    def ping(self) -> bool:
        """Whether the controller is up."""
        return scontrol.parse_ping(self._ask(scontrol.PING_ARGV).out)

    def config(self) -> dict[str, str]:
        """The controller's settings by name, e.g. ``MaxArraySize``."""
        done = self._ask(scontrol.CONFIG_ARGV)
        self._check("scontrol", done)
        return scontrol.parse_config(done.out)

    def partitions(self) -> list[Partition]:
        """The partitions and their limits."""
        done = self._ask(sinfo.ARGV)
        self._check("sinfo", done)
        return sinfo.parse(done.out)

    def accounting(self, job_ids: Sequence[str]) -> list[Accounted]:
        """What accounting remembers of these jobs.

        Raises:
            AccountingDisabled: the cluster keeps none.
        """
        done = self._ask(sacct.argv(job_ids), cap=QUEUE_CAP)
        if done.exit_code != 0 or failures.says_no_accounting(done.err):
            raise sacct.error(done.exit_code, done.err, where=self.where)
        self._check("sacct", done)
        return sacct.parse(done.out)

    def _ask(self, argv: Sequence[str], *, cap: int = 4 * 1024 * 1024) -> Completed:
        return self._transport.run(argv, timeout=QUERY_TIMEOUT_S, cap=cap)

    def _check(self, command: str, done: Completed) -> None:
        if done.exit_code != 0:
            raise failures.query_error(command, done.exit_code, done.err, where=self.where)
        if done.truncated:
            raise SlurmError(f"{command} answered more than {QUEUE_CAP} bytes", where=self.where)
