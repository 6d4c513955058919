"""The storm over an engine: a seeded choice of faults, many to each life of an agent, while jobs keep coming."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from benchmarks.chaos.points import LOCAL, SLURM, Points
from benchmarks.chaos.shims import ORDERS
from benchmarks.chaos.site import Site, SlurmSite
from benchmarks.chaos.workload import Kind, Workload

_OPEN_WITHIN_S = 120.0
_FENCED_WITHIN_S = 120.0
_PROVOKED: dict[str, tuple[tuple[str, ...], Kind | None]] = {
    "ledger.put_off": (("busy", "full"), None),
    "ledger.explain_wait": (("late-before", "mute"), None),
    "ledger.abandon_cancelled": (("busy",) * 6, "cancelled"),
    "ledger.reject": ((), "refused"),
    "ledger.throttle": ((), "throttled"),
    "ledger.cancel": ((), "cancelled"),
    "allocation": ((), "released"),
    "cancel": ((), "cancelled"),
}
"""What leads an agent to a point that it comes by rarely: answers of sbatch, a kind of jobs."""


class Storm:
    """Breaks a site as long as it is told to. ``slowest`` bounds how long one fault may last, seconds."""

    def __init__(
        self, site: Site, workload: Workload, chance: random.Random, points: Points, *, slowest: float
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.complaints: list[str] = []
        self._site = site
        self._cluster = site if isinstance(site, SlurmSite) else None
        self._workload = workload
        self._chance = chance
        self._points = points
        self._slowest = slowest
        self._kinds: list[tuple[int, Callable[[], None]]] = [
            (2, lambda: self._disk(near=True)),
            (2, lambda: self._disk(near=False)),
            (4, self._clock),
            (1, self._second_agent),
        ]
        if self._cluster is not None:
            self._kinds += [
                (14, self._order),
                (4, self._cut),
                (1, self._sshd),
                (1, self._freeze),
                (1, self._controller),
            ]

    def total(self) -> int:
        """Faults that happened so far, beside those at named points; orders count when they were carried out."""
        return self.counts.total() + len(self._carried_out())

    def rage(self, go_on: Callable[[], bool]) -> None:
        """One life after the other."""
        while go_on():
            self._life(go_on)

    def calm(self) -> None:
        """Everything works again, and an agent that nothing threatens is there."""
        if self._cluster is not None:
            self._cluster.shims.withdraw()
        self._site.set_clock(0.0)
        self._site.start_agent()
        if not self._site.agent.wait_open(_OPEN_WITHIN_S):
            self.complaints.append("an agent did not start after the storm")

    def by_kind(self) -> Counter[str]:
        """How often each kind of fault happened."""
        return self.counts + Counter(self._carried_out())

    def _carried_out(self) -> list[str]:
        return [] if self._cluster is None else self._cluster.shims.carried_out()

    def _life(self, go_on: Callable[[], bool]) -> None:
        """One agent, from its start to its violent end, and what happens to the world meanwhile."""
        names = self._points.choose(LOCAL if self._cluster is None else SLURM, self._chance, 2)
        armed = self._points.armed(names, self._chance)
        self._provoke(names)
        agent = self._site.start_agent(armed)
        opened = agent.wait_open(_OPEN_WITHIN_S)
        if opened:
            for _ in range(self._chance.choice([4, 8, 12, 16, 24])):
                if not self._site.agent.alive or not go_on():
                    break
                weights, kinds = zip(*self._kinds, strict=True)
                self._chance.choices(kinds, weights)[0]()
                time.sleep(self._chance.uniform(0.0, 0.25))
        elif agent.alive:
            self.complaints.append(f"an agent with {armed} did not open its sockets")
        agent = self._site.agent
        if agent.alive:
            threading.Event().wait(self._chance.uniform(0.0, 1.0))
        self._end(agent.popen.poll())
        agent.close()

    def _end(self, code: int | None) -> None:
        """Note how an agent's life ended; who died at a named point has noted that itself."""
        if code is None:
            self.counts["kill -9 at some instant"] += 1
        elif code != -9:
            self.complaints.append(f"an agent ended by itself with code {code}")

    def _provoke(self, names: list[str]) -> None:
        kinds: list[Kind] = []
        for name in names:
            orders, kind = _PROVOKED.get(name.rpartition(".")[0], ((), None))
            if self._cluster is not None:
                for what in orders:
                    self._cluster.shims.order("sbatch", what, urgent=True)
            if kind is not None:
                kinds.append(kind)
        self._workload.next(kinds)

    def _here(self) -> SlurmSite:
        """The site as one with a cluster: what breaks that is chosen nowhere else."""
        assert self._cluster is not None
        return self._cluster

    def _order(self) -> None:
        for _ in range(self._chance.choice([1, 2, 3])):
            command = self._chance.choices(["sbatch", "squeue", "scancel"], [8, 4, 1])[0]
            self._here().shims.order(command, self._chance.choice(ORDERS[command]))

    def _cut(self) -> None:
        self._here().cut_connections()
        self.counts["connections cut"] += 1

    def _sshd(self) -> None:
        self._here().restart_sshd(self._chance.uniform(0.0, 1.0))
        self.counts["sshd restarted"] += 1

    def _freeze(self) -> None:
        with self._here().frozen_controller():
            time.sleep(self._chance.uniform(0.5, min(3.0, self._slowest)))
        self.counts["slurmctld frozen"] += 1

    def freeze_long(self) -> None:
        """The controller is gone for as long as one fault may last."""
        if self._cluster is None:
            return
        with self._cluster.frozen_controller():
            time.sleep(self._slowest)
        self.counts[f"slurmctld frozen for {self._slowest:.0f} s"] += 1

    def _controller(self) -> None:
        self._here().restart_controller(self._chance.uniform(0.0, 1.0))
        self.counts["slurmctld restarted"] += 1

    def _disk(self, *, near: bool) -> None:
        with self._site.full_disk(near):
            time.sleep(self._chance.uniform(0.2, 1.2))
        self.counts["disk full at the ledger" if near else "disk full on the cluster"] += 1

    def _clock(self) -> None:
        self._site.set_clock(self._chance.choice([-86_400.0, -3_600.0, -90.0, 0.0, 90.0, 3_600.0, 86_400.0]))
        self.counts["clock set"] += 1

    def _second_agent(self) -> None:
        """Another agent on the same ledger: the first has to notice and end by itself."""
        first = self._site.agent
        second = self._site.start_agent(beside=True)
        if second.wait_open(_OPEN_WITHIN_S):
            self.counts["two agents at once"] += 1
            deadline = time.monotonic() + _FENCED_WITHIN_S
            while first.alive and time.monotonic() < deadline:
                time.sleep(0.05)
            if first.alive:
                self.complaints.append("an agent that was fenced off did not end")
        else:
            self.complaints.append("a second agent did not start")
        first.close()
