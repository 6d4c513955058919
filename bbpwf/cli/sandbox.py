"""``bbpwf sandbox``: a whole platform on this machine."""

from __future__ import annotations

import signal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from bbpwf.errors import InvalidConfig

if TYPE_CHECKING:
    from sandbox.state import SandboxState

app = typer.Typer(
    help="A whole platform on this machine, for trying things out: Slurm, sshd, S3, Keycloak, Nexus, the service.",
    no_args_is_help=True,
)

Dir = Annotated[
    Path | None,
    typer.Option("--dir", "-d", help="The sandbox's folder; $BBPWF_SANDBOX_DIR or ./.sandbox if not given."),
]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")]

NOT_UP = 5
NOT_WELL = 4


class Backend(StrEnum):
    """What jobs run on."""

    AUTO = "auto"
    SLURM = "slurm"
    LOCAL = "local"


@app.command()
def up(
    folder: Dir = None,
    service: Annotated[bool, typer.Option("--service/--no-service", help="Start the project's service too.")] = True,
    backend: Annotated[
        Backend, typer.Option("--backend", help="auto: a real Slurm where there is one, else local processes.")
    ] = Backend.AUTO,
    keycloak: Annotated[
        bool | None,
        typer.Option("--keycloak/--small-issuer", help="A real Keycloak, or an issuer that starts in a second."),
    ] = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, and end it all on Ctrl-C.")] = False,
    json_output: Json = False,
) -> None:
    """Start it. One that is up already is left as it is."""
    _needs_extra()
    from bbpwf.cli import show
    from sandbox import lifecycle
    from sandbox.state import folder_of

    _end_on_signals()
    where = folder_of(folder)
    out = show.console(err=True)
    try:
        state = lifecycle.up(
            where, lambda text: out.print(f"  {text}"), service=service, backend=backend.value, keycloak=keycloak
        )
        if json_output:
            show.print_json(_as_json(state))
        else:
            _summary(state)
        if foreground:
            _stay(state)
    except KeyboardInterrupt:
        if foreground:
            lifecycle.down(where, lambda _: None)
        out.print("interrupted; nothing is left running")
        raise typer.Exit(130) from None


@app.command()
def status(folder: Dir = None, json_output: Json = False) -> None:
    """Each part: process, port, how it is, log. Exit code 0 if all is well, 4 if a part is not, 5 if it is not up."""
    _needs_extra()
    from rich.table import Table
    from rich.text import Text

    from bbpwf.cli import show
    from sandbox import lifecycle

    state = _known(folder)
    found = lifecycle.status(state)
    if json_output:
        show.print_json(_as_json(state))
    elif found:
        table = Table("part", "process", "port", "state", "log", box=None, pad_edge=False)
        colours = {"healthy": "green", "unresponsive": "yellow", "dead": "bold red"}
        for each in found:
            pid = str(each.part.process.pid)
            words = Text(each.state, colours[each.state])
            table.add_row(each.part.name, pid, str(each.part.port or ""), words, str(each.part.log))
        show.console().print(table, soft_wrap=True)
        if state.why_local:
            show.console().print(f"jobs run as local processes: {state.why_local}")
    else:
        show.console().print(f"the sandbox in {state.folder} is down")
    if not found:
        raise typer.Exit(NOT_UP)
    if not state.complete or any(each.state != "healthy" for each in found):
        raise typer.Exit(NOT_WELL)


@app.command()
def down(
    folder: Dir = None,
    purge: Annotated[bool, typer.Option("--purge", help="Remove its folder too, results and all.")] = False,
) -> None:
    """End every process of it. Data stay."""
    _needs_extra()
    from bbpwf.cli import show
    from sandbox import lifecycle
    from sandbox.state import folder_of

    where = folder_of(folder)
    out = show.console(err=True)
    count = lifecycle.down(where, lambda text: out.print(f"  ending {text}"), purge=purge)
    out.print(f"{count} processes ended" if count else "nothing was running", end="")
    out.print(f"; {where} is removed" if purge else f" in {where}")


@app.command()
def env(
    folder: Dir = None,
    service: Annotated[bool, typer.Option("--service", help="What a service needs, its secrets included.")] = False,
) -> None:
    """Print the variables that let commands use it: ``eval "$(bbpwf sandbox env)"``."""
    _needs_extra()
    state = _known(folder)
    if not state.parts:
        from bbpwf.errors import NotFound

        raise NotFound(f"the sandbox in {state.folder} is down", hint="Start it with `bbpwf sandbox up`.")
    typer.echo((state.folder / ("env.service" if service else "env")).read_text(), nl=False)


@app.command()
def demo(
    folder: Dir = None,
    fail_point: Annotated[
        int | None, typer.Option("--fail-point", help="Make the simulation of this point fail, 0 is the first.", min=0)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Let the run go on after it failed.")] = False,
    end: Annotated[bool, typer.Option("--down/--keep", help="End the sandbox afterwards, or leave it up.")] = False,
    backend: Annotated[Backend, typer.Option("--backend", help="As for `up`.")] = Backend.AUTO,
) -> None:
    """Run a simulation campaign through the whole platform, from token to knowledge graph."""
    _needs_extra()
    from sandbox.demo import Demo
    from sandbox.state import folder_of

    _end_on_signals()
    asked = Demo(folder_of(folder), fail_point=fail_point, resume=resume, end=end, backend=backend.value)
    raise typer.Exit(asked.run())


def _needs_extra() -> None:
    """The sandbox's own dependencies are an extra of the package.

    Raises:
        InvalidConfig: they are not installed.
    """
    try:
        import fastapi  # noqa: F401 its presence is what is asked for
        import moto  # noqa: F401 likewise
    except ImportError as error:
        raise InvalidConfig(
            f"the sandbox cannot run here: the package {error.name} is not installed",
            hint="Install bbpwf[sandbox,service], or run `make setup` in a checkout.",
        ) from error


def _end_on_signals() -> None:
    """Clean up after SIGTERM and a closed terminal as after Ctrl-C."""

    def interrupt(number: int, frame: object) -> NoReturn:
        del number, frame
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def _known(folder: Path | None) -> SandboxState:
    from bbpwf.errors import NotFound
    from sandbox.state import folder_of, load

    where = folder_of(folder)
    state = load(where)
    if state is None:
        raise NotFound(f"there is no sandbox in {where}", hint="Start one with `bbpwf sandbox up`.")
    return state


def _as_json(state: SandboxState) -> dict[str, Any]:
    from sandbox import lifecycle

    parts = [
        {
            "name": each.part.name,
            "pid": each.part.process.pid,
            "port": each.part.port,
            "state": each.state,
            "log": str(each.part.log),
        }
        for each in lifecycle.status(state)
    ]
    return {
        "folder": str(state.folder),
        "backend": state.backend,
        "complete": state.complete,
        "started": state.started,
        "urls": state.urls,
        "parts": parts,
    }


def _summary(state: SandboxState) -> None:
    from bbpwf.cli import show
    from sandbox.tenants import PEOPLE

    out = show.console()
    out.print(f"The sandbox in {state.folder} is up ({len(state.parts)} processes).")
    for name, url in state.urls.items():
        out.print(f"  {name:<12}{url}")
    out.print(f"  {'people':<12}{', '.join(person.username for person in PEOPLE)} (password = name)")
    out.print(f'  use it      eval "$(bbpwf sandbox env --dir {state.folder})"')
    out.print(f"  end it      bbpwf sandbox down --dir {state.folder}")


def _stay(state: SandboxState) -> None:
    """Wait for Ctrl-C, and tell when a part dies. Raises KeyboardInterrupt."""
    from bbpwf.cli import show
    from bbpwf.clock import SystemClock

    clock = SystemClock()
    out = show.console(err=True)
    out.print("Ctrl-C ends it.")
    told: set[str] = set()
    while True:
        clock.sleep(1.0)
        for part in state.parts:
            if part.name not in told and not part.process.alive():
                told.add(part.name)
                out.print(f"{part.name} has ended; its log is {part.log}")
