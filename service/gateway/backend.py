"""What instances are made of: the protocol that Docker and ECS implement."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from bbpwf.errors import InstanceFailed
from service.gateway.authorizer import Project


class Phase(Enum):
    """How far an instance is."""

    STARTING = "starting"
    READY = "ready"
    """It answered that it is healthy."""
    SICK = "sick"
    """It runs, but says again and again that it is not healthy."""
    RESTING = "resting"
    """It ended by itself and as it should, for want of work, or a person stopped it."""
    GONE = "gone"
    """It ended otherwise."""
    UNSEEN = "unseen"
    """There is no trace of it: not yet, perhaps, if it was just started."""


AS_IT_SHOULD = frozenset({0, 128 + signal.SIGTERM})
"""Exit codes of an instance that stopped itself, or that was asked to stop and did so in good order."""


@dataclass(frozen=True)
class Sighting:
    """An instance as it is now. ``address`` is ``host:port`` while it is READY; ``reason`` is for people."""

    phase: Phase
    address: str = ""
    reason: str = ""


class Refused(InstanceFailed):
    """An instance was refused for certain: nothing runs. Any other failure leaves that open."""


@dataclass(frozen=True)
class Order:
    """An instance to start. The same project and generation mean the same instance, however often it is ordered."""

    project: Project
    generation: int
    sub: str
    """Who asked for it first, for the bill."""


@dataclass(frozen=True)
class Found:
    """An instance that exists, whoever started it."""

    instance: str
    project: Project
    generation: int


class Backend(Protocol):
    """Starts, shows and stops instances. Calls may block for some seconds; every one is limited in time."""

    def start(self, order: Order) -> str:
        """Start an instance and answer its id; does not wait until it is ready.

        Raises:
            Refused: it will not run, with the reason.
            InstanceFailed: it may or may not run; ordering the same generation again finds out.
        """
        ...

    def look(self, instance: str) -> Sighting:
        """How an instance is.

        Raises:
            InstanceFailed: it cannot be seen now, which says nothing about it.
        """
        ...

    def stop(self, instance: str, reason: str) -> None:
        """Ask an instance to end; one that is not there is fine."""
        ...

    def all(self) -> Sequence[Found]:
        """Every instance that is starting or running.

        Raises:
            InstanceFailed: they cannot be seen now.
        """
        ...
