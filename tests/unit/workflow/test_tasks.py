"""Job tasks from their definition to the run's outcome."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable

import luigi

from bbpwf.cluster.jobs import job_key
from bbpwf.states import JobState
from bbpwf.workflow import SbatchTask
from bbpwf.workflow.runner import Cancellation
from tests.unit.workflow.conftest import Bench

HELLO = """
import luigi
from bbpwf.workflow import RemoteTarget, SbatchTask

class Hello(SbatchTask):
    who = luigi.Parameter(default="world")
    def command(self): return ["bash", "-c", f"echo hello {self.who} > {self.output().path}"]
    def output(self): return RemoteTarget(f"hello-{self.who}.txt")
"""


def test_a_ten_line_task_runs_and_is_not_run_again(bench: Bench) -> None:
    agent = bench.agent()
    module = bench.module("hello_flow", HELLO)
    outcome = bench.run(agent, module, "Hello", params={"who": "cell"})
    assert outcome.state == "COMPLETE"
    assert agent.file("hello-cell.txt").read_text() == "hello cell\n"
    (report,) = agent.reports.values()
    assert (report.family, report.state, report.params["who"]) == ("Hello", "DONE", "cell")
    assert report.started_at is not None
    assert report.ended_at is not None
    assert bench.run(agent, module, "Hello", params={"who": "cell"}).state == "COMPLETE"
    assert list(agent.started.values()) == [1]


def test_a_failure_tells_code_and_last_lines(bench: Bench) -> None:
    agent = bench.agent()
    module = bench.module(
        "failing_flow",
        """
from bbpwf.workflow import RemoteTarget, SbatchTask
class Breaks(SbatchTask):
    def command(self): return "echo one\\necho the cell exploded >&2\\nexit 3"
    def output(self): return RemoteTarget("never.txt")
""",
    )
    outcome = bench.run(agent, module, "Breaks")
    assert outcome.state == "EXECUTOR_ERROR"
    assert "Breaks failed: exit code 3" in outcome.reason
    (failure,) = outcome.failed
    assert failure.exit_code == 3
    assert failure.log_tail.splitlines() == ["one", "the cell exploded"]
    (report,) = agent.reports.values()
    assert report.state == "FAILED"
    assert "the cell exploded" in report.message


def test_a_script_ends_at_its_first_failing_command(bench: Bench) -> None:
    agent = bench.agent()
    module = bench.module(
        "strict_flow",
        """
from bbpwf.workflow import RemoteTarget, SbatchTask
class Strict(SbatchTask):
    def command(self): return "false | cat\\necho on > on.txt"
    def output(self): return RemoteTarget("on.txt")
""",
    )
    assert bench.run(agent, module, "Strict").state == "EXECUTOR_ERROR"
    assert not agent.file("on.txt").exists()


def test_success_without_the_output_is_a_failure(bench: Bench) -> None:
    agent = bench.agent()
    module = bench.module(
        "forgetful_flow",
        """
from bbpwf.workflow import RemoteTarget, SbatchTask
class Forgets(SbatchTask):
    def command(self): return ["true"]
    def output(self): return [RemoteTarget("a.txt"), RemoteTarget("b.txt")]
""",
    )
    outcome = bench.run(agent, module, "Forgets")
    assert outcome.state == "EXECUTOR_ERROR"
    assert "Forgets ended well but did not make a.txt, b.txt" in outcome.reason


ARRAY = """
from pathlib import Path
from bbpwf.workflow import ArrayTask, Element, RemoteTarget, SbatchTask

class Points(SbatchTask):
    def command(self): return "printf '%s\\\\n' 0 1 2 3 4 > points.txt"
    def output(self): return RemoteTarget("points.txt")

class Simulate(ArrayTask):
    def requires(self): return Points()
    def elements(self):
        return [
            Element(
                label=f"point {p}",
                command=f"echo working on {p}; test ! -e {FLAG} || test {p} != 3; echo $P > out-{p}.txt",
                outputs=[f"out-{p}.txt"],
                env={"P": p},
            )
            for p in self.input().read_text().split()
        ]

class Report(SbatchTask):
    def requires(self): return Simulate()
    def command(self): return "cat out-*.txt > report.txt"
    def output(self): return RemoteTarget("report.txt")
"""


def test_a_failing_element_alone_runs_again_after_a_resume(bench: Bench) -> None:
    agent = bench.agent()
    flag = bench.path / "broken"
    flag.touch()
    module = bench.module("array_flow", f"FLAG = {str(flag)!r}\n" + ARRAY)
    outcome = bench.run(agent, module, "Report")
    assert outcome.state == "EXECUTOR_ERROR"
    (failure,) = outcome.failed
    assert (failure.label, failure.exit_code) == ("point 3", 1)
    assert failure.log_tail == "working on 3"
    assert "point 3" in outcome.reason
    states = {report.family: report.state for report in agent.reports.values()}
    assert states == {"Points": "DONE", "Simulate": "FAILED", "Report": "PENDING"}
    assert "1 of 5 jobs failed" in next(r.message for r in agent.reports.values() if r.family == "Simulate")

    flag.unlink()
    agent.resume()
    assert bench.run(agent, module, "Report", incarnation=2).state == "COMPLETE"
    assert agent.file("report.txt").read_text().split() == ["0", "1", "2", "3", "4"]
    elements = {view.label: agent.started[view.key] for view in agent.views() if view.index is not None}
    assert elements == {"point 0": 1, "point 1": 1, "point 2": 1, "point 3": 2, "point 4": 1}


def test_an_array_is_one_submission_with_a_common_group_and_throttle(bench: Bench) -> None:
    agent = bench.agent()
    module = bench.module("array_flow", "FLAG = '/nonexistent'\n" + ARRAY)
    (bench.attachments / "run.cfg").write_text("[Simulate]\nthrottle = 2\ncpus-per-task: 3\n")
    assert bench.run(agent, module, "Report", config="run.cfg").state == "COMPLETE"
    elements = next(specs for specs in agent.submitted if len(specs) == 5)
    assert {spec.throttle for spec in elements} == {2}
    assert len({spec.group for spec in elements}) == 1
    assert {spec.resources.cpus_per_task for spec in elements} == {3}
    assert [spec.index for spec in elements] == [0, 1, 2, 3, 4]


def test_a_partial_output_of_a_killed_job_does_not_count(bench: Bench) -> None:
    agent = bench.agent()
    module = bench.module(
        "partial_flow",
        """
from bbpwf.workflow import RemoteTarget, SbatchTask
class Partial(SbatchTask):
    def command(self): return "echo half > out.txt; test -e go; echo whole > out.txt"
    def output(self): return RemoteTarget("out.txt")
""",
    )
    assert bench.run(agent, module, "Partial").state == "EXECUTOR_ERROR"
    assert agent.file("out.txt").exists()
    agent.file("go").touch()
    agent.resume()
    assert bench.run(agent, module, "Partial", incarnation=2).state == "COMPLETE"
    assert agent.file("out.txt").read_text() == "whole\n"


FAN = """
import luigi
from bbpwf.workflow import RemoteTarget, SbatchTask

class One(SbatchTask):
    number = luigi.IntParameter()
    def command(self): return ["touch", self.output().path]
    def output(self): return RemoteTarget(f"one-{self.number}")

class Plain(luigi.Task):
    def run(self):
        with self.output().open("w") as file: file.write("plain")
    def output(self): return RemoteTarget("plain.txt")

class All(luigi.WrapperTask):
    def requires(self): return [One(number=i) for i in range(200)] + [Plain()]
"""


def test_two_hundred_jobs_in_flight_have_no_process_and_no_thread(
    bench: Bench, poll: Callable[[Callable[[], bool]], None]
) -> None:
    agent = bench.agent(hold=True)
    module = bench.module("fan_flow", FAN)
    seen: dict[str, int] = {}
    before = set(threading.enumerate())

    def threads() -> int:
        names = [thread.name for thread in set(threading.enumerate()) - before]
        return len([name for name in names if not name.startswith(("memory-agent", "looker"))])

    def look() -> None:
        poll(lambda: len(agent.views()) == 200 and agent.file("plain.txt").exists())
        poll(lambda: not multiprocessing.active_children())
        poll(lambda: threads() <= 3)  # who answered the task that was forked is about to end
        seen["threads"] = threads()
        seen["stats"] = agent.calls["exists"]
        agent.release()

    looker = threading.Thread(target=look, name="looker")
    looker.start()
    outcome = bench.run(agent, module, "All", workers=1)
    looker.join()
    assert outcome.state == "COMPLETE"
    assert seen["threads"] <= 3, "Luigi's keep-alive, the watcher, and who answers forked tasks"
    assert seen["stats"] <= 10, "outputs of a level of the graph are looked up in one round trip"
    assert agent.calls["submit"] <= 20, "jobs are submitted many at a time"


def test_a_cancel_leaves_no_job(bench: Bench, poll: Callable[[Callable[[], bool]], None]) -> None:
    agent = bench.agent()
    module = bench.module(
        "long_flow",
        """
from bbpwf.workflow import ArrayTask, Element
class Long(ArrayTask):
    def elements(self): return [Element(str(i), ["sleep", "600"], [f"out-{i}"]) for i in range(6)]
""",
    )
    cancellation = Cancellation()

    def cancel() -> None:
        poll(lambda: any(view.state is JobState.RUNNING for view in agent.views()))
        cancellation.request()

    canceler = threading.Thread(target=cancel)
    canceler.start()
    outcome = bench.run(agent, module, "Long", cancellation=cancellation)
    canceler.join()
    assert outcome.state == "CANCELED"
    assert all(view.state is JobState.CANCELLED for view in agent.views())


def test_the_platforms_fault_is_a_system_error(bench: Bench, poll: Callable[[Callable[[], bool]], None]) -> None:
    agent = bench.agent(hold=True)
    module = bench.module("hello_flow", HELLO)

    def fail() -> None:
        poll(lambda: bool(agent.views()))
        agent.end(agent.views()[0].key, JobState.NODE_FAIL, reason="n3 does not answer")

    failer = threading.Thread(target=fail)
    failer.start()
    outcome = bench.run(agent, module, "Hello")
    failer.join()
    assert outcome.state == "SYSTEM_ERROR"
    assert "n3 does not answer" in outcome.reason


def test_a_task_without_output_is_done_when_its_job_is(bench: Bench) -> None:
    agent = bench.agent()
    module = bench.module(
        "silent_flow",
        """
from bbpwf.workflow import SbatchTask
class First(SbatchTask):
    def command(self): return "echo >> ../../count"
class Second(SbatchTask):
    def requires(self): return First()
    def command(self): return "echo >> ../../count"
""",
    )
    assert bench.run(agent, module, "Second").state == "COMPLETE"
    assert bench.run(agent, module, "Second").state == "COMPLETE"
    assert agent.file("../../count").read_text() == "\n\n"


def test_a_job_over_its_worker_timeout_is_cancelled(bench: Bench) -> None:
    agent = bench.agent()
    module = bench.module(
        "slow_flow",
        """
from bbpwf.workflow import SbatchTask
class Slow(SbatchTask):
    worker_timeout = 1
    def command(self): return ["sleep", "600"]
""",
    )
    outcome = bench.run(agent, module, "Slow")
    assert outcome.state == "EXECUTOR_ERROR"
    assert "timed out after 1 seconds" in outcome.reason
    assert agent.calls["cancel"] == 1


def test_events_and_hooks_of_luigi_are_called(bench: Bench) -> None:
    agent = bench.agent()
    module = bench.module(
        "event_flow",
        HELLO
        + """
    def on_success(self): HEARD.append("on_success")
HEARD = []
for event in ("event.core.start", "event.core.success", "event.core.processing_time"):
    Hello.event_handler(event)(lambda *given, event=event: HEARD.append(event.rsplit(".", 1)[1]))
""",
    )
    assert bench.run(agent, module, "Hello").state == "COMPLETE"
    import sys

    assert sys.modules["event_flow"].HEARD == ["start", "processing_time", "on_success", "success"]


def test_a_command_that_cannot_be_made_fails_its_task_alone(bench: Bench) -> None:
    agent = bench.agent()
    module = bench.module(
        "mixed_flow",
        HELLO
        + """
class Bad(SbatchTask):
    def command(self): raise RuntimeError("no such morphology")
    def output(self): return RemoteTarget("bad")
class Both(luigi.WrapperTask):
    def requires(self): return [Bad(), Hello()]
""",
    )
    outcome = bench.run(agent, module, "Both")
    assert outcome.state == "EXECUTOR_ERROR"
    assert "no such morphology" in outcome.reason
    assert agent.file("hello-world.txt").exists()


def test_the_key_of_a_job_is_the_runs_and_the_tasks(bench: Bench) -> None:
    agent = bench.agent()
    module = bench.module("hello_flow", HELLO)
    bench.run(agent, module, "Hello")
    (spec,) = agent.submitted[0]
    assert spec.key == job_key("r1", spec.task_id)
    assert spec.run_id == "r1"


PLAIN = """
import fcntl, os, time
from pathlib import Path
import luigi
from bbpwf.workflow import RemoteTarget, SbatchTask, current

class Local(luigi.Task):
    number = luigi.IntParameter()
    def run(self):
        with open(BUSY, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write("+"); file.flush()
            fcntl.flock(file, fcntl.LOCK_UN)
        time.sleep(0.05)
        if self.number == FAILS: raise ValueError("cannot count to three")
        self.output().write_text(f"{current().run_id} {os.getpid()}")
        with open(BUSY, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write("-")
    def output(self): return RemoteTarget(f"local-{self.number}")

class Job(SbatchTask):
    def command(self): return "touch job.txt"
    def output(self): return RemoteTarget("job.txt")

class Many(luigi.WrapperTask):
    def requires(self): return [Local(number=i) for i in range(12)] + [Job()]
"""


def test_plain_tasks_run_in_few_processes_while_jobs_are_not_held_up(
    bench: Bench, poll: Callable[[Callable[[], bool]], None]
) -> None:
    agent = bench.agent()
    busy = bench.path / "busy"
    module = bench.module("plain_flow", f"BUSY, FAILS = {str(busy)!r}, None\n" + PLAIN)
    assert bench.run(agent, module, "Many", workers=3).state == "COMPLETE"
    running = most = 0
    for step in busy.read_text():
        running += 1 if step == "+" else -1
        most = max(most, running)
    assert 2 <= most <= 3
    assert len({agent.file(f"local-{i}").read_text() for i in range(12)}) == 12, "each in a process of its own"
    assert {report.state for report in agent.reports.values()} == {"DONE"}


def test_a_plain_task_that_raises_is_told_with_its_traceback(bench: Bench) -> None:
    agent = bench.agent()
    module = bench.module("plain_flow", f"BUSY, FAILS = {str(bench.path / 'busy')!r}, 3\n" + PLAIN)
    outcome = bench.run(agent, module, "Many", workers=3)
    assert outcome.state == "EXECUTOR_ERROR"
    assert "Local failed: ValueError: cannot count to three" in outcome.reason
    (failure,) = outcome.failed
    assert "plain_flow.py" in failure.log_tail
    states = sorted(report.state for report in agent.reports.values())
    assert states == ["DONE"] * 12 + ["FAILED", "PENDING"]


def test_what_is_wrong_while_the_graph_is_built_is_the_runs_reason(bench: Bench) -> None:
    agent = bench.agent()
    module = bench.module(
        "wrong_flow",
        HELLO
        + """
class Wrong(luigi.WrapperTask):
    def requires(self): return Hello(mem="lots")
class Data(luigi.ExternalTask):
    def output(self): return RemoteTarget("given.txt")
class Waits(luigi.WrapperTask):
    def requires(self): return Data()
""",
    )
    outcome = bench.run(agent, module, "Wrong")
    assert outcome.state == "EXECUTOR_ERROR"
    assert "Hello: mem: 'lots' is not an amount of memory" in outcome.reason
    outcome = bench.run(agent, module, "Waits")
    assert outcome.state == "EXECUTOR_ERROR"
    assert "waits for data that no task makes" in outcome.reason


def test_progress_of_an_array_is_told_while_it_runs(bench: Bench, poll: Callable[[Callable[[], bool]], None]) -> None:
    agent = bench.agent(slots=1)
    module = bench.module(
        "slow_array",
        """
from bbpwf.workflow import ArrayTask, Element
class Steps(ArrayTask):
    def elements(self): return [Element(str(i), f"until [ -e go-{i} ]; do sleep 0.05; done", []) for i in range(3)]
""",
    )
    seen: list[str] = []

    def told(text: str) -> bool:
        seen[:] = [report.message for report in agent.report_log]
        return any(message.startswith(text) for message in seen)

    def watch() -> None:
        for number, text in enumerate(("0 of 3 done, 1 running, 2 waiting", "1 of 3 done, 1 running, 1 waiting")):
            poll(lambda text=text: told(text))  # type: ignore[misc]  # bound now, not at the call
            agent.file(f"go-{number}").touch()
        agent.file("go-2").touch()

    watcher = threading.Thread(target=watch)
    watcher.start()
    outcome = bench.run(agent, module, "Steps")
    watcher.join()
    assert outcome.state == "COMPLETE"
    assert told("1 of 3 done, 1 running, 1 waiting"), seen


def test_people_are_shown_what_was_set_and_not_thirty_defaults() -> None:
    class Shown(SbatchTask):
        who = luigi.Parameter()

        def command(self) -> str:
            return "true"

    task = Shown(who="you", mem="2G")
    assert task.to_str_params(only_public=True) == {"who": "you", "mem": "2G"}
    assert "partition" in task.to_str_params()
