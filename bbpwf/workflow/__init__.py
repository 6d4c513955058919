"""Task authors start here: what a task needs and what it makes; nothing else. The only importer of Luigi.

::

    import luigi
    from bbpwf.workflow import RemoteTarget, SbatchTask
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bbpwf.workflow.arrays import ArrayTask as ArrayTask
    from bbpwf.workflow.arrays import Element as Element
    from bbpwf.workflow.context import RunContext as RunContext
    from bbpwf.workflow.context import current as current
    from bbpwf.workflow.hetjobs import Component as Component
    from bbpwf.workflow.hetjobs import HetJobTask as HetJobTask
    from bbpwf.workflow.parameters import AllocationParameters as AllocationParameters
    from bbpwf.workflow.parameters import EnvironmentParameters as EnvironmentParameters
    from bbpwf.workflow.parameters import ResourceParameters as ResourceParameters
    from bbpwf.workflow.targets import NexusTarget as NexusTarget
    from bbpwf.workflow.targets import RemoteTarget as RemoteTarget
    from bbpwf.workflow.targets import existence as existence
    from bbpwf.workflow.targets import prefetched as prefetched
    from bbpwf.workflow.tasks import SbatchTask as SbatchTask
    from bbpwf.workflow.tasks import SrunTask as SrunTask

_HOMES = {
    "ArrayTask": "arrays",
    "Element": "arrays",
    "RunContext": "context",
    "current": "context",
    "AllocationParameters": "parameters",
    "Component": "hetjobs",
    "EnvironmentParameters": "parameters",
    "HetJobTask": "hetjobs",
    "ResourceParameters": "parameters",
    "NexusTarget": "targets",
    "RemoteTarget": "targets",
    "existence": "targets",
    "prefetched": "targets",
    "SbatchTask": "tasks",
    "SrunTask": "tasks",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 one list, and it is the one above


def __getattr__(name: str) -> Any:
    """Import on first use: who needs only the request's types does not load Luigi."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
