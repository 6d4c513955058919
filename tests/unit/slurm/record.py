"""Records what a real Slurm says, for the tests beside this file: ``python -m tests.unit.slurm.record``.

Each recording is a file ``recorded/<name>.json``: the arguments, the exit code and both streams. Folders of the
sandbox are written as ``/sandbox``, the host as ``head`` and the user as ``sim(1000)``.
"""

from __future__ import annotations

import getpass
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from bbpwf.slurm import sacct, scontrol, sinfo, squeue
from sandbox import slurm
from sandbox.process import Running, start, stop

FOLDER = Path(__file__).parent / "recorded"
MARK = "\x1emark\x1e"
HOSTILE_NAME = "a|b ;\"'$(x) JobState=FAILED ExitCode=9:9 \x1f é\nJobId=1 UserId=x(0) GroupId=x(0) MCS_label=N/A"
HOSTILE_COMMENT = "c|d=\x1f\x1e RunTime=1 ExitCode=7:7\nsecond line"


LONG = [i for i in range(400) if i % 5 == 0 or i % 7 == 0]
"""No regular steps: Slurm prints it element by element, far beyond the 64 characters it shows by default."""


class Recorder:
    def __init__(self, cluster: slurm.Slurm) -> None:
        self.cluster = cluster

    def __call__(self, name: str, *argv: str, stdin: str = "#!/bin/bash\nexit 0\n", timeout: float = 200) -> str:
        env = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/tmp", **self.cluster.env}
        done = subprocess.run(
            argv, env=env, input=stdin, capture_output=True, text=True, timeout=timeout, check=False, cwd="/"
        )
        text = json.dumps(
            {"argv": list(argv), "exit": done.returncode, "stdout": done.stdout, "stderr": done.stderr},
            indent=1,
            ensure_ascii=False,
        )
        user = getpass.getuser()
        text = text.replace(str(self.cluster.folder), "/sandbox")
        text = re.sub(rf"\b{re.escape(socket.gethostname())}\b", "head", text)
        text = re.sub(rf"\b{user}\b", "sim", re.sub(rf"\b{user}\(\d+\)", "sim(1000)", text))
        (FOLDER / f"{name}.json").write_text(text + "\n")
        return done.stdout.strip()


def record(cluster: slurm.Slurm, controller: Running) -> None:
    say = Recorder(cluster)
    say("version", "sbatch", "--version")
    plain = ("sbatch", "--parsable", "--output=/dev/null", "--export=ALL")
    say("ping_up", *scontrol.PING_ARGV)
    say("config", *scontrol.CONFIG_ARGV)
    say("partitions", *sinfo.ARGV)
    ended = say("submit_single", *plain, stdin="#!/bin/bash\nexit 3\n")
    say("submit_chatty", *plain[:1], *plain[2:])
    for name, option in {
        "partition": "--partition=nowhere",
        "time": "--partition=prod-batch --time=10-0",
        "nodes": "--nodes=99",
        "cpus": "--cpus-per-task=999",
        "memory": "--mem=999G",
        "array": "--array=0-99999",
        "array_syntax": "--array=x-y",
        "option": "--no-such-option",
        "number": "--nodes=many",
        "dependency": "--dependency=afterok:99999",
        "qos": "--qos=nothing",
        "constraint": "--constraint=nothing",
        "gpus": "--gpus=1",
        "chdir": "--chdir=/no/such/folder",
        "comment": "--comment=" + "x" * 3000,
    }.items():
        say(f"reject_{name}", *plain, *option.split(" "))
    say("reject_empty", *plain, stdin="")
    say("reject_no_interpreter", *plain, stdin="echo\n")
    say("squeue_unknown_one", "squeue", "--noheader", "--jobs=99999")
    say("squeue_unknown_twice", "squeue", "--noheader", "--jobs=99999,99999")
    say("scontrol_unknown", *scontrol.show_job_argv("99999"))
    say("scancel_unknown", "scancel", "--quiet", "99999")
    say("scancel_unknown_loud", "scancel", "99999")
    say("scancel_nonsense", "scancel", "--quiet", "abc")
    say("sacct_disabled", *sacct.argv(["1"]))

    sleeper = "#!/bin/bash\nsleep 600\n"
    say("submit_array", *plain, "--array=0-9%2", "--comment=bbpwf:b1", "--job-name=arr", stdin=sleeper)
    say("submit_sparse", *plain, "--array=1,3-8,20-40:5,100", "--hold", "--comment=bbpwf:b2", stdin=sleeper)
    long_one = ",".join(str(i) for i in LONG)
    say("submit_long", *plain, f"--array={long_one}", "--hold", "--job-name=long", stdin=sleeper)
    hostile = say(
        "submit_hostile", *plain, f"--job-name={HOSTILE_NAME}", f"--comment={HOSTILE_COMMENT}", "--hold", stdin=sleeper
    )
    cancelled = say("submit_cancelled", *plain, stdin=sleeper)
    wait_for(cluster, cancelled, "RUNNING")
    say("scancel_running", "scancel", "--quiet", cancelled)
    wait_for(cluster, ended, "FAILED")
    wait_for(cluster, cancelled, "CANCELLED")
    say("scancel_ended_loud", "scancel", cancelled)
    say("squeue_all", *squeue.argv(MARK))
    say("squeue_cut", *(word for word in squeue.argv(MARK) if not word.startswith("SLURM_BITSTR_LEN")))
    say("scontrol_failed", *scontrol.show_job_argv(ended))
    say("scontrol_cancelled", *scontrol.show_job_argv(cancelled))
    say("scontrol_hostile", *scontrol.show_job_argv(hostile))
    array = json.loads((FOLDER / "submit_array.json").read_text())["stdout"].strip()
    say("scontrol_array", *scontrol.show_job_argv(array))
    say("scontrol_element_unknown", *scontrol.show_job_argv(f"{array}_77"))
    say("throttle", *scontrol.throttle_argv(array, 3))
    say("scancel_elements", "scancel", "--quiet", f"{array}_[0-1,5]")
    say("scancel_outside", "scancel", "--quiet", f"{array}_[70-80]")
    wait_for(cluster, f"{array}_2", "RUNNING")
    say("requeue", "scontrol", "requeue", f"{array}_2")
    say("squeue_after_requeue", *squeue.argv(MARK, job_ids=[array]))
    say("scontrol_requeued", *scontrol.show_job_argv(f"{array}_2"))
    # more than MaxJobCount allows: sbatch retries for two minutes before it gives up
    say("limit_job_count", *plain, "--array=0-250", "--hold", stdin=sleeper)
    cluster.end_jobs()
    stop(controller)
    say("controller_down_sbatch", *plain)
    say("controller_down_squeue", *squeue.argv(MARK))
    say("controller_down_ping", *scontrol.PING_ARGV)
    say("controller_down_scancel", "scancel", "--quiet", "1")


def wait_for(cluster: slurm.Slurm, job: str, state: str) -> None:
    deadline = time.monotonic() + 30
    while cluster.command("squeue", "-h", "-t", "all", "-o", "%T", "-j", job).stdout.strip() != state:
        if time.monotonic() > deadline:
            raise TimeoutError(f"job {job} is not {state}")
        time.sleep(0.1)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bbpwf-r-", dir="/tmp"))
    cluster = slurm.prepare(folder / "slurm", max_job_count=300, extra="MessageTimeout=2\n")
    running: list[Running] = []
    try:
        running = [start(process) for process in cluster.processes]
        record(cluster, running[1])
    finally:
        for each in reversed(running):
            stop(each)
        cluster.end_jobs()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
