"""Job folders: what is written for jobs is what bash runs, and what jobs leave behind is read for what it is."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbpwf.cluster.jobs import JobSpec, Resources, job_key
from bbpwf.cluster.spool import (
    Ended,
    EventReader,
    Fenced,
    Folder,
    Started,
    job_script,
    manifest,
    one_line,
    parse_event,
    script_text,
)


def spec(script: str, **more: object) -> JobSpec:
    return JobSpec.model_validate(
        {"key": job_key("run", script), "run_id": "run", "task_id": "T", "script": script} | more
    )


class Spool:
    """A submission's folder, and its elements run as the scheduler would run them."""

    def __init__(self, root: Path, *specs: JobSpec) -> None:
        self.folder = Folder(str(root), "b0123456789abcdef")
        self.path = Path(self.folder.path)
        self.path.mkdir(parents=True)
        text, extra = manifest([script_text(s, data_root=str(root), software="", has_srun=False) for s in specs])
        for name, content in {"job.sh": job_script(self.folder), "manifest": text, **extra}.items():
            (self.path / name).write_text(content)

    def start(self, position: int, job_id: str = "77", restart: int = 0) -> subprocess.Popen[bytes]:
        env = {
            "PATH": os.environ["PATH"],
            "SLURM_ARRAY_JOB_ID": job_id,
            "SLURM_ARRAY_TASK_ID": str(position),
            "SLURM_RESTART_COUNT": str(restart),
            "SLURMD_NODENAME": "n1",
        }
        with (self.path / f"log.{position}").open("ab") as log:
            return subprocess.Popen(["bash", str(self.path / "job.sh")], env=env, stdout=log, stderr=log)

    def run(self, position: int, job_id: str = "77", restart: int = 0) -> int:
        return self.start(position, job_id, restart).wait(30)

    @property
    def events(self) -> list[object]:
        return list(EventReader().feed(Path(self.folder.events).read_bytes()))

    def log(self, position: int) -> str:
        return (self.path / f"log.{position}").read_text()


def test_each_element_runs_its_own_script_and_leaves_a_record(tmp_path: Path) -> None:
    spool = Spool(tmp_path, spec("echo first"), spec("echo second; exit 3"))
    assert spool.run(0) == 0
    assert spool.run(1) == 3
    assert spool.log(0) == "first\n"
    assert spool.log(1) == "second\n"
    first_start, first_end, second_start, second_end = spool.events
    assert isinstance(first_start, Started)
    assert (first_start.position, first_start.scheduler_id, first_start.node) == (0, "77_0", "n1")
    assert isinstance(first_end, Ended)
    assert isinstance(second_start, Started)
    assert isinstance(second_end, Ended)
    assert (second_end.record.code, second_end.record.signal) == (3, 0)
    assert second_end.record.started <= second_end.record.ended
    assert parse_event((spool.path / "exit.1.0").read_text().rstrip("\n")) == second_end


def test_a_duplicate_ends_without_running_anything(tmp_path: Path) -> None:
    spool = Spool(tmp_path, spec("echo ran >> ran"))
    assert spool.run(0, job_id="77") == 0
    assert spool.run(0, job_id="78") == 73
    assert (tmp_path / "runs" / "run" / "ran").read_text() == "ran\n"
    assert isinstance(spool.events[-1], Fenced)


def test_a_requeued_job_runs_again_under_its_own_lease(tmp_path: Path) -> None:
    spool = Spool(tmp_path, spec("echo ran >> ran"))
    assert spool.run(0, restart=0) == 0
    assert spool.run(0, restart=1) == 0
    assert (tmp_path / "runs" / "run" / "ran").read_text() == "ran\nran\n"
    assert [e.restart for e in spool.events if isinstance(e, Started)] == [0, 1]


def test_sigterm_reaches_the_script_and_is_recorded(tmp_path: Path) -> None:
    started = tmp_path / "started"
    spool = Spool(tmp_path, spec(f"trap 'echo stopping; exit 9' TERM; touch {started}; sleep 60 & wait"))
    process = spool.start(0)
    deadline = 200
    while not started.exists() and deadline:
        deadline -= 1
        subprocess.run(["sleep", "0.05"], check=True)
    process.terminate()
    assert process.wait(20) == 9
    record = spool.events[-1]
    assert isinstance(record, Ended)
    assert (record.record.code, record.record.signal) == (9, 15)
    assert "stopping" in spool.log(0)


def appears(path: Path, within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_a_record_that_cannot_be_written_now_is_written_later(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    spool = Spool(tmp_path, spec(f"touch {ran}"))
    (spool.path / "exit.0.0").mkdir()  # nothing can be written there, as on a full disk
    process = spool.start(0)
    appears(ran)
    (spool.path / "exit.0.0").rmdir()
    assert process.wait(20) == 0
    assert parse_event((spool.path / "exit.0.0").read_text().rstrip("\n")) == spool.events[-1]


def test_a_lease_that_cannot_be_taken_now_is_taken_later(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    spool = Spool(tmp_path, spec(f"touch {ran}"))
    (spool.path / "lease.0").touch()  # neither ours nor anybody's
    process = spool.start(0)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    assert not ran.exists()
    (spool.path / "lease.0").unlink()
    assert process.wait(20) == 0
    assert ran.exists()


def test_an_event_line_that_a_full_disk_cut_spoils_no_other(tmp_path: Path) -> None:
    spool = Spool(tmp_path, spec("true"))
    Path(spool.folder.events).write_text("X b0123456789abcdef 7 12_")
    assert spool.run(0) == 0
    assert isinstance(spool.events[-1], Ended)


def test_a_cancelled_element_never_begins(tmp_path: Path) -> None:
    spool = Spool(tmp_path, spec("echo ran"))
    (spool.path / "cancel").touch()
    assert spool.run(0) == 143
    assert spool.log(0) == ""


def test_a_script_longer_than_an_argument_may_be_runs_all_the_same(tmp_path: Path) -> None:
    spool = Spool(tmp_path, spec("".join(f"x{i}=1\n" for i in range(30_000)) + "echo done $x29999"))
    assert spool.run(0) == 0
    assert spool.log(0) == "done 1\n"


def test_environment_folder_and_exit_codes_of_the_set_up(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    spool = Spool(
        tmp_path,
        spec('echo "$GREETING|$PWD|$BBPWF_RUN_ID"', env=[["GREETING", "it's $HOME\n`x`"]], workdir="sub"),
        spec("echo never", workdir=str(blocked / "x")),
        spec("echo never", modules=["no-such-module"]),
    )
    assert spool.run(0) == 0
    assert spool.log(0) == f"it's $HOME\n`x`|{tmp_path}/runs/run/sub|run\n"
    assert spool.run(1) == 72
    assert spool.run(2) == 71


def test_without_srun_copies_are_numbered_and_the_worst_code_counts(tmp_path: Path) -> None:
    script = "echo $SLURM_PROCID/$SLURM_NTASKS >> copies; [ $SLURM_PROCID != 2 ] || exit 5"
    spool = Spool(tmp_path, spec(script, launcher="srun", resources=Resources(ntasks=3)))
    assert spool.run(0) == 5
    assert sorted((tmp_path / "runs" / "run" / "copies").read_text().split()) == ["0/3", "1/3", "2/3"]


@pytest.mark.parametrize(
    ("says", "file"),
    [
        ("0::/system.slice/slurmstepd.scope/job_77/step_batch/user/task_0", "system.slice/slurmstepd.scope/job_77"),
        ("4:memory:/slurm/uid_1000/job_77/step_batch/task_0\n2:cpu:/slurm", "memory/slurm/uid_1000/job_77"),
        ("0::/user.slice/session-3.scope", ""),
        ("", ""),
    ],
)
def test_the_peak_of_memory_is_that_of_the_job_s_control_group(tmp_path: Path, says: str, file: str) -> None:
    spool = Spool(tmp_path, spec("true"))
    (tmp_path / "self").write_text(f"{says}\n")
    if file:
        group = tmp_path / "groups" / file
        group.mkdir(parents=True)
        name = "memory.max_usage_in_bytes" if file.startswith("memory/") else "memory.peak"
        (group / name).write_text(f"{300 * 1024 * 1024 - 5}\n")
    settings = {"groups_of": str(tmp_path / "self"), "groups_at": str(tmp_path / "groups")}
    (spool.path / "job.sh").write_text(job_script(spool.folder, **settings))
    assert spool.run(0) == 0
    end = spool.events[-1]
    assert isinstance(end, Ended)
    assert end.record.memory_mb == (300 if file else None)
    assert spool.log(0) == ""


@given(st.text(alphabet=st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=200))
def test_any_text_survives_as_one_bash_word(text: str) -> None:
    word = one_line(text)
    assert "\n" not in word
    done = subprocess.run(
        ["bash", "-c", f"printf %s {word}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert done.stdout.decode() == text


@pytest.mark.parametrize(
    "line",
    [
        "",
        "X b1 0 77_0 0 0 0 1.0 2.0 n1",  # cut off before its end mark
        "X b1 0 77_0 0 zero 0 1.0 2.0 n1 .",
        "S b1 0 77_0 0 1.0 n1 . trailing",
        "Q b1 0 77_0 0 1.0 n1 .",
        "X b1 0 77_0 0 0 0 1.0 2.0 " + "n" * 5000 + " .",
    ],
)
def test_what_is_no_whole_event_is_none(line: str) -> None:
    assert parse_event(line) is None


def test_a_reader_counts_only_whole_lines() -> None:
    reader = EventReader(offset=100)
    line = b"S b1 0 77_0 0 1.5 n1 .\n"
    assert reader.feed(line[:10]) == []
    assert reader.offset == 100
    assert len(reader.feed(line[10:] + line + b"S b1")) == 2
    assert reader.offset == 100 + 2 * len(line)
