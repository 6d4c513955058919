"""The script that submits, run by a real bash with an sbatch that tells what it was given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from bbpwf.cluster.backend import Submission
from bbpwf.cluster.jobs import Resources
from bbpwf.cluster.slurm_backend import read_answers, submit_script
from bbpwf.cluster.spool import Folder, job_script

BATCH = "b0123456789abcdef"


def submit(root: Path, *scripts: str, fresh: bool, sbatch: str) -> dict[str, tuple[str, str]]:
    tools = root / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "sbatch").write_text(f"#!/bin/bash\necho called >>{root}/calls\n{sbatch}\n")
    (tools / "sbatch").chmod(0o755)
    submissions = [
        Submission(Folder(str(root / "spool"), BATCH + "x" * i), (script,), f"name{i}", Resources(), fresh=fresh)
        for i, script in enumerate(scripts)
    ]
    done = subprocess.run(
        ["bash", "-s"],
        input=submit_script(submissions, str(root / "spool"), "nonce").encode(),
        env={"PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        timeout=30,
        check=False,
    )
    return read_answers(done.stdout, "nonce")


def calls(root: Path) -> int:
    return len((root / "calls").read_text().splitlines())


def test_sending_again_repeats_the_answer_and_leaves_what_a_job_may_be_reading(tmp_path: Path) -> None:
    assert submit(tmp_path, "one", fresh=True, sbatch="echo 7") == {BATCH: ("0", "7")}
    manifest = tmp_path / "spool" / "batches" / BATCH / "manifest"
    before = manifest.stat()
    assert submit(tmp_path, "one", fresh=False, sbatch="echo 8") == {BATCH: ("0", "7")}
    after = manifest.stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
    assert calls(tmp_path) == 1


def test_an_answer_that_was_never_written_down_is_unknown_and_not_asked_for_again(tmp_path: Path) -> None:
    submit(tmp_path, "one", fresh=True, sbatch="kill -9 $PPID")
    assert submit(tmp_path, "one", fresh=False, sbatch="echo 8") == {BATCH: ("unknown", "")}
    assert calls(tmp_path) == 1


def test_a_spool_that_could_not_be_made_at_first_is_made_when_it_is_needed(tmp_path: Path) -> None:
    assert not (tmp_path / "spool").exists()
    assert submit(tmp_path, "one", fresh=True, sbatch="cat >/dev/null; echo 7") == {BATCH: ("0", "7")}


def test_sbatch_reads_the_whole_script_of_its_submission(tmp_path: Path) -> None:
    submit(tmp_path, "one", fresh=True, sbatch="echo 7")
    assert (tmp_path / "spool" / "batches" / BATCH / "job.sh").read_text() == job_script(
        Folder(str(tmp_path / "spool"), BATCH)
    )


def test_of_many_submissions_each_has_its_own_answer(tmp_path: Path) -> None:
    told = (
        "for word; do case $word in --job-name=*) n=${word#*=} ;; esac; done; [ $n != name3 ] || exit 9; echo ${n#name}"
    )
    expected = {BATCH + "x" * i: ("9", "") if i == 3 else ("0", f"{i}") for i in range(7)}
    assert submit(tmp_path, *"abcdefg", fresh=True, sbatch=told) == expected
    assert calls(tmp_path) == 7
    expected[BATCH + "xxx"] = ("unknown", "")
    assert submit(tmp_path, *"abcdefg", fresh=False, sbatch="echo 8") == expected
    assert calls(tmp_path) == 7
    assert [path.name for path in (tmp_path / "spool").glob("answers*")] == []
