"""``/tasks``: what can be launched, with parameters that a form can be drawn from."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from service.catalogue import Catalogue
from service.launches import workflow_url


def router(catalogue: Catalogue) -> APIRouter:
    """The routes. Looking at task modules takes a worker thread, not the event loop."""
    routes = APIRouter(tags=["tasks"])

    @routes.get("/tasks")
    def list_tasks() -> dict[str, Any]:
        """Every task on offer; ``errors`` has the modules that could not be imported."""
        return catalogue.tasks()

    @routes.get("/tasks/{name}")
    def show_task(name: str) -> dict[str, Any]:
        """One task, by ``module:Task``."""
        return catalogue.task(workflow_url(name))

    return routes
