"""Answers that are asked for hundreds of times a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from bbpwf.cluster.runs import RunStore

T = TypeVar("T")


async def looked_up(store: RunStore, look: Callable[[], T]) -> T:
    """What ``look`` answers, which asks the store for no more than a state, a list or counts.

    An embedded database answers in ten microseconds, and a worker thread would add a hundred; another is asked in one.
    """
    return look() if store.embedded else await run_in_threadpool(look)


def ready(body: object) -> JSONResponse:
    """``body``, which is JSON already, as an answer: the framework does not walk through it again."""
    return JSONResponse(body)
