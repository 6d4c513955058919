"""``bbpwf runs``: what became of launches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bbpwf.cli.client import ServiceClient

runs_app = typer.Typer(help="Runs of the project: list, show, logs, cancel, pause, resume.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")]
RunId = Annotated[str, typer.Argument(help="Id of the run.")]


@runs_app.command("list")
def list_runs(
    state: Annotated[
        list[str] | None, typer.Option("--state", help="Only runs in this state; may be repeated.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Only runs with this NAME=VALUE.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")] = 20,
    json_output: Json = False,
) -> None:
    """The newest runs."""
    from bbpwf import settings
    from bbpwf.cli import show
    from bbpwf.cli.client import connect

    states = [each.upper() for each in state or []]
    tags = [each.replace("=", ":", 1) for each in tag or []]
    found = connect(settings.load()).runs(states=states, tags=tags, limit=limit)
    if json_output:
        show.print_json(found)
    else:
        show.console().print(show.runs_table(found))


@runs_app.command("show")
def show_run(
    run_id: RunId,
    task_id: Annotated[str, typer.Argument(help="With --why: the task or array element to explain.")] = "",
    why: Annotated[
        bool, typer.Option("--why", help="Explain why tasks wait or how they ended; without TASK_ID, all not complete.")
    ] = False,
    json_output: Json = False,
) -> None:
    """A run: its state and why, its tasks, what failed."""
    from bbpwf import settings
    from bbpwf.cli import show
    from bbpwf.cli.client import connect
    from bbpwf.clock import SystemClock

    client = connect(settings.load())
    if why or task_id:
        _explain(client, run_id, task_id, json_output=json_output)
        return
    run, tasks = client.run(run_id), client.tasks(run_id)
    if json_output:
        show.print_json({**run, "tasks": tasks})
        return
    out = show.console()
    out.print(show.live_view(run, tasks, SystemClock().now()), soft_wrap=True)
    for failure in show.failures(run):
        out.print(failure, soft_wrap=True)


_MOST_EXPLAINED = 20


def _explain(client: ServiceClient, run_id: str, task_id: str, *, json_output: bool) -> None:
    from bbpwf.cli import show
    from bbpwf.cli.why import explanation
    from bbpwf.errors import Conflict

    if task_id:
        found = [client.explain(run_id, task_id)]
    else:
        found = []
        waiting = [task for task, _ in show.folded(client.tasks(run_id)) if task["state"] != "COMPLETE"]
        for task in waiting[:_MOST_EXPLAINED]:
            try:
                found.append(client.explain(run_id, str(task["id"])))
            except Conflict:  # no jobs: a plain task says itself what there is to say
                found.append({"task": task, "reasons": [], "job": None})
    if json_output:
        show.print_json(found)
        return
    for each in found:
        show.console().print(explanation(each), soft_wrap=True)


@runs_app.command("logs")
def logs(
    run_id: RunId,
    task_id: Annotated[str, typer.Argument(help="Id of a task or array element; the engine's own log without.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
) -> None:
    """The log of a job, or of the engine."""
    from bbpwf import settings
    from bbpwf.cli.client import connect
    from bbpwf.clock import SystemClock
    from bbpwf.states import RunState

    client, clock = connect(settings.load()), SystemClock()
    offset = 0
    while True:
        ended = RunState(client.run(run_id)["state"]).terminal
        text, following = client.log(run_id, task_id, offset)
        typer.echo(text, nl=False)
        if following == offset:
            if ended or not follow:
                return
            clock.sleep(1.0)
        offset = following


@runs_app.command("cancel")
def cancel(
    run_id: RunId,
    task_id: Annotated[str, typer.Argument(help="Id of a task or array element; the whole run without.")] = "",
    wait: Annotated[float, typer.Option("--wait", min=0, help="Most seconds to wait until the jobs are gone.")] = 60.0,
) -> None:
    """Cancel a run, a task or an element, and see that its jobs are gone."""
    from bbpwf import settings
    from bbpwf.cli.client import connect
    from bbpwf.clock import SystemClock
    from bbpwf.errors import DeadlineExceeded
    from bbpwf.states import RunState

    client, clock = connect(settings.load()), SystemClock()
    deadline = clock.monotonic() + wait
    if not task_id:
        client.cancel(run_id)
    while not _is_gone(client, run_id, task_id):
        if clock.monotonic() >= deadline:
            raise DeadlineExceeded(f"not gone within {wait:.0f} s; it is still being canceled")
        clock.sleep(0.5)
    typer.echo("its jobs are gone" if task_id else RunState(client.run(run_id)["state"]).value)


def _is_gone(client: ServiceClient, run_id: str, task_id: str) -> bool:
    from bbpwf.states import RunState

    if task_id:
        return client.cancel_task(run_id, task_id) == 0
    return RunState(client.run(run_id)["state"]).terminal


@runs_app.command("throttle")
def throttle(
    run_id: RunId,
    task_id: Annotated[str, typer.Argument(help="Id of an array task.")],
    limit: Annotated[int, typer.Argument(min=0, help="Most of its jobs that may run at once; 0 for no limit.")],
) -> None:
    """Change how many jobs of a task may run at once, also while they run."""
    from bbpwf import settings
    from bbpwf.cli.client import connect

    connect(settings.load()).throttle(run_id, task_id, limit)


@runs_app.command("pause")
def pause(run_id: RunId) -> None:
    """Begin nothing new for a run until it is resumed; jobs that the scheduler has go on."""
    from bbpwf import settings
    from bbpwf.cli.client import connect

    client = connect(settings.load())
    client.pause(run_id)
    typer.echo(client.run(run_id)["state"])


@runs_app.command("resume")
def resume(
    run_id: RunId,
    follow: Annotated[bool, typer.Option("--follow", help="Show the run's progress until it ends.")] = False,
    json_output: Json = False,
) -> None:
    """Go on with a run that failed, was canceled or was paused: what completed stays, the rest is tried anew."""
    from bbpwf import settings
    from bbpwf.cli.client import connect
    from bbpwf.cli.exits import exit_code_of_run
    from bbpwf.cli.follow import Follower, conclude
    from bbpwf.clock import SystemClock
    from bbpwf.states import RunState

    client = connect(settings.load())
    client.resume(run_id)
    if not follow:
        typer.echo(client.run(run_id)["state"])
        return
    run = Follower(lambda: (client.run(run_id), client.tasks(run_id)), SystemClock(), quiet=json_output).until_end()
    conclude(run, json_output=json_output)
    raise typer.Exit(exit_code_of_run(RunState(run["state"])))
