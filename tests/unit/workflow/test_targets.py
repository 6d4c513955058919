"""Remote files as tasks use them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bbpwf.errors import Conflict, InvalidInput, LimitExceeded, NotFound
from bbpwf.workflow.context import RunContext, activated, current
from bbpwf.workflow.request import HeadRequest
from bbpwf.workflow.targets import (
    WRITE_CAP,
    RemoteTarget,
    absence_remembered,
    absent,
    existence,
    prefetched,
)
from tests.support.agent import MemoryAgent


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[MemoryAgent]:
    made = MemoryAgent(tmp_path / "disk")
    with activated(RunContext(made, HeadRequest(run_id="r1", module="m", task="T"))):
        yield made
    made.close()


def test_text_and_bytes_go_there_and_come_back(agent: MemoryAgent) -> None:
    target = RemoteTarget("a/b.txt")
    assert not target.exists()
    with target.open("w") as file:
        file.write("Å cell\n")
        assert not target.exists(), "nothing is there until it is whole"
    assert target.exists()
    with target.open() as file:
        assert file.readlines() == ["Å cell\n"]
    with target.open("wb") as file:
        file.write(b"\x00\xff")
    assert target.open("rb").read() == b"\x00\xff"
    assert agent.file("a/b.txt").read_bytes() == b"\x00\xff"
    target.remove()
    assert not target.exists()


def test_a_block_that_fails_writes_nothing(agent: MemoryAgent) -> None:
    target = RemoteTarget("a.txt")

    def broken(mode: str) -> None:
        with target.open(mode) as file:
            file.write("x" if mode == "w" else b"x")
            raise RuntimeError("in the middle")

    for mode in ("w", "wb"):
        with pytest.raises(RuntimeError):
            broken(mode)
    forgotten = target.open("w")
    forgotten.write("x")
    del forgotten
    assert not target.exists()


def test_limits_and_nonsense(agent: MemoryAgent) -> None:
    target = RemoteTarget("a.bin")
    with pytest.raises(NotFound):
        target.open()
    with pytest.raises(LimitExceeded):
        target.write_bytes(b"x" * (WRITE_CAP + 1))
    target.write_bytes(b"x" * 1000)
    assert len(target.read_bytes(cap=1000)) == 1000
    with pytest.raises(LimitExceeded, match=r"a\.bin is larger than 999 bytes"):
        target.read_bytes(cap=999)
    with pytest.raises(InvalidInput):
        target.open("a")
    with pytest.raises(InvalidInput):
        RemoteTarget("")


def test_many_are_looked_up_at_once_and_the_look_ends_with_its_block(agent: MemoryAgent) -> None:
    targets = [RemoteTarget(f"f{i}") for i in range(100)]
    targets[7].write_text("x")
    assert [i for i, there in enumerate(existence(targets)) if there] == [7]
    assert agent.calls["exists"] == 1
    assert len(absent(targets)) == 99
    with prefetched(targets):
        before = agent.calls["exists"]
        assert targets[7].exists()
        assert existence(targets[:50]).count(True) == 1
        assert agent.calls["exists"] == before
    targets[8].write_text("x")
    assert targets[8].exists()


def test_nothing_is_looked_for_in_a_folder_that_was_not_there(agent: MemoryAgent) -> None:
    agent.file("here").mkdir()
    agent.file("here/a").touch()
    outside = agent.root / "elsewhere"
    outside.mkdir()
    (outside / "a").touch()
    with absence_remembered():
        assert existence([RemoteTarget("gone/a"), RemoteTarget("here/a")]) == [False, True]
        before = agent.calls["exists"]
        assert (
            existence([RemoteTarget("gone/b"), RemoteTarget("gone/deeper/c"), RemoteTarget("gone/./d")]) == [False] * 3
        )
        assert agent.calls["exists"] == before
        assert existence([RemoteTarget(f"{outside}/a"), RemoteTarget("here/../here/a"), RemoteTarget("here/b")]) == [
            *(True, True, False)
        ]
        assert existence([RemoteTarget("."), RemoteTarget("/")]) == [True, True]
        agent.file("gone").mkdir()
        agent.file("gone/b").touch()
    assert existence([RemoteTarget("gone/b")]) == [True]


def test_paths_from_the_root(agent: MemoryAgent) -> None:
    assert RemoteTarget("a/b").absolute == f"{agent.root}/runs/r1/a/b"
    assert RemoteTarget("/obi/circuit.json").absolute == "/obi/circuit.json"
    agent.file("d").mkdir()
    assert RemoteTarget("d").exists()
    assert str(RemoteTarget("x", cluster="local")) == "local:x"
    assert RemoteTarget("x") == RemoteTarget("x") != RemoteTarget("x", cluster="local")


def test_outside_a_run_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="bbpwf run MODULE TASK"):
        RemoteTarget("x").exists()
    with pytest.raises(InvalidInput):
        current()


def test_a_process_works_for_one_run_at_a_time(agent: MemoryAgent) -> None:
    other = RunContext(agent, HeadRequest(run_id="r2", module="m", task="T"))
    with pytest.raises(Conflict, match="already works for run r1"), activated(other):
        pass
