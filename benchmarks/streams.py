"""Many readers of server-sent events at once: who hears of a change, and how late."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit


async def listen(
    origin: str, run_ids: Sequence[str], token: str, readers: int, change: Callable[[], Awaitable[None]], word: str
) -> tuple[float, list[float]]:
    """Open ``readers`` streams on runs in turn, then change something that each of them is to hear as ``word``.

    Returns:
        Seconds until all had their first event, and from the end of ``change`` to each one's news (0 if before).

    Raises:
        TimeoutError: somebody heard nothing for a minute.
    """
    address = urlsplit(origin)
    opened = asyncio.Barrier(readers + 1)
    changed: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def reader(number: int) -> float:
        source, sink = await asyncio.open_connection(address.hostname, address.port)
        path = f"/runs/{run_ids[number % len(run_ids)]}/events"
        head = f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {token}\r\n\r\n"
        sink.write(head.encode())
        status = await source.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"{path}: {status.decode()}")
        await _until(source, b"event: run")
        await opened.wait()
        await _until(source, word.encode())
        heard = time.monotonic()
        sink.close()
        return heard - await changed

    began = time.monotonic()
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        tasks = [group.create_task(reader(number)) for number in range(readers)]
        await opened.wait()
        ready = time.monotonic() - began
        await change()
        changed.set_result(time.monotonic())
    return ready, [max(0.0, task.result()) for task in tasks]


async def _until(source: asyncio.StreamReader, word: bytes) -> None:
    async with asyncio.timeout(60):
        while word not in (line := await source.readline()):
            if not line:
                raise RuntimeError(f"a stream ended before {word.decode()}")
