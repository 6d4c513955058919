"""How many runs may be unfinished at once, also when many are launched at one moment."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from bbpwf.clock import SystemClock
from bbpwf.cluster.database import open_database
from bbpwf.cluster.quota import Quota
from bbpwf.cluster.runs import Owner, RunRequest, RunStore
from bbpwf.errors import TooManyRuns
from bbpwf.states import RunState

REQUEST = RunRequest(workflow_url="m:T")
ANN, BEN = Owner(sub="ann"), Owner(sub="ben")


@pytest.fixture
def store(database_url: str) -> Iterator[RunStore]:
    database = open_database(database_url)
    yield RunStore(database, SystemClock(), quota=Quota(total=5, per_user=3))
    database.close()


def test_a_place_is_free_again_when_a_run_has_ended(store: RunStore) -> None:
    mine = [store.create(REQUEST, ANN) for _ in range(3)]
    with pytest.raises(TooManyRuns, match="3 unfinished"):
        store.create(REQUEST, ANN)
    store.move(mine[0].run_id, RunState.PAUSED)
    with pytest.raises(TooManyRuns):
        store.create(REQUEST, ANN)
    store.move(mine[1].run_id, RunState.CANCELED)
    store.create(REQUEST, ANN)
    with pytest.raises(TooManyRuns):
        store.resume(mine[1].run_id)
    store.resume(mine[0].run_id)  # it had its place all the time


def test_all_users_together_have_a_limit_too(store: RunStore) -> None:
    for owner in (ANN, ANN, ANN, BEN, BEN):
        store.create(REQUEST, owner)
    with pytest.raises(TooManyRuns, match="the project has 5"):
        store.create(REQUEST, BEN)


def test_a_repeated_launch_is_answered_beyond_the_limit(store: RunStore) -> None:
    first = store.create(REQUEST, ANN, "key")
    for _ in range(2):
        store.create(REQUEST, ANN)
    assert store.create(REQUEST, ANN, "key").run_id == first.run_id


def test_nobody_slips_in_among_many(store: RunStore) -> None:
    def launch(_: int) -> bool:
        try:
            store.create(REQUEST, ANN)
        except TooManyRuns:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(launch, range(64))) == 3
    assert store.counts()[RunState.QUEUED] == 3
