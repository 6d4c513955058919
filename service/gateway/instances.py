"""Exactly one instance for every project that is asked for, and no more than may run at once.

A project's instance is started by whoever wins the compare-and-swap that writes its next generation into the roster.
Should the winner die before it can write down what it started, its claim lapses and the next one orders the same
generation again: that is the same instance to the backend. An instance that ended badly is replaced, with growing
pauses; one that ended for want of work is not, until somebody asks for its project.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from dataclasses import dataclass

from bbpwf.clock import Clock
from bbpwf.errors import InstanceFailed, NoRoom
from service.gateway.authorizer import Project
from service.gateway.backend import Backend, Order, Phase, Refused, Sighting
from service.gateway.roster import Entries, Entry, Roster, StaleRoster

_log = logging.getLogger(__name__)

CLAIM_S = 60.0
"""How long whoever starts an instance may take before others may order the same one again."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 120.0
UNSEEN_S = 60.0
"""An instance that was just started may be invisible this long: ECS is eventually consistent."""
REMEMBER_S = 2.0
"""How long an address is given out without another look."""
_FAIR_S = 300.0  # an instance that lived this long did not fail at its start
_TRIES = 200


@dataclass(frozen=True)
class Ready:
    """The project's instance, at ``host:port``."""

    address: str


@dataclass(frozen=True)
class Starting:
    """It comes up; ``reason`` says how far it is, ``retry_after_s`` when to ask again."""

    reason: str
    retry_after_s: int = 5


class Instances:
    """Finds and starts instances. Thread-safe, and safe beside any number of others on the same roster.

    Args:
        backend: what instances are.
        roster: who serves whom.
        cap: instances at once.
        start_limit_s: an instance that is not ready after this long is replaced.
        clock: for all times.
    """

    def __init__(self, backend: Backend, roster: Roster, *, cap: int, start_limit_s: float, clock: Clock) -> None:
        self._backend = backend
        self._roster = roster
        self._cap = cap
        self._start_limit_s = start_limit_s
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, float]] = {}

    def find(self, project: Project, sub: str, *, wait_s: float = 0.0) -> Ready | Starting:
        """The project's instance, started if there is none; waits at most ``wait_s`` seconds for it to be ready.

        Raises:
            NoRoom: there is none, and as many as may be run already.
            InstanceFailed: it could not be started now; the reason is in it.
        """
        with self._lock:
            address, until = self._known.get(project.key, ("", 0.0))
        if self._clock.monotonic() < until:
            return Ready(address)
        deadline = self._clock.monotonic() + wait_s
        while True:
            state = self._step(project, sub)
            if isinstance(state, Ready):
                with self._lock:
                    self._known[project.key] = state.address, self._clock.monotonic() + REMEMBER_S
                return state
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return state
            self._clock.sleep(min(0.25, left))

    def forget(self, project: Project) -> None:
        """The address that was given out does not answer: look again next time."""
        with self._lock:
            self._known.pop(project.key, None)

    def tend(self) -> None:
        """Replace what ended badly or never came up, let go of what went to rest, and find what was lost sight of.

        To be called every few seconds or minutes, by one caller or several.
        """
        self._adopt()
        for entry in list(self._roster.read()[1].values()):
            project = Project(entry.virtual_lab_id, entry.project_id)
            try:
                self._tend(project, entry)
            except (InstanceFailed, NoRoom) as error:
                _log.warning("the instance of project %s: %s", project.key, error)

    def _tend(self, project: Project, entry: Entry) -> None:
        if entry.instance:
            seen = self._look(entry)
            if seen.phase is Phase.RESTING:
                _log.info("the instance of project %s went to rest: %s", project.key, seen.reason)
                self._replace(project, entry, entry.rested())
            elif seen.phase is Phase.READY and entry.failures and self._age(entry) > _FAIR_S:
                self._replace(project, entry, entry.model_copy(update={"failures": 0, "reason": ""}))
            elif seen.phase in {Phase.GONE, Phase.SICK, Phase.STARTING}:
                self._step(project, entry.sub)
        elif entry.wanted and self._clock.now() >= max(entry.claimed_until, entry.not_before):
            self._step(project, entry.sub)

    def _step(self, project: Project, sub: str) -> Ready | Starting:
        """Look at the project's line and do what is due; others may be doing the same."""
        for _ in range(_TRIES):
            version, entries = self._roster.read()
            entry = entries.get(project.key)
            state, following = self._judged(project, entry, sub)
            if state is not None:
                return state
            if entry is None or not entry.holds(self._clock.now()):
                self._make_room(version, entries)
            try:
                self._roster.write(version, {**entries, project.key: following})
            except StaleRoster:
                continue
            return self._start(project, following)
        raise InstanceFailed("the gateway's roster changes too fast to be changed")

    def _judged(self, project: Project, entry: Entry | None, sub: str) -> tuple[Ready | Starting | None, Entry]:
        """What to answer; or ``None`` and the line to write before the next start."""
        now = self._clock.now()
        claim = {"claimed_at": now, "claimed_until": now + CLAIM_S, "instance": ""}
        if entry is None:
            first = Entry(
                virtual_lab_id=project.virtual_lab_id, project_id=project.project_id, generation=int(now), sub=sub
            )
            return None, first.model_copy(update=claim)
        if not entry.wanted:
            return None, entry.model_copy(update={**claim, "wanted": True, "sub": sub})
        if not entry.instance:
            if now < entry.claimed_until:
                return Starting("the project's instance is being started"), entry
            if now < entry.not_before:
                return self._pausing(entry, now), entry
            return None, entry.model_copy(update=claim)  # the same generation: the same instance, if there is one
        seen = self._look(entry)
        if seen.phase is Phase.READY:
            return Ready(seen.address), entry
        if seen.phase is Phase.STARTING and self._age(entry) <= self._start_limit_s:
            return Starting(f"the project's instance is starting ({seen.reason})"), entry
        if seen.phase is Phase.RESTING:
            return None, entry.rested().model_copy(update={**claim, "wanted": True, "sub": sub})
        reason = seen.reason or "it did not become ready in time"
        if seen.phase in {Phase.STARTING, Phase.SICK}:
            self._backend.stop(entry.instance, f"replaced: {reason}")
        early = self._age(entry) < _FAIR_S
        failures = entry.failures + 1 if early else 1
        pause = min(FIRST_PAUSE_S * 2.0 ** (failures - 1), LONGEST_PAUSE_S)
        _log.warning("the instance of project %s ended badly (%s), %d in a row", project.key, reason, failures)
        following = entry.model_copy(
            update={"generation": entry.generation + 1, "failures": failures, "reason": reason, **claim}
        )
        due = entry.claimed_at + pause
        if now < due:  # it failed faster than we are ready to start the next one
            held = following.model_copy(update={"claimed_until": 0.0, "not_before": due})
            self._replace(project, entry, held)
            return self._pausing(held, now), held
        return None, following

    def _start(self, project: Project, entry: Entry) -> Starting:
        """Start what a line that we wrote claims, and write down its id."""
        try:
            instance = self._backend.start(Order(project, entry.generation, entry.sub))
        except InstanceFailed as error:
            # after a clear refusal the next try is another order, whatever the backend remembers of this one
            generation = entry.generation + isinstance(error, Refused)
            failures = entry.failures + 1
            pause = min(FIRST_PAUSE_S * 2.0**failures, LONGEST_PAUSE_S)
            refused = {
                "generation": generation,
                "claimed_until": 0.0,
                "failures": failures,
                "reason": error.message,
                "not_before": self._clock.now() + pause,
            }
            self._replace(project, entry, entry.model_copy(update=refused))
            raise
        self._replace(project, entry, entry.model_copy(update={"instance": instance, "claimed_until": 0.0}))
        _log.info("started instance %s of project %s, generation %d", instance, project.key, entry.generation)
        return Starting("the project's instance was started")

    def _make_room(self, version: int, entries: Entries) -> None:
        """Whether one more may run. Those that went to rest do not count.

        Raises:
            NoRoom: it may not.
        """
        now = self._clock.now()
        holding = {key: entry for key, entry in entries.items() if entry.holds(now)}
        if len(holding) < self._cap:
            return
        resting = [key for key, each in holding.items() if each.instance and self._look(each).phase is Phase.RESTING]
        if resting:
            with contextlib.suppress(StaleRoster):
                left = {key: each.rested() if key in resting else each for key, each in entries.items()}
                self._roster.write(version, left)
            return  # ours or another's change makes the write that follows stale: it is judged anew
        raise NoRoom(
            f"all {self._cap} project instances that may run at once are in use",
            hint="An instance stops by itself when it has nothing to do. Try again in some minutes.",
        )

    def _replace(self, project: Project, seen: Entry, new: Entry) -> None:
        """Change the project's line unless somebody changed it since it was ``seen``."""
        for _ in range(_TRIES):
            version, entries = self._roster.read()
            if entries.get(project.key) != seen:
                return
            try:
                self._roster.write(version, {**entries, project.key: new})
                return
            except StaleRoster:
                continue

    def _adopt(self) -> None:
        """Take into the roster what runs without a line in it; stop what another one has replaced."""
        for found in self._backend.all():
            entry = self._roster.read()[1].get(found.project.key)
            if entry is None:
                self._insert(found.project, found.generation, found.instance)
            elif entry.instance and entry.instance != found.instance and found.generation < entry.generation:
                self._backend.stop(found.instance, "replaced by a later instance of its project")

    def _insert(self, project: Project, generation: int, instance: str) -> None:
        version, entries = self._roster.read()
        if project.key in entries:
            return
        line = Entry(
            virtual_lab_id=project.virtual_lab_id,
            project_id=project.project_id,
            generation=generation,
            instance=instance,
            claimed_at=self._clock.now(),
        )
        with contextlib.suppress(StaleRoster):
            self._roster.write(version, {**entries, project.key: line})

    def _look(self, entry: Entry) -> Sighting:
        seen = self._backend.look(entry.instance)
        if seen.phase is Phase.UNSEEN:
            early = self._age(entry) <= UNSEEN_S
            return Sighting(Phase.STARTING if early else Phase.GONE, reason=seen.reason)
        return seen

    def _age(self, entry: Entry) -> float:
        return self._clock.now() - entry.claimed_at

    @staticmethod
    def _pausing(entry: Entry, now: float) -> Starting:
        wait = max(1, round(entry.not_before - now))
        return Starting(f"the project's instance ended badly and is started again in {wait} s: {entry.reason}", wait)
