"""The Slurm client against a real Slurm, over a real sshd."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from bbpwf.errors import AccountingDisabled, NotFound, SlurmBusy, SubmitRejected
from bbpwf.slurm.client import SlurmClient
from bbpwf.slurm.sbatch import SbatchOptions
from bbpwf.slurm.squeue import QueueEntry
from bbpwf.transport.ssh import SshTransport
from sandbox.headnode import HeadNode

pytestmark = pytest.mark.slurm

HOSTILE = "x|y\x1f\n'; $(touch /tmp/never) JobState=COMPLETED"


@pytest.fixture
def client(head_transport: SshTransport) -> Iterator[SlurmClient]:
    client = SlurmClient(head_transport)
    yield client
    waiting = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}
    client.cancel({entry.job_id for entry in client.queue() if entry.state in waiting})


@pytest.fixture
def folder(slurm_cluster: HeadNode, request: pytest.FixtureRequest) -> Path:
    made: Path = slurm_cluster.data_root / request.node.name.replace("[", "-").replace("]", "")
    made.mkdir()
    return made


def until(what: Callable[[], bool], within: float = 30.0) -> None:
    deadline = time.monotonic() + within
    while not what():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)


def entries(client: SlurmClient, job_id: str) -> dict[int | None, QueueEntry]:
    return {entry.array_index: entry for entry in client.queue([job_id])}


def test_a_job_runs_to_its_end_and_is_remembered(client: SlurmClient, folder: Path) -> None:
    job_id = client.submit(
        SbatchOptions(job_name=HOSTILE, comment="bbpwf:one", output=f"{folder}/log", partition="prod-mpi"),
        "echo ran here; exit 3",
    )
    until(lambda: entries(client, job_id)[None].state == "FAILED")
    entry = entries(client, job_id)[None]
    assert (entry.name, entry.comment, entry.partition) == (HOSTILE, "bbpwf:one", "prod-mpi")
    assert entry.started is not None
    assert abs(entry.started - time.time()) < 120
    (record,) = client.jobs(job_id)
    assert (record.state, record.exit_code, record.signal, record.restarts) == ("FAILED", 3, 0, 0)
    assert (folder / "log").read_text() == "ran here\n"
    assert job_id in {each.job_id for each in client.queue()}


def test_jobs_inherit_what_is_named_and_nothing_else(
    client: SlurmClient, head_transport: SshTransport, slurm_cluster: HeadNode, folder: Path
) -> None:
    profile = slurm_cluster.folder / "cluster" / "home" / "sim" / ".bash_profile"
    before = profile.read_text()
    profile.write_text(before + "export LEFT_OUT=1 TAKEN=yes\n")
    try:
        job_id = client.submit(
            SbatchOptions(output=f"{folder}/log", export=("HOME", "PATH", "TAKEN")),
            'env; echo "user-env $SLURM_GET_USER_ENV"',
        )
    finally:
        profile.write_text(before)
    until(lambda: entries(client, job_id)[None].state == "COMPLETED")
    seen = (folder / "log").read_text().splitlines()
    assert "TAKEN=yes" in seen
    assert "LEFT_OUT=1" not in seen
    assert f"HOME={profile.parent}" in seen
    assert "user-env " in seen, "Slurm did not have to fetch the login environment on the node"


def test_an_array_is_one_submission_and_an_entry_for_each_element(client: SlurmClient, folder: Path) -> None:
    script = f"touch {folder}/started-$SLURM_ARRAY_TASK_ID; while [ ! -e {folder}/go ]; do sleep 0.1; done"
    options = SbatchOptions(
        array="0-11", throttle=2, comment="bbpwf:arr", output=f"{folder}/log.%a", open_mode="append"
    )
    job_id = client.submit(options, script)
    until(lambda: len(list(folder.glob("started-*"))) == 2)
    now = entries(client, job_id)
    assert sorted(index for index in now if index is not None) == list(range(12))
    assert sum(entry.state == "RUNNING" for entry in now.values()) == 2
    assert sum(entry.state == "PENDING" for entry in now.values()) == 10
    assert {entry.comment for entry in now.values()} == {"bbpwf:arr"}
    assert {entry.display_id for entry in now.values()} == {f"{job_id}_{i}" for i in range(12)}

    client.throttle(job_id, 4)
    until(lambda: len(list(folder.glob("started-*"))) == 4)

    running = {index for index, entry in entries(client, job_id).items() if entry.state == "RUNNING"}
    stopped = {min(index for index in running if index is not None), 10, 11}
    client.cancel([f"{job_id}_{index}" for index in stopped])
    # an element that was still waiting leaves no trace: it was never more than a bit in the array's record
    until(lambda: not {10, 11} & set(entries(client, job_id)))
    until(lambda: entries(client, job_id)[min(stopped)].state == "CANCELLED")
    client.throttle(job_id, 0)
    (folder / "go").touch()
    until(lambda: all(entry.state in {"COMPLETED", "CANCELLED"} for entry in entries(client, job_id).values()))
    ends = {index: entry.state for index, entry in entries(client, job_id).items()}
    assert ends == {index: "CANCELLED" if index in stopped else "COMPLETED" for index in range(10)}


def test_a_whole_array_is_cancelled_at_once_and_again_without_harm(client: SlurmClient, folder: Path) -> None:
    job_id = client.submit(SbatchOptions(array="0-99", throttle=3, output="/dev/null"), "sleep 600")
    until(lambda: any(entry.state == "RUNNING" for entry in entries(client, job_id).values()))
    client.cancel([job_id])
    until(lambda: all(entry.state == "CANCELLED" for entry in entries(client, job_id).values()))
    client.cancel([job_id, f"{job_id}_5", "4000000"])


def test_a_requeued_job_keeps_its_number_and_counts_its_starts(
    client: SlurmClient, slurm_cluster: HeadNode, folder: Path
) -> None:
    script = f'echo start $SLURM_RESTART_COUNT; [ "$SLURM_RESTART_COUNT" = 1 ] || sleep 600; touch {folder}/second'
    options = SbatchOptions(output=f"{folder}/log", open_mode="append", requeue=True)
    job_id = client.submit(options, script)
    until(lambda: (folder / "log").exists() and "start" in (folder / "log").read_text())
    assert slurm_cluster.slurm.command("scontrol", "requeue", job_id).returncode == 0
    until(lambda: client.jobs(job_id)[0].restarts == 1)
    until(lambda: entries(client, job_id)[None].state == "PENDING")
    assert entries(client, job_id)[None].reason == "BeginTime", "held back until its credential has surely expired"
    until((folder / "second").exists, within=60)
    assert (folder / "log").read_text().splitlines()[0] == "start"
    assert (folder / "log").read_text().splitlines()[-1] == "start 1"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (SbatchOptions(partition="nowhere"), "partition"),
        (SbatchOptions(nodes=50), "(?i)processors|node"),
        (SbatchOptions(partition="prod-batch", time_limit=timedelta(days=3)), "time limit"),
        (SbatchOptions(array="0-999999"), "array"),
        (SbatchOptions(memory_mb=10_000_000), "configuration|emory"),
        (SbatchOptions(extra=(("no-such-option", "1"),)), "unrecognized option"),
    ],
)
def test_what_slurm_refuses_is_refused_with_its_reason(client: SlurmClient, options: SbatchOptions, says: str) -> None:
    before = {entry.job_id for entry in client.queue()}
    with pytest.raises(SubmitRejected, match=says) as caught:
        client.submit(options, "true")
    assert client.where in str(caught.value)
    # for some reasons Slurm 22.05 says no and yet remembers a job, which has failed (BadConstraints)
    added = [entry for entry in client.queue() if entry.job_id not in before]
    assert [(e.state, e.reason) for e in added] in ([], [("FAILED", "BadConstraints")])


def test_unknown_jobs(client: SlurmClient) -> None:
    assert client.queue(["3999999"]) == []
    with pytest.raises(NotFound):
        client.jobs("3999999")
    with pytest.raises(AccountingDisabled):
        client.accounting(["1"])


def test_the_clusters_facts(client: SlurmClient) -> None:
    assert client.ping()
    assert client.config()["MaxArraySize"] == "1001"
    assert {p.name: p.default for p in client.partitions()} == {"debug": True, "prod-mpi": False, "prod-batch": False}


def test_a_stopped_controller_is_busy_and_comes_back(
    client: SlurmClient, slurm_cluster: HeadNode, folder: Path
) -> None:
    job_id = client.submit(SbatchOptions(output="/dev/null"), f"while [ ! -e {folder}/go ]; do sleep 0.1; done")
    until(lambda: entries(client, job_id)[None].state == "RUNNING")
    slurm_cluster.end("slurmctld")
    try:
        assert not client.ping()
        with pytest.raises(SlurmBusy):
            client.queue()
        with pytest.raises(SlurmBusy):
            client.submit(SbatchOptions(), "true")
        with pytest.raises(SlurmBusy):
            client.cancel([job_id])
    finally:
        slurm_cluster.begin("slurmctld")
    assert entries(client, job_id)[None].state == "RUNNING"
    (folder / "go").touch()
    until(lambda: entries(client, job_id)[None].state == "COMPLETED")


def test_forty_threads_share_one_connection(
    client: SlurmClient, slurm_cluster: HeadNode, head_transport: SshTransport
) -> None:
    client.ping()
    before = slurm_cluster.connections_so_far()
    with ThreadPoolExecutor(40) as pool:
        ids = list(
            pool.map(lambda i: client.submit(SbatchOptions(comment=f"n{i}", output="/dev/null"), "true"), range(40))
        )
    assert len(set(ids)) == 40
    assert {e.comment for e in client.queue() if e.job_id in set(ids)} == {f"n{i}" for i in range(40)}
    assert slurm_cluster.connections_so_far() == before
    assert head_transport.connected
