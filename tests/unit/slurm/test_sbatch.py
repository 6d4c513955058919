"""sbatch: what is asked, what is answered, and what a failure means for the job's existence."""

from __future__ import annotations

import subprocess
from datetime import timedelta

import pytest

from bbpwf.errors import (
    InvalidInput,
    SlurmBusy,
    SlurmError,
    SubmitAmbiguous,
    SubmitLimited,
    SubmitRejected,
)
from bbpwf.slurm import sbatch
from bbpwf.slurm.sbatch import SbatchOptions
from tests.unit.slurm.recordings import recorded


def test_the_least_is_parsable_and_takes_the_environment() -> None:
    assert sbatch.argv(SbatchOptions()) == ["sbatch", "--parsable", "--export=ALL"]


def test_every_option_becomes_one_argument() -> None:
    words = sbatch.argv(
        SbatchOptions(
            job_name="a name; --partition=x",
            comment="c",
            array="0-9",
            throttle=4,
            output="/o/%a",
            error="/e",
            open_mode="append",
            chdir="/",
            requeue=True,
            kill_on_invalid_dependency=True,
            partition="debug",
            account="acc",
            qos="q",
            constraint="c5|c6",
            dependency="afterok:1",
            time_limit=timedelta(days=1, minutes=2),
            nodes=2,
            ntasks=8,
            ntasks_per_node=4,
            cpus_per_task=2,
            gpus=1,
            memory_mb=0,
            memory_per_cpu_mb=100,
            exclusive=True,
            extra=(("hint", "nomultithread"), ("spread-job", "")),
        )
    )
    assert words[3:] == [
        "--job-name=a name; --partition=x",
        "--comment=c",
        "--array=0-9%4",
        "--output=/o/%a",
        "--error=/e",
        "--open-mode=append",
        "--chdir=/",
        "--requeue",
        "--kill-on-invalid-dep=yes",
        "--partition=debug",
        "--account=acc",
        "--qos=q",
        "--constraint=c5|c6",
        "--dependency=afterok:1",
        "--time=1-00:02:00",
        "--nodes=2",
        "--ntasks=8",
        "--ntasks-per-node=4",
        "--cpus-per-task=2",
        "--gpus=1",
        "--mem=0",
        "--mem-per-cpu=100M",
        "--exclusive",
        "--hint=nomultithread",
        "--spread-job",
    ]
    assert "--no-requeue" in sbatch.argv(SbatchOptions(requeue=False))


@pytest.mark.parametrize("name", ["", "-x", "a b", "a=b", "A", "x\n"])
def test_an_extra_option_must_be_one(name: str) -> None:
    with pytest.raises(InvalidInput):
        sbatch.argv(SbatchOptions(extra=((name, "v"),)))


def test_time_limits_are_rounded_up_and_never_become_unlimited() -> None:
    assert sbatch.duration(timedelta(seconds=59.2)) == "00:01:00"
    assert sbatch.duration(timedelta(milliseconds=1)) == "00:00:01"
    assert sbatch.duration(timedelta(hours=23, minutes=59, seconds=59)) == "23:59:59"
    for nothing in (timedelta(0), timedelta(seconds=-5)):
        with pytest.raises(InvalidInput):
            sbatch.duration(nothing)


def test_environment_script_leaves_the_named_variables_alone() -> None:
    script = sbatch.environment_script(["HOME", "LANG"])
    env = {"HOME": "/h", "LANG": "C", "SECRET": "s", "SLURM_CONF": "/c", "A_FUNCTION%%": "() { :; }"}
    done = subprocess.run(
        ["/bin/bash", "-c", script + "/usr/bin/env"], env=env, capture_output=True, text=True, check=True
    )
    names = {line.split("=")[0] for line in done.stdout.splitlines()}
    assert {"HOME", "LANG", "SLURM_CONF"} <= names
    assert "SECRET" not in names
    with pytest.raises(InvalidInput):
        sbatch.environment_script(["X; rm -rf /"])


@pytest.mark.parametrize(
    ("answer", "job_id"),
    [
        ("17\n", "17"),
        ("17;cluster\n", "17"),
        ("Submitted batch job 17\n", "17"),
        ("Submitted batch job 17 on cluster c\n", "17"),
        ("Welcome to c5n!\n*** 3 messages ***\n\n17\n", "17"),
        ("2026\n17\n", "17"),
        ("17\r\n", "17"),
    ],
)
def test_ids_are_found_behind_banners(answer: str, job_id: str) -> None:
    assert sbatch.parse(answer) == job_id


@pytest.mark.parametrize(
    "answer", ["", "ok\n", "job 17\n", "17 18\n", "-3\n", "0\n", "\u0661\u0667\n", "12345678901\n"]
)
def test_success_without_an_id_is_ambiguous(answer: str) -> None:
    with pytest.raises(SubmitAmbiguous):
        sbatch.parse(answer)


@pytest.mark.parametrize("name", ["submit_single", "submit_chatty", "submit_array", "submit_sparse", "submit_hostile"])
def test_recorded_answers(name: str) -> None:
    assert int(sbatch.parse(recorded(name).stdout)) > 0


@pytest.mark.parametrize(
    "name",
    [
        *("array", "array_syntax", "comment", "constraint", "cpus", "empty", "gpus", "memory", "no_interpreter"),
        *("nodes", "number", "option", "partition", "time"),
    ],
)
def test_recorded_refusals_are_for_good(name: str) -> None:
    said = recorded(f"reject_{name}")
    error = sbatch.failure(said.exit, said.stderr, where="head")
    assert type(error) is SubmitRejected
    assert not error.retryable
    assert error.where == "head"


def test_a_refusal_names_the_reason() -> None:
    said = recorded("reject_partition")
    assert "Invalid partition name specified" in sbatch.failure(said.exit, said.stderr).message
    said = recorded("reject_time")
    assert "time limit is invalid" in sbatch.failure(said.exit, said.stderr).message


def test_a_full_queue_is_a_limit() -> None:
    said = recorded("limit_job_count")
    error = sbatch.failure(said.exit, said.stderr)
    assert type(error) is SubmitLimited
    assert error.retryable


def test_a_controller_that_is_down_took_nothing() -> None:
    said = recorded("controller_down_sbatch")
    assert type(sbatch.failure(said.exit, said.stderr)) is SlurmBusy


FAILED = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(
    "text",
    [
        FAILED + "Unable to contact slurm controller (connect failure)",
        FAILED + "Connection refused",
        FAILED + "Slurm backup controller in standby mode",
        FAILED + "Job can not be altered now, try again later",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying\n"
        + FAILED
        + "Connection refused",
        'sbatch: error: Munge encode failed: Failed to access "/run/munge/munge.socket.2"\n'
        + FAILED
        + "Protocol authentication error",
    ],
)
def test_what_never_reached_the_controller_may_be_sent_again(text: str) -> None:
    assert type(sbatch.failure(1, text)) is SlurmBusy


@pytest.mark.parametrize(
    "text",
    [
        FAILED + "Unable to contact slurm controller (send failure)",
        FAILED + "Unable to contact slurm controller (receive failure)",
        FAILED + "Unable to contact slurm controller (shutdown failure)",
        FAILED + "Socket timed out on send/recv operation",
        FAILED + "Zero Bytes were transmitted or received",
        FAILED + "Connection reset by peer",
        # it was refused at first, but the last try got no answer
        "sbatch: error: Unable to contact slurm controller (connect failure)\n"
        + FAILED
        + "Socket timed out on send/recv operation",
        "",
        "Killed",
        "bash: line 1: out of memory",
    ],
)
def test_what_may_have_reached_it_is_ambiguous(text: str) -> None:
    assert type(sbatch.failure(1, text)) is SubmitAmbiguous


@pytest.mark.parametrize("code", [124, 130, 137, 143])
def test_an_interrupted_sbatch_is_ambiguous_whatever_it_said(code: int) -> None:
    assert type(sbatch.failure(code, FAILED + "Connection refused")) is SubmitAmbiguous


@pytest.mark.parametrize(
    "text",
    [
        "sbatch: error: QOSMaxSubmitJobPerUserLimit\n"
        + FAILED
        + "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "sbatch: error: AssocMaxSubmitJobLimit\n"
        + FAILED
        + "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "sbatch: error: AssocGrpSubmitJobsLimit\n"
        + FAILED
        + "Job violates accounting/QOS policy (job submit limit, x)",
        FAILED + "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "sbatch: error: Slurm job queue full, sleeping and retrying\n" + FAILED + "Slurm job queue full",
    ],
)
def test_submission_limits_pass(text: str) -> None:
    assert type(sbatch.failure(1, text)) is SubmitLimited


@pytest.mark.parametrize(
    "text",
    [
        "sbatch: error: QOSMaxWallDurationPerJobLimit\n"
        + FAILED
        + "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "sbatch: error: AssocMaxCpuPerJobLimit\n" + FAILED + "Job violates accounting/QOS policy (job submit limit, x)",
        FAILED + "Invalid account or account/partition combination specified",
        FAILED + "Access/permission denied",
        FAILED + "Some reason that a later Slurm invents",
    ],
)
def test_size_limits_and_refusals_do_not(text: str) -> None:
    assert type(sbatch.failure(1, text)) is SubmitRejected


def test_no_sbatch_at_all_is_named() -> None:
    error = sbatch.failure(127, "bash: line 1: exec: sbatch: not found")
    assert type(error) is SlurmError
    assert "PATH" in error.hint
