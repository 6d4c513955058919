"""What every double of the sandbox has in common: fault knobs over HTTP, and a loopback server.

A double declares its knobs as a pydantic model. ``GET /_faults`` shows them, ``POST /_faults`` with a JSON object
changes the named ones and answers all, ``DELETE /_faults`` puts them back. A name that is no knob is a 422, so that
a misspelt fault never passes for a survived one. These routes work whatever the knobs say.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import uvicorn
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, ValidationError


class Knobs(BaseModel):
    """Base of a double's knobs; the defaults mean "nothing is wrong"."""

    model_config = ConfigDict(extra="forbid")

    slow_s: float = 0.0
    """Seconds that every request waits before it is looked at."""


K = TypeVar("K", bound=Knobs)


class Panel(Generic[K]):
    """The knobs of one running double."""

    def __init__(self, model: type[K]) -> None:
        self._model = model
        self.now: K = model()

    def turn(self, changes: dict[str, Any]) -> K:
        """Change the named knobs.

        Raises:
            ValidationError: pydantic's, for an unknown name or a value of the wrong type.
        """
        self.now = self._model.model_validate({**self.now.model_dump(), **changes})
        return self.now

    def reset(self) -> K:
        """Back to the defaults."""
        self.now = self._model()
        return self.now


def install(app: FastAPI, panel: Panel[K], *, turned: Callable[[K], None] | None = None) -> None:
    """Add the ``/_faults`` routes and the slowness to ``app``; ``turned`` hears of every change."""
    router = APIRouter()

    @router.get("/_faults")
    def show() -> dict[str, Any]:
        return panel.now.model_dump()

    @router.post("/_faults")
    async def change(request: Request) -> Response:
        try:
            knobs = panel.turn(await request.json())
        except ValidationError as error:
            return JSONResponse({"message": str(error)}, status_code=422)
        if turned is not None:
            turned(knobs)
        return JSONResponse(panel.now.model_dump())

    @router.delete("/_faults")
    def reset() -> dict[str, Any]:
        knobs = panel.reset()
        if turned is not None:
            turned(knobs)
        return knobs.model_dump()

    app.include_router(router)

    @app.middleware("http")
    async def slow(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if panel.now.slow_s and request.url.path != "/_faults":
            await asyncio.sleep(panel.now.slow_s)
        return await call_next(request)


def serve(app: FastAPI, port: int) -> None:
    """Serve ``app`` on the loopback address until SIGTERM or SIGINT."""
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=2)


def save(path: Path, text: str) -> None:
    """Write a small state file atomically, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)
