"""``bbpwf tasks``: what can be launched."""

from __future__ import annotations

from typing import Annotated

import typer

tasks_app = typer.Typer(help="Tasks that the project's service offers.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")]


@tasks_app.command("list")
def list_tasks(json_output: Json = False) -> None:
    """Every task on offer."""
    from bbpwf import settings
    from bbpwf.cli import show
    from bbpwf.cli.client import connect

    found = connect(settings.load()).catalogue()
    if json_output:
        show.print_json(found)
        return
    table = show.table("task", "kind", "")
    for task in found:
        table.add_row(task["name"], task.get("kind", ""), task.get("title", ""))
    show.console().print(table)


@tasks_app.command("show")
def show_task(
    name: Annotated[str, typer.Argument(help="module:Task")],
    json_output: Json = False,
) -> None:
    """A task and its parameters."""
    from rich.text import Text

    from bbpwf import settings
    from bbpwf.cli import show
    from bbpwf.cli.client import connect

    task = connect(settings.load()).task(name)
    if json_output:
        show.print_json(task)
        return
    out = show.console()
    out.print(Text.assemble((task["name"], "bold"), "\n", task.get("description", "")), soft_wrap=True)
    schema = task["parameters"]
    table = show.table("parameter", "type", "default", "")
    for parameter, each in schema["properties"].items():
        kind = "|".join(map(str, each["enum"])) if "enum" in each else str(each.get("type", ""))
        default = "required" if parameter in schema.get("required", []) else str(each.get("default", ""))
        table.add_row("--" + parameter.replace("_", "-"), kind, default, each.get("description", ""))
    out.print(table)
