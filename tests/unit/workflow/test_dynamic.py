"""Tasks that find out while they run what they need: they go on where they were, and nothing is run twice for it."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import sys
import threading

import pytest

from tests.unit.workflow.conftest import Bench

STEPS = """
import os, pathlib, signal, time
import luigi
from bbpwf.workflow import RemoteTarget, SbatchTask

class Part(luigi.Task):
    folder = luigi.Parameter()
    number = luigi.IntParameter()
    def run(self):
        with self.output().open("w") as file: file.write(str(self.number))
    def output(self): return luigi.LocalTarget(f"{self.folder}/part-{self.number}")

class Quiet(SbatchTask):
    number = luigi.IntParameter()
    def command(self): return "true"

class Whole(luigi.Task):
    folder = luigi.Parameter()
    count = luigi.IntParameter(default=5)
    crash = luigi.BoolParameter(default=False)
    def note(self, text):
        with open(f"{self.folder}/notes", "a") as file: file.write(f"{text}\\n")
    def run(self):
        self.note("begin")
        read = []
        try:
            for number in range(self.count):
                target = yield Part(folder=self.folder, number=number)
                read.append(target.open().read())
            both = yield [Part(folder=self.folder, number=n) for n in (20, 21)]
            read += [each.open().read() for each in both]
        finally:
            self.note("end")
        with self.output().open("w") as file: file.write(" ".join(read))
    def output(self): return luigi.LocalTarget(f"{self.folder}/whole")

class Jobs(luigi.Task):
    folder = luigi.Parameter()
    def run(self):
        yield [Quiet(number=n) for n in range(3)]
        yield Quiet(number=3)
        with self.output().open("w") as file: file.write("done")
    def output(self): return luigi.LocalTarget(f"{self.folder}/jobs")

class Many(luigi.WrapperTask):
    folder = luigi.Parameter()
    def requires(self):
        return [Nested(folder=self.folder, number=n) for n in range(6)]

class Nested(luigi.Task):
    folder = luigi.Parameter()
    number = luigi.IntParameter()
    def run(self):
        with open(f"{self.folder}/entered-{self.number}", "a") as file: file.write("x")
        yield Part(folder=self.folder, number=100 + self.number)
        with self.output().open("w") as file: file.write("done")
    def output(self): return luigi.LocalTarget(f"{self.folder}/nested-{self.number}")

class Hopeless(luigi.Task):
    folder = luigi.Parameter()
    def run(self):
        yield Broken()
    def output(self): return luigi.LocalTarget(f"{self.folder}/never")

class Broken(luigi.Task):
    def run(self): raise ValueError("it is broken")
    def complete(self): return False

class Suicide(luigi.Task):
    "Kills the process that waits for it, as the kernel may when memory is short."
    folder = luigi.Parameter()
    def run(self):
        victim = int(pathlib.Path(f"{self.folder}/pid").read_text())
        os.kill(victim, signal.SIGKILL)
        stat, deadline = pathlib.Path(f"/proc/{victim}/stat"), time.monotonic() + 60
        while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with self.output().open("w") as file: file.write("done")
    def output(self): return luigi.LocalTarget(f"{self.folder}/suicide")

class Victim(luigi.Task):
    folder = luigi.Parameter()
    def run(self):
        pathlib.Path(f"{self.folder}/pid").write_text(str(os.getpid()))
        yield Suicide(folder=self.folder)
        with self.output().open("w") as file: file.write("done")
    def output(self): return luigi.LocalTarget(f"{self.folder}/victim")
"""


def test_a_task_goes_on_where_it_was(bench: Bench) -> None:
    module = bench.module("steps_flow", STEPS)
    outcome = bench.run(bench.agent(), module, "Whole", params={"folder": str(bench.path)})
    assert outcome.state == "COMPLETE"
    assert (bench.path / "whole").read_text() == "0 1 2 3 4 20 21"
    assert (bench.path / "notes").read_text().split() == ["begin", "end"]


def test_what_jobs_did_meanwhile_is_known_to_the_task(bench: Bench) -> None:
    """These jobs leave no file: that they are done is known from the agent alone."""
    module = bench.module("jobs_flow", STEPS)
    outcome = bench.run(bench.agent(), module, "Jobs", params={"folder": str(bench.path)})
    assert outcome.state == "COMPLETE", outcome.reason
    assert (bench.path / "jobs").read_text() == "done"


@pytest.mark.parametrize(("most", "entered"), [(64, {"x"}), (0, {"xx"})])
def test_with_too_many_waiting_a_task_is_run_again_from_its_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, most: int, entered: set[str]
) -> None:
    monkeypatch.setattr("bbpwf.workflow.worker.MOST_WAITING", most)
    module = bench.module("many_flow", STEPS)
    outcome = bench.run(bench.agent(), module, "Many", params={"folder": str(bench.path)})
    assert outcome.state == "COMPLETE", outcome.reason
    assert {(bench.path / f"entered-{n}").read_text() for n in range(6)} == entered


def test_a_task_whose_process_was_killed_while_it_waited_is_run_again(bench: Bench) -> None:
    module = bench.module("victim_flow", STEPS)
    outcome = bench.run(bench.agent(), module, "Victim", params={"folder": str(bench.path)})
    assert outcome.state == "COMPLETE", outcome.reason
    assert (bench.path / "victim").read_text() == "done"


def test_a_task_that_waits_in_vain_ends_with_the_run(bench: Bench) -> None:
    module = bench.module("hopeless_flow", STEPS)
    outcome = bench.run(bench.agent(), module, "Hopeless", params={"folder": str(bench.path)})
    assert outcome.state == "EXECUTOR_ERROR"
    assert "it is broken" in outcome.reason


def test_a_process_is_forked_while_others_write(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever writes at the moment of a fork holds a lock that nobody in the new process would ever open."""
    module = bench.module("talking_flow", STEPS)
    done = threading.Event()
    handler = logging.FileHandler(bench.path / "log")

    def talk() -> None:
        while not done.is_set():
            sys.stderr.write("x" * 20_000 + "\n")
            sys.stderr.flush()
            logging.getLogger("talk").warning("%s", "x" * 20_000)

    with capfd.disabled(), (bench.path / "err").open("w") as err, contextlib.redirect_stderr(err):
        logging.getLogger().addHandler(handler)
        talker = threading.Thread(target=talk)
        talker.start()
        try:
            outcome = bench.run(bench.agent(), module, "Many", params={"folder": str(bench.path)})
        finally:
            done.set()
            talker.join()
            logging.getLogger().removeHandler(handler)
            handler.close()
    assert outcome.state == "COMPLETE", outcome.reason
    for process in multiprocessing.active_children():
        process.join(60.0)
        assert not process.is_alive(), "it waits for a lock"


def test_a_task_with_nothing_to_run_needs_no_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    module = bench.module(
        "empty_flow",
        """
import luigi
from bbpwf.workflow import RemoteTarget, SbatchTask

class One(SbatchTask):
    def command(self): return ["touch", "one"]
    def output(self): return RemoteTarget("one")

class Inner(luigi.WrapperTask):
    def requires(self): return One()

class Outer(luigi.WrapperTask):
    def requires(self): return [Inner(), One()]
""",
    )
    monkeypatch.setattr("bbpwf.workflow.process.LocalProcess.start", None)
    agent = bench.agent()
    assert bench.run(agent, module, "Outer").state == "COMPLETE"
    assert bench.run(agent, module, "Outer").state == "COMPLETE"
    assert agent.calls["submit"] == 1
