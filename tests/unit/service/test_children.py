"""Processes that end with us and are never doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bbpwf.errors import Conflict
from bbpwf.redact import Redactor
from service.children import LOG_CAP, Child, holders


def until(condition: Callable[[], bool], within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def child(tmp_path: Path, script: str, redactor: Redactor | None = None) -> Child:
    return Child(
        "test",
        [sys.executable, "-c", script],
        env={"ONLY": "this"},
        cwd=tmp_path,
        log=tmp_path / "child.log",
        lock=tmp_path / "lock",
        redactor=redactor or Redactor(),
    )


def test_a_child_gets_the_environment_that_was_built_and_no_other(tmp_path: Path) -> None:
    one = child(tmp_path, "import os; print(sorted(set(os.environ) - {'LC_CTYPE'}))")
    assert one.wait(20)
    assert (tmp_path / "child.log").read_text() == "['ONLY']\n"


def test_hanging_up_is_seen_as_the_end_of_its_input(tmp_path: Path) -> None:
    one = child(tmp_path, "import sys; sys.stdin.read(); sys.exit(7)")
    assert one.exit_code() is None
    one.hang_up()
    assert one.wait(20)
    assert one.exit_code() == 7


def test_a_second_one_is_refused_until_everything_of_the_first_is_gone(tmp_path: Path) -> None:
    one = child(tmp_path, "import os, time\nif os.fork() == 0: time.sleep(60)\n")
    assert one.wait(20)
    assert one.exit_code() == 0
    (orphan,) = holders(tmp_path / "lock")
    with pytest.raises(Conflict):
        child(tmp_path, "pass")
    os.kill(orphan, signal.SIGKILL)
    until(lambda: holders(tmp_path / "lock") == [])
    two = child(tmp_path, "pass")
    assert two.wait(20)


def test_killing_takes_its_whole_group(tmp_path: Path) -> None:
    one = child(tmp_path, "import os, time\nos.fork()\ntime.sleep(60)\n")
    until(lambda: len(holders(tmp_path / "lock")) == 2)
    one.kill()
    assert one.exit_code() == -signal.SIGKILL
    until(lambda: holders(tmp_path / "lock") == [])


def test_logs_are_masked_and_capped(tmp_path: Path) -> None:
    redactor = Redactor()
    redactor.add("hunter2-hunter2")
    size = LOG_CAP * 2 + 1000
    script = f"print('password hunter2-hunter2'); print(('x' * 99 + '\\n') * {size // 100}); print('the last line')"
    one = child(tmp_path, script, redactor)
    assert one.wait(60)
    older = (tmp_path / "child.log.1").read_text()
    newer = (tmp_path / "child.log").read_text()
    assert "hunter2" not in older + newer
    assert len(older) <= LOG_CAP + 200
    assert len(newer) <= LOG_CAP + 200
    assert newer.rstrip().endswith("the last line")


def test_a_leashed_command_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-m', 'service.leash', 'SIGTERM', str(os.getpid()), '--', 'sleep', '60'])\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        until(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"))
        parent.kill()
        parent.wait()

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
        except FileNotFoundError:
            return True

    until(gone)


@pytest.mark.parametrize("words", [[], ["SIGTERM"], ["SIGNOPE", "1", "--", "true"], ["SIGTERM", "1", "true"]])
def test_a_leash_that_makes_no_sense_is_refused(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "service.leash", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "usage" in done.stderr


WAITS = "import sys; print('early', flush=True); print('heard ' + sys.stdin.readline().strip()); sys.stdin.read()"


def test_a_waiting_child_becomes_another_with_its_own_log_and_lock(tmp_path: Path) -> None:
    one = child(tmp_path, WAITS)
    until((tmp_path / "child.log").exists)
    one.become("other", log=tmp_path / "other.log", lock=tmp_path / "other", word=b"go\n")
    second = child(tmp_path, "import sys; sys.stdin.read()")
    with pytest.raises(Conflict):
        second.become("other", log=tmp_path / "x", lock=tmp_path / "other", word=b"")
    second.kill()
    assert one.pid in holders(tmp_path / "other")
    one.hang_up()
    assert one.wait(20)
    assert (tmp_path / "child.log").read_text() == "early\n"
    assert (tmp_path / "other.log").read_text() == "heard go\n"
    assert holders(tmp_path / "other") == []


def test_a_waiting_child_that_is_gone_cannot_become_another(tmp_path: Path) -> None:
    one = child(tmp_path, "pass")
    assert one.wait(20)
    with pytest.raises(ProcessLookupError):
        one.become("other", log=tmp_path / "other.log", lock=tmp_path / "other", word=b"go\n")
    again = Child(
        *("other", [sys.executable, "-c", "pass"]),
        env={},
        cwd=tmp_path,
        log=tmp_path / "other.log",
        lock=tmp_path / "other",
        redactor=Redactor(),
    )
    assert again.wait(20)
