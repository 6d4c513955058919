"""scancel, scontrol, sacct and sinfo."""

from __future__ import annotations

from datetime import timedelta

import pytest

from bbpwf.errors import AccountingDisabled, InvalidInput, NotFound, SlurmBusy, SlurmError
from bbpwf.slurm import failures, sacct, scancel, scontrol, sinfo
from tests.unit.slurm.record import HOSTILE_NAME
from tests.unit.slurm.recordings import recorded

# ------------------------------------------------------------------------------------------------ scancel


def test_elements_of_one_array_share_an_argument() -> None:
    ids = ["12", "7_3", "7_1", "7_2", "9_5", "8_[0-4,9]", "8_5"]
    assert scancel.argvs(ids) == [["scancel", "--quiet", "12", "7_[1-3]", "8_[0-5,9]", "9_5"]]


def test_a_whole_array_needs_no_elements() -> None:
    assert scancel.argvs(["7_3", "7", "7"]) == [["scancel", "--quiet", "7"]]
    assert scancel.argvs([]) == []


def test_many_jobs_are_few_calls() -> None:
    commands = scancel.argvs(str(i) for i in range(100_000, 120_000))
    assert len(commands) == 3
    assert sum(len(words) - 2 for words in commands) == 20_000


@pytest.mark.parametrize("bad", ["", "-u", "--user=x", "1 2", "1;2", "abc", "1_", "1_[", "1_x", "\u0661"])
def test_only_ids_are_cancelled(bad: str) -> None:
    with pytest.raises(InvalidInput):
        scancel.argvs(["1", bad])


@pytest.mark.parametrize("name", ["unknown", "unknown_loud", "running", "ended_loud", "elements", "outside"])
def test_what_is_gone_is_cancelled(name: str) -> None:
    said = recorded(f"scancel_{name}")
    scancel.check(said.exit, said.stderr)


def test_gone_is_fine_however_it_is_said() -> None:
    scancel.check(1, "scancel: error: Kill job error on job id 5: Invalid job id specified\n")
    scancel.check(1, "scancel: error: Kill job error on job id 5: Job/step already completing or completed\n")


def test_a_cancel_that_did_not_happen_is_an_error() -> None:
    said = recorded("controller_down_scancel")
    with pytest.raises(SlurmBusy):
        scancel.check(said.exit, said.stderr)
    with pytest.raises(SlurmError, match="denied") as caught:
        scancel.check(
            1,
            "scancel: error: Kill job error on job id 5: Invalid job id specified\n"
            "scancel: error: Kill job error on job id 6: Access/permission denied\n",
        )
    assert not caught.value.retryable
    with pytest.raises(SlurmError):
        scancel.check(137, "")


# ------------------------------------------------------------------------------------------------ scontrol


def test_recorded_failed_job() -> None:
    (job,) = scontrol.parse_jobs(recorded("scontrol_failed").stdout)
    assert (job.job_id, job.indices, job.state, job.exit_code, job.signal, job.restarts) == ("1", (), "FAILED", 3, 0, 0)
    assert job.reason == "NonZeroExitCode"
    assert job.fields["Partition"] == "debug"
    assert job.fields["WorkDir"] == "/"


def test_recorded_cancelled_job() -> None:
    (job,) = scontrol.parse_jobs(recorded("scontrol_cancelled").stdout)
    assert (job.state, job.exit_code, job.signal) == ("CANCELLED", 0, 15)


def test_recorded_array_has_a_record_for_each_element_that_started() -> None:
    jobs = scontrol.parse_jobs(recorded("scontrol_array").stdout)
    assert {job.job_id for job in jobs} == {"8"}
    assert sorted(job.indices for job in jobs) == [(0,), (1,), (2, 3, 4, 5, 6, 7, 8, 9)]


def test_recorded_requeue_is_counted() -> None:
    (job,) = scontrol.parse_jobs(recorded("scontrol_requeued").stdout)
    assert (job.job_id, job.indices, job.restarts) == ("8", (2,), 1)


def test_recorded_hostile_texts_change_no_fact() -> None:
    (job,) = scontrol.parse_jobs(recorded("scontrol_hostile").stdout)
    assert (job.job_id, job.state, job.exit_code, job.reason) == ("11", "PENDING", 0, "JobHeldUser")
    assert job.fields["JobName"] == HOSTILE_NAME
    assert job.fields["RunTime"] == "00:00:00"


def test_unknown_jobs_and_elements_are_not_found() -> None:
    for name in ("scontrol_unknown", "scontrol_element_unknown"):
        said = recorded(name)
        assert isinstance(scontrol.job_error("5", said.exit, said.stderr + said.stdout), NotFound)
    busy = recorded("controller_down_squeue")
    assert isinstance(scontrol.job_error("5", busy.exit, busy.stderr), SlurmBusy)


def test_records_without_facts_are_refused() -> None:
    with pytest.raises(SlurmError):
        scontrol.parse_jobs("JobId=5 JobName=x UserId=a(1)\n")
    assert scontrol.parse_jobs("No jobs in the system\n") == []


@pytest.mark.parametrize("bad", ["", "-1", "1 2", "1;reboot", "all", "1_[0-3]"])
def test_ids_are_checked_before_they_are_sent(bad: str) -> None:
    with pytest.raises(InvalidInput):
        scontrol.show_job_argv(bad)
    with pytest.raises(InvalidInput):
        scontrol.throttle_argv(bad, 1)


def test_throttle_command() -> None:
    assert scontrol.throttle_argv("5", 3) == ["scontrol", "update", "JobId=5", "ArrayTaskThrottle=3"]
    with pytest.raises(InvalidInput):
        scontrol.throttle_argv("5", -1)


def test_a_throttle_holds_though_some_elements_have_ended() -> None:
    scontrol.check_throttle("1", 0, "")
    scontrol.check_throttle("1", 1, "1_0: Job has already finished\n1_1-9: No error\n")
    with pytest.raises(NotFound):
        scontrol.check_throttle("1", 1, "slurm_update error: Invalid job id specified\n")
    with pytest.raises(SlurmError, match="denied"):
        scontrol.check_throttle("1", 1, "1_0: No error\n1_1: Access/permission denied\n")
    with pytest.raises(SlurmBusy):
        scontrol.check_throttle("1", 1, "slurm_update error: Unable to contact slurm controller (connect failure)\n")


def test_recorded_ping() -> None:
    assert scontrol.parse_ping(recorded("ping_up").stdout)
    assert not scontrol.parse_ping(recorded("controller_down_ping").stdout)
    assert not scontrol.parse_ping("")


def test_recorded_config() -> None:
    config = scontrol.parse_config(recorded("config").stdout)
    assert config["MaxArraySize"] == "1001"
    assert config["MaxJobCount"] == "300"
    assert config["MinJobAge"] == "300 sec"


# ------------------------------------------------------------------------------------------------ sacct


def test_no_accounting_is_said_as_such() -> None:
    said = recorded("sacct_disabled")
    assert type(sacct.error(said.exit, said.stderr)) is AccountingDisabled


def test_accounting_records() -> None:
    rows = [
        ["7", "7", "COMPLETED", "0:0", "1700000000", "1700000010", "1699999990", "n1", "None", "a|b"],
        ["8_3", "12", "CANCELLED by 1000", "0:15", "1700000000", "Unknown", "1", "None assigned", "None", ""],
        ["8_[4-6%2]", "8", "PENDING", "0:0", "Unknown", "Unknown", "1", "None assigned", "Resources", "x\x1fy"],
    ]
    single, element, rest = sacct.parse("".join("\x1f".join(row) + "\n" for row in rows))
    assert (single.job_id, single.state, single.exit_code, single.ended) == ("7", "COMPLETED", 0, 1_700_000_010)
    assert (element.job_id, element.indices, element.state, element.cancelled_by) == ("8", (3,), "CANCELLED", "1000")
    assert (element.signal, element.ended, element.nodes) == (15, None, "")
    assert (rest.indices, rest.comment) == ((4, 5, 6), "x\x1fy")


def test_accounting_garbage_is_refused() -> None:
    assert sacct.parse("") == []
    for bad in ("7|7|COMPLETED\n", "\x1f".join(["x"] * 10), "\x1f".join(["7", "7", "", "0:0", *[""] * 6])):
        with pytest.raises(SlurmError):
            sacct.parse(bad)
    for ids in ([], ["x"], ["1;2"], ["--help"]):
        with pytest.raises(InvalidInput):
            sacct.argv(ids)


# ------------------------------------------------------------------------------------------------ sinfo


def test_recorded_partitions() -> None:
    debug, mpi, batch = sinfo.parse(recorded("partitions").stdout)
    assert (debug.name, debug.default, debug.up, debug.nodes, debug.cpus) == ("debug", True, True, 4, 16)
    assert debug.time_limit == timedelta(days=1)
    assert (mpi.name, mpi.default, mpi.time_limit) == ("prod-mpi", False, timedelta(hours=12))
    assert (batch.name, batch.time_limit) == ("prod-batch", timedelta(hours=2))


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("infinite", None),
        ("30", timedelta(minutes=30)),
        ("5:30", timedelta(minutes=5, seconds=30)),
        ("2:00:00", timedelta(hours=2)),
        ("1-12", timedelta(days=1, hours=12)),
        ("1-12:30", timedelta(days=1, hours=12, minutes=30)),
        ("7-00:00:01", timedelta(days=7, seconds=1)),
    ],
)
def test_time_limits(text: str, limit: timedelta | None) -> None:
    assert sinfo.parse_limit(text) == limit


# ------------------------------------------------------------------------------------------------ failures


def test_questions_may_be_asked_again() -> None:
    for text in (
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "slurm_load_jobs error: Socket timed out on send/recv operation",
        "slurm_load_jobs error: Zero Bytes were transmitted or received",
    ):
        error = failures.query_error("squeue", 1, text)
        assert isinstance(error, SlurmBusy)
        assert error.retryable
    assert "PATH" in failures.query_error("squeue", 127, "squeue: not found").hint
    assert not failures.query_error("squeue", 1, "squeue: error: Invalid user: x").retryable
