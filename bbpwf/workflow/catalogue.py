"""``python -m bbpwf.workflow.catalogue``: look at task modules in a process that may hang or crash for all we care.

::

    list [--path DIR]... MODULE...    {"tasks": [...], "errors": [...]}; `describe` is the same
    show [--path DIR]... MODULE:TASK  one task
    main [--path DIR]... MODULE       {"name": "MODULE:TASK"}: the task that is meant by the module alone
    validate < request.json           {"free": {name: kind}}, or {"error": {"type", "message", "hint"}}

Whoever calls it sets the limits on its time. What modules print goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from luigi.task_register import Register

from bbpwf.errors import BbpwfError, InvalidInput
from bbpwf.workflow.building import build, extend_path, find_task, import_module, tasks_of
from bbpwf.workflow.config import luigi_config
from bbpwf.workflow.freedom import free_parameters
from bbpwf.workflow.request import HeadRequest, parse_request
from bbpwf.workflow.schema import describe


def listing(modules: Sequence[str]) -> dict[str, Any]:
    """The launchable tasks of these modules; a module that cannot be imported is an entry of ``errors``."""
    tasks: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for name in modules:
        try:
            found = tasks_of(import_module(name))
            tasks.extend(describe(name, found[each]) for each in sorted(found))
        except BbpwfError as error:
            errors.append({"module": name, **error_body(error)})
    return {"tasks": tasks, "errors": errors}


def show(name: str) -> dict[str, Any]:
    """One task by ``module:Task``. Raises UnknownTask."""
    module, _, task = name.partition(":")
    return describe(module, find_task(import_module(module), task))


def main_task(name: str) -> str:
    """``module:Task`` for a module alone: its only task, or else the one that is called as the module is.

    ``hello_world.py`` means ``HelloWorld`` if it has other tasks, too.

    Raises:
        InvalidInput: it has no task, or several and none of that name.
    """
    found = tasks_of(import_module(name))
    alike = name.rpartition(".")[2].replace("_", "").casefold()
    meant = list(found) if len(found) == 1 else [each for each in found if each.casefold() == alike]
    if len(meant) == 1:
        return f"{name}:{meant[0]}"
    if not found:
        raise InvalidInput(f"module {name!r} has no task")
    raise InvalidInput(
        f"module {name!r} has several tasks: {', '.join(sorted(found))}"[:1000],
        hint=f"Write '{name.replace('.', '/')}.py:<Task>', or call one task as the module is called.",
    )


def validate(request: HeadRequest) -> dict[str, str]:
    """The task's free parameters, if the request could run: module, task, parameters and config make sense.

    A request that differs in values of these alone can run, too; see :mod:`bbpwf.workflow.freedom`.

    Raises:
        InvalidInput: what does not.
    """
    extend_path([request.attachments or "", *request.workflows_path])
    Register.clear_instance_cache()
    with luigi_config(request.config_file) as config:
        module = import_module(request.module, attachments=request.attachments)
        config.check()
        cls = find_task(module, request.task)
        build(cls, request.params)
        return free_parameters(cls)


def error_body(error: BbpwfError) -> dict[str, str]:
    """The error as JSON."""
    return {"type": type(error).__name__, "message": error.message, "hint": error.hint}


def main(argv: Sequence[str] | None = None) -> int:
    """Answer one question on standard output; the exit code is 0 whenever there is an answer."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    parser = argparse.ArgumentParser(prog="python -m bbpwf.workflow.catalogue", description="Look at task modules.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("list", "describe"):
        sub = commands.add_parser(command)
        sub.add_argument("--path", action="append", default=[], metavar="DIR")
        sub.add_argument("modules", nargs="+", metavar="MODULE")
    for command, what in (("show", "MODULE:TASK"), ("main", "MODULE")):
        sub = commands.add_parser(command)
        sub.add_argument("--path", action="append", default=[], metavar="DIR")
        sub.add_argument("name", metavar=what)
    commands.add_parser("validate")
    arguments = parser.parse_args(argv)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)  # what a module prints must not garble the answer
        json.dump(_answer(arguments), answer)
    return 0


def _answer(arguments: argparse.Namespace) -> dict[str, Any]:
    try:
        if arguments.command == "validate":
            return {"free": validate(parse_request(sys.stdin.buffer.read(), where="standard input"))}
        extend_path(arguments.path)
        with luigi_config(None):
            if arguments.command == "main":
                return {"name": main_task(arguments.name)}
            return show(arguments.name) if arguments.command == "show" else listing(arguments.modules)
    except InvalidInput as error:
        return {"error": error_body(error)}


if __name__ == "__main__":
    sys.exit(main())
