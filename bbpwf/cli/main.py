"""``bbpwf``: the command. Everything heavy is imported by the command that needs it, so that help is there at once.

Exit codes: 0 done, 1 the run failed, 2 invalid input, 3 no access, 4 the platform failed, 5 not found, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from bbpwf.cli import database, sandbox
from bbpwf.cli.runs import runs_app
from bbpwf.cli.tasks import tasks_app
from bbpwf.errors import BbpwfError, InvalidInput

app = typer.Typer(
    name="bbpwf",
    help="Scientific pipelines on the project's HPC cluster: Luigi task graphs, run by Slurm, results brought home.",
    epilog="Exit codes: 0 done, 1 the run failed, 2 invalid input, 3 no access, 4 the platform failed, 5 not found, "
    "130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(runs_app, name="runs")
app.add_typer(tasks_app, name="tasks")
app.add_typer(sandbox.app, name="sandbox")
app.add_typer(database.database_app, name="db")
app.command()(database.backup)
app.command()(database.restore)

_LUIGI_STYLE = {"allow_extra_args": True, "ignore_unknown_options": True}
_DEBUG = "BBPWF_DEBUG"

Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")]
Config = Annotated[
    Path | None, typer.Option("--config", help="Luigi .cfg with a section a task.", exists=True, dir_okay=False)
]


def _version(wanted: bool) -> None:
    if wanted:
        import bbpwf

        typer.echo(bbpwf.__version__)
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and log everything.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of all commands."""
    del version
    if debug:
        os.environ[_DEBUG] = "1"
        os.environ["BBPWF_LOG_LEVEL"] = "DEBUG"


@app.command(context_settings=_LUIGI_STYLE)
def run(
    context: typer.Context,
    module: Annotated[str, typer.Argument(help="Module of the task, or a .py file.")] = "",
    task: Annotated[str, typer.Argument(help="Class of the task.")] = "",
    config: Config = None,
    resume: Annotated[str, typer.Option("--resume", help="Go on with this earlier run instead of a new one.")] = "",
    json_output: Json = False,
) -> None:
    """Run a task graph from this process.

    Parameters of the task follow, as Luigi's own command line has them: --amplitude 0.2 --fast
    """
    from bbpwf.cli import ahead
    from bbpwf.cli.luigi_arguments import parameters

    params = parameters(context.args)
    if bool(resume) == bool(module and task):
        raise InvalidInput("give either MODULE and TASK, or --resume RUN_ID")
    if resume and (params or config):
        raise InvalidInput("a run is resumed with the parameters and config that it began with")
    with ahead.begin() as begun:  # connects while the rest is imported
        from bbpwf.cli.run import run_here

        code = run_here(begun, module, task, params, config, resume=resume, json_output=json_output)
    raise typer.Exit(code)


@app.command(context_settings=_LUIGI_STYLE)
def launch(
    context: typer.Context,
    module: Annotated[str, typer.Argument(help="Module of the task, or a .py file to send along.")],
    task: Annotated[str, typer.Argument(help="Class of the task.")],
    config: Config = None,
    attach: Annotated[
        list[Path] | None, typer.Option("--attach", help="File or folder to send along.", exists=True)
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="NAME=VALUE, to find the run by.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show the run's progress until it ends.")] = False,
    key: Annotated[str, typer.Option("--idempotency-key", help="Launching again with it answers the same run.")] = "",
    json_output: Json = False,
) -> None:
    """Launch a task graph through the service.

    Parameters of the task follow, as Luigi's own command line has them: --amplitude 0.2 --fast
    """
    from bbpwf.cli.launch import launch_there
    from bbpwf.cli.luigi_arguments import parameters

    code = launch_there(
        module,
        task,
        parameters(context.args),
        config=config,
        attach=attach or [],
        tags=tag or [],
        follow=follow,
        idempotency_key=key,
        json_output=json_output,
    )
    raise typer.Exit(code)


@app.command()
def login(
    username: Annotated[str, typer.Option("--username", "-u", help="Log in by name and password.")] = "",
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Leave a login with the service, for runs that outlast this one.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Log in: by any browser, or name and password."""
    from bbpwf.cli.login import log_in

    log_in(username, password_stdin=password_stdin, json_output=json_output, offline=offline)


@app.command()
def logout(
    offline: Annotated[
        bool, typer.Option("--offline", help="Withdraw the login that was left with the service, too.")
    ] = False,
) -> None:
    """Forget the login of this machine."""
    from bbpwf.cli.login import log_out

    log_out(offline=offline)


@app.command()
def proxy(
    port: Annotated[int, typer.Option("--port", help="Loopback port to listen on; 0 picks a free one.", min=0)] = 8099,
) -> None:
    """Offer the service on a loopback port with your login added, for browsers, curl and GA4GH clients."""
    from bbpwf.cli.proxy import serve_proxy

    serve_proxy(port)


@app.command()
def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "",
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 picks a free one.", min=-1)] = -1,
) -> None:
    """Run the service of one project, in the foreground."""
    from bbpwf.cli.serve import serve_here

    serve_here(host, port)


@app.command()
def gateway(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.", min=-1)] = -1,
) -> None:
    """Run the gateway, which starts an instance for every project that is asked for, in the foreground."""
    from bbpwf.cli.gateway import serve_here

    serve_here(host, port)


@app.command(hidden=True)
def agent(
    until_stdin_closes: Annotated[bool, typer.Option("--until-stdin-closes", help="End with our parent.")] = False,
) -> None:
    """Run the cluster agent; ``bbpwf serve`` does."""
    from bbpwf import settings
    from bbpwf.cli.agent import serve as serve_agent

    serve_agent(settings.load(), until_stdin_closes=until_stdin_closes)


def main() -> None:
    """Entry point of the console script."""
    try:
        app(prog_name="bbpwf")
    except BbpwfError as error:
        if os.environ.get(_DEBUG):
            raise
        from bbpwf.cli.exits import exit_code

        typer.echo(f"bbpwf: {error.message}" + (f" [{error.where}]" if error.where else ""), err=True)
        if error.hint:
            typer.echo(f"       {error.hint}", err=True)
        sys.exit(exit_code(error))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


if __name__ == "__main__":
    main()
