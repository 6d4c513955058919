"""Starting one process, and what is said when it does not start."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import pytest

from sandbox import pids
from sandbox.process import Process, Running, StartFailed, free, free_ports, start, stop

ENV = {"PATH": os.environ["PATH"]}


def python(code: str, log: Path, **how: object) -> Process:
    return Process(name="thing", argv=(sys.executable, "-c", code), env=ENV, log=log, **how)  # type: ignore[arg-type]  # fields of Process


def test_one_that_ends_early_is_reported_with_what_it_said_this_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("of an earlier start\n")
    with pytest.raises(StartFailed) as failed:
        start(python("import sys; sys.exit('no such port')", log, ready=lambda: False))
    assert "thing ended with code 1" in str(failed.value)
    assert "no such port" in str(failed.value)
    assert "earlier" not in str(failed.value)


def test_one_that_never_becomes_ready_is_ended(tmp_path: Path) -> None:
    seen: list[Running] = []
    process = python("import time; time.sleep(60)", tmp_path / "log", ready=lambda: False, ready_within=0.2)
    with pytest.raises(StartFailed, match="not ready"):
        start(process, spawned=seen.append)
    assert seen[0].popen.poll() is not None


def test_one_that_is_not_wanted_any_more_is_ended_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    process = python("import time; time.sleep(60)", tmp_path / "log", ready=lambda: False, ready_within=30)
    with pytest.raises(StartFailed, match="not wanted"):
        start(process, wanted=lambda: False)
    assert time.monotonic() - began < 10


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="/no/such/program"):
        start(Process(name="thing", argv=("/no/such/program",), env=ENV, log=tmp_path / "log"))


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = f"import subprocess, time; p = subprocess.Popen(['sleep', '60']); open({str(note)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    running = start(python(code, tmp_path / "log", ready=lambda: note.exists() and note.read_text() != ""))
    stop(running)
    deadline = time.monotonic() + 5
    while pids.identify(int(note.read_text())) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_free_ports_are_free_and_different() -> None:
    ports = free_ports(30)
    assert len(set(ports)) == 30
    assert all(free(port) for port in ports)


def test_a_port_that_somebody_listens_on_is_not_free() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert not free(other.getsockname()[1])
