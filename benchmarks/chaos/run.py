"""One storm from beginning to end: start sites, let it rage, wait until all is quiet, and judge."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.history import Verdict, judge, judge_order, read_fenced, read_history, read_tally
from benchmarks.chaos.instance import InstanceStorm, instance
from benchmarks.chaos.points import ALL, LOCAL, SLURM, UNREACHED, Points
from benchmarks.chaos.site import Site, SlurmSite, local_site, slurm_site
from benchmarks.chaos.storm import Storm
from benchmarks.chaos.verdicts import judge_campaigns, read_runs
from benchmarks.chaos.workload import Workload

QUIET_WITHIN_S = 240.0
_FEWEST_SECONDS = 1.0
_JOBS_IN_FLIGHT = 30
_TOLD_EVERY_S = 15.0


@dataclass(frozen=True)
class Extent:
    """How far a storm goes.

    Args:
        faults: how many are to happen.
        limit: seconds after which it ends in any case.
        slowest: seconds for which slurmctld is once stopped.
        sites: clusters that are broken at once.
        service: whether a service with campaigns is among what is killed.
        local: whether there is also an agent whose jobs run on this machine.
        all_points: whether to go on, for up to as many faults again, until every named point was hit.
    """

    faults: int
    limit: float
    slowest: float
    sites: int = 2
    service: bool = True
    local: bool = True
    all_points: bool = True


@dataclass
class Report:
    """``result`` is what is written; it is clean if no job was harmed and ``complaints`` is empty."""

    result: dict[str, Any]
    complaints: list[str]

    @property
    def clean(self) -> bool:
        """Whether everything is as it should be."""
        return not self.complaints


@dataclass
class _Part:
    """What was made of one site or service."""

    verdict: Verdict
    kinds: Counter[str]
    complaints: list[str]
    fenced: int = 0
    slurm_jobs: int = 0
    runs: int = 0


@dataclass
class _Progress:
    """The storms that rage now, for whoever wants to know how far they are."""

    extent: Extent
    points: Points
    began: float = field(default_factory=time.monotonic)
    storms: list[Callable[[], int]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def total(self) -> int:
        """Faults so far, everywhere."""
        return sum(storm() for storm in self.storms) + self.points.hits().total()

    def go_on(self) -> bool:
        """Whether there is more to break."""
        if self.over.is_set():
            return False
        late = time.monotonic() - self.began > self.extent.limit
        total = self.total()
        done = total >= self.extent.faults
        if done and self.extent.all_points and total < 2 * self.extent.faults:
            done = not self.points.missing()
        if late or done:
            self.over.set()
        return not (late or done)


def run(extent: Extent, seed: int, *, keep: Path | None = None, say: Callable[[str], None] = lambda _: None) -> Report:
    """Let the storm rage and judge it; ``say`` hears of the progress."""
    expected = {*SLURM, *(LOCAL if extent.local else ()), *(ALL - {*LOCAL, *SLURM} if extent.service else ())}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bbpwf-p-", dir="/tmp")))
        folder.chmod(0o755)
        points = Points(folder / "died", expected=expected)
        progress = _Progress(extent, points)
        pool = stack.enter_context(ThreadPoolExecutor(extent.sites + 2))
        stack.enter_context(_told(progress, say))
        sites = [stack.enter_context(slurm_site()) for _ in range(extent.sites)]
        where: list[Site] = list(sites)
        if extent.local:
            where.append(stack.enter_context(local_site()))
        say(f"{len(where)} sites are up")
        progress.began = time.monotonic()
        works = [pool.submit(_engine, site, f"{seed}.{i}", progress) for i, site in enumerate(where)]
        if extent.service:
            works.append(pool.submit(_instance, sites[0], f"{seed}.s", progress))
        try:
            parts = [work.result() for work in works]
        finally:
            progress.over.set()
            if keep is not None:
                for i, site in enumerate(where):
                    _keep(site, keep / str(i))
        say("all is quiet")
        for part, site in zip(parts, where, strict=False):
            part.verdict.orphans += site.left()
            part.fenced = read_fenced(site.shared.glob("*/.bbpwf/*/events"))
            part.slurm_jobs = site.started()
        return _report(parts, progress, seed)


def _report(parts: Sequence[_Part], progress: _Progress, seed: int) -> Report:
    extent, hits = progress.extent, progress.points.hits()
    missing = progress.points.missing()
    kinds = sum((part.kinds for part in parts), Counter({f"kill -9 at {name}": n for name, n in hits.items()}))
    complaints = [each for part in parts for each in (*part.verdict.complaints, *part.complaints)]
    if extent.all_points and missing:
        complaints.append(f"nobody died at {', '.join(missing)}")
    result = {
        "faults": kinds.total(),
        "intents": sum(part.verdict.intents for part in parts),
        "effective": sum(part.verdict.effective for part in parts),
        **{
            name: sum(len(getattr(part.verdict, name)) for part in parts)
            for name in ("lost", "doubled", "backwards", "orphans")
        },
        "fenced": sum(part.fenced for part in parts),
        "slurm_jobs": sum(part.slurm_jobs for part in parts),
        "runs": sum(part.runs for part in parts),
        "seed": seed,
        "sites": extent.sites,
        "wall_s": round(time.monotonic() - progress.began, 1),
        "by_kind": dict(sorted(kinds.items())),
        "by_point": dict(sorted(hits.items())),
        "never_hit": {name: UNREACHED.get(name, "") for name in missing},
    }
    return Report(result, complaints)


def _engine(site: Site, seed: str, progress: _Progress) -> _Part:
    """One site's storm."""
    chance = random.Random(seed)
    slurm = isinstance(site, SlurmSite)
    workload = Workload(
        random.Random(chance.random()), site.folder / "work", site, most=_JOBS_IN_FLIGHT if slurm else 12, slurm=slurm
    )
    storm = Storm(site, workload, chance, progress.points, slowest=progress.extent.slowest)
    progress.storms.append(storm.total)
    workload.start()
    try:
        storm.rage(progress.go_on)
        storm.calm()
        storm.freeze_long()
    finally:
        progress.over.set()
        workload.stop()
    _wait_quiet(site.live)
    verdict = judge(workload.intents, read_history(site.ledger), read_tally(_text(workload.tally)))
    site.agent.close()
    return _Part(verdict, storm.by_kind(), [*storm.complaints, *filter(None, [workload.unanswered])])


def _instance(site: SlurmSite, seed: str, progress: _Progress) -> _Part:
    """The service's storm."""
    with instance(site) as (made, token):
        storm = InstanceStorm(made, token, random.Random(seed), progress.points)
        progress.storms.append(storm.counts.total)
        storm.campaigns.start(made.workflows)
        try:
            storm.rage(progress.go_on)
            storm.calm()
        finally:
            progress.over.set()
            storm.campaigns.stop(QUIET_WITHIN_S + progress.extent.slowest)
        made.stop()
        verdict = judge_campaigns(storm.campaigns.all, read_runs(made.ledger), read_tally(_text(storm.campaigns.tally)))
        verdict.backwards += judge_order(read_history(made.ledger))
        return _Part(verdict, storm.counts, storm.complaints, runs=len(storm.campaigns.all))


@contextmanager
def _told(progress: _Progress, say: Callable[[str], None]) -> Iterator[None]:
    """Say how far it is, now and then."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(_TOLD_EVERY_S):
            missing = progress.points.missing()
            some = f": {', '.join(missing[:4])}" if len(missing) < 20 and missing else ""
            state = "calm" if progress.over.is_set() else "storm"
            say(
                f"{time.monotonic() - progress.began:5.0f} s {state}: {progress.total()} of {progress.extent.faults} "
                f"faults, {len(missing)} points not hit{some}"
            )

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


def _wait_quiet(live: Callable[[], int]) -> None:
    deadline = time.monotonic() + QUIET_WITHIN_S
    while live() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(_FEWEST_SECONDS)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _keep(site: Site, folder: Path) -> None:
    """Ledgers, tallies and logs."""
    shutil.copytree(site.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock", "filler"))
    if isinstance(site, SlurmSite):
        shutil.copytree(site.cluster.slurm.folder / "log", folder / "slurm", dirs_exist_ok=True)
    for events in site.shared.glob("*/.bbpwf/*/events"):
        shutil.copy(events, folder / f"events-{events.parent.name}")
