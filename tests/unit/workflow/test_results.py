"""The queue on which a worker waits: woken from other threads until, and while, it is closed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import pytest

from bbpwf.workflow.results import ResultQueue


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
def test_waking_while_it_is_closed_neither_fails_nor_writes_into_another_file() -> None:
    for _ in range(200):
        results = ResultQueue(lambda idle: None, lambda: None)
        errors: list[BaseException] = []
        closed = threading.Event()
        ringing = threading.Event()

        def ring(
            results: ResultQueue = results,
            errors: list[BaseException] = errors,
            closed: threading.Event = closed,
            ringing: threading.Event = ringing,
        ) -> None:
            try:
                while not closed.is_set():
                    results.wake()
                    ringing.set()
            except BaseException as error:  # noqa: BLE001 told by the test
                errors.append(error)

        thread = threading.Thread(target=ring)
        thread.start()
        assert ringing.wait(60)
        results.close()
        bell, rope = os.pipe()  # these have the numbers that were just given back
        closed.set()
        thread.join(60)
        os.set_blocking(bell, False)
        with pytest.raises(BlockingIOError):
            os.read(bell, 1)
        os.close(bell)
        os.close(rope)
        assert errors == []
