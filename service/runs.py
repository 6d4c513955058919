"""``/runs/…`` and ``/cluster``: what WES has no words for. Reasons, resuming, logs while they grow, events."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from bbpwf.cluster.control import AgentControl
from bbpwf.cluster.runs import MAX_PAGE, RunStore
from bbpwf.errors import ConnectionLost, InvalidInput, NotFound
from bbpwf.redact import Redactor
from service.access import Caller, caller, require_power
from service.following import Followers
from service.launches import Launches
from service.openapi import may, text
from service.pages import PageToken
from service.quick import looked_up
from service.views import run_view, task_view

T = TypeVar("T")

LOG_PIECE = 1024 * 1024
"""Most bytes of a log in one answer; the next offset says where to go on."""
MAX_OFFSET = 10**12
"""Bytes. Beyond what some file systems can have, asking for more is an error of theirs."""
MAX_THROTTLE = 1_000_000
EVENT_EVERY_S = 1.0
KEEPALIVE_EVERY = 15
"""A comment is sent after so many looks without news, so that proxies keep the stream open."""
_AGENT = (409, 502, 504)
"""What asking the agent may come to."""
_LOG = text("The piece.") | {206: {"description": "The range.", "content": text("")[200]["content"]}}
_EVENT = {"type": "object", "required": ["id", "event", "data"]} | {
    "properties": {
        "id": {"type": "string", "description": "For `Last-Event-ID`: holds over a restart of the service."},
        "event": {"enum": ["run", "job"]},
        "data": {"type": "string", "description": "JSON: the run, or the job."},
    }
}
_RANGE = re.compile(r"bytes=([0-9]{1,12})-([0-9]{0,15})\Z")


def router(store: RunStore, launches: Launches, control: AgentControl, redactor: Redactor, folders: Path) -> APIRouter:
    """The routes. ``folders`` is where runs have theirs on this machine."""
    routes = APIRouter(tags=["runs"])
    followers = Followers(redactor)

    @routes.get("/runs/{run_id}")
    def show(run_id: str) -> dict[str, Any]:
        """A run, with its reason and its outcome."""
        return run_view(store.get(run_id))

    @routes.post("/runs/{run_id}/resume", responses=may(409, 429))
    def resume(run_id: str, who: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
        """Queue a run that failed, was canceled or was paused again: what completed stays."""
        return run_view(launches.resume(run_id, who))

    @routes.post("/runs/{run_id}/pause", responses=may(409))
    def pause(run_id: str, who: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
        """Submit and begin nothing new for a run until it is resumed; jobs that the scheduler has go on."""
        return run_view(launches.pause(run_id, who))

    @routes.post("/runs/{run_id}/tasks/{task_id}/cancel", responses=may(*_AGENT))
    def cancel_task(run_id: str, task_id: str, who: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
        """Cancel a task's jobs, or one element's; idempotent. ``left`` is how many of them have not ended yet."""
        require_power(who, store.get(run_id).owner)
        keys = set(store.job_keys(run_id, task_id))
        if left := [job.key for job in store.jobs(run_id) if job.key in keys and not job.state.terminal]:
            control.cancel_run(run_id, left)
        return {"task_id": task_id, "jobs": len(keys), "left": len(left)}

    @routes.post("/runs/{run_id}/tasks/{task_id}/throttle", responses=may(*_AGENT))
    def throttle(
        run_id: str,
        task_id: str,
        limit: Annotated[int, Query(ge=0, le=MAX_THROTTLE)],
        who: Annotated[Caller, Depends(caller)],
    ) -> dict[str, Any]:
        """Let at most ``limit`` of a task's jobs run at once, also while they run; 0 lifts the limit."""
        require_power(who, store.get(run_id).owner)
        keys = store.job_keys(run_id, task_id)
        control.throttle(run_id, keys, limit)
        return {"task_id": task_id, "jobs": len(keys), "limit": limit}

    @routes.get("/runs/{run_id}/tasks")
    def tasks(
        run_id: str, page_size: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100, page_token: PageToken = ""
    ) -> dict[str, Any]:
        """The run's tasks with their states, each followed by its array's elements."""
        page, following = store.tasks(run_id, limit=page_size, token=page_token)
        return {"tasks": [task_view(task) for task in page], "next_page_token": following}

    @routes.get("/runs/{run_id}/log", responses=_LOG, response_class=PlainTextResponse)
    def engine_log(
        run_id: str,
        offset: Annotated[int | None, Query(ge=0, le=MAX_OFFSET)] = None,
        range_header: Annotated[str, Header(alias="Range")] = "",
    ) -> Response:
        """The log of the run's head: what the engine itself says."""
        store.get(run_id)
        start, limit = _window(offset, range_header)
        piece = _piece(folders / run_id / "head.log", start, limit)
        return _log_answer(piece, start, partial=bool(range_header), redactor=redactor)

    @routes.get("/runs/{run_id}/tasks/{task_id}/logs", responses=_LOG | may(*_AGENT), response_class=PlainTextResponse)
    def task_log(
        run_id: str,
        task_id: str,
        offset: Annotated[int | None, Query(ge=0, le=MAX_OFFSET)] = None,
        follow: bool = False,
        range_header: Annotated[str, Header(alias="Range")] = "",
    ) -> Response:
        """A job's log, also while it runs: at most 1 MiB from ``offset``; ``X-Next-Offset`` is where to go on.

        With ``follow``, all of it from there on, as it grows, until the job ends.
        """
        task = store.task(run_id, task_id)
        if not task.job_key:
            raise NotFound(f"task {task_id!r} has no job of its own, and so no log")
        start, limit = _window(offset, range_header)
        if follow:
            stream = followers.follow(
                lambda: store.job(run_id, task.job_key),
                lambda at: _asked(lambda: control.read_log(run_id, task.job_key, at, LOG_PIECE)),
                start,
            )
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(stream, media_type="text/plain; charset=utf-8", headers=headers)
        try:
            piece = _asked(lambda: control.read_log(run_id, task.job_key, start, limit))
        except NotFound:
            if task.started_at is not None:
                raise
            piece = b""  # it has not begun
        return _log_answer(piece, start, partial=bool(range_header), redactor=redactor)

    @routes.get(
        "/runs/{run_id}/events",
        responses={200: {"description": "A stream of events.", "content": {"text/event-stream": {"schema": _EVENT}}}},
        response_class=StreamingResponse,
    )
    async def events(
        run_id: str, request: Request, last_event_id: Annotated[str, Header(alias="Last-Event-ID")] = ""
    ) -> Response:
        """Server-sent events: ``run`` when its state or reason changes, ``job`` when a job does, until the run ends."""
        await run_in_threadpool(store.get, run_id)
        stream = _events(store, run_id, request, _seen(last_event_id))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    @routes.get("/cluster", responses=may(*_AGENT))
    def cluster() -> dict[str, Any]:
        """The project's cluster as the agent knows it now; asking starts nothing."""
        return _asked(control.cluster).model_dump(mode="json")

    return routes


def _asked(question: Callable[[], T]) -> T:
    """The agent's answer. A worker thread may hold a line to an agent that has been replaced: it asks once more."""
    try:
        return question()
    except ConnectionLost:
        return question()


def _window(offset: int | None, range_header: str) -> tuple[int, int]:
    if not range_header:
        return offset or 0, LOG_PIECE
    match = _RANGE.match(range_header.replace(" ", ""))
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        raise InvalidInput(f"the range {range_header[:40]!r} is not 'bytes=<first>-<last>' or 'bytes=<first>-'")
    start = int(match[1])
    return start, min(LOG_PIECE, int(match[2]) - start + 1) if match[2] else LOG_PIECE


def _piece(path: Path, start: int, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(limit)
    except FileNotFoundError:
        return b""


def _log_answer(piece: bytes, start: int, *, partial: bool, redactor: Redactor) -> Response:
    following = start + len(piece)
    headers = {"X-Next-Offset": str(following), "Cache-Control": "no-store"}
    if partial and piece:
        headers["Content-Range"] = f"bytes {start}-{following - 1}/*"
    text = redactor.mask(piece.decode(errors="replace"))
    status = 206 if partial and piece else 200
    return Response(text, status, headers, media_type="text/plain; charset=utf-8")


def _seen(last_event_id: str) -> int:
    return int(last_event_id) if last_event_id.isdigit() and len(last_event_id) < 19 else 0


async def _events(store: RunStore, run_id: str, request: Request, seen: int) -> AsyncIterator[str]:
    """Events from version ``seen`` of the run's jobs on. The run's own state is always told first."""
    told: tuple[str, str] | None = None
    quiet = 0
    pulse: Any = None
    while not await request.is_disconnected():
        before, pulse = pulse, await looked_up(store, lambda: store.pulse(run_id))
        if pulse == before:
            quiet += 1
            if quiet % KEEPALIVE_EVERY == 0:
                yield ": still here\n\n"
            await anyio.sleep(EVENT_EVERY_S)
            continue
        run = await run_in_threadpool(store.get, run_id)  # before the jobs: its end comes after theirs
        changed = [job for job in await run_in_threadpool(store.jobs, run_id) if job.version > seen]
        for job in sorted(changed, key=lambda each: each.version):
            seen = job.version
            yield _event("job", seen, job.model_dump(mode="json", exclude={"key", "stdout"}))
        now = (run.state.value, run.reason)
        if now != told:
            told = now
            yield _event("run", seen, run_view(run))
        if run.state.terminal:
            return
        await anyio.sleep(EVENT_EVERY_S)


def _event(kind: str, version: int, body: dict[str, Any]) -> str:
    return f"id: {version}\nevent: {kind}\ndata: {json.dumps(body)}\n\n"
