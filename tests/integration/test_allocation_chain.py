"""A chain of dependent tasks in one allocation, by Luigi, the agent, SSH and a real Slurm."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from luigi.task_register import Register

from bbpwf.states import JobState
from bbpwf.workflow.request import HeadRequest
from bbpwf.workflow.runner import run_local
from tests.support.agents import Site

pytestmark = pytest.mark.slurm

CHAIN = """
import luigi
from bbpwf.workflow import RemoteTarget, SbatchTask

class Link(SbatchTask):
    number = luigi.IntParameter()
    def requires(self): return [Link(self.number - 1)] if self.number else []
    def command(self):
        before = f"cat link.{self.number - 1}" if self.number else "true"
        return f"{before} > link.{self.number}; echo $SLURM_JOB_ID $SLURM_JOB_NAME >> link.{self.number}"
    def output(self): return RemoteTarget(f"link.{self.number}")
"""


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[str]:
    """The folder with the module ``chain_flow``; the module and its tasks are forgotten after the test."""
    folder = tmp_path / "attachments"
    folder.mkdir()
    (folder / "chain_flow.py").write_text(CHAIN)
    (folder / "chain.cfg").write_text("[DEFAULT]\nallocation = chain\nallocation_idle = 3600\ntime = 10\n")
    path, registered = list(sys.path), list(Register._reg)
    importlib.invalidate_caches()
    yield str(folder)
    sys.modules.pop("chain_flow", None)
    sys.path[:] = path
    Register._reg[:] = registered
    Register.clear_instance_cache()


def test_a_chain_runs_in_one_job_of_slurm_which_ends_with_its_run(slurm_site: Site, chain: str) -> None:
    agent = slurm_site.agent()
    request = HeadRequest(
        run_id="r1", module="chain_flow", task="Link", params={"number": 9}, attachments=chain, config="chain.cfg"
    )
    bound = agent.for_run("r1")
    outcome = run_local(bound, request)
    assert outcome.state == "COMPLETE", outcome.reason
    lines = bound.read("link.9").decode().splitlines()
    jobs = {view.key: view for view in bound.observe(0).jobs}
    (holder,) = [view for view in jobs.values() if view.task_id == "allocation chain"]
    assert lines == [f"{holder.scheduler_id} allocation chain"] * 10
    assert sorted(view.state for view in jobs.values() if view is not holder) == [JobState.COMPLETED] * 10
    assert holder.state is JobState.RUNNING, "more could follow"
    agent.release_run("r1")
    deadline = time.monotonic() + 30
    while not (end := agent.ledger.job(holder.key)[0]).state.terminal:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert end.state is JobState.COMPLETED
