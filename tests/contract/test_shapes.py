"""Shapes of jobs beyond one script with its options: what each backend runs, and what it refuses in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from bbpwf.cluster.agent import BoundAgent
from bbpwf.cluster.connectors import LocalConnector
from bbpwf.cluster.jobs import Component, Resources
from bbpwf.settings import ClusterSettings
from bbpwf.states import JobState
from tests.support.agents import Site, spec, wait_ended, wait_for
from tests.support.clusters import RealCluster

APPTAINER = """#!/bin/bash
# What `apptainer exec` does with its words, without the container: says them, then runs the command in --pwd.
[ "$1" = exec ] || exit 255
shift
while [ $# -gt 0 ]; do
    case $1 in
        --bind=*) [ -d "${1#*=}" ] || exit 255; echo "bind ${1#*=}" ;;
        --pwd=*) cd "${1#*=}" || exit 255 ;;
        -*) exit 255 ;;
        *) break ;;
    esac
    shift
done
echo "image $1"
shift
exec "$@"
"""

MODULE = """
module() { # as Environment Modules: load NAME… runs the files of that name below MODULEPATH
    local name
    [ "$1" = load ] || return 1
    shift
    for name in "$@"; do
        [ -f "$MODULEPATH/$name" ] || { echo "ERROR: Unable to locate a modulefile for '$name'" >&2; return 1; }
        . "$MODULEPATH/$name"
    done
}
"""


def install(software: Path) -> None:
    """Put the container double where a cluster's software environment is."""
    (software / "bin").mkdir(parents=True)
    (software / "bin" / "apptainer").write_text(APPTAINER)
    (software / "bin" / "apptainer").chmod(0o755)


@pytest.fixture
def local_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """This machine, whose login knows environment modules."""
    software, modules = tmp_path / "software", tmp_path / "modules"
    install(software)
    define_modules(modules)
    monkeypatch.setenv("MODULESHOME", str(modules / "home"))
    monkeypatch.setenv("MODULEPATH", str(modules / "files"))
    settings = ClusterSettings(
        kind="local", data_root=str(tmp_path / "data"), max_local_jobs=4, poll_s=1, software=str(software)
    )
    site = Site(tmp_path, settings, lambda: LocalConnector(settings))
    yield site
    site.close()


@pytest.fixture
def slurm_site(shared_cluster: RealCluster, tmp_path: Path) -> Iterator[Site]:
    """A Slurm whose login knows environment modules."""
    software, modules = tmp_path / "software", tmp_path / "modules"
    install(software)
    define_modules(modules)
    profile = shared_cluster.profile
    before = profile.read_text()
    home, files = modules / "home", modules / "files"
    profile.write_text(f"{before}\nexport MODULESHOME='{home}' MODULEPATH='{files}'\n")
    settings = shared_cluster.settings(tmp_path.name).model_copy(update={"software": str(software)})
    site = Site(tmp_path, settings, lambda: shared_cluster.connector(settings))
    yield site
    site.close()
    profile.write_text(before)


def define_modules(folder: Path) -> None:
    """A module command in the place that both Environment Modules and Lmod use, and one module."""
    (folder / "home" / "init").mkdir(parents=True)
    (folder / "home" / "init" / "bash").write_text(MODULE)
    (folder / "files").mkdir()
    (folder / "files" / "neuron").write_text("export NEURON_VERSION=8.2; PATH=/opt/neuron/bin:$PATH\n")


@pytest.fixture(params=["local", pytest.param("slurm", marks=pytest.mark.slurm)])
def site(request: pytest.FixtureRequest) -> Site:
    found: Site = request.getfixturevalue(f"{request.param}_site")
    return found


@pytest.fixture
def agent(site: Site) -> BoundAgent:
    return site.agent().for_run("r1")


@pytest.fixture
def slurm(slurm_site: Site) -> BoundAgent:
    return slurm_site.agent().for_run("r1")


def log_of(agent: BoundAgent, key: str) -> list[str]:
    view = wait_ended(agent, [key])[key]
    lines = agent.read(view.stdout).decode().splitlines()
    assert view.state is JobState.COMPLETED, (view.reason, lines)
    return lines


def test_a_container_sees_the_data_and_starts_in_the_working_folder(agent: BoundAgent) -> None:
    root = agent.cluster().data_root
    job = spec("r1", "T", 'pwd; echo "$GREETING"', container="/images/a b.sif", workdir="sub", env=[["GREETING", "hi"]])
    agent.submit([job])
    lines = log_of(agent, job.key)
    assert lines == [f"bind {root}", "image /images/a b.sif", f"{root}/runs/r1/sub", "hi"]


def test_a_container_sees_a_working_folder_outside_the_data_too(agent: BoundAgent, tmp_path: Path) -> None:
    job = spec("r1", "T", "pwd", container="a.sif", workdir=str(tmp_path / "elsewhere"), launcher="srun")
    agent.submit([job])
    assert log_of(agent, job.key)[1:] == [f"bind {tmp_path}/elsewhere", "image a.sif", f"{tmp_path}/elsewhere"]


def test_modules_are_loaded_before_the_script_and_lead_its_path(agent: BoundAgent) -> None:
    job = spec("r1", "T", 'echo "$NEURON_VERSION ${PATH%%:*}"', modules=["neuron"])
    agent.submit([job])
    assert log_of(agent, job.key) == ["8.2 /opt/neuron/bin"]


def test_a_module_that_is_not_there_is_named_as_the_cause(agent: BoundAgent) -> None:
    job = spec("r1", "T", "echo not reached", modules=["neuron", "nonesuch"])
    agent.submit([job])
    view = wait_ended(agent, [job.key])[job.key]
    assert (view.state, view.reason) == (
        JobState.FAILED,
        "a software module could not be loaded (exit code 71)",
    )
    assert "'nonesuch'" in agent.read(view.stdout).decode()


@pytest.mark.parametrize(
    ("asked", "others"),
    [
        ({"dependency": "afterok:1"}, []),
        ({"gpus": 1}, []),
        ({}, [Component(script="true")]),
    ],
)
def test_what_this_machine_cannot_do_is_refused(
    local_site: Site, asked: dict[str, object], others: list[Component]
) -> None:
    agent = local_site.agent().for_run("r1")
    job = spec("r1", "T", "true", resources=Resources.model_validate(asked), others=others)
    agent.submit([job])
    view = wait_ended(agent, [job.key])[job.key]
    assert view.state is JobState.REJECTED
    assert view.reason.startswith("the local backend has no")


@pytest.mark.slurm
def test_components_run_at_once_each_on_resources_of_its_own(slurm: BoundAgent) -> None:
    wait = "touch here.$1; for ((i = 0; i < 600; i++)); do [ -e here.$2 ] && break; sleep 0.05; done; [ -e here.$2 ]"
    job = spec(
        "r1",
        "Het",
        f"set -- a b; {wait} && echo first $SLURM_PROCID cpus $SLURM_JOB_CPUS_PER_NODE_HET_GROUP_0",
        resources=Resources(ntasks=1, cpus_per_task=4),
        others=[
            Component(
                script=f"set -- b a; {wait} && echo second $SLURM_PROCID on $SLURM_JOB_PARTITION_HET_GROUP_1",
                resources=Resources(ntasks=2, cpus_per_task=2, partition="prod-mpi"),
            )
        ],
    )
    slurm.submit([job])
    view = wait_for(slurm, [job.key], lambda seen: seen.state.terminal, timeout=120)[job.key]
    lines = sorted(slurm.read(view.stdout).decode().splitlines())
    assert view.state is JobState.COMPLETED, lines
    assert lines == ["first 0 cpus 4", "second 1 on prod-mpi", "second 2 on prod-mpi"]
    assert view.scheduler_id.isdigit(), "one job, known by its first component"


@pytest.mark.slurm
def test_cancelling_a_job_of_components_ends_all_of_them(slurm: BoundAgent, shared_cluster: RealCluster) -> None:
    job = spec("r1", "Het", "sleep 300", others=[Component(script="sleep 300")])
    slurm.submit([job])
    wait_for(slurm, [job.key], lambda view: view.state is JobState.RUNNING, timeout=120)
    slurm.cancel()
    view = wait_ended(slurm, [job.key])[job.key]
    assert view.state is JobState.CANCELLED
    left = shared_cluster.slurm.command("squeue", "--noheader", "--format=%i", "--states=R,PD").stdout
    assert f"{view.scheduler_id}+" not in left


@pytest.mark.slurm
def test_a_dependency_is_waited_for_and_one_that_failed_ends_the_job(slurm: BoundAgent) -> None:
    good = spec("r1", "Good", "sleep 1; date +%s%N")
    bad = spec("r1", "Bad", "sleep 1; exit 3")
    slurm.submit([good, bad])
    ids = {
        key: view.scheduler_id
        for key, view in wait_for(slurm, [good.key, bad.key], lambda v: bool(v.scheduler_id)).items()
    }
    after_good = spec("r1", "AfterGood", "date +%s%N", resources=Resources(dependency=f"afterok:{ids[good.key]}"))
    after_bad = spec("r1", "AfterBad", "echo never", resources=Resources(dependency=f"afterok:{ids[bad.key]}"))
    slurm.submit([after_good, after_bad])
    assert int(log_of(slurm, good.key)[0]) < int(log_of(slurm, after_good.key)[0])
    view = wait_ended(slurm, [after_bad.key])[after_bad.key]
    assert view.state is JobState.CANCELLED
    assert view.started_at is None


@pytest.mark.slurm
def test_exclusive_nodes_and_any_other_option_reach_slurm(slurm: BoundAgent, shared_cluster: RealCluster) -> None:
    resources = Resources(
        exclusive=True,
        time_limit=timedelta(minutes=7),
        options=(("nice", "5"), ("nodelist", "n3"), ("contiguous", "")),
    )
    job = spec("r1", "T", 'scontrol show job "$SLURM_JOB_ID"', resources=resources)
    slurm.submit([job])
    text = " ".join(log_of(slurm, job.key))
    shown = dict(word.split("=", 1) for word in text.split() if "=" in word)
    assert (shown["OverSubscribe"], shown["TimeLimit"], shown["NodeList"]) == ("NO", "00:07:00", "n3")
    assert (shown["NumCPUs"], shown["Nice"], shown["Contiguous"]) == ("16", "5", "1")


@pytest.mark.slurm
def test_an_option_that_slurm_does_not_know_is_refused_in_its_words(slurm: BoundAgent) -> None:
    job = spec("r1", "T", "true", resources=Resources(options=(("no-such-option", "1"),)))
    slurm.submit([job])
    view = wait_ended(slurm, [job.key])[job.key]
    assert view.state is JobState.REJECTED
    assert "no-such-option" in view.reason
