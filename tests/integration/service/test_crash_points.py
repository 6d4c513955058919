"""A service that dies right before or after it records that a run moved on: the next one takes the run to its end."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from bbpwf import faults
from tests.integration.service.conftest import Service, wait_until


@pytest.mark.parametrize("armed", ["runs.move.before=1", "runs.move.after=2", "runs.move.before=3"])
def test_a_run_survives_the_death_of_the_service_at_its_commit_points(
    make_service: Callable[..., Service], armed: str
) -> None:
    service = make_service(**{faults.VARIABLE: armed})
    service.start()
    run_id = service.launch(who="hana", seconds=1)
    assert service.running is not None
    dying = service.running.popen
    wait_until("the service dies there", lambda: dying.poll() is not None)
    assert dying.returncode == -signal.SIGKILL
    service.running = None
    service.changes = {}
    service.start()
    run = service.ended(run_id)
    assert (run["state"], run["incarnation"]) == ("COMPLETE", 1), run
    assert (service.data(run_id) / "ran-hana").read_text() == "once\n"
    service.stop()
