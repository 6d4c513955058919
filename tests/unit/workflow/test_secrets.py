"""What tasks say of their failures is read by everybody of the project: without what they were given."""

from __future__ import annotations

import pytest

from bbpwf.workflow.request import Failure, Outcome
from tests.unit.workflow.conftest import Bench

TOKEN = f"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.{'c2lnbmF0dXJl' * 300}"
FLOW = f"""
import luigi
from bbpwf.errors import InvalidInput

def fail():
    raise RuntimeError("nobody takes {TOKEN}")

class Runs(luigi.Task):
    def run(self): fail()
    def complete(self): return False

class Requires(luigi.Task):
    def requires(self): fail()
    def complete(self): return False

class Completes(luigi.Task):
    def complete(self): fail()

class Says(luigi.Task):
    def complete(self): raise InvalidInput("nobody takes {TOKEN}")
"""


@pytest.mark.parametrize("task", ["Runs", "Requires", "Completes", "Says"])
def test_a_token_in_an_exception_is_not_passed_on(bench: Bench, task: str) -> None:
    agent = bench.agent()
    outcome = bench.run(agent, bench.module("telling", FLOW), task)
    assert outcome.state in {"EXECUTOR_ERROR", "SYSTEM_ERROR"}
    told = [*(each.message for each in agent.report_log), outcome.model_dump_json()]
    assert any("nobody takes [redacted]" in each for each in told)
    assert not [each for each in told if TOKEN[60:90] in each]


def test_an_outcome_is_masked_whole() -> None:
    failure = Failure(task_id="T", label="secret 1", reason="secret 2", log_tail="secret 3", exit_code=7)
    masked = Outcome(state="EXECUTOR_ERROR", reason="secret 0", failed=(failure,)).masked(
        lambda text: text.replace("secret", "-")
    )
    assert (masked.state, masked.reason) == ("EXECUTOR_ERROR", "- 0")
    assert masked.failed == (Failure(task_id="T", label="- 1", reason="- 2", log_tail="- 3", exit_code=7),)
