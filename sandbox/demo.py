"""The demo: a simulation campaign from a user's token to the knowledge graph, on one machine.

It does what the platform's user interface does, over HTTP alone, and looks at the results where the cluster's shared
disk is. Exit code 0 only if the run is COMPLETE, every simulation is there, and everything that it says it published
is found by asking for it.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.live import Live

from bbpwf.clock import SystemClock
from sandbox import demo_report as show
from sandbox import lifecycle
from sandbox.demo_client import DemoClient
from sandbox.layout import REPOSITORY, Layout
from sandbox.state import SandboxError, SandboxState

TASK = "tasks.simulation.SimulationCampaign"
CONFIG = REPOSITORY / "config" / "simulation-campaign.cfg"
SECTION = "GenerateCampaign"
USER = "alice"
LIMIT_S = 900.0
_POLL_S = 0.5
_LOG_WIDTH = 140


class Demo:
    """One run of the demo.

    Args:
        folder: the sandbox's folder.
        fail_point: index of the simulation that is made to fail once; none if ``None``.
        resume: let the failed run go on afterwards.
        end: end the sandbox at the end.
        backend: what jobs run on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fail_point: int | None = None,
        resume: bool = False,
        end: bool = False,
        backend: Literal["auto", "slurm", "local"] = "auto",
    ) -> None:
        self._folder = folder
        self._fail_point = fail_point
        self._resume = resume
        self._end = end
        self._backend = backend
        self._out = Console(highlight=False, width=None if sys.stdout.isatty() else _LOG_WIDTH)
        self._phases: dict[str, float] = {}

    def run(self) -> int:
        """Do it all. Returns the exit code.

        Raises:
            SandboxError: the sandbox does not start, or a part of it does not answer as it should.
        """
        try:
            return self._run()
        except KeyboardInterrupt:
            self._say("\nInterrupted: ending the sandbox")
            lifecycle.down(self._folder, lambda _: None)
            return 130

    def _run(self) -> int:
        name = f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        config, expected = campaign_config(CONFIG, name, self._fail_point)
        self._say(f"1. The platform, in {self._folder}")
        with self._phase("platform"):
            state = lifecycle.up(self._folder, lambda text: self._say(f"   {text}"), backend=self._backend)
        try:
            return self._campaign(state, name, config, expected)
        finally:
            if self._end:
                count = lifecycle.down(self._folder, lambda _: None)
                self._say(f"\nThe sandbox is ended ({count} processes).")

    def _campaign(self, state: SandboxState, name: str, config: str, expected: int) -> int:
        client = DemoClient(state.urls, USER, SystemClock())
        self._say(f"2. {USER} logs in and launches {TASK} with {CONFIG.name}: {expected} simulations")
        with self._phase("login and launch"):
            client.log_in()
            run_id = client.launch(TASK, CONFIG.name, config)
        self._say(f"3. Run {run_id}; the first one waits for the cluster to be made")
        with self._phase("campaign"):
            run = self._follow(client, run_id)
        if self._resume and run["state"] == "EXECUTOR_ERROR":
            self._failures(client, run_id, run)
            self._say("   resuming: what is complete is not run again")
            with self._phase("resumed"):
                client.resume(run_id)
                run = self._follow(client, run_id)
        with self._phase("looking at the results"):
            code = self._results(client, state, run_id, run, name, expected)
        self._say("\nTime")
        self._out.print(show.phases_table(self._phases, show.seen(client.tasks(run_id))))
        if not self._end:
            self._where_next(state, run_id, run)
        return code

    def _follow(self, client: DemoClient, run_id: str) -> show.Json:
        """Watch a run until it ends: drawn anew on a terminal, a line for each change elsewhere."""
        began = time.monotonic()
        known: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            picture = stack.enter_context(Live(console=self._out)) if self._out.is_terminal else None
            while True:
                run = client.run(run_id)
                tasks = show.seen(client.tasks(run_id))
                elapsed = time.monotonic() - began
                if picture is not None:
                    picture.update(show.live(run, tasks, elapsed))
                else:
                    for line in show.changes(known, run, tasks):
                        self._say(f"   {elapsed:5.1f} s  {line}")
                if show.ended(run):
                    return run
                if elapsed > LIMIT_S:
                    raise SandboxError(f"run {run_id} has not ended after {LIMIT_S:.0f} s")
                time.sleep(_POLL_S)

    def _results(
        self, client: DemoClient, state: SandboxState, run_id: str, run: show.Json, name: str, expected: int
    ) -> int:
        problems = [] if run["state"] == "COMPLETE" else [f"the run ended as {run['state']}"]
        if problems:
            self._say(f"\nThe run ended as {run['state']}")
            self._failures(client, run_id, run)
        found = show.read_results(Layout(state.folder).data_root / "campaigns", name)
        if found is not None and found.report:
            self._say("\n4. The points of the campaign")
            self._out.print(show.points_table(found.report))
            for plot in found.report.get("plots", []):
                self._say(f"   plot: {found.folder / 'report' / plot}")
        complete = found.complete if found is not None else 0
        if complete != expected and not (problems and complete == 0):
            problems.append(f"{complete} of {expected} simulations are complete")
        if found is not None and found.publication:
            problems += self._published(client, found.publication)
        elif not problems:
            problems.append("nothing was published")
        if problems:
            self._say(f"\nNot as it should be: {'; '.join(problems)}.", style="bold red")
            return 1
        self._say(f"\n{complete} of {expected} simulations complete.", style="bold green")
        return 0

    def _published(self, client: DemoClient, publication: show.Json) -> list[str]:
        """Show what was published and look whether it is there; what is not is returned."""
        resources, files = publication["resources"], publication["files"]
        self._say(f"\n5. In the knowledge graph: {len(resources)} resources")
        self._lines(show.resource_lines(publication))
        absent = [each["name"] for each in resources if not client.exists(each["url"])]
        size = sum(file["size"] for file in files)
        how = "Archived from Lustre" if publication["how"] == "archive" else "Uploaded"
        self._say(f"\n6. {how}: {len(files)} files, {size:,} bytes; some of them:")
        self._lines(show.file_lines(publication))
        if publication["how"] == "archive":
            absent += [file["name"] for file in files if client.stored_size(file["url"]) != file["size"]]
        else:
            absent += [file["name"] for file in files if not client.exists(file["content_url"])]
        absent += [file["name"] for file in files if not file["sha256"]]
        if not absent:
            self._say("   all of this was asked for, and is there")
        return [f"{name} is not there as published" for name in absent[:5]]

    def _failures(self, client: DemoClient, run_id: str, run: show.Json) -> None:
        jobs = [task for task in client.tasks(run_id) if task.get("exit_code") and task.get("stderr")]
        show.show_failures(self._out, run, [(task, client.log_tail(task["stderr"])) for task in jobs[:5]])

    def _where_next(self, state: SandboxState, run_id: str, run: show.Json) -> None:
        where = f" --dir {self._folder}" if self._folder != Path(".sandbox").resolve() else ""
        bbpwf = ".venv/bin/bbpwf"
        self._say("\nWhere to look next")
        self._say(f"   dashboard      {state.urls['dashboard']}  ({USER}, password {USER})")
        self._say(f"   REST           {state.urls['service']}/docs")
        self._say(f"   knowledge      {state.urls['nexus']}")
        self._say("   reading        README.md, docs/architecture.md, docs/tasks.md")
        self._say(
            f'   command line   eval "$({bbpwf} sandbox env{where})"; echo {USER} | '
            f"{bbpwf} login -u {USER} --password-stdin; {bbpwf} runs show {run_id}"
        )
        if run["state"] == "EXECUTOR_ERROR":
            self._say(f"   go on with it  {bbpwf} runs resume {run_id}  (after the above)")
        self._say(f"   the parts      {bbpwf} sandbox status{where}")
        self._say(f"   end it all     {bbpwf} sandbox down{where}")

    def _say(self, text: str, style: str = "") -> None:
        self._out.print(text, style=style, soft_wrap=True, markup=False)

    def _lines(self, lines: list[str]) -> None:
        for line in lines:
            self._say(f"   {line}")

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._phases[name] = time.monotonic() - began


def campaign_config(path: Path, name: str, fail_point: int | None) -> tuple[str, int]:
    """The Luigi config with another campaign name, and how many simulations it means.

    A new name means a new folder on the cluster, so that every demo does the whole work.

    Raises:
        SandboxError: the config cannot be read or is not that of a campaign.
    """
    config = configparser.ConfigParser(interpolation=None)
    try:
        config.read_string(path.read_text())
        coords = json.loads(config[SECTION]["coords"])
        lengths = [len(values) for values in coords.values()]
    except (OSError, configparser.Error, KeyError, ValueError, AttributeError, TypeError) as error:
        raise SandboxError(f"{path} is not the config of a campaign: {error}") from error
    expected = math.prod(lengths)
    if fail_point is not None and not 0 <= fail_point < expected:
        raise SandboxError(f"there is no point {fail_point}: the campaign's points are 0 to {expected - 1}")
    config[SECTION]["name"] = name
    if fail_point is not None:
        config[SECTION]["fail-point"] = str(fail_point)
    lines: list[str] = []
    for section in config.sections():
        lines += [f"[{section}]", *(f"{key} = {' '.join(value.split())}" for key, value in config[section].items()), ""]
    return "\n".join(lines), expected
