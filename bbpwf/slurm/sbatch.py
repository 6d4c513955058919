"""``sbatch``: options as flags and the script by stdin, so that no ``#SBATCH`` line can be slipped in."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from bbpwf.errors import InvalidInput, SlurmBusy, SlurmError, SubmitAmbiguous, SubmitLimited, SubmitRejected
from bbpwf.slurm import failures


@dataclass(frozen=True)
class SbatchOptions:
    """What to ask of sbatch. Unset fields (empty, ``None``, ``False``) are left to Slurm.

    Args:
        job_name: shown by squeue.
        comment: travels with the job; at most 1024 characters.
        array: index expression without throttle, e.g. ``0-9``; see :mod:`bbpwf.slurm.arrays`.
        throttle: elements of the array that may run at once; 0 for no limit.
        output: where stdout goes; ``%a`` is the element. stderr joins it unless ``error`` is set.
        error: where stderr goes.
        open_mode: ``append`` keeps what an earlier start of a requeued job wrote.
        chdir: working folder.
        export: names of the environment variables that the job takes over from the submitter; ``None`` for all.
            Slurm's own ``--export=NAME,…`` is not used: it (and NONE, and NIL) makes every start of the job read
            the user's login environment by ``su`` (seen: 0.2 to 1.4 s a job, 22.05). The names take effect
            through :func:`environment_script`.
        requeue: ``True``/``False`` for ``--requeue``/``--no-requeue``; ``None`` for the cluster's default.
        kill_on_invalid_dependency: end the job if its dependency can never be met.
        partition, account, qos, constraint, dependency: as Slurm takes them.
        time_limit: rounded up to a second.
        nodes, ntasks, ntasks_per_node, cpus_per_task, gpus: counts.
        memory_mb: MiB a node; 0 asks for all.
        memory_per_cpu_mb: MiB a CPU.
        exclusive: nodes of its own.
        extra: further long options, name without dashes and value (empty for a flag).
        components: what further components of a heterogeneous job ask for. Each says for itself what it needs;
            Slurm gives them the first one's name and comment (seen: 22.05).
    """

    job_name: str = ""
    comment: str = ""
    array: str = ""
    throttle: int = 0
    output: str = ""
    error: str = ""
    open_mode: Literal["", "append", "truncate"] = ""
    chdir: str = ""
    export: tuple[str, ...] | None = None
    requeue: bool | None = None
    kill_on_invalid_dependency: bool = False
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    dependency: str = ""
    time_limit: timedelta | None = None
    nodes: int | None = None
    ntasks: int | None = None
    ntasks_per_node: int | None = None
    cpus_per_task: int | None = None
    gpus: int | None = None
    memory_mb: int | None = None
    memory_per_cpu_mb: int | None = None
    exclusive: bool = False
    extra: tuple[tuple[str, str], ...] = ()
    components: tuple[SbatchOptions, ...] = ()


def argv(options: SbatchOptions) -> list[str]:
    """The command line. The script is to be given on stdin; ``#SBATCH`` lines in it would still count.

    Raises:
        InvalidInput: an extra option is none.
    """
    words = ["sbatch", "--parsable", "--export=ALL", *_flags(options)]
    for component in options.components:
        words += [":", *_flags(component)]
    return words


def _flags(options: SbatchOptions) -> list[str]:
    words: list[str] = []

    def add(name: str, value: str | int | None) -> None:
        if value is not None and value != "":
            words.append(f"--{name}={value}")

    add("job-name", options.job_name)
    add("comment", options.comment)
    if options.array:
        add("array", f"{options.array}%{options.throttle}" if options.throttle else options.array)
    add("output", options.output)
    add("error", options.error)
    add("open-mode", options.open_mode)
    add("chdir", options.chdir)
    if options.requeue is not None:
        words.append("--requeue" if options.requeue else "--no-requeue")
    if options.kill_on_invalid_dependency:
        words.append("--kill-on-invalid-dep=yes")
    for name in ("partition", "account", "qos", "constraint", "dependency"):
        add(name, getattr(options, name))
    if options.time_limit is not None:
        add("time", duration(options.time_limit))
    for name in ("nodes", "ntasks", "ntasks_per_node", "cpus_per_task", "gpus"):
        add(name.replace("_", "-"), getattr(options, name))
    if options.memory_mb is not None:
        add("mem", "0" if options.memory_mb == 0 else f"{options.memory_mb}M")
    if options.memory_per_cpu_mb is not None:
        add("mem-per-cpu", f"{options.memory_per_cpu_mb}M")
    if options.exclusive:
        words.append("--exclusive")
    for name, value in options.extra:
        if not _OPTION.match(name):
            raise InvalidInput(f"{name!r} is not the name of an sbatch option")
        words.append(f"--{name}={value}" if value else f"--{name}")
    return words


_OPTION = re.compile(r"[a-z][a-z0-9-]*\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def environment_script(names: Iterable[str]) -> str:
    """A line of bash that drops every exported variable but ``names`` (and Slurm's configuration).

    Raises:
        InvalidInput: a name that no shell accepts.
    """
    wanted = sorted({*names, "SLURM_CONF"})
    for name in wanted:
        if not _VARIABLE.match(name):
            raise InvalidInput(f"{name!r} is not a valid environment variable name")
    kept = "|".join(wanted)
    return f'for _n in $(compgen -e); do case $_n in {kept}) ;; *) unset -v "$_n" 2>/dev/null ;; esac; done\n'


def duration(limit: timedelta) -> str:
    """A time limit as Slurm takes it, ``[D-]HH:MM:SS``.

    Raises:
        InvalidInput: it is not positive: Slurm would take 0 for no limit at all.
    """
    seconds = -(-limit // timedelta(seconds=1))
    if seconds <= 0:
        raise InvalidInput(f"a time limit must be positive, not {limit}")
    days, rest = divmod(seconds, 86_400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


_ID = re.compile(r"(?:Submitted batch job )?(\d{1,10})(?:;\S+| on cluster \S+)?\Z", re.ASCII)


def parse(stdout: str) -> str:
    """The job id in sbatch's answer: the last line that is one, whatever banners came before.

    Raises:
        SubmitAmbiguous: there is none, though sbatch claims success.
    """
    for line in reversed(stdout.splitlines()):
        match = _ID.match(line.strip())
        if match and int(match[1]) > 0:
            return match[1]
    raise SubmitAmbiguous(f"sbatch answered no job id: {stdout.strip()[-200:]!r}")


_SUBMIT_LIMIT = re.compile(r"\b(?:QOS|Assoc)\w*Max\w*Submit\w*Limit\b|\b(?:QOS|Assoc)\w*SubmitJob\w*Limit\b", re.I)
_SIZE_LIMIT = re.compile(r"\b(?:QOS|Assoc|Partition|Part)\w*(?:Limit|Per(?:Job|Node|CPU))\b", re.I)
_QUEUE_FULL = (
    "slurm job queue full",
    "job queue full",
    "job violates accounting/qos policy (job submit limit",
    "failed: resource temporarily unavailable",  # MaxJobCount, after two minutes of retries (seen: 22.05)
)


def failure(exit_code: int, text: str, *, where: str = "") -> SlurmError:
    """The error of a submission that did not answer an id. ``text`` is what sbatch wrote to stderr.

    - :class:`SlurmBusy` and :class:`SubmitLimited`: certainly nothing was submitted, and a later try may succeed;
    - :class:`SubmitRejected`: the controller or sbatch itself said no, and will again;
    - :class:`SubmitAmbiguous`: everything else.
    """
    said = failures.reason(text)
    lower = text.lower()
    if exit_code == 127:
        return SlurmError("sbatch is not there", where=where, hint="Slurm is not on the login shell's PATH.")
    if 124 <= exit_code <= 128 + 64:  # it was ended by a signal or a time limit
        return SubmitAmbiguous(f"sbatch was interrupted (exit {exit_code}): {said}", where=where)
    # a full queue comes with messages of the retries before: look at limits first, at time-outs before refusals
    if _SUBMIT_LIMIT.search(text):
        return SubmitLimited(said, where=where)
    if not _SIZE_LIMIT.search(text) and any(sign in lower for sign in _QUEUE_FULL):
        return SubmitLimited(said, where=where)
    final = _final(lower)
    if failures.is_busy(final):
        return SlurmBusy(said, where=where)
    if failures.is_unclear(final):
        return SubmitAmbiguous(said, where=where)
    if "sbatch:" in lower:
        return SubmitRejected(said, where=where)
    return SubmitAmbiguous(f"sbatch failed without a reason (exit {exit_code}): {said}", where=where)


def _final(text: str) -> str:
    """What is said last: sbatch retries by itself, and only its last failure is its answer."""
    marker = "batch job submission failed:"
    return text[text.rindex(marker) :] if marker in text else text
