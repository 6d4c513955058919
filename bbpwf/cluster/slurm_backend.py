"""Slurm behind a head node: many submissions in one round trip, and a head node that remembers its answers.

A submission is made by a script that runs on the head node, under a lock of the spool. For each batch it leaves a
``sent`` mark before it calls sbatch and the ``answer`` after it, so that running it again (after a lost connection, a
restart, a time-out) repeats the answer. A mark without an answer is the one case in which nobody knows.
"""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from bbpwf import shell
from bbpwf.cluster.backend import Accepted, Answer, Entry, PutOff, Refused, Submission, Unclear
from bbpwf.cluster.jobs import Resources
from bbpwf.cluster.retries import NO_LIMITS, PartitionLimits
from bbpwf.cluster.spool import MODULES, job_body, job_head, manifest
from bbpwf.errors import NotFound, SlurmBusy, SlurmError, SubmitAmbiguous, SubmitLimited
from bbpwf.slurm import sbatch
from bbpwf.slurm.client import SlurmClient
from bbpwf.slurm.sbatch import SbatchOptions
from bbpwf.states import JobState, job_state_from_slurm
from bbpwf.transport.protocol import Transport

_log = logging.getLogger(__name__)

COMMENT = "bbpwf:"
"""What our jobs' comments begin with; the batch id follows."""
SUBMIT_TIMEOUT_S = 300.0
"""sbatch itself tries again for about two minutes when the controller is busy (contracts §6.2)."""

_EXPORTED = (
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    *MODULES,
    "SLURM_CONF",
)
"""What a job inherits from the login environment; everything else is named by its task."""

_PROLOGUE = """
[ -d {spool}/batches ] || mkdir -p {spool}/batches # again, if there was no room when the agent began
cd {spool} || exit 1
exec 9>submit.lock
flock -w 240 9 || exit 75
body={body} # once: a shell that holds much takes long to fork
put() {{ # never again once it was sent: an element that begins now may be reading it
    [ -e "${{1%/*}}/sent" ] || printf '%s' "$2" "${{3:-}}" >"$1" || exit 1
}}
sub() {{ # batch, fresh, sbatch arguments
    local batch=$1 d=batches/$1 fresh=$2 out code
    shift 2
    [ "$fresh" = fresh ] && [ -e "$d/sent" ] && [ ! -s "$d/answer" ] && rm -f "$d/sent"
    if [ -s "$d/answer" ]; then
        out=$(<"$d/answer") code=0
    elif [ -e "$d/sent" ]; then
        out= code=unknown
    else
        : >"$d/sent" || exit 1
        out=$(sbatch "$@" <"$d/job.sh" 2>"$d/stderr")
        code=$?
        [ $code -eq 0 ] && printf '%s' "$out" >"$d/answer"
        [ $code -eq 0 ] || out=$(<"$d/stderr")
    fi
    say "$batch" "$code" "$out"
}}
say() {{
    local LC_ALL=C # lengths in bytes
    printf '\\n%s %s %s %s\\n%s' {nonce} "$1" "$2" "${{#3}}" "$3"
}}
"""

_NO_ACCOUNTING = frozenset({"", "(null)", "accounting_storage/none"})


class SlurmBackend:
    """See :class:`bbpwf.cluster.backend.Backend`. Call :meth:`look_around` once before use.

    Args:
        transport: to the head node, as the cluster's ordinary user.
        default_partition: for jobs that name none; Slurm's default if empty.
    """

    def __init__(self, transport: Transport, *, default_partition: str = "") -> None:
        self._transport = transport
        self._client = SlurmClient(transport)
        self._default_partition = default_partition
        self._array_limit = 1000
        self._partitions: dict[str, PartitionLimits] = {}
        self._accounting = False

    @property
    def kind(self) -> Literal["slurm", "local"]:
        """``slurm``."""
        return "slurm"

    @property
    def transport(self) -> Transport:
        """The head node."""
        return self._transport

    @property
    def array_limit(self) -> int:
        """MaxArraySize of the cluster: indices go from 0 to one less."""
        return self._array_limit

    def look_around(self) -> None:
        """Check that Slurm answers, and learn its limits.

        Raises:
            SlurmError, TransportError: it does not.
        """
        config = self._client.config()
        size = config.get("MaxArraySize", "")
        if size.isdigit() and int(size) > 1:
            self._array_limit = int(size) - 1
        self._accounting = config.get("AccountingStorageType", "") not in _NO_ACCOUNTING
        for each in self._client.partitions():
            self._partitions[each.name] = PartitionLimits(each.name, each.time_limit, each.memory_mb)
            if each.default:
                self._partitions[""] = self._partitions[each.name]

    def limits(self, resources: Resources) -> PartitionLimits:
        """What was learned of its partition by :meth:`look_around`."""
        return self._partitions.get(resources.partition or self._default_partition, NO_LIMITS)

    def command(self, submission: Submission) -> list[str]:
        """sbatch with all its options; the script comes on its standard input."""
        return sbatch.argv(sbatch_options(submission, default_partition=self._default_partition))

    def submit(self, submissions: Sequence[Submission]) -> dict[str, Answer]:
        """Send submissions in one round trip."""
        if not submissions:
            return {}
        nonce = secrets.token_hex(8)
        spool = submissions[0].folder.spool
        script = submit_script(submissions, spool, nonce, default_partition=self._default_partition)
        done = self._transport.run(["bash", "-s"], stdin=script.encode(), timeout=SUBMIT_TIMEOUT_S)
        answers = read_answers(done.stdout, nonce)
        if done.exit_code == 75 and not answers:
            raise SlurmBusy("an earlier submission is still under way on the head node", where=self._transport.where)
        if done.exit_code != 0 and not answers:
            raise SlurmError(
                f"the head node could not submit (exit {done.exit_code}): {done.err.strip()[-500:]}",
                where=self._transport.where,
                retryable=True,
            )
        return {s.batch_id: _answer(answers.get(s.batch_id)) for s in submissions}

    def readopt(self, submissions: Iterable[Submission]) -> None:
        """Nothing to do: Slurm keeps its queue."""

    def queue(self) -> list[Entry]:
        """Everything of ours that Slurm remembers."""
        entries = []
        states: dict[str, JobState | None] = {}
        for job in self._client.queue():
            if not job.comment.startswith(COMMENT) or job.component:  # the first component stands for all
                continue
            if job.state not in states:
                states[job.state] = job_state_from_slurm(job.state)
            entries.append(
                Entry(
                    job.comment.removeprefix(COMMENT),
                    job.array_index,
                    job.display_id,
                    states[job.state],
                    job.state,
                    job.reason,
                    job.completing,
                )
            )
        return entries

    def accounted(self, scheduler_ids: Sequence[str]) -> dict[str, Entry]:
        """What accounting says; nothing on a cluster that keeps none, as :meth:`look_around` learned."""
        if not self._accounting or not scheduler_ids:
            return {}
        wanted = set(scheduler_ids)
        found: dict[str, Entry] = {}
        for each in self._client.accounting(sorted(wanted)):
            code, signal = each.exit_code, each.signal
            reason = f"ended by signal {signal}" if signal else f"exit code {code}"
            for job_id in [f"{each.job_id}_{index}" for index in each.indices] or [each.job_id]:
                if job_id in wanted:  # of several incarnations, the last
                    found[job_id] = Entry("", None, job_id, job_state_from_slurm(each.state), each.state, reason)
        return found

    def throttle(self, scheduler_ids: Sequence[str], limit: int) -> None:
        """``scontrol update`` for each array: elements beyond the limit that run already go on."""
        for scheduler_id in scheduler_ids:
            with contextlib.suppress(NotFound):
                self._client.throttle(scheduler_id, limit)

    def cancel(self, scheduler_ids: Sequence[str]) -> None:
        """``scancel`` in as few calls as possible."""
        self._client.cancel(scheduler_ids)

    def close(self) -> None:
        """Nothing of its own to let go of."""


def sbatch_options(submission: Submission, *, default_partition: str = "") -> SbatchOptions:
    """The sbatch options of a submission."""
    resources = submission.resources
    size = len(submission.scripts)
    return replace(
        _asked(resources, default_partition),
        job_name=submission.name,
        comment=f"{COMMENT}{submission.batch_id}",
        array=f"0-{size - 1}" if size > 1 else "",
        throttle=submission.throttle if size > 1 else 0,
        output=f"{submission.folder.path}/log.%a" if size > 1 else f"{submission.folder.path}/log.0",
        open_mode="append",
        requeue=submission.requeue,
        kill_on_invalid_dependency=True,
        chdir="/",
        components=tuple(_asked(each, default_partition) for each in submission.components),
    )


def _asked(resources: Resources, default_partition: str) -> SbatchOptions:
    """What a job, or one component of it, asks for."""
    return SbatchOptions(
        partition=resources.partition or default_partition,
        account=resources.account,
        qos=resources.qos,
        time_limit=resources.time_limit,
        nodes=resources.nodes,
        ntasks=resources.ntasks,
        ntasks_per_node=resources.ntasks_per_node,
        cpus_per_task=resources.cpus_per_task,
        memory_mb=resources.memory_mb,
        memory_per_cpu_mb=resources.memory_per_cpu_mb,
        gpus=resources.gpus,
        exclusive=resources.exclusive,
        constraint=resources.constraint,
        dependency=resources.dependency,
        extra=resources.options,
    )


def submit_script(submissions: Sequence[Submission], spool: str, nonce: str, *, default_partition: str = "") -> str:
    """The script that submits them, two at a time, each pair of hands in the order given.

    Builtins wherever possible, for every process costs as much as sbatch itself.
    """
    words = {"spool": shell.quote([spool]), "nonce": nonce, "body": shell.quote([job_body()])}
    parts = [sbatch.environment_script(_EXPORTED), _PROLOGUE.format(**words)]
    parts.append(f"mkdir -p {shell.quote(f'batches/{s.batch_id}' for s in submissions)} || exit 1\n")
    made = [_send(each, default_partition) for each in submissions]
    if len(made) < 2:
        return "".join([*parts, *made, "exit 0\n"])
    aside = f"answers.{nonce}"
    parts += ["{\n", *made[1::2], f"}} >{aside} &\n", "aside=$!\n(\n", *made[::2], ")\ncode=$?\n"]
    parts.append(f"wait $aside || code=$?\ncat {aside} && rm -f {aside}\nexit $code\n")
    return "".join(parts)


def _send(submission: Submission, default_partition: str) -> str:
    text, extra = manifest(list(submission.scripts))
    folder = f"batches/{submission.batch_id}"
    files: Mapping[str, str] = {"manifest": text, **extra}
    parts = [f"put {shell.quote([f'{folder}/{name}', content])}\n" for name, content in files.items()]
    parts.append(f'put {shell.quote([f"{folder}/job.sh", job_head(submission.folder)])} "$body"\n')
    argv = sbatch.argv(sbatch_options(submission, default_partition=default_partition))
    fresh = "fresh" if submission.fresh else "again"
    parts.append(f"sub {shell.quote([submission.batch_id, fresh, *argv[1:]])}\n")
    return "".join(parts)


def read_answers(stdout: bytes, nonce: str) -> dict[str, tuple[str, str]]:
    """What the script said of each batch: sbatch's exit code (or ``unknown``) and its text."""
    head = re.compile(rb"\n%s (\w+) (\w+) (\d+)\n" % nonce.encode())
    answers = {}
    for match in head.finditer(stdout):
        batch_id, code, length = match.groups()
        text = stdout[match.end() : match.end() + int(length)]
        answers[batch_id.decode()] = code.decode(), text.decode(errors="replace")
    return answers


def _answer(said: tuple[str, str] | None) -> Answer:
    """An answer from what the head node said of one batch."""
    if said is None:
        return Unclear("the head node's script ended before it came to this submission")
    code, text = said
    if code == "unknown":
        return Unclear("an earlier submission was cut off before Slurm's answer was written down")
    if code == "0":
        try:
            return Accepted(sbatch.parse(text))
        except SlurmError as error:
            return Unclear(str(error))
    failure = sbatch.failure(int(code), text)
    if isinstance(failure, (SubmitLimited, SlurmBusy)):
        return PutOff(failure.message)
    if isinstance(failure, SubmitAmbiguous):
        return Unclear(failure.message)
    return Refused(failure.message)
