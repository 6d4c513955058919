from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bbpwf import faults

_PROGRAM = """
import sys
from bbpwf import faults
faults.arm(sys.argv[1])
for n in range(1, 4):
    print(n, flush=True)
    faults.point("here")
"""


def passed(armed: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, armed], capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, done.stdout


def test_the_process_dies_at_the_point_when_its_turn_comes() -> None:
    assert passed("here=2") == (-signal.SIGKILL, "1\n2\n")


def test_points_that_were_not_armed_do_nothing() -> None:
    assert passed("there=1") == (0, "1\n2\n3\n")
    assert passed("") == (0, "1\n2\n3\n")


def test_it_leaves_the_name_of_the_point_where_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "died").write_text("there\n")
    assert passed(f"@{tmp_path / 'died'},elsewhere=1,here=1") == (-signal.SIGKILL, "1\n")
    assert (tmp_path / "died").read_text() == "there\nhere\n"


@pytest.mark.parametrize("text", ["here", "here=", "here=0", "=1", "here=x", "@here"])
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="fault point"):
        faults.arm(text)
