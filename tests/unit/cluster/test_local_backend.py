"""Processes that an agent started in the moment before it was killed: the next agent starts none of them again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bbpwf.cluster.backend import Entry, Submission
from bbpwf.cluster.jobs import Resources
from bbpwf.cluster.local_backend import LocalBackend
from bbpwf.cluster.spool import Folder
from bbpwf.states import JobState
from bbpwf.transport.local import LocalTransport

DYING_AGENT = """
import sys, time
from bbpwf import faults
from tests.unit.cluster.test_local_backend import backend, submission
from pathlib import Path
faults.arm("local.started=1")
backend().submit([submission(Path(sys.argv[1]))])
time.sleep(60)
"""


def backend() -> LocalBackend:
    return LocalBackend(LocalTransport(), slots=4)


def submission(folder: Path) -> Submission:
    script = f"echo ran >>{folder}/tally; while [ ! -e {folder}/enough ]; do sleep 0.05; done"
    return Submission(Folder(str(folder / "spool"), "b1"), (script,), "job", Resources())


def ended(made: LocalBackend) -> list[Entry]:
    """What the queue shows once nothing waits or runs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        entries = made.queue()
        if all(entry.state is not None and entry.state.terminal for entry in entries):
            return entries
        time.sleep(0.05)
    pytest.fail(f"still there: {made.queue()}")


def until(found: Path) -> None:
    deadline = time.monotonic() + 60
    while not found.exists():
        assert time.monotonic() < deadline, f"{found} does not appear"
        time.sleep(0.05)


@pytest.fixture
def orphaned(tmp_path: Path) -> Path:
    """A folder in which a killed agent has just started its one job."""
    died = subprocess.run(
        [sys.executable, "-c", DYING_AGENT, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    return tmp_path


def test_a_job_that_a_killed_agent_had_just_started_runs_once(orphaned: Path) -> None:
    made = backend()
    made.readopt([submission(orphaned)])
    until(orphaned / "tally")
    assert [entry.state for entry in made.queue()] == [JobState.RUNNING]
    (orphaned / "enough").touch()
    assert ended(made) == [], "its exit record says how it ended"
    assert (orphaned / "spool/batches/b1/exit.0.0").read_text().split()[5] == "0"
    assert (orphaned / "tally").read_text() == "ran\n"
    made.close()


def test_a_job_that_a_killed_agent_had_just_started_can_be_cancelled(orphaned: Path) -> None:
    made = backend()
    made.readopt([submission(orphaned)])
    made.cancel(["b1"])
    assert {entry.state for entry in ended(made)} == {JobState.CANCELLED}
    made.close()
    record = orphaned / "spool/batches/b1/exit.0.0"
    assert not record.exists() or record.read_text().split()[6] == "15"


def test_a_full_disk_delays_a_start(tmp_path: Path) -> None:
    made = backend()
    asked = submission(tmp_path)
    (tmp_path / "enough").touch()
    log = tmp_path / "spool/batches/b1/log.0"
    log.mkdir(parents=True)  # what cannot be opened for writing
    made.submit([asked])
    assert [entry.state for entry in made.queue()] == [JobState.QUEUED]
    log.rmdir()
    assert ended(made) == []
    assert (tmp_path / "tally").read_text() == "ran\n"
    made.close()
