"""The storm itself: a seeded choice of faults, many to each life of an agent, while jobs keep coming."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from benchmarks.chaos.shims import ORDERS
from benchmarks.chaos.site import Site
from benchmarks.chaos.workload import Workload

POINTS = (
    "ledger.claim.before",
    "ledger.claim.after",
    "ledger.plan.before",
    "ledger.plan.after",
    "ledger.prepare.before",
    "ledger.prepare.after",
    "ledger.mark_sent.before",
    "ledger.mark_sent.after",
    "ledger.put_off.before",
    "ledger.put_off.after",
    "ledger.explain_wait.before",
    "ledger.explain_wait.after",
    "ledger.accept.before",
    "ledger.accept.after",
    "ledger.abandon_cancelled.before",
    "ledger.abandon_cancelled.after",
    "ledger.see.before",
    "ledger.see.after",
    "ledger.cancel.before",
    "ledger.cancel.after",
    "agent.planned",
    "submit.before",
    "submit.after",
    "events.before",
    "queue.before",
    "queue.after",
    "cancel.before",
    "cancel.after",
    "server.lock",
    "server.open",
)
"""Where an agent can be made to die; see :mod:`bbpwf.faults`."""

_EARLY = ("ledger.claim.", "server.")
_OPEN_WITHIN_S = 30.0
_FENCED_WITHIN_S = 20.0


class Storm:
    """Breaks a site until ``faults`` faults have happened. ``slowest`` bounds how long one may last, seconds."""

    def __init__(self, site: Site, workload: Workload, chance: random.Random, faults: int, *, slowest: float) -> None:
        self.counts: Counter[str] = Counter()
        self.complaints: list[str] = []
        self._site = site
        self._workload = workload
        self._chance = chance
        self._faults = faults
        self._slowest = slowest
        self._kinds: list[tuple[int, Callable[[], None]]] = [
            (14, self._order),
            (4, self._cut),
            (1, self._sshd),
            (1, self._freeze),
            (1, self._controller),
            (2, lambda: self._disk(near=True)),
            (2, lambda: self._disk(near=False)),
            (5, self._clock),
            (1, self._second_agent),
        ]

    def total(self) -> int:
        """Faults that happened so far; orders count when they were carried out."""
        return self.counts.total() + len(self._site.shims.carried_out())

    def rage(self, until: float) -> None:
        """Until enough faults have happened, or ``until`` (monotonic seconds)."""
        while self.total() < self._faults and time.monotonic() < until:
            self._life()

    def calm(self) -> None:
        """Everything works again, and an agent that nothing threatens is there."""
        self._site.shims.withdraw()
        self._site.set_clock(0.0)
        self._site.start_agent()
        if not self._site.agent.wait_open(_OPEN_WITHIN_S):
            self.complaints.append("an agent did not start after the storm")

    def by_kind(self) -> dict[str, int]:
        """How often each kind of fault happened."""
        return dict(sorted((self.counts + Counter(self._site.shims.carried_out())).items()))

    def _life(self) -> None:
        """One agent, from its start to its violent end, and what happens to the world meanwhile."""
        point = self._chance.choice(POINTS)
        turn = 1 if point.startswith(_EARLY) else self._chance.choice([1, 1, 2, 3, 5, 9])
        agent = self._site.start_agent(f"{point}={turn}")
        opened = agent.wait_open(_OPEN_WITHIN_S)
        if opened:
            for _ in range(self._chance.choice([4, 8, 12, 16, 24])):
                if not self._site.agent.alive:
                    break
                weights, kinds = zip(*self._kinds, strict=True)
                self._chance.choices(kinds, weights)[0]()
                time.sleep(self._chance.uniform(0.0, 0.25))
        elif agent.alive:
            self.complaints.append(f"an agent with {point}={turn} did not open its sockets")
        agent = self._site.agent
        if agent.alive:
            threading.Event().wait(self._chance.uniform(0.0, 1.0))
        if agent.alive:
            self.counts["kill -9 at some instant"] += 1
        elif agent.popen.returncode == -9:
            self.counts[f"kill -9 at {point}"] += 1
        else:
            self.complaints.append(f"an agent ended by itself with code {agent.popen.returncode}")
        agent.close()

    def _order(self) -> None:
        for _ in range(self._chance.choice([1, 2, 3])):
            command = self._chance.choices(["sbatch", "squeue", "scancel"], [7, 4, 1])[0]
            self._site.shims.order(command, self._chance.choice(ORDERS[command]))

    def _cut(self) -> None:
        self._site.cut_connections()
        self.counts["connections cut"] += 1

    def _sshd(self) -> None:
        self._site.restart_sshd(self._chance.uniform(0.0, 1.0))
        self.counts["sshd restarted"] += 1

    def _freeze(self) -> None:
        with self._site.frozen_controller():
            time.sleep(self._chance.uniform(0.5, min(3.0, self._slowest)))
        self.counts["slurmctld frozen"] += 1

    def freeze_long(self) -> None:
        """The controller is gone for as long as one fault may last."""
        with self._site.frozen_controller():
            time.sleep(self._slowest)
        self.counts[f"slurmctld frozen for {self._slowest:.0f} s"] += 1

    def _controller(self) -> None:
        self._site.restart_controller(self._chance.uniform(0.0, 1.0))
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
