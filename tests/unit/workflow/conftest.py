"""Task modules written by tests, and a run around an agent in memory."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from luigi.task_register import Register

from bbpwf.workflow.request import HeadRequest, Outcome
from bbpwf.workflow.runner import Cancellation, run_local
from tests.support.agent import MemoryAgent


@dataclass
class Bench:
    """A place to write task modules and to run them."""

    path: Path
    agents: list[MemoryAgent] = field(default_factory=list)

    @property
    def attachments(self) -> Path:
        return self.path / "attachments"

    def module(self, name: str, text: str) -> str:
        self.attachments.mkdir(exist_ok=True)
        (self.attachments / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return name

    def agent(self, **more: Any) -> MemoryAgent:
        made = MemoryAgent(self.path / "disk", **more)
        self.agents.append(made)
        return made

    def request(self, module: str, task: str, **more: Any) -> HeadRequest:
        values = {"run_id": "r1", "attachments": str(self.attachments), "workers": 2} | more
        return HeadRequest(module=module, task=task, **values)

    def run(
        self,
        agent: MemoryAgent,
        module: str,
        task: str,
        *,
        cancellation: Cancellation | None = None,
        output_patience: float = 0.5,
        **more: Any,
    ) -> Outcome:
        return run_local(
            agent,
            self.request(module, task, **more),
            cancellation=cancellation,
            output_patience=output_patience,
            cancel_patience=20.0,
        )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Modules and tasks that a test defines are forgotten after it."""
    modules, path, registered = set(sys.modules), list(sys.path), list(Register._reg)
    made = Bench(tmp_path)
    yield made
    for agent in made.agents:
        agent.close()
    for name, module in list(sys.modules.items()):
        if name not in modules and str(getattr(module, "__dict__", {}).get("__file__", "")).startswith(str(tmp_path)):
            sys.modules.pop(name, None)
    sys.path[:] = path
    Register._reg[:] = registered
    Register.clear_instance_cache()


@pytest.fixture
def poll() -> Callable[[Callable[[], bool]], None]:
    """Wait until something is true, for at most 30 seconds."""
    import time

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30.0
        while not condition():
            assert time.monotonic() < deadline, "it did not come true within 30 s"
            time.sleep(0.02)

    return wait
