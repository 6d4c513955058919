"""What lies in a submission's folder on the cluster, as text: from jobs to files, and from lines to facts. No I/O.

::

    <spool>/events                   one line per start and end, appended by every job
    <spool>/batches/<batch id>/
        job.sh                       the batch script: wrapper.sh with its settings
        manifest                     line i: the script of element i, quoted on one line (or @file)
        log.<i>                      stdout and stderr of element i
        lease.<i>, exit.<i>.<r>      see wrapper.sh
        sent, answer                 left by the submission itself, so that repeating it is harmless
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from bbpwf import shell
from bbpwf.cluster.jobs import ExitRecord, JobSpec, Resources

_LONGEST_ARGUMENT = 100_000
"""Linux takes 128 KiB in one argument (MAX_ARG_STRLEN); longer scripts travel as files."""

EVENT_CAP = 4096
"""Longest event line that is believed."""


@dataclass(frozen=True)
class Folder:
    """A submission's folder on the cluster."""

    spool: str
    batch_id: str

    @property
    def path(self) -> str:
        """The folder itself."""
        return f"{self.spool}/batches/{self.batch_id}"

    def log(self, position: int) -> str:
        """Where element ``position`` writes its stdout and stderr."""
        return f"{self.path}/log.{position}"

    @property
    def events(self) -> str:
        """The event file that all submissions of the spool share."""
        return f"{self.spool}/events"


def job_script(folder: Folder, *, groups_of: str = "/proc/self/cgroup", groups_at: str = "/sys/fs/cgroup") -> str:
    """The batch script of a submission: what sbatch is given. The groups are the kernel's control groups."""
    return f"{job_head(folder, groups_of=groups_of, groups_at=groups_at)}{job_body()}"


def job_head(folder: Folder, *, groups_of: str = "/proc/self/cgroup", groups_at: str = "/sys/fs/cgroup") -> str:
    """The beginning of a batch script: what makes it that of one submission."""
    names = {"B": folder.path, "E": folder.events, "BATCH": folder.batch_id}
    names |= {"GROUPS_OF": groups_of, "GROUPS_AT": groups_at}
    settings = " ".join(f"{name}={shell.quote([value])}" for name, value in names.items())
    return f"#!/bin/bash\n{settings}\n"


@cache
def job_body() -> str:
    """The rest of every batch script."""
    return (files("bbpwf.cluster") / "wrapper.sh").read_text()


def script_text(spec: JobSpec, *, data_root: str, software: str, has_srun: bool) -> str:
    """Everything that one job executes: its modules, its environment, its folder, then its script.

    The run's folder below ``data_root`` is where relative working folders start, and containers see all of
    ``data_root``; ``software`` is an environment whose ``bin`` leads PATH, before what the modules put there.
    Without srun, a job that wants it runs ``ntasks`` copies at once, numbered by SLURM_PROCID as srun would.
    """
    run_folder = f"{data_root}/runs/{spec.run_id}"
    workdir = spec.workdir if spec.workdir.startswith("/") else f"{run_folder}/{spec.workdir}".rstrip("/")
    parts = [f"mkdir -p {shell.quote([workdir])} && cd {shell.quote([workdir])} || exit 72\n"]
    if spec.modules:
        parts.append(_MODULE_COMMAND)
    if software:
        parts.append(f"export PATH={shell.quote([software + '/bin'])}:$PATH\n")
    if spec.modules:
        parts.append(f"module load {shell.quote(spec.modules)} || exit 71\n")
    parts.append(shell.exports({"BBPWF_RUN_ID": spec.run_id, "BBPWF_JOB_KEY": spec.key} | dict(spec.env)))
    inner = _container(spec.container, data_root, workdir)
    srun = ["srun", "--kill-on-bad-exit=1"]
    program = [*inner, "bash", "-c", _lines(spec.script)]
    if spec.others:
        words = [*srun, "--het-group=0", *_per_task(spec.resources), *program]
        for number, other in enumerate(spec.others, start=1):
            per_task = _per_task(other.resources)
            words += [":", f"--het-group={number}", *per_task, *inner, "bash", "-c", _lines(other.script)]
        return "".join([*parts, f"exec {shell.quote(words)}\n"])
    if spec.launcher == "srun" and not has_srun:
        return "".join([*parts, _copies(shell.quote(program), spec.resources.ntasks or 1)])
    if spec.allocation is not None and has_srun:
        step = f"exec {shell.quote([*_UNTOLD, *srun, *_step_options(spec), *program])}\n"
        if spec.launcher == "srun":
            return "".join([*parts, step])
        parts.append(f'[ "${{SLURM_JOB_NUM_NODES:-1}}" -gt 1 ] && {step}')  # on one node nothing is gained by srun
    elif spec.launcher == "srun":
        return "".join([*parts, f"exec {shell.quote([*srun, *_per_task(spec.resources), *program])}\n"])
    parts.append(f"exec {shell.quote(program)}\n" if inner else _lines(spec.script))
    return "".join(parts)


MODULES = ("MODULEPATH", "MODULESHOME")
"""What a login says of environment modules: where the modules are, and where the ``module`` command is."""

_MODULE_COMMAND = """\
type module >/dev/null 2>&1 || . "${MODULESHOME:-/nowhere}/init/bash" 2>/dev/null || . /etc/profile
"""
"""Environment Modules and Lmod both keep a definition of ``module`` at this place of their home."""

_UNTOLD = [
    "env",
    *(f"--unset=SLURM_{word}" for word in ("NNODES", "JOB_NUM_NODES", "NTASKS", "NPROCS", "TASKS_PER_NODE")),
    *(f"--unset=SLURM_{word}" for word in ("NTASKS_PER_NODE", "CPUS_PER_TASK", "MEM_PER_NODE", "MEM_PER_CPU")),
]
"""srun takes these of the allocation for wishes of the step."""


def _step_options(spec: JobSpec) -> list[str]:
    """What a step takes of its allocation; memory that is not asked for is shared with the other steps."""
    asked = spec.resources
    tasks = 1 if spec.launcher == "none" else asked.ntasks or 1
    options = {
        "nodes": 1 if spec.launcher == "none" else asked.nodes,
        "ntasks": tasks,
        "ntasks-per-node": None if spec.launcher == "none" else asked.ntasks_per_node,
        "cpus-per-task": asked.cpus_per_task or 1,
        "gpus": asked.gpus,
        "mem-per-cpu": f"{asked.memory_per_cpu_mb}M" if asked.memory_per_cpu_mb else None,
        "mem": None if asked.memory_per_cpu_mb else f"{asked.memory_mb or 0}M",
    }
    return ["--exact", *(f"--{name}={value}" for name, value in options.items() if value is not None)]


def _per_task(resources: Resources) -> list[str]:
    """srun does not inherit the CPUs per task from its job (since 22.05)."""
    return [f"--cpus-per-task={resources.cpus_per_task}"] if resources.cpus_per_task else []


def _container(image: str, data_root: str, workdir: str) -> list[str]:
    """The words before a command that is to run in ``image``, which sees the data and starts in ``workdir``."""
    if not image:
        return []
    seen = [data_root] if f"{workdir}/".startswith(f"{data_root}/") else [data_root, workdir]
    return ["apptainer", "exec", *(f"--bind={folder}" for folder in seen), f"--pwd={workdir}", image]


def _lines(script: str) -> str:
    return script if script.endswith("\n") else f"{script}\n"


def _copies(command: str, count: int) -> str:
    """Shell text that runs ``command`` ``count`` times at once and ends with the worst exit code."""
    return (
        f"export SLURM_NTASKS={count}\npids= worst=0\n"
        f'for ((p = 0; p < {count}; p++)); do SLURM_PROCID=$p {command} & pids+=" $!"; done\n'
        "for p in $pids; do wait $p || { c=$?; [ $c -gt $worst ] && worst=$c; }; done\nexit $worst\n"
    )


def manifest(scripts: list[str]) -> tuple[str, dict[str, str]]:
    """The manifest's text, and the extra files (name → text) for scripts that are too long for one argument."""
    lines, extra = [], {}
    for position, script in enumerate(scripts):
        if len(script.encode()) > _LONGEST_ARGUMENT:
            name = f"script.{position}"
            extra[name] = script
            lines.append(one_line(f"@{name}"))
        else:
            lines.append(one_line(f"={script}"))
    return "".join(f"{line}\n" for line in lines), extra


_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def one_line(text: str) -> str:
    r"""``text`` as one bash word without a line break: ``$'…'`` with ``\n`` for newlines."""
    out = []
    for char in text:
        if char in _ESCAPES:
            out.append(_ESCAPES[char])
        elif ord(char) < 0x20 or ord(char) == 0x7F:
            out.append(f"\\{ord(char):03o}")
        else:
            out.append(char)
    return "$'" + "".join(out) + "'"


@dataclass(frozen=True)
class Started:
    """Element ``position`` of a submission began, in restart ``restart``, as the scheduler's ``scheduler_id``."""

    batch_id: str
    position: int
    scheduler_id: str
    restart: int
    at: float
    node: str


@dataclass(frozen=True)
class Ended:
    """Element ``position`` ended, and left this record."""

    batch_id: str
    position: int
    scheduler_id: str
    record: ExitRecord


@dataclass(frozen=True)
class Fenced:
    """A scheduler's job that did nothing: element ``position`` is another's, or its lease was out of reach."""

    batch_id: str
    position: int
    scheduler_id: str
    duplicate: bool


Event = Started | Ended | Fenced

_STARTED = re.compile(r"S (\w+) (\d+) (\S+) (\d+) ([\d.]+) (\S+) \.\Z")
_ENDED = re.compile(r"X (\w+) (\d+) (\S+) (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+) (\S+)(?: c(\d+))?(?: m(\d+))? \.\Z")
_FENCED = re.compile(r"([DF]) (\w+) (\d+) (\S+) (\d+) ([\d.]+) \.\Z")


def parse_event(line: str) -> Event | None:
    """The event in a line of the event file or of an exit record; ``None`` for a line that is none or not whole."""
    if len(line) > EVENT_CAP:
        return None
    if m := _ENDED.match(line):
        batch_id, position, scheduler_id, restart, code, signal, started, ended, node, cpu, memory = m.groups()
        record = ExitRecord(
            code=int(code),
            signal=int(signal),
            started=float(started),
            ended=float(ended),
            node=node,
            slurm_id=scheduler_id,
            restart=int(restart),
            cpu_s=int(cpu) / 100 if cpu else None,
            memory_mb=int(memory) if memory else None,
        )
        return Ended(batch_id, int(position), scheduler_id, record)
    if m := _STARTED.match(line):
        batch_id, position, scheduler_id, restart, at, node = m.groups()
        return Started(batch_id, int(position), scheduler_id, int(restart), float(at), node)
    if m := _FENCED.match(line):
        kind, batch_id, position, scheduler_id, _, _ = m.groups()
        return Fenced(batch_id, int(position), scheduler_id, kind == "D")
    return None


class EventReader:
    """Turns chunks of the event file into events, and counts the bytes that need not be read again."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self._rest = b""

    def feed(self, chunk: bytes) -> list[Event]:
        """The events of all lines that are complete now; :attr:`offset` moves behind them."""
        data = self._rest + chunk
        whole, found, self._rest = data.rpartition(b"\n")
        if not found:
            return []
        self.offset += len(whole) + 1
        events = (parse_event(line.decode(errors="replace")) for line in whole.split(b"\n"))
        return [event for event in events if event is not None]
