"""Jobs that tell on themselves: each writes when it begins and ends to a file that the engine knows nothing of."""

from __future__ import annotations

import random
import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bbpwf.cluster.jobs import JobSpec, job_key
from bbpwf.errors import BbpwfError

RUN = "storm"

_SCRIPT = """
id=$SLURM_JOB_ID
[ -n "${{SLURM_ARRAY_JOB_ID:-}}" ] && id=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
code={code}
{first}
printf 'B %s %s %s %(%s)T\\n' "$BBPWF_JOB_KEY" "$id" "${{SLURM_RESTART_COUNT:-0}}" -1 >>{tally}
sleep {seconds} || exit $? # it was told to stop, and we are about to be
printf 'E %s %s %s %(%s)T %s\\n' "$BBPWF_JOB_KEY" "$id" "${{SLURM_RESTART_COUNT:-0}}" -1 "$code" >>{tally}
exit $code
"""


@dataclass(frozen=True)
class Intent:
    """What one job is to do: end with ``code`` (the first of ``attempts`` with 1), or be cancelled."""

    key: str
    code: int
    attempts: int
    cancelled: bool


class Workload:
    """Keeps jobs coming. ``submit`` and ``cancel`` are called again until they are answered."""

    def __init__(
        self,
        chance: random.Random,
        folder: Path,
        submit: Callable[[list[JobSpec]], object],
        cancel: Callable[[list[str]], object],
        live: Callable[[], int],
        *,
        most: int,
    ) -> None:
        self.intents: dict[str, Intent] = {}
        self.unanswered = ""
        self._chance = chance
        self._folder = folder
        self._submit = submit
        self._cancel = cancel
        self._live = live
        self._most = most
        self._count = 0
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

    def _loop(self) -> None:
        while not self._stopping.is_set():
            if self._live() < self._most:
                specs = self._group()
                self._until_answered(lambda: self._submit(specs))  # noqa: B023 called before the next turn
                doomed = [s.key for s in specs if self.intents[s.key].cancelled]
                if doomed:
                    self._stopping.wait(self._chance.uniform(0.0, 2.0))
                    self._until_answered(lambda: self._cancel(doomed))  # noqa: B023 called before the next turn
            self._stopping.wait(self._chance.uniform(0.05, 0.4))

    def _until_answered(self, call: Callable[[], object]) -> None:
        """A caller that crashes or is refused asks again, as a head does."""
        while True:
            try:
                call()
                return
            except (BbpwfError, OSError):
                threading.Event().wait(0.1)

    def _group(self) -> list[JobSpec]:
        """One job or an array, of one kind."""
        self._count += 1
        size = self._chance.choice([1, 1, 1, 2, 3, 6])
        kind = self._chance.choices(["well", "badly", "again", "cancelled"], [6, 2, 1, 2])[0]
        return [self._spec(kind, i if size > 1 else None) for i in range(size)]

    def _spec(self, kind: str, index: int | None) -> JobSpec:
        task = f"T{self._count}"
        key = job_key(RUN, task, index)
        code = self._chance.randint(1, 60) if kind == "badly" else 0
        attempts = 2 if kind == "again" else 1
        first = f"mkdir {shlex.quote(str(self._folder / 'firsts' / key))} && code=1" if kind == "again" else ""
        script = _SCRIPT.format(
            code=code,
            first=first,
            tally=shlex.quote(str(self.tally)),
            seconds=1800 if kind == "cancelled" else round(self._chance.uniform(0.1, 1.0), 2),
        )
        self.intents[key] = Intent(key, code, attempts, kind == "cancelled")
        return JobSpec(
            key=key,
            run_id=RUN,
            task_id=task,
            index=index,
            name=task,
            group=task,
            script=script,
            retries=attempts - 1,
        )
