"""The demo as a stranger runs it: every floor of the house, from a user's token to the knowledge graph."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sandbox import lifecycle
from sandbox.layout import Layout, software_environment
from sandbox.pids import belonging

COMMAND = (sys.executable, "-m", "bbpwf.cli.main", "sandbox", "demo")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path.resolve()
    lifecycle.down(tmp_path.resolve(), lambda _: None)


@pytest.fixture(autouse=True)
def _software() -> None:
    assert (software_environment() / "bin" / "python").exists(), "`make software` builds what simulations need"


def demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = (*COMMAND, "--dir", str(folder), *options)
    return subprocess.run(argv, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.slurm
def test_one_point_fails_is_named_and_the_rest_is_not_run_again(folder: Path) -> None:
    done = demo(folder, "--fail-point", "3", "--resume", "--down")
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    assert "EXECUTOR_ERROR" in said
    assert re.search(r"3: stimulus_amplitude=\S+ extracellular_calcium=\S+ seed=\S+: exit code 17", said)
    assert "| fault drill" in said  # the last lines of its log
    resumed = said[said.index("resuming") :]
    with closing(sqlite3.connect(Layout(folder).service_state / "bbpwf.db")) as ledger:
        tried = ledger.execute(
            "select attempt, count(*) from jobs where name = 'RunCampaign' group by attempt"
        ).fetchall()
    assert dict(tried) == {1: 23, 2: 1}
    assert "24 of 24 simulations complete." in resumed
    assert len(re.findall(r"sha256 [0-9a-f]{64}\n\s+s3://scratch-bucket/\S+/campaigns/demo-", resumed)) == 6
    assert "Not as it should be" not in said
    (plot,) = re.findall(r"plot: (\S+/raster\.png)", said)
    assert Path(plot).read_bytes().startswith(b"\x89PNG")
    logins = (folder / "ssh" / "sshd.log").read_text().count("Accepted publickey")
    assert logins <= 4  # the agent's one, and the archive's
    assert belonging(folder) == []


def test_without_slurm_it_does_the_same_with_local_processes(folder: Path) -> None:
    done = demo(folder, "--backend", "local")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "jobs run as local processes" in done.stdout
    assert "24 of 24 simulations complete." in done.stdout
    assert "6. Uploaded: " in done.stdout
    assert f"bbpwf sandbox down --dir {folder}" in done.stdout
    assert lifecycle.down(folder, lambda _: None) > 0
    assert belonging(folder) == []


def test_a_point_that_does_not_exist_is_refused_before_anything_starts(folder: Path) -> None:
    done = demo(folder, "--fail-point", "24")
    assert done.returncode != 0
    assert "0 to 23" in done.stderr
    assert not (folder / "sandbox.json").exists()
