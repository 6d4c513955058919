"""Fixtures that more than one kind of test shares."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agents import Site
from tests.support.clusters import RealCluster, real_cluster


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[RealCluster]:
    """One real Slurm for all tests that do not break it."""
    with real_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def accounted_cluster() -> Iterator[RealCluster]:
    """The same, with accounting."""
    with real_cluster(with_accounting=True) as cluster:
        yield cluster


@pytest.fixture
def accounted_site(accounted_cluster: RealCluster, tmp_path: Path) -> Iterator[Site]:
    """A ledger of its own on the Slurm that keeps accounting."""
    settings = accounted_cluster.settings(secrets.token_hex(4))
    site = Site(tmp_path, settings, lambda: accounted_cluster.connector(settings))
    yield site
    site.close()


@pytest.fixture
def slurm_site(shared_cluster: RealCluster, tmp_path: Path) -> Iterator[Site]:
    """A ledger of its own on the shared Slurm."""
    settings = shared_cluster.settings(secrets.token_hex(4))
    site = Site(tmp_path, settings, lambda: shared_cluster.connector(settings))
    yield site
    site.close()
