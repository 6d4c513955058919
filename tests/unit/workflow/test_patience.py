"""An agent or a cluster that is away for a while, and for good."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bbpwf.errors import BbpwfError, ConnectFailed, ConnectionLost, LoginRefused, NotFound
from bbpwf.transport.protocol import Completed, FileStat
from bbpwf.workflow.patience import CREATION_PATIENCE, PATIENCE, AgentGone, PatientAgent
from tests.support.agent import MemoryAgent
from tests.support.clock import ManualClock

SOCKET = Path("/run/agent.sock")


class Flaky(MemoryAgent):
    """Fails with the given errors, then answers."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.errors: Iterator[BbpwfError | None] = iter(())

    def _fail(self) -> None:
        error = next(self.errors, None)
        if error is not None:
            raise error

    def stat(self, paths: object, *, cluster: str = "default") -> list[FileStat | None]:
        self.calls["stat"] += 1
        self._fail()
        return [None]

    def run(self, argv: object, *, cluster: str = "default", stdin: bytes = b"", timeout: float = 60.0) -> Completed:
        self.calls["run"] += 1
        self._fail()
        return Completed(0, b"", b"")


@pytest.fixture
def flaky(tmp_path: Path) -> Iterator[Flaky]:
    made = Flaky(tmp_path)
    yield made
    made.close()


def _away(kind: type[BbpwfError] = ConnectFailed, where: str = str(SOCKET)) -> BbpwfError:
    return kind("nobody answers", where=where)


def _forever(error: BbpwfError) -> Iterator[BbpwfError]:
    while True:
        yield error


def test_a_restart_of_the_agent_is_waited_for(flaky: Flaky) -> None:
    clock = ManualClock()
    flaky.errors = iter([_away(ConnectionLost), _away(), _away(), None])
    assert PatientAgent(flaky, clock, socket_path=SOCKET).stat(["a"]) == [None]
    assert flaky.calls["stat"] == 4


def test_an_agent_that_stays_away_ends_the_head_and_not_the_task(flaky: Flaky) -> None:
    clock = ManualClock()
    flaky.errors = _forever(_away())
    begun = clock.monotonic()
    with pytest.raises(AgentGone) as caught:
        PatientAgent(flaky, clock, socket_path=SOCKET).stat(["a"])
    assert not isinstance(caught.value, Exception)
    assert PATIENCE * 0.9 <= clock.monotonic() - begun <= PATIENCE


def test_a_lost_cluster_is_waited_for_then_reported_as_it_is(flaky: Flaky) -> None:
    flaky.errors = iter([_away(ConnectionLost, "sim@head:22"), None])
    assert PatientAgent(flaky, ManualClock(), socket_path=SOCKET).stat(["a"]) == [None]
    flaky.errors = _forever(_away(ConnectFailed, "sim@head:22"))
    with pytest.raises(ConnectFailed):
        PatientAgent(flaky, ManualClock(), socket_path=SOCKET).stat(["a"])


def test_a_cluster_that_is_being_made_is_waited_for_much_longer(flaky: Flaky) -> None:
    clock = ManualClock()
    flaky.errors = _forever(_away(ConnectFailed, "sim@head:22"))
    flaky.state = "creating"
    begun = clock.monotonic()
    with pytest.raises(ConnectFailed):
        PatientAgent(flaky, clock, socket_path=SOCKET).stat(["a"])
    assert clock.monotonic() - begun >= CREATION_PATIENCE * 0.9


@pytest.mark.parametrize("kind", [LoginRefused, NotFound])
def test_what_will_not_get_better_is_not_tried_again(flaky: Flaky, kind: type[BbpwfError]) -> None:
    flaky.errors = _forever(kind("no", where="sim@head:22"))
    with pytest.raises(kind):
        PatientAgent(flaky, ManualClock(), socket_path=SOCKET).stat(["a"])
    assert flaky.calls["stat"] == 1


def test_a_command_that_may_have_run_is_not_run_again(flaky: Flaky) -> None:
    flaky.errors = iter([_away(), _away(ConnectionLost), None])
    with pytest.raises(ConnectionLost):
        PatientAgent(flaky, ManualClock(), socket_path=SOCKET).run(["rm"])
    assert flaky.calls["run"] == 2, "the first try did not reach anybody, the second may have"


def test_a_wait_ends_when_the_run_is_canceled(flaky: Flaky) -> None:
    class Enough(BaseException):
        pass

    def interrupt() -> None:
        raise Enough

    flaky.errors = _forever(_away())
    patient = PatientAgent(flaky, ManualClock(), socket_path=SOCKET)
    patient.interrupt = interrupt
    with pytest.raises(Enough):
        patient.stat(["a"])
