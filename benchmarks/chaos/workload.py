"""Jobs that tell on themselves: each writes when it begins and ends to a file that the engine knows nothing of."""

from __future__ import annotations

import random
import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from bbpwf.cluster.jobs import Allocation, JobSpec, Resources, job_key
from bbpwf.errors import BbpwfError

RUN = "storm"

Kind = Literal["well", "badly", "again", "cancelled", "refused", "throttled", "steps", "released"]

BEGIN = """
id=${{BBPWF_ID:-$SLURM_JOB_ID}}
[ -n "${{SLURM_ARRAY_JOB_ID:-}}" ] && id=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
tell() {{
    printf '%s %s %s %s %(%s)T%s\\n' "$1" {name} "$id" "${{SLURM_RESTART_COUNT:-0}}" -1 "${{2:+ $2}}" >>{tally}
}}
"""
"""Bash that both kinds of jobs begin with: ``tell B`` and ``tell E code`` write the tally's lines."""

_SCRIPT = (
    BEGIN
    + """
code={code}
{first}
tell B
sleep {seconds} || exit $? # it was told to stop, and we are about to be
tell E "$code"
exit $code
"""
)


@dataclass(frozen=True)
class Intent:
    """What one job is to do: end with ``code`` (the first of ``attempts`` with 1), be cancelled, or be refused."""

    key: str
    code: int
    attempts: int
    cancelled: bool
    refused: bool = False


class Agent(Protocol):
    """What is asked of the present agent; each may raise as long as there is none, and is then asked again."""

    def submit(self, specs: list[JobSpec]) -> None:
        """Want jobs."""
        ...

    def cancel(self, keys: list[str]) -> None:
        """Want jobs no more."""
        ...

    def throttle(self, keys: list[str], limit: int) -> None:
        """Let few of them run at once."""
        ...

    def release(self) -> None:
        """Give back what the run holds."""
        ...

    def live(self) -> int:
        """How many jobs have not ended."""
        ...


class Workload:
    """Keeps jobs coming, at most ``most`` live ones. ``slurm`` says whether there is one, or just this machine."""

    def __init__(self, chance: random.Random, folder: Path, agent: Agent, *, most: int, slurm: bool) -> None:
        self.intents: dict[str, Intent] = {}
        self.unanswered = ""
        self._chance = chance
        self._folder = folder
        self._agent = agent
        self._most = most
        self._slurm = slurm
        self._count = 0
        self._wanted: list[Kind] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="workload", daemon=True)

    @property
    def tally(self) -> Path:
        """Where the jobs write."""
        return self._folder / "tally"

    def start(self) -> None:
        """Begin."""
        (self._folder / "firsts").mkdir(parents=True)
        self._thread.start()

    def stop(self) -> None:
        """No new jobs; waits until the last request was answered."""
        self._stopping.set()
        self._thread.join(180.0)
        if self._thread.is_alive():
            self.unanswered = "the last request was never answered"

    def next(self, kinds: list[Kind]) -> None:
        """Let the next jobs be of these kinds: something waits for them."""
        self._wanted = kinds

    def _loop(self) -> None:
        while not self._stopping.is_set():
            if self._agent.live() < self._most or self._wanted:
                self._some()
            self._stopping.wait(self._chance.uniform(0.05, 0.4))
        self._until_answered(self._agent.release)

    def _some(self) -> None:
        """Want one job or several, and what belongs to it."""
        kind, specs = self._group()
        keys = [spec.key for spec in specs]
        self._until_answered(lambda: self._agent.submit(specs))
        if kind == "cancelled":
            self._stopping.wait(self._chance.choice([0.0, 0.3, 1.0, 2.0, 4.0]))
            self._until_answered(lambda: self._agent.cancel(keys))
        elif kind == "throttled":
            self._until_answered(lambda: self._agent.throttle(keys, 2))
        elif kind == "released":
            for _ in range(6):  # an allocation is made some time after its steps were wanted
                self._stopping.wait(self._chance.uniform(0.2, 1.0))
                self._until_answered(self._agent.release)

    def _until_answered(self, call: Callable[[], object]) -> None:
        """A caller that crashes or is refused asks again, as a head does."""
        while True:
            try:
                call()
                return
            except (BbpwfError, OSError):
                threading.Event().wait(0.1)

    def _group(self) -> tuple[Kind, list[JobSpec]]:
        """One job, an array, or steps, of one kind."""
        self._count += 1
        weights: dict[Kind, int] = {
            "well": 9,
            "badly": 4,
            "again": 3,
            "cancelled": 4,
            "refused": 1,
            "throttled": 2,
            "steps": 3,
            "released": 1,
        }
        wanted, self._wanted = self._wanted, self._wanted[1:]
        kind = wanted[0] if wanted else self._chance.choices(*zip(*weights.items(), strict=True))[0]
        size = self._chance.choice([1, 1, 1, 2, 3, 6])
        allocation = None
        if kind == "throttled":
            size = 4
        elif kind in {"steps", "released"} or (kind != "refused" and self._chance.random() < 0.15):
            allocation = Allocation(
                name=f"a{self._count // 8}", resources=Resources(cpus_per_task=4), max_steps=8, idle_s=2
            )
        return kind, [self._spec(kind, i if size > 1 else None, allocation) for i in range(size)]

    def _spec(self, kind: Kind, index: int | None, allocation: Allocation | None) -> JobSpec:
        task = f"T{self._count}"
        key = job_key(RUN, task, index)
        code = self._chance.randint(1, 60) if kind == "badly" else 0
        attempts = 2 if kind == "again" else 1
        first = f"mkdir {shlex.quote(str(self._folder / 'firsts' / key))} && code=1" if kind == "again" else ""
        script = _SCRIPT.format(
            name=key,
            code=code,
            first=first,
            tally=shlex.quote(str(self.tally)),
            seconds=1800 if kind == "cancelled" else round(self._chance.uniform(0.1, 1.0), 2),
        )
        resources = Resources()
        if kind == "refused":
            resources = Resources(partition="nowhere") if self._slurm else Resources(gpus=1)
        self.intents[key] = Intent(key, code, attempts, kind == "cancelled", kind == "refused")
        return JobSpec(
            key=key,
            run_id=RUN,
            task_id=task,
            index=index,
            name=task,
            group=task,
            script=script,
            retries=attempts - 1,
            resources=resources,
            allocation=allocation,
        )
