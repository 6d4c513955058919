"""Memory that threads took for a moment goes back to the system."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, threading, sqlite3
from pathlib import Path
from bbpwf import memory

if sys.argv[1] == "one":
    memory.share_one_arena()

def work():
    db = sqlite3.connect(":memory:")
    db.execute("create table t (x)")
    db.executemany("insert into t values (?)", (("x" * 500,) for _ in range(5000)))
    started.wait()
    db.close()

started = threading.Barrier(8)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(Path("/proc/self/maps").read_text().count("\\n"))
"""


def _maps(arenas: str) -> int:
    command = [sys.executable, "-c", SCRIPT, arenas]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)


def test_threads_share_one_arena() -> None:
    assert _maps("one") < _maps("many"), "each arena is a mapping of its own"
