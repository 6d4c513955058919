"""The named points at which processes are made to die, and whose turn it is: those hit least come first."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_COMMITS = ("claim", "plan", "prepare", "mark_sent", "accept", "see", "cancel", "throttle", "reject")
_SLURM_COMMITS = ("put_off", "explain_wait", "abandon_cancelled")


def _both(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}.{when}" for name in names for when in ("before", "after"))


LOCAL: tuple[str, ...] = (
    *_both(f"ledger.{name}" for name in _COMMITS),
    "agent.planned",
    *_both(("submit", "queue", "cancel")),
    "events.before",
    "server.lock",
    "server.open",
    "local.started",
)
"""What an agent passes that runs jobs on its own machine."""
SLURM: tuple[str, ...] = (
    *(name for name in LOCAL if name != "local.started"),
    *_both(f"ledger.{name}" for name in _SLURM_COMMITS),
    "allocation.made",
    "allocation.handed",
    "allocation.released",
)
"""What an agent passes that has a cluster."""
SERVICE: tuple[str, ...] = _both(("runs.create", "runs.move", "runs.resume"))
HEAD: tuple[str, ...] = _both(("head.outcome",))
ALL = frozenset((*LOCAL, *SLURM, *SERVICE, *HEAD))
UNREACHED: Mapping[str, str] = {}
"""Points that a storm does not come by, and why not."""

_ONCE = ("ledger.claim.", "server.", "head.")


class Points:
    """Who died where, as the dying wrote it to ``file``, and who should next. Shared by all storms."""

    def __init__(self, file: Path, *, expected: Iterable[str] = ALL) -> None:
        self.file = file
        self._expected = frozenset(expected)
        file.touch(mode=0o666)

    def hits(self) -> Counter[str]:
        """How often each point was hit so far."""
        return Counter(self.file.read_text().split())

    def missing(self) -> list[str]:
        """Points that were never hit."""
        return sorted(self._expected - self.hits().keys())

    def choose(self, among: Sequence[str], chance: random.Random, most: int) -> list[str]:
        """At most ``most`` points, those hit least first; among equals, by chance."""
        hits = self.hits()
        return sorted(chance.sample(among, len(among)), key=lambda name: hits[name])[:most]

    def armed(self, names: Sequence[str], chance: random.Random) -> str:
        """What makes a process die at whichever of ``names`` it comes to first, often enough; see bbpwf.faults."""
        hits = self.hits()
        words = [f"@{self.file}"]
        for name in names:
            turns = [1, 2, 3, 5, 9] if hits[name] and not name.startswith(_ONCE) else [1]
            words.append(f"{name}={chance.choice(turns)}")
        return ",".join(words)
